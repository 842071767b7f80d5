"""Anthropic's messages, which a vLLM server speaks as well, as a form of chat.

Rule: a request becomes a chat request, and the reply is written by a shape with the methods of `wire.ChatShape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agentserve_adapters.emulated.speech import Speech
from agentserve_adapters.emulated.tokens import GROUP
from agentserve_adapters.emulated.wire import ChatShape

Json = dict[str, Any]
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def named_event(kind: str, value: Json) -> bytes:
    """A server-sent event with its name."""
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode({"type": kind, **value}) + b"\n\n"


def text_of(content: Any) -> str:
    """The text in a content, be it a string or parts."""
    if isinstance(content, str):
        return content
    return "".join(str(p.get("text", "")) for p in content or () if isinstance(p, dict))


def chat_from_messages(body: Json) -> Json:
    """An Anthropic request as a chat request."""
    messages: list[Json] = []
    if body.get("system"):
        messages.append({"role": "system", "content": text_of(body["system"])})
    for message in body.get("messages") or ():
        messages += _chat_turn(message)
    out = {**body, "messages": messages, "stop": body.get("stop_sequences")}
    if body.get("tools"):
        out["tools"] = [
            {
                "type": "function",
                "function": {"name": t.get("name", ""), "parameters": t.get("input_schema") or {}},
            }
            for t in body["tools"]
        ]
    choice = body.get("tool_choice") or {}
    forced = {"type": "function", "function": {"name": choice.get("name")}}
    out["tool_choice"] = {"any": "required", "none": "none", "tool": forced}.get(
        str(choice.get("type")), "auto"
    )
    return out


def _chat_turn(message: Json) -> list[Json]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"role": message.get("role", "user"), "content": content}]
    out: list[Json] = []
    parts: list[Json] = []
    calls: list[Json] = []
    for part in content or ():
        kind = part.get("type")
        if kind == "tool_use":
            calls.append({"function": {"name": part.get("name", ""), "arguments": part.get("input") or {}}})
        elif kind == "tool_result":
            out.append({"role": "tool", "content": text_of(part.get("content"))})
        elif kind != "thinking":
            parts.append(part)
    if parts or calls or not out:
        turn: Json = {"role": message.get("role", "user"), "content": parts or None}
        out.append({**turn, "tool_calls": calls} if calls else turn)
    return out


def ended(speech: Speech) -> Json:
    """Why a message is over, in Anthropic's words."""
    reason = STOP_REASONS[speech.finish_reason] if speech.stop_reason is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": speech.stop_reason}


class MessagesShape(ChatShape):
    """Anthropic's messages, whole and in events."""

    done = b""
    always_counted = True

    def __init__(self, name: str, model: str, prompt_tokens: int) -> None:
        super().__init__(name, model, 0)
        self.prompt_tokens = prompt_tokens
        self.ended: Json = {}
        self.name = f"msg_{name}"
        self.model = model

    def _usage(self, counts: Json) -> Json:
        cached = counts["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": counts["prompt_tokens"] - cached,
            "output_tokens": counts["completion_tokens"],
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
        }

    def _message(self, content: Sequence[Json], finish: str | None, usage: Json) -> Json:
        return {
            "id": self.name,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": list(content),
            "stop_reason": finish,
            "stop_sequence": None,
            "usage": usage,
        }

    def whole(self, speeches: list[Speech], counts: Json) -> Json:
        (speech,) = speeches
        content: list[Json] = [
            {
                "type": "tool_use",
                "id": call["id"],
                "name": call["function"]["name"],
                "input": msgspec.json.decode(call["function"]["arguments"]),
            }
            for call in speech.calls
        ] or [{"type": "text", "text": speech.text}]
        return {**self._message(content, None, self._usage(counts)), **ended(speech)}

    def opening(self, index: int) -> bytes:
        usage = {"input_tokens": self.prompt_tokens, "output_tokens": 0}
        return named_event("message_start", {"message": self._message((), None, usage)})

    def piece(self, index: int, speech: Speech, before: int, now: int) -> bytes:
        out = b""
        if not speech.calls:
            if before == 0:
                block: Json = {"type": "text", "text": ""}
                out += named_event("content_block_start", {"index": 0, "content_block": block})
            text = speech.text[before * GROUP : now * GROUP]
            delta = {"type": "text_delta", "text": text}
            return out + (named_event("content_block_delta", {"index": 0, "delta": delta}) if text else b"")
        if now < speech.tokens:
            return out
        for k, call in enumerate(speech.calls):
            block = {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": {}}
            out += named_event("content_block_start", {"index": k, "content_block": block})
            delta = {"type": "input_json_delta", "partial_json": call["function"]["arguments"]}
            out += named_event("content_block_delta", {"index": k, "delta": delta})
        return out

    def closing(self, index: int, speech: Speech) -> bytes:
        self.ended = ended(speech)
        blocks = range(max(len(speech.calls), 1))
        return b"".join(named_event("content_block_stop", {"index": k}) for k in blocks)

    def counted(self, counts: Json) -> bytes:
        last = named_event("message_delta", {"delta": self.ended, "usage": self._usage(counts)})
        return last + named_event("message_stop", {})
