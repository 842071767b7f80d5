"""Reads replies that come in one piece, of every protocol.

Rule: never raises; a body that is not JSON is a reply that broke.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agentserve.core.identity.evidence import Item
from agentserve.live.wire.call import Protocol
from agentserve.live.wire.canon import Canon, text_of
from agentserve.live.wire.draft import Draft, string
from agentserve.live.wire.reply import Reply, usage_of

UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)

decode_any = msgspec.json.Decoder().decode


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: Any = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    id: Any = None
    model: Any = None
    usage: Any = None
    error: Any = None


_decode_completion = msgspec.json.Decoder(_Completion).decode


def read_reply(protocol: Protocol, body: bytes, *, canon: Canon | None = None) -> Reply:
    """A reply that came in one piece."""
    if protocol == "chat":
        try:
            return _usual_chat(_decode_completion(body))
        except UNREADABLE:  # of another shape: then field by field
            pass
    try:
        decoded = decode_any(body)
    except UNREADABLE:
        decoded = None
    if not isinstance(decoded, dict):
        return Reply(whole=False, error="the reply is not a JSON object")
    draft = Draft()
    draft.whole = True
    draft.response_id, draft.model = string(decoded.get("id")), string(decoded.get("model"))
    draft.usage = usage_of(decoded.get("usage"))
    if decoded.get("error"):
        draft.failed(decoded["error"])
    if protocol == "responses":
        responses_head(draft, decoded)
        output = decoded.get("output")
        items = responses_output(
            draft, output if isinstance(output, list) else [], canon or Canon(items_max=64)
        )
        return draft.reply(items=items)
    if protocol == "messages":
        _messages_body(draft, decoded)
        return draft.reply()
    _chat_body(draft, decoded)
    return draft.reply(items=() if protocol in ("completions", "embeddings") else None)


def _usual_chat(completion: _Completion) -> Reply:
    """A chat completion of the usual shape, of which only what counts was decoded."""
    draft = Draft()
    draft.whole = True
    draft.response_id, draft.model = string(completion.id), string(completion.model)
    draft.usage = usage_of(completion.usage)
    if completion.error:
        draft.failed(completion.error)
    if completion.choices:
        choice = completion.choices[0]
        draft.ends(choice.finish_reason)
        message = choice.message
        if message.content:
            draft.text(message.content)
        if message.refusal:
            draft.text(message.refusal)
        if message.tool_calls:
            _chat_calls(draft, message.tool_calls)
    return draft.reply()


def _messages_body(draft: Draft, body: dict[str, Any]) -> None:
    draft.ends(body.get("stop_reason"))
    content = body.get("content")
    for index, block in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(block, dict):
            continue
        if block.get("type") == "tool_use":
            draft.call(index, block.get("id"), block.get("name"), block.get("input"))
        elif block.get("type") == "text":
            draft.text(block.get("text"))


def _chat_body(draft: Draft, body: dict[str, Any]) -> None:
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict):
        return
    draft.ends(first.get("finish_reason"))
    message = first.get("message")
    if not isinstance(message, dict):
        if isinstance(text := first.get("text"), str):
            draft.chars += len(text)
        return
    draft.text(message.get("content"))
    draft.text(message.get("refusal"))
    _chat_calls(draft, message.get("tool_calls"))


def _chat_calls(draft: Draft, calls: Any) -> None:
    for index, call in enumerate(calls if isinstance(calls, list) else ()):
        inner = call.get("function", call.get("custom")) if isinstance(call, dict) else None
        if isinstance(inner, dict):
            arguments = inner.get("arguments", inner.get("input"))
            draft.call(index, call.get("id"), inner.get("name"), arguments)


def responses_head(draft: Draft, body: dict[str, Any]) -> None:
    """Everything of a Responses body but its output."""
    draft.response_id = string(body.get("id")) or draft.response_id
    draft.model = string(body.get("model")) or draft.model
    draft.usage = usage_of(body.get("usage"))
    reason = body.get("incomplete_details")
    draft.ends(reason.get("reason") if isinstance(reason, dict) else body.get("status"))
    if body.get("error"):
        draft.failed(body["error"])


def responses_output(draft: Draft, output: list[Any], canon: Canon) -> tuple[Item, ...]:
    """The output items: text and calls into the draft, and what the client will echo of them."""
    for index, item in enumerate(output):
        if not isinstance(item, dict):
            continue
        if item.get("type") == "message":
            draft.text(text_of(item.get("content")))
        elif isinstance(item.get("type"), str) and item["type"].endswith("_call"):
            arguments = item.get("arguments", item.get("input", item.get("action")))
            draft.call(index, item.get("call_id", item.get("id")), item.get("name", item["type"]), arguments)
    if draft.calls and draft.finish == "stop":
        draft.finish = "tool_calls"
    return tuple(canon.items(output))
