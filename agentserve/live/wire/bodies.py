"""Reads replies that come in one piece, of every protocol.

Rule: never raises; a body that is not JSON is a reply that broke.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from agentserve.core.identity.evidence import Item
from agentserve.live.wire.call import Protocol
from agentserve.live.wire.canon import Canon, assistant_item, text_of
from agentserve.live.wire.draft import TEXT_CHARS_MAX, Draft, string
from agentserve.live.wire.extensions import TOKENS_MAX
from agentserve.live.wire.reply import Reply, Usage, finish_of, usage_of

UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)

decode_any = msgspec.json.Decoder().decode
BODY_BYTES_MAX = 32 * 1024 * 1024


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: Any = None


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]


class _Details(msgspec.Struct):
    cached_tokens: _Tokens | None = None
    reasoning_tokens: _Tokens | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Tokens
    completion_tokens: _Tokens
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    reasoning_tokens: _Tokens | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    id: str | None = None
    model: str | None = None
    usage: _Usage | None = None
    error: Any = None


_decode_completion = msgspec.json.Decoder(_Completion).decode


class WholeReader:
    """Reads a reply that comes in one piece: `feed` each chunk as it passes, `finish` at the end."""

    __slots__ = ("_body", "_bytes", "_canon", "_protocol")

    def __init__(self, protocol: Protocol, canon: Canon | None) -> None:
        self._protocol: Protocol = protocol
        self._canon = canon
        self._body: list[bytes] = []
        self._bytes = 0

    def feed(self, chunk: bytes) -> None:
        """Bytes that go to the client."""
        self._bytes += len(chunk)
        if self._bytes <= BODY_BYTES_MAX:
            self._body.append(chunk)

    def finish(self) -> Reply:
        """The reply, as far as it came."""
        return read_reply(self._protocol, b"".join(self._body), canon=self._canon)


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
    usage = None if completion.usage is None else _usual_usage(completion.usage)
    if completion.choices:
        choice = completion.choices[0]
        message = choice.message
        text = (message.content or "") + (message.refusal or "")
        if not message.tool_calls and not completion.error and len(text) <= TEXT_CHARS_MAX:
            return Reply(
                response_id=completion.id,
                model=completion.model,
                finish=finish_of(choice.finish_reason),
                usage=usage,
                items=(assistant_item(text, ()),) if text else (),
                output_chars=len(text),
                text=text,
            )
    draft = Draft()
    draft.whole = True
    draft.response_id, draft.model, draft.usage = completion.id, completion.model, usage
    if completion.error:
        draft.failed(completion.error)
    if completion.choices:
        draft.ends(choice.finish_reason)
        draft.text(text)
        _chat_calls(draft, message.tool_calls)
    return draft.reply()


def _usual_usage(usage: _Usage) -> Usage:
    found, thought = usage.prompt_tokens_details, usage.completion_tokens_details
    reasoning = None if thought is None else thought.reasoning_tokens
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cached_tokens=None if found is None else found.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens if reasoning is None else reasoning,
    )


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
