"""The loop that every agent is, over the plain `openai` client."""

from typing import Any

import openai

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search the web.",
        "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
    },
}


def run(question: str) -> str:
    with openai.OpenAI() as client:
        messages: list[Any] = [
            {"role": "system", "content": "You research."},
            {"role": "user", "content": question},
        ]
        while True:
            reply = client.chat.completions.create(model="emulated", messages=messages, tools=[TOOL])
            said = reply.choices[0].message
            messages.append(said)
            if not said.tool_calls:
                return said.content or ""
            messages += [
                {"role": "tool", "tool_call_id": call.id, "content": "three cities"}
                for call in said.tool_calls
            ]
