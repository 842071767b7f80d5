"""Reads replies beside the relay: bytes in as they pass, a `Reply` out at the end.

Rule: never raises and never holds the relay up. Deltas are decoded with typed decoders that skip what is not asked
for, and those that cannot matter are not decoded at all. What was understood before garbage came stays valid.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agentserve.core.identity.evidence import Item
from agentserve.live.wire.call import Protocol
from agentserve.live.wire.canon import Canon, assistant_item, clean, text_of
from agentserve.live.wire.prints import trace_of
from agentserve.live.wire.reply import Reply, ReplyTool, Usage, finish_of, usage_of
from agentserve.live.wire.sse import SseSplitter

BODY_BYTES_MAX = 32 * 1024 * 1024
TEXT_CHARS_MAX = 4 * 1024 * 1024  # of a reply's own text and arguments; beyond it the echo cannot be hashed
TOOL_CALLS_MAX = 512

_UNREADABLE = (msgspec.DecodeError, msgspec.ValidationError, UnicodeError, RecursionError)


class _Function(msgspec.Struct):
    name: Any = None
    arguments: Any = None


class _ToolDelta(msgspec.Struct):
    index: int | None = None
    id: Any = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: Any = None
    tool_calls: list[_ToolDelta] | None = None
    refusal: Any = None


class _Choice(msgspec.Struct):
    index: int | None = None
    delta: _Delta | None = None
    finish_reason: Any = None


class _Chunk(msgspec.Struct):
    id: Any = None
    model: Any = None
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


class _Block(msgspec.Struct):
    type: Any = ""
    id: Any = None
    name: Any = None
    text: Any = None
    partial_json: Any = None
    input: Any = None
    stop_reason: Any = None


class _AnthropicEvent(msgspec.Struct):
    type: Any = ""
    index: int | None = None
    message: Any = None
    content_block: _Block | None = None
    delta: _Block | None = None
    usage: Any = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_anthropic = msgspec.json.Decoder(_AnthropicEvent).decode
_decode_any = msgspec.json.Decoder().decode


class _Draft:
    """A reply in the making, the same for all protocols."""

    __slots__ = (
        "calls",
        "chars",
        "error",
        "finish",
        "model",
        "response_id",
        "texts",
        "usage",
        "usage_raw",
        "whole",
    )

    def __init__(self) -> None:
        self.response_id: str | None = None
        self.model: str | None = None
        self.finish = ""
        self.usage: Usage | None = None
        self.usage_raw: dict[str, Any] = {}
        self.texts: list[str] = []
        self.calls: dict[int, list[Any]] = {}  # index -> [id, name, pieces of its arguments]
        self.chars = 0
        self.whole = False
        self.error: str | None = None

    def text(self, text: Any) -> None:
        if not isinstance(text, str):
            text = text_of(text)
        self.chars += len(text)
        if self.chars <= TEXT_CHARS_MAX:
            self.texts.append(text)

    def call(self, index: int, call_id: Any, name: Any, arguments: Any) -> None:
        """A piece of a tool call; what is not text is left out, except arguments that came decoded."""
        call = self.calls.get(index)
        if call is None:
            if len(self.calls) >= TOOL_CALLS_MAX:
                return
            call = self.calls[index] = ["", "", []]
        if isinstance(call_id, str) and not call[0]:
            call[0] = call_id
        if isinstance(name, str) and not call[1]:
            call[1] = name
        if isinstance(arguments, (dict, list)):
            arguments = msgspec.json.encode(arguments).decode()
        if isinstance(arguments, str) and arguments:
            self.chars += len(arguments)
            if self.chars <= TEXT_CHARS_MAX:
                call[2].append(arguments)

    def ends(self, reason: Any) -> None:
        if (word := finish_of(reason)) != "":
            self.finish = word

    def failed(self, error: Any) -> None:
        message = error.get("message", error.get("type")) if isinstance(error, dict) else error
        self.error = str(message)[:200]
        self.finish = "error"

    def reply(self, *, items: tuple[Item, ...] | None = None) -> Reply:
        tools = tuple(
            ReplyTool(id=str(call_id), name=str(name), arguments="".join(pieces))
            for _, (call_id, name, pieces) in sorted(self.calls.items())
        )
        text = "".join(self.texts)
        if items is None:
            items = (
                (assistant_item(text, [(t.id, t.name, t.arguments) for t in tools]),) if text or tools else ()
            )
        if self.chars > TEXT_CHARS_MAX:
            items = ()  # what was dropped cannot be hashed, so there is no echo to wait for
        return Reply(
            response_id=self.response_id,
            model=self.model,
            finish=self.finish,
            usage=self.usage,
            tools=tools,
            items=items,
            output_chars=self.chars,
            whole=self.whole,
            error=self.error,
            trace=trace_of(clean(text, assistant=True)) if text else None,
        )


def _chat_event(draft: _Draft, data: bytes) -> None:
    if data == b"[DONE]":
        draft.whole = True
        return
    try:
        chunk = _decode_chunk(data)
    except _UNREADABLE:
        return
    if chunk.error is not None:
        draft.failed(chunk.error)
    draft.response_id = draft.response_id or _string(chunk.id)
    draft.model = draft.model or _string(chunk.model)
    if chunk.usage is not None and (usage := usage_of(chunk.usage)) is not None:
        draft.usage = usage
    for choice in chunk.choices or ():
        if choice.finish_reason:
            draft.ends(choice.finish_reason)
            draft.whole = True  # some servers never send [DONE]
        delta = choice.delta
        if delta is None or choice.index:  # of several samples, the first is what an agent goes on with
            continue
        if delta.content:
            draft.text(delta.content)
        if delta.refusal:
            draft.text(delta.refusal)
        for at, tool in enumerate(delta.tool_calls or ()):
            function = tool.function or _Function()
            index = (
                at if tool.index is None else tool.index
            )  # some servers send whole calls, without an index
            draft.call(index, tool.id, function.name, function.arguments)


def _completions_event(draft: _Draft, data: bytes) -> None:
    draft.chars += 4  # about a token an event; the text itself is not looked at
    if b'"usage":null' in data and b'"finish_reason":null' in data:
        return
    _chat_event(draft, data)


def _messages_event(draft: _Draft, data: bytes) -> None:
    if b"thinking_delta" in data[:160] or b"signature_delta" in data[:160]:
        return
    try:
        event = _decode_anthropic(data)
    except _UNREADABLE:
        return
    kind, delta = event.type, event.delta
    if kind == "content_block_delta" and delta is not None:
        if delta.text:
            draft.text(delta.text)
        elif delta.partial_json:
            draft.call(event.index or 0, None, None, delta.partial_json)
    elif kind == "content_block_start" and (block := event.content_block) is not None:
        if block.type == "tool_use":
            draft.call(event.index or 0, block.id, block.name, block.input or None)
        elif block.text:
            draft.text(block.text)
    elif kind == "message_start" and isinstance(event.message, dict):
        draft.response_id = _string(event.message.get("id"))
        draft.model = _string(event.message.get("model"))
        _merge_usage(draft, event.message.get("usage"))
    elif kind == "message_delta":
        _merge_usage(draft, event.usage)
        if delta is not None:
            draft.ends(delta.stop_reason)
    elif kind == "message_stop":
        draft.whole = True
    elif kind == "error":
        draft.failed(event.error)


def _merge_usage(draft: _Draft, usage: Any) -> None:
    """The first event counts the input, the last one the output; a later figure replaces an earlier one."""
    if isinstance(usage, dict):
        draft.usage_raw.update({key: value for key, value in usage.items() if value is not None})
        draft.usage = usage_of(draft.usage_raw)


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


class _ResponsesStream:
    """Responses events: finished items and the closing event say everything, so that no delta is decoded."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: list[Any] = []

    def event(self, draft: _Draft, data: bytes) -> None:
        head = data[:96]
        if b".delta" in head or b".in_progress" in head or b".added" in head:
            return
        try:
            event = _decode_any(data)
        except _UNREADABLE:
            return
        if not isinstance(event, dict):
            return
        kind = event.get("type")
        if kind == "response.output_item.done" and len(self._items) < TOOL_CALLS_MAX:
            self._items.append(event.get("item"))
        elif kind in ("response.completed", "response.incomplete", "response.failed", "response.cancelled"):
            if isinstance(body := event.get("response"), dict):
                _responses_head(draft, body)
                if isinstance(output := body.get("output"), list) and output:
                    self._items = output[:TOOL_CALLS_MAX]
            draft.whole = True
        elif kind == "response.created" and isinstance(body := event.get("response"), dict):
            draft.response_id, draft.model = _string(body.get("id")), _string(body.get("model"))
        elif kind == "error":
            draft.failed(event.get("error", event))

    def items(self, draft: _Draft, canon: Canon) -> tuple[Item, ...]:
        return _responses_output(draft, self._items, canon)


