"""Answers of the test gateway in the shapes that OpenAI's and Anthropic's clients read.

Rule: whole replies and streams say the same; usage is made up and constant.
"""

from __future__ import annotations

import itertools
import json
from typing import Any, Dict, Iterator, List, Optional, Tuple

_numbers = itertools.count(1)
PROTOCOLS = {"/chat/completions": "chat", "/responses": "responses", "/messages": "messages"}
USAGE = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}


def protocol_of(path: str) -> Optional[str]:
    """Which protocol a path speaks."""
    return next((name for end, name in PROTOCOLS.items() if path.endswith(end)), None)


def written(protocol: str, body: Dict[str, Any], answer: Any) -> Tuple[str, bytes]:
    """Content type and bytes of a reply."""
    text = answer if isinstance(answer, str) else ""
    calls = [] if isinstance(answer, str) else answer if type(answer) is list else [answer]
    tools = [
        {"id": c.id or f"call_{next(_numbers)}", "name": c.name, "arguments": c.arguments} for c in calls
    ]
    stream = body.get("stream") is True
    model = str(body.get("model", "m"))
    events = _EVENTS[protocol](model, text, tools, stream)
    if stream:
        return "text/event-stream", b"".join(events)
    return "application/json", next(events)


def _chat(model: str, text: str, tools: List[Dict[str, Any]], stream: bool) -> Iterator[bytes]:
    calls = [
        {
            "index": i,
            "id": t["id"],
            "type": "function",
            "function": {"name": t["name"], "arguments": json.dumps(t["arguments"])},
        }
        for i, t in enumerate(tools)
    ]
    message: Dict[str, Any] = {"role": "assistant", "content": text if not tools else None}
    if calls:
        message["tool_calls"] = calls
    finish = "tool_calls" if calls else "stop"
    head = {"id": f"chatcmpl-{next(_numbers)}", "created": 1, "model": model}
    if not stream:
        choice = {"index": 0, "message": message, "finish_reason": finish}
        yield _json({**head, "object": "chat.completion", "choices": [choice], "usage": USAGE})
        return
    chunk = {**head, "object": "chat.completion.chunk"}
    yield _data({**chunk, "choices": [{"index": 0, "delta": message, "finish_reason": None}]})
    yield _data({**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    yield _data({**chunk, "choices": [], "usage": USAGE})
    yield b"data: [DONE]\n\n"


def _responses(model: str, text: str, tools: List[Dict[str, Any]], stream: bool) -> Iterator[bytes]:
    output: List[Dict[str, Any]] = [
        {
            "type": "function_call",
            "id": f"fc_{t['id']}",
            "call_id": t["id"],
            "name": t["name"],
            "arguments": json.dumps(t["arguments"]),
            "status": "completed",
        }
        for t in tools
    ]
    if not tools:
        part = {"type": "output_text", "text": text, "annotations": []}
        output = [
            {
                "type": "message",
                "id": f"msg_{next(_numbers)}",
                "role": "assistant",
                "status": "completed",
                "content": [part],
            }
        ]
    whole = {
        "id": f"resp_{next(_numbers)}",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": model,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 20,
            "output_tokens": 5,
            "total_tokens": 25,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }
    if not stream:
        yield _json(whole)
        return
    yield _event("response.created", {"response": {**whole, "status": "in_progress", "output": []}})
    for i, item in enumerate(output):
        yield _event("response.output_item.added", {"output_index": i, "item": item})
        yield _event("response.output_item.done", {"output_index": i, "item": item})
    yield _event("response.completed", {"response": whole})


def _messages(model: str, text: str, tools: List[Dict[str, Any]], stream: bool) -> Iterator[bytes]:
    content: List[Dict[str, Any]] = [
        {"type": "tool_use", "id": t["id"], "name": t["name"], "input": t["arguments"]} for t in tools
    ] or [{"type": "text", "text": text}]
    stop = "tool_use" if tools else "end_turn"
    whole = {
        "id": f"msg_{next(_numbers)}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {"input_tokens": 20, "output_tokens": 5},
    }
    if not stream:
        yield _json(whole)
        return
    yield _event("message_start", {"message": {**whole, "content": [], "stop_reason": None}})
    for i, block in enumerate(content):
        is_tool = block["type"] == "tool_use"
        begun = {**block, "input": {}} if is_tool else {**block, "text": ""}
        delta = (
            {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            if is_tool
            else {"type": "text_delta", "text": block["text"]}
        )
        yield _event("content_block_start", {"index": i, "content_block": begun})
        yield _event("content_block_delta", {"index": i, "delta": delta})
        yield _event("content_block_stop", {"index": i})
    end = {"stop_reason": stop, "stop_sequence": None}
    yield _event("message_delta", {"delta": end, "usage": {"output_tokens": 5}})
    yield _event("message_stop", {})


_EVENTS = {"chat": _chat, "responses": _responses, "messages": _messages}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _data(value: Any) -> bytes:
    return b"data: " + _json(value) + b"\n\n"


def _event(kind: str, value: Dict[str, Any]) -> bytes:
    return f"event: {kind}\n".encode() + _data({"type": kind, "sequence_number": next(_numbers), **value})
