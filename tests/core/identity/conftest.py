"""A wire to talk over: requests in a client's shape in, the resolver's verdict out, replies as engines send them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from agentserve.core.identity import Outcome, Resolved, Resolver
from agentserve.live.wire import CallReader, Protocol, reader_of

Json = dict[str, Any]
ToolAsked = tuple[str, str, Json]  # id, name, arguments

PATH_OF = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}


class Wire:
    """One gateway's view: reads calls, resolves them, and checks every invariant after each event."""

    def __init__(self) -> None:
        self.reader = CallReader()
        self.resolver = Resolver()
        self.now = 1000.0
        self._serial = itertools.count()
        self._told: dict[int, Callable[[], bytes]] = {}  # by ticket

    def send(
        self,
        body: Json,
        *,
        path: str = PATH_OF["chat"],
        headers: dict[str, str] | None = None,
        tenant: str = "acme",
    ) -> Resolved:
        """A request, as parsed off the wire."""
        self.now += 0.01
        plain = json.loads(json.dumps(body))  # nothing is shared with an earlier request
        call = self.reader.read(path, {k.lower(): v for k, v in (headers or {}).items()}, plain)
        assert call is not None
        resolved = self.resolver.resolve(call.evidence, tenant=tenant, now=self.now)
        self.resolver.check()
        self._told[resolved.ticket] = call.said.told
        return resolved

    def answer(
        self, resolved: Resolved, protocol: Protocol, text: str = "", calls: list[ToolAsked] | None = None
    ) -> tuple[list[Json], Outcome]:
        """The engine's reply; what the client will echo of it, and what the resolver makes of it."""
        self.now += 0.5
        serial = next(self._serial)
        stream, echo = _RENDER[protocol](text, calls or [], serial)
        reader = reader_of(protocol, streamed=True)
        for at in range(0, len(stream), 37):
            reader.feed(stream[at : at + 37])
        reply = reader.finish()
        assert reply.whole
        outcome = self.resolver.replied(resolved, reply.evidence(self._told.pop(resolved.ticket)), self.now)
        self.resolver.check()
        return echo, outcome

    def fail(self, resolved: Resolved) -> None:
        """The call came to nothing."""
        self.resolver.failed(resolved, self.now)
        self.resolver.check()


def _sse(events: list[Json], *, named: bool = False, done: bool = False) -> bytes:
    lines = []
    for event in events:
        head = f"event: {event['type']}\n" if named else ""
        lines.append(f"{head}data: {json.dumps(event)}\n\n")
    return "".join(lines + (["data: [DONE]\n\n"] if done else [])).encode()


def _chat(text: str, calls: list[ToolAsked], serial: int) -> tuple[bytes, list[Json]]:
    def chunk(delta: Json, finish: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {
            "id": f"chatcmpl-{serial}",
            "object": "chat.completion.chunk",
            "model": "m",
            "choices": [choice],
        }

    events = [chunk({"role": "assistant", "content": ""})]
    events += [chunk({"content": piece}) for piece in (text[:5], text[5:]) if piece]
    for at, (call_id, name, arguments) in enumerate(calls):
        spelt = json.dumps(arguments)
        head = {"index": at, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
        events.append(chunk({"tool_calls": [head]}))
        events += [
            chunk({"tool_calls": [{"index": at, "function": {"arguments": piece}}]})
            for piece in (spelt[:3], spelt[3:])
        ]
    events.append(chunk({}, "tool_calls" if calls else "stop"))
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    events.append({"id": f"chatcmpl-{serial}", "model": "m", "choices": [], "usage": usage})
    message: Json = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [
            {
                "id": call_id,
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for call_id, name, arguments in calls
        ]
    return _sse(events, done=True), [message]


def _messages(text: str, calls: list[ToolAsked], serial: int) -> tuple[bytes, list[Json]]:
    head = {
        "id": f"msg_{serial}",
        "role": "assistant",
        "model": "m",
        "content": [],
        "usage": {"input_tokens": 90, "output_tokens": 1},
    }
    events: list[Json] = [{"type": "message_start", "message": head}, {"type": "ping"}]
    blocks: list[Json] = [{"type": "thinking", "thinking": "Hm, let me see.", "signature": "c2ln"}]
    events += [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "thinking_delta", "thinking": "Hm, let me see."},
        },
        {"type": "content_block_stop", "index": 0},
    ]
    if text:
        blocks.append({"type": "text", "text": text})
        events += [
            {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": text[:4]}},
            {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": text[4:]}},
        ]
    for at, (call_id, name, arguments) in enumerate(calls, start=2):
        blocks.append({"type": "tool_use", "id": call_id, "name": name, "input": arguments})
        spelt = json.dumps(arguments)
        block = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
        events.append({"type": "content_block_start", "index": at, "content_block": block})
        events += [
            {
                "type": "content_block_delta",
                "index": at,
                "delta": {"type": "input_json_delta", "partial_json": piece},
            }
            for piece in (spelt[:2], spelt[2:])
        ]
    stop = {"stop_reason": "tool_use" if calls else "end_turn", "stop_sequence": None}
    events += [
        {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 20}},
        {"type": "message_stop"},
    ]
    return _sse(events, named=True), [{"role": "assistant", "content": blocks}]


def _responses(text: str, calls: list[ToolAsked], serial: int) -> tuple[bytes, list[Json]]:
    items: list[Json] = [
        {"type": "reasoning", "id": f"rs_{serial}", "summary": [], "encrypted_content": "b3Bh"}
    ]
    if text:
        part = {"type": "output_text", "text": text, "annotations": []}
        items.append(
            {
                "type": "message",
                "id": f"msg_{serial}",
                "role": "assistant",
                "status": "completed",
                "content": [part],
            }
        )
    for call_id, name, arguments in calls:
        items.append(
            {"type": "function_call", "id": f"fc_{call_id}", "call_id": call_id, "name": name,
             "arguments": json.dumps(arguments), "status": "completed"}
        )  # fmt: skip
    head = {"id": f"resp_{serial}", "model": "m", "status": "in_progress", "output": []}
    events: list[Json] = [{"type": "response.created", "response": head}]
    for at, item in enumerate(items):
        events.append(
            {
                "type": "response.output_item.added",
                "output_index": at,
                "item": {**item, "status": "in_progress"},
            }
        )
        events.append({"type": "response.output_text.delta", "output_index": at, "delta": text[:3]})
        events.append({"type": "response.output_item.done", "output_index": at, "item": item})
    usage = {"input_tokens": 100, "output_tokens": 20, "input_tokens_details": {"cached_tokens": 64}}
    whole = {**head, "status": "completed", "output": items, "usage": usage}
    events.append({"type": "response.completed", "response": whole})
    return _sse(events, named=True), items


_RENDER = {"chat": _chat, "messages": _messages, "responses": _responses}


@pytest.fixture
def wire() -> Wire:
    return Wire()
