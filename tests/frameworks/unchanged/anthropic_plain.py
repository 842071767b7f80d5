"""The same loop over the plain `anthropic` client."""

from typing import Any

import anthropic

TOOL: Any = {
    "name": "search",
    "description": "Search the web.",
    "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
}


def run(question: str) -> str:
    with anthropic.Anthropic() as client:
        messages: list[Any] = [{"role": "user", "content": question}]
        while True:
            reply = client.messages.create(
                model="emulated", max_tokens=1000, system="You research.", messages=messages, tools=[TOOL]
            )
            calls = [block for block in reply.content if block.type == "tool_use"]
            if not calls:
                return "".join(block.text for block in reply.content if block.type == "text")
            messages.append({"role": "assistant", "content": reply.content})
            results = [
                {"type": "tool_result", "tool_use_id": call.id, "content": "three cities"} for call in calls
            ]
            messages.append({"role": "user", "content": results})