def _responses_head(draft: _Draft, body: dict[str, Any]) -> None:
    draft.response_id = _string(body.get("id")) or draft.response_id
    draft.model = _string(body.get("model")) or draft.model
    draft.usage = usage_of(body.get("usage"))
    reason = body.get("incomplete_details")
    draft.ends(reason.get("reason") if isinstance(reason, dict) else body.get("status"))
    if body.get("error"):
        draft.failed(body["error"])


def _responses_output(draft: _Draft, output: list[Any], canon: Canon) -> tuple[Item, ...]:
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


class ReplyReader:
    """Reads one reply, streamed or not: `feed` each chunk as it passes, `finish` at the end."""

    __slots__ = (
        "_body",
        "_bytes",
        "_canon",
        "_draft",
        "_event",
        "_protocol",
        "_responses",
        "_splitter",
        "_streamed",
    )

    def __init__(self, protocol: Protocol, *, streamed: bool, canon: Canon | None = None) -> None:
        self._protocol: Protocol = protocol
        self._streamed = streamed
        self._canon = canon or Canon(items_max=64)
        self._draft = _Draft()
        self._splitter = SseSplitter()
        self._responses = _ResponsesStream()
        self._event = {
            "chat": _chat_event,
            "completions": _completions_event,
            "messages": _messages_event,
            "responses": self._responses.event,
            "embeddings": _chat_event,
        }[protocol]
        self._body: list[bytes] = []
        self._bytes = 0

    def feed(self, chunk: bytes) -> None:
        """Bytes that just went to the client."""
        if self._streamed:
            for data in self._splitter.feed(chunk):
                self._event(self._draft, data)
        else:
            self._bytes += len(chunk)
            if self._bytes <= BODY_BYTES_MAX:
                self._body.append(chunk)

    def finish(self) -> Reply:
        """The reply, as far as it came."""
        if not self._streamed:
            return read_reply(self._protocol, b"".join(self._body), canon=self._canon)
        for data in self._splitter.finish():
            self._event(self._draft, data)
        if self._protocol == "responses":
            return self._draft.reply(items=self._responses.items(self._draft, self._canon))
        if self._protocol == "completions":
            return self._draft.reply(items=())
        return self._draft.reply()


