"""A tool loop of your own, marked: `AGENTSERVE_URL=http://127.0.0.1:8400 python plain.py`."""

import json
import os
from typing import Any

import openai

import agentserve_sdk as agentserve

agentserve.init()
URL = os.environ.get("AGENTSERVE_URL", "http://127.0.0.1:8400")
client = openai.OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("AGENTSERVE_API_KEY", "none"))
MODEL = os.environ.get("MODEL", "emulated")
SEARCH = {"name": "search", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}}
TOOLS: Any = [{"type": "function", "function": SEARCH}]


def search(q: str = "") -> str:
    return f"nothing new about {q}"


@agentserve.workflow(name="research", deadline_s=120, priority="interactive")
def research(question: str, turns: int = 3) -> str:
    messages: list[Any] = [{"role": "user", "content": question}]
    for _ in range(turns):
        reply = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
        said: Any = reply.choices[0].message
        messages.append(said)
        if not said.tool_calls:
            return said.content or ""
        for call in said.tool_calls:
            with agentserve.tool(call.function.name, call_id=call.id):  # its end is told before the next call
                result = search(**json.loads(call.function.arguments or "{}"))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return "out of turns"


print(research("What is new?"))
