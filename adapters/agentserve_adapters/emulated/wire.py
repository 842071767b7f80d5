"""Replies and errors byte for byte in the shapes that a vLLM server sends."""

from __future__ import annotations

from typing import Any

import msgspec

from agentserve_adapters.emulated.speech import Speech
from agentserve_adapters.emulated.tokens import GROUP

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + _encode(value) + b"\n\n"


def error(message: str, status: int, kind: str, param: str | None = None) -> dict[str, Any]:
    """vLLM's error body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def usage(prompt: int, output: int, cached: int) -> dict[str, Any]:
    """Token counts, with what was found cached."""
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + output,
        "completion_tokens": output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def message(speech: Speech) -> dict[str, Any]:
    """A whole assistant message."""
    out: dict[str, Any] = {
        "role": "assistant",
        "content": speech.text if not speech.calls else None,
        "refusal": None,
        "reasoning": None,
        "tool_calls": list(speech.calls),
    }
    return out


class ChatShape:
    """Chat completions, whole and in chunks."""

    done = DONE  # what ends a stream
    always_counted = False  # whether a stream ends with usage even if not asked

    def __init__(self, name: str, model: str, created: int) -> None:
        self.head = {"id": f"chatcmpl-{name}", "created": created, "model": model}

    def whole(self, speeches: list[Speech], counts: dict[str, Any]) -> dict[str, Any]:
        choices = [
            {
                "index": i,
                "message": message(s),
                "logprobs": None,
                "finish_reason": s.finish_reason,
                "stop_reason": s.stop_reason,
            }
            for i, s in enumerate(speeches)
        ]
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": counts}

    def chunk(self, index: int, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish, **more}
        return event({**self.head, "object": "chat.completion.chunk", "choices": [choice]})

    def opening(self, index: int) -> bytes:
        return self.chunk(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, speech: Speech, before: int, now: int) -> bytes:
        """What became known between two counts of tokens."""
        if not speech.calls:
            text = speech.text[before * GROUP : now * GROUP]
            return self.chunk(index, {"content": text}) if text else b""
        out = b""
        for k, call in enumerate(speech.calls):
            function = call["function"]
            if before == 0:
                opened = {"index": k, "id": call["id"], "type": "function"}
                opened["function"] = {"name": function["name"], "arguments": ""}
                out += self.chunk(index, {"tool_calls": [opened]})
            if now >= speech.tokens:
                rest = {"index": k, "function": {"arguments": function["arguments"]}}
                out += self.chunk(index, {"tool_calls": [rest]})
        return out

    def closing(self, index: int, speech: Speech) -> bytes:
        delta = {"content": ""} if not speech.calls else {}
        return self.chunk(index, delta, speech.finish_reason, stop_reason=speech.stop_reason)

    def counted(self, counts: dict[str, Any]) -> bytes:
        return event({**self.head, "object": "chat.completion.chunk", "choices": [], "usage": counts})


class TextShape(ChatShape):
    """Plain completions."""

    def __init__(self, name: str, model: str, created: int) -> None:
        super().__init__(name, model, created)
        self.head["id"] = f"cmpl-{name}"

    def whole(self, speeches: list[Speech], counts: dict[str, Any]) -> dict[str, Any]:
        choices = [
            {
                "index": i,
                "text": s.text,
                "logprobs": None,
                "finish_reason": s.finish_reason,
                "stop_reason": s.stop_reason,
            }
            for i, s in enumerate(speeches)
        ]
        return {**self.head, "object": "text_completion", "choices": choices, "usage": counts}

    def chunk(self, index: int, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        text = delta.get("content", "")
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish, **more}
        return event({**self.head, "object": "text_completion", "choices": [choice]})

    def opening(self, index: int) -> bytes:
        return b""

    def counted(self, counts: dict[str, Any]) -> bytes:
        return event({**self.head, "object": "text_completion", "choices": [], "usage": counts})