def read_reply(protocol: Protocol, body: bytes, *, canon: Canon | None = None) -> Reply:
    """A reply that came in one piece."""
    try:
        decoded = _decode_any(body)
    except _UNREADABLE:
        decoded = None
    if not isinstance(decoded, dict):
        return Reply(whole=False, error="the reply is not a JSON object")
    draft = _Draft()
    draft.whole = True
    draft.response_id, draft.model = _string(decoded.get("id")), _string(decoded.get("model"))
    draft.usage = usage_of(decoded.get("usage"))
    if decoded.get("error"):
        draft.failed(decoded["error"])
    if protocol == "responses":
        _responses_head(draft, decoded)
        output = decoded.get("output")
        items = _responses_output(
            draft, output if isinstance(output, list) else [], canon or Canon(items_max=64)
        )
        return draft.reply(items=items)
    if protocol == "messages":
        _messages_body(draft, decoded)
        return draft.reply()
    _chat_body(draft, decoded)
    return draft.reply(items=() if protocol in ("completions", "embeddings") else None)


def _messages_body(draft: _Draft, body: dict[str, Any]) -> None:
    draft.ends(body.get("stop_reason"))
    content = body.get("content")
    for index, block in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(block, dict):
            continue
        if block.get("type") == "tool_use":
            draft.call(index, block.get("id"), block.get("name"), block.get("input"))
        elif block.get("type") == "text":
            draft.text(block.get("text"))


def _chat_body(draft: _Draft, body: dict[str, Any]) -> None:
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
    calls = message.get("tool_calls")
    for index, call in enumerate(calls if isinstance(calls, list) else ()):
        inner = call.get("function", call.get("custom")) if isinstance(call, dict) else None
        if isinstance(inner, dict):
            arguments = inner.get("arguments", inner.get("input"))
            draft.call(index, call.get("id"), inner.get("name"), arguments)
