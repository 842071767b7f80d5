"""Reads replies beside the relay: bytes in as they pass, a `Reply` out at the end.

Rule: never holds the relay up: feeding raises nothing, and what went wrong in it is raised at the end. Deltas are
decoded with typed decoders that skip what is not asked for, and those that cannot matter are not decoded at all. What
was understood before garbage came stays valid.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agentserve.core.identity.evidence import Item
from agentserve.live.wire.alike import Alike
from agentserve.live.wire.bodies import UNREADABLE, WholeReader, decode_any, responses_head, responses_output
from agentserve.live.wire.call import Protocol
from agentserve.live.wire.canon import Canon
from agentserve.live.wire.draft import TEXT_CHARS_MAX, TOOL_CALLS_MAX, Draft, string
from agentserve.live.wire.reply import Reply, usage_of
from agentserve.live.wire.sse import SseSplitter

# of a stream: to read events together costs a fraction of reading each as it passes
READ_AT_ONCE_BYTES = 16 * 1024
READ_FIRST_BYTES = 1024  # the first time: these events say what the others are like
LIKENESS_SOUGHT_IN = 4  # of the latest events


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


class _Deltas(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


class _Chunk(_Deltas):
    id: Any = None
    model: Any = None


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
_decode_chunks = msgspec.json.Decoder(list[_Chunk]).decode
_decode_deltas = msgspec.json.Decoder(list[_Deltas]).decode
_decode_anthropic = msgspec.json.Decoder(_AnthropicEvent).decode


def _chat_event(draft: Draft, data: bytes) -> None:
    if data == b"[DONE]":
        draft.whole = True
        return
    try:
        chunk = _decode_chunk(data)
    except UNREADABLE:
        return
    _chat_chunk(draft, chunk)


def _chat_events(draft: Draft, events: list[bytes]) -> None:
    """Several at once, decoded as one list; where one of them is no JSON, each by itself."""
    if events and not (draft.response_id and draft.model):
        _chat_event(draft, events[0])  # says whose reply it is; the others need not be asked
        events = events[1:]
    if not events:
        return
    named = draft.response_id and draft.model
    done = b"[DONE]" in events
    joined = b"[%b]" % b",".join([data for data in events if data != b"[DONE]"] if done else events)
    try:
        if named:
            _chat_deltas(draft, _decode_deltas(joined))
        else:
            for chunk in _decode_chunks(joined):
                _chat_chunk(draft, chunk)
    except UNREADABLE:
        for data in events:
            _chat_event(draft, data)
        return
    if done:
        draft.whole = True


def _chat_deltas(draft: Draft, chunks: list[_Deltas]) -> None:
    """Nearly all of them are a piece of text and nothing else."""
    texts, chars = draft.texts, draft.chars
    for chunk in chunks:
        choices = chunk.choices
        if choices is not None and len(choices) == 1 and chunk.usage is None and chunk.error is None:
            choice, delta = choices[0], choices[0].delta
            if (
                delta is not None
                and type(delta.content) is str
                and delta.tool_calls is None
                and delta.refusal is None
                and not choice.finish_reason
                and not choice.index
            ):
                chars += len(delta.content)
                if chars <= TEXT_CHARS_MAX:
                    texts.append(delta.content)
                continue
        draft.chars = chars
        _chat_choices(draft, chunk)
        chars = draft.chars
    draft.chars = chars


def _likeness(events: list[bytes]) -> Alike | None:
    """What the latest piece of text looks like, when it came alone in its event."""
    for data in reversed(events[-LIKENESS_SOUGHT_IN:]):
        alone = Draft()
        try:
            chunk = _decode_deltas(b"[%b]" % data)
        except UNREADABLE:
            continue
        _chat_deltas(alone, chunk)
        # a piece of text adds itself and nothing else
        if alone.texts and not (alone.finish or alone.calls or alone.usage or alone.error or alone.whole):
            return Alike.of(data, alone.texts[0]) if len(alone.texts) == 1 else None
    return None


def _chat_chunk(draft: Draft, chunk: _Chunk) -> None:
    draft.response_id = draft.response_id or string(chunk.id)
    draft.model = draft.model or string(chunk.model)
    _chat_choices(draft, chunk)


def _chat_choices(draft: Draft, chunk: _Deltas) -> None:
    if chunk.error is not None:
        draft.failed(chunk.error)
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


def _completions_event(draft: Draft, data: bytes) -> None:
    draft.chars += 4  # about a token an event; the text itself is not looked at
    if b'"usage":null' in data and b'"finish_reason":null' in data:
        return
    _chat_event(draft, data)


def _messages_event(draft: Draft, data: bytes) -> None:
    if b"thinking_delta" in data[:160] or b"signature_delta" in data[:160]:
        return
    try:
        event = _decode_anthropic(data)
    except UNREADABLE:
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
        draft.response_id = string(event.message.get("id"))
        draft.model = string(event.message.get("model"))
        _merge_usage(draft, event.message.get("usage"))
    elif kind == "message_delta":
        _merge_usage(draft, event.usage)
        if delta is not None:
            draft.ends(delta.stop_reason)
    elif kind == "message_stop":
        draft.whole = True
    elif kind == "error":
        draft.failed(event.error)


def _merge_usage(draft: Draft, usage: Any) -> None:
    """The first event counts the input, the last one the output; a later figure replaces an earlier one."""
    if isinstance(usage, dict):
        draft.usage_raw.update({key: value for key, value in usage.items() if value is not None})
        draft.usage = usage_of(draft.usage_raw)


class _ResponsesStream:
    """Responses events: finished items and the closing event say everything, so that no delta is decoded."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: list[Any] = []

    def event(self, draft: Draft, data: bytes) -> None:
        head = data[:96]
        if b".delta" in head or b".in_progress" in head or b".added" in head:
            return
        try:
            event = decode_any(data)
        except UNREADABLE:
            return
        if not isinstance(event, dict):
            return
        kind = event.get("type")
        if kind == "response.output_item.done" and len(self._items) < TOOL_CALLS_MAX:
            self._items.append(event.get("item"))
        elif kind in ("response.completed", "response.incomplete", "response.failed", "response.cancelled"):
            if isinstance(body := event.get("response"), dict):
                responses_head(draft, body)
                if isinstance(output := body.get("output"), list) and output:
                    self._items = output[:TOOL_CALLS_MAX]
            draft.whole = True
        elif kind == "response.created" and isinstance(body := event.get("response"), dict):
            draft.response_id, draft.model = string(body.get("id")), string(body.get("model"))
        elif kind == "error":
            draft.failed(event.get("error", event))

    def items(self, draft: Draft, canon: Canon) -> tuple[Item, ...]:
        return responses_output(draft, self._items, canon)


