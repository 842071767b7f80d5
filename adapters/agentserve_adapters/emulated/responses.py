"""OpenAI's responses as a form of chat: stateless, text and function calls, whole and in events.

Rule: as `dialects`: a request becomes a chat request, and a shape writes the reply. Nothing is stored.
"""

from __future__ import annotations

from typing import Any

from agentserve_adapters.emulated.dialects import named_event, text_of
from agentserve_adapters.emulated.speech import Speech
from agentserve_adapters.emulated.tokens import GROUP
from agentserve_adapters.emulated.wire import ChatShape

Json = dict[str, Any]


def chat_from_responses(body: Json) -> Json:
    """A responses request as a chat request."""
    messages: list[Json] = []
    if body.get("instructions"):
        messages.append({"role": "system", "content": text_of(body["instructions"])})
    given = body.get("input")
    for item in [{"role": "user", "content": given}] if isinstance(given, str) else given or ():
        kind = item.get("type", "message")
        if kind == "function_call":
            function = {"name": item.get("name", ""), "arguments": item.get("arguments", "")}
            if messages and messages[-1].get("tool_calls"):
                messages[-1]["tool_calls"].append({"function": function})
            else:
                messages.append(
                    {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}
                )
        elif kind == "function_call_output":
            messages.append({"role": "tool", "content": text_of(item.get("output"))})
        elif kind == "message":
            messages.append({"role": item.get("role", "user"), "content": item.get("content")})
    out = {**body, "messages": messages}
    if body.get("tools"):
        out["tools"] = [
            {
                "type": "function",
                "function": {"name": t.get("name", ""), "parameters": t.get("parameters") or {}},
            }
            for t in body["tools"]
            if t.get("type") == "function"
        ]
    return out


class ResponsesShape(ChatShape):
    """The response object, and the events that build it up."""

    done = b""
    always_counted = True

    def __init__(self, name: str, model: str, created: int) -> None:
        super().__init__(name, model, created)
        self.name = name
        self.count = 0
        self.final: Speech | None = None
        self.base: Json = {"id": f"resp_{name}", "object": "response", "created_at": created, "model": model}
        self.base |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None}
        self.base |= {"incomplete_details": None, "instructions": None, "metadata": {}}

    def _event(self, kind: str, value: Json) -> bytes:
        self.count += 1
        return named_event(kind, {"sequence_number": self.count - 1, **value})

    def _items(self, speech: Speech) -> list[Json]:
        if not speech.calls:
            part = {"type": "output_text", "text": speech.text, "annotations": []}
            item: Json = {"type": "message", "id": f"msg_{self.name}", "role": "assistant"}
            return [{**item, "status": "completed", "content": [part]}]
        return [
            {"type": "function_call", "id": f"fc_{call['id']}", "call_id": call["id"], "status": "completed"}
            | call["function"]
            for call in speech.calls
        ]

    def whole(self, speeches: list[Speech], counts: Json) -> Json:
        (speech,) = speeches
        cut = speech.finish_reason == "length"
        usage = {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": counts["prompt_tokens_details"],
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counts["total_tokens"],
        }
        ended: Json = {"status": "incomplete" if cut else "completed"}
        if cut:
            ended["incomplete_details"] = {"reason": "max_output_tokens"}
        return {**self.base, **ended, "output": self._items(speech), "usage": usage}

    def opening(self, index: int) -> bytes:
        begun = {"response": {**self.base, "status": "in_progress", "output": [], "usage": None}}
        return self._event("response.created", begun) + self._event("response.in_progress", begun)

    def piece(self, index: int, speech: Speech, before: int, now: int) -> bytes:
        out = b""
        if speech.calls:
            return out
        (item,) = self._items(speech)
        place = {"output_index": 0, "item_id": item["id"], "content_index": 0}
        if before == 0:
            added = {**item, "status": "in_progress", "content": []}
            out += self._event("response.output_item.added", {"output_index": 0, "item": added})
            part = {"type": "output_text", "text": "", "annotations": []}
            out += self._event("response.content_part.added", {**place, "part": part})
        text = speech.text[before * GROUP : now * GROUP]
        if not text:
            return out
        return out + self._event("response.output_text.delta", {**place, "delta": text, "logprobs": []})

    def closing(self, index: int, speech: Speech) -> bytes:
        self.final = speech
        out = b""
        for k, item in enumerate(self._items(speech)):
            place = {"output_index": k, "item_id": item["id"]}
            if speech.calls:
                added = {**item, "status": "in_progress", "arguments": ""}
                said = {**place, "arguments": item["arguments"]}
                out += self._event("response.output_item.added", {"output_index": k, "item": added})
                delta = {**place, "delta": item["arguments"]}
                out += self._event("response.function_call_arguments.delta", delta)
                done = {**said, "name": item["name"]}
                out += self._event("response.function_call_arguments.done", done)
            else:
                part = item["content"][0]
                text = {**place, "content_index": 0, "text": part["text"], "logprobs": []}
                out += self._event("response.output_text.done", text)
                out += self._event("response.content_part.done", {**place, "content_index": 0, "part": part})
            out += self._event("response.output_item.done", {"output_index": k, "item": item})
        return out

    def counted(self, counts: Json) -> bytes:
        assert self.final is not None
        whole = self.whole([self.final], counts)
        return self._event(f"response.{whole['status']}", {"response": whole})