class StreamReader:
    """Reads a stream of events: `feed` each chunk as it passes, `finish` at the end."""

    __slots__ = (
        "_alike",
        "_body",
        "_bytes",
        "_canon",
        "_draft",
        "_event",
        "_fault",
        "_protocol",
        "_read_at_bytes",
        "_responses",
        "_splitter",
    )

    def __init__(self, protocol: Protocol, canon: Canon | None) -> None:
        self._protocol: Protocol = protocol
        self._canon = canon
        self._draft = Draft()
        self._splitter = SseSplitter()
        self._responses = _ResponsesStream()
        self._event = {
            "chat": _chat_event,
            "completions": _completions_event,
            "messages": _messages_event,
            "responses": self._responses.event,
            "embeddings": _chat_event,
        }[protocol]
        self._body: list[bytes] = []  # what was not read yet
        self._bytes = 0
        self._read_at_bytes = READ_FIRST_BYTES if protocol == "chat" else READ_AT_ONCE_BYTES
        self._alike: Alike | None = None
        self._fault: Exception | None = None  # of reading: nothing more is read

    def feed(self, chunk: bytes) -> None:
        """Bytes that go to the client, whatever is made of them here: what goes wrong is `finish`'s to raise."""
        if self._fault is not None:
            return
        self._bytes += len(chunk)
        self._body.append(chunk)
        if self._bytes >= self._read_at_bytes:
            try:
                self._read()
            except Exception as error:
                self._fault = error

    def _read(self) -> None:
        """The events that are whole by now."""
        held = b"".join(self._body)
        self._body.clear()
        self._bytes = 0
        self._read_at_bytes = READ_AT_ONCE_BYTES
        if self._protocol != "chat":
            self._told(self._splitter.feed(held))
            return
        whole = held.rfind(b"\n\n") + 2
        if self._splitter.empty and whole >= 2 and len(held) - whole < READ_AT_ONCE_BYTES:
            rest = held[whole:]
            if rest:  # it waits here for its end, so that what follows begins with an event
                self._body.append(rest)
                self._bytes = len(rest)
                held = held[:whole]
            if self._alike is None and len(held) > READ_FIRST_BYTES:
                first = held.find(b"\n\n", READ_FIRST_BYTES - 2) + 2
                self._decode(held[:first])
                held = held[first:]
            if self._alike is not None:
                read, text = self._alike.text(held)
                if read:
                    self._draft.text(text)
                    held = held[read:]
        if held:
            self._decode(held)

    def _decode(self, held: bytes) -> None:
        """Events one by one; what the latest of them are like is how the next ones are sought."""
        events = self._splitter.feed(held)
        self._told(events)
        self._alike = _likeness(events)

    def _told(self, events: list[bytes]) -> None:
        if self._protocol == "chat":
            _chat_events(self._draft, events)
            return
        for data in events:
            self._event(self._draft, data)

    def finish(self) -> Reply:
        """The reply, as far as it came."""
        if self._fault is not None:
            raise self._fault
        self._read()
        self._told(self._splitter.feed(b"".join(self._body)))
        self._told(self._splitter.finish())
        if self._protocol == "responses":
            return self._draft.reply(
                items=self._responses.items(self._draft, self._canon or Canon(items_max=64))
            )
        if self._protocol == "completions":
            return self._draft.reply(items=())
        return self._draft.reply()


ReplyReader = WholeReader | StreamReader


def reader_of(protocol: Protocol, *, streamed: bool, canon: Canon | None = None) -> ReplyReader:
    """A reader for one reply."""
    return StreamReader(protocol, canon) if streamed else WholeReader(protocol, canon)
