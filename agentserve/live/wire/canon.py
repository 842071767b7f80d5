"""Messages of every protocol, brought to one canonical form and hashed.

Rule: two renderings of the same message get the same digest, and nothing but the digest leaves. What real clients
change between two sendings of one message is therefore left out here: the spacing and key order of tool arguments,
`null` against an empty or absent content, a string against a list with one text part, cache markers that roll on
every turn, item ids and states, reasoning that is dropped later, billing and token-count lines.
It must not know programs, engines or HTTP.

Messages seen before are recognised by a cheap hash of their raw form and are not canonicalised again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from agentserve.core.identity.evidence import PRIME, Item, Role, digest_of

ITEMS_REMEMBERED_MAX = 65_536
SYSTEM_HEAD_CHARS = 4_096  # what follows in a long system text is environment: dates, folders, memory
CALL_IDS_MAX = 256  # of one message
MEDIA_CHARS_MAX = 4_000  # an image counts as about a thousand tokens, however it is encoded

_encode = msgspec.json.Encoder(order="deterministic").encode
_encode_raw = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

SYSTEM_ROLES = frozenset({"system", "developer"})
_ROLES: Mapping[str, Role] = {
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
}
_TEXT_TYPES = frozenset({"text", "input_text", "output_text", "refusal", "summary_text"})
_THOUGHT_TYPES = frozenset({"thinking", "redacted_thinking", "reasoning", "reasoning_text"})
_CALL_TYPES = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
_CALL_ITEMS = frozenset(
    {"function_call", "custom_tool_call", "local_shell_call", "computer_call", "mcp_call"}
)
_PLAIN_KEYS = frozenset({"role", "content", "tool_calls", "tool_call_id"})
_ROLLING_KEYS = frozenset({"cache_control", "id", "status", "annotations", "logprobs", "phase"})
_OBSERVATIONS = (
    "observation:", "[observation", "<returncode>", "<output>", "<tool_response>", "<tool_result>", "tool result:",
    "execution result", "<execution", "<function_results>", "call id:",
)  # fmt: skip

# What stands in the tag is short. Were it not bounded, each tag that is never closed would be read to the text's end.
_NOISE = re.compile(
    r"<total_tokens>[^<]{0,256}</total_tokens>[ \t]*\n?|^x-anthropic-billing-header:[^\n]*\n?", re.M
)
_THOUGHT = re.compile(r"\A\s*<think(?:ing)?>.*?</think(?:ing)?>", re.S)
_VOLATILE = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"  # ids
    r"|\b(?:mon|tues?|wednes|thurs?|fri|satur|sun)day\b"
    r"|\b(?:jan|feb|mar|apr|may|june?|july?|aug|sep|oct|nov|dec)[a-z]*\.? \d"
    r"|(?:[a-z]:)?(?:[/\\][\w.~+@-]+){2,}[/\\]?"  # paths
    r"|~/[\w./~+@-]*"
    r"|\b[0-9a-f]{7,64}\b"  # commits and other hex
    r"|\d+",
    re.I,
)

# smolagents writes its calls into the assistant's text, ids and all
_CALLS_TOLD = "Calling tools:"
_CALL_ID_TOLD = re.compile(r"'id': '([^'\\\n]{1,64})', 'type': 'function'")
CALLS_TOLD_CHARS_MAX = 16_384

T = TypeVar("T")


class Remembered(Generic[T]):
    """A bounded map for the hot path: two generations, of which the older is dropped when the newer is full."""

    __slots__ = ("_half", "_old", "_young")

    def __init__(self, entries_max: int) -> None:
        self._half = max(entries_max // 2, 1)
        self._young: dict[Any, T] = {}
        self._old: dict[Any, T] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: Any) -> T | None:
        """The value, kept for another generation; None when it is not known (any more)."""
        found = self._young.get(key)
        if found is None and (found := self._old.pop(key, None)) is not None:
            self.put(key, found)
        return found

    def put(self, key: Any, value: T) -> None:
        """Remember the value."""
        if len(self._young) >= self._half:
            self.age()
        self._young[key] = value

    def age(self) -> None:
        """Let a generation begin: what is not asked for before the next one begins is forgotten then."""
        self._old, self._young = self._young, {}


def utf8(text: str) -> bytes:
    """The text's bytes; a lone surrogate, which JSON can carry, is no reason to fail."""
    return text.encode("utf-8", "surrogatepass")


def clean(text: str, *, assistant: bool = False) -> str:
    """Text without what clients add and drop at will."""
    marked = "<" in text  # one character is sought much faster than a word
    if (marked and "<total_tokens>" in text) or "x-anthropic-billing-header" in text:
        text = _NOISE.sub("", text)
    if assistant and marked and "</think" in text:
        text = _THOUGHT.sub("", text, count=1)
    return text.strip()


def canonical_json(value: Any) -> bytes:
    """One spelling of a JSON value; a string that holds JSON (tool arguments) counts as what it holds."""
    if isinstance(value, str):
        if not value.strip():
            return b"{}"
        try:
            value = _decode(value)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return utf8(value.strip())
    if value is None:
        return b"{}"
    try:
        return _encode(value)
    except (TypeError, ValueError, UnicodeError, RecursionError):
        return _spelled(value)


def _spelled(value: Any) -> bytes:
    """What cannot be written as JSON, written somehow."""
    try:
        return utf8(repr(value))
    except RecursionError:  # it could just be decoded
        return b"nested too deeply"


def steady(value: Mapping[str, Any]) -> dict[str, Any]:
    """An item or part without the fields that change between two sendings."""
    return {key: val for key, val in value.items() if key not in _ROLLING_KEYS}


def _parts(content: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(content, str):
        yield {"type": "text", "text": content}
    elif isinstance(content, dict):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, str):
                yield {"type": "text", "text": part}
            elif isinstance(part, dict):
                yield part


def word(value: Any) -> str:
    """The value if it is text, else nothing: for looking up what may be anything."""
    return value if isinstance(value, str) else ""


def text_of(content: Any) -> str:
    """All text in a content field, whatever its shape."""
    if isinstance(content, str):
        return content
    return "".join(
        text
        for part in _parts(content)
        if word(part.get("type")) in _TEXT_TYPES
        and isinstance(text := part.get("text", part.get("refusal")), str)
    )


class _Pieces:
    """A message taken apart: its words, the calls it makes, the results it brings, and everything else."""

    __slots__ = ("call_ids", "calls", "media", "result_ids", "results", "size", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.calls: list[tuple[bytes, bytes]] = []
        self.call_ids: list[str] = []
        self.results: list[bytes] = []
        self.result_ids: list[str] = []
        self.media: list[bytes] = []
        self.size = 0

    def call(self, call_id: Any, name: Any, arguments: Any) -> None:
        canonical = canonical_json(arguments)
        self.calls.append((utf8(name) if isinstance(name, str) else b"", canonical))
        self.size += len(canonical)
        if isinstance(call_id, str) and len(self.call_ids) < CALL_IDS_MAX:
            self.call_ids.append(call_id)

    def result(self, call_id: Any, content: Any) -> None:
        inner = _Pieces()
        inner.content(content, assistant=False)
        text = clean("".join(inner.texts))
        self.results.append(b"\0".join([utf8(text), *inner.media]))
        self.size += len(text) + inner.size
        if isinstance(call_id, str) and len(self.result_ids) < CALL_IDS_MAX:
            self.result_ids.append(call_id)

    def content(self, content: Any, *, assistant: bool) -> None:
        for part in _parts(content):
            kind = word(part.get("type", "text"))
            if kind in _TEXT_TYPES:
                text = part.get("text", part.get("refusal"))
                if isinstance(text, str):
                    self.texts.append(clean(text) if isinstance(content, list) and "<total" in text else text)
            elif kind in _THOUGHT_TYPES:
                continue
            elif kind in _CALL_TYPES:
                self.call(part.get("id"), part.get("name"), part.get("input"))
            elif kind.endswith("tool_result"):
                self.result(part.get("tool_use_id"), part.get("content"))
            else:
                rest = canonical_json(steady(part))
                self.media.append(rest)
                self.size += min(len(rest), MEDIA_CHARS_MAX)

    def item(self, role: Role) -> Item | None:
        """The digest of it all; None when nothing is left that counts."""
        text = clean("".join(self.texts), assistant=role == "assistant")
        if role == "user" and self.results:
            role = "tool"
        if role == "assistant" and text.startswith(_CALLS_TOLD):
            self.call_ids += _CALL_ID_TOLD.findall(text, 0, CALLS_TOLD_CHARS_MAX)[:CALL_IDS_MAX]
        if not (text or self.calls or self.results or self.media) and role != "assistant":
            return None
        parts = [role.encode(), utf8(text)]
        for name, arguments in self.calls:
            parts += (b"call", name, arguments)
        for result in self.results:
            parts += (b"result", result)
        parts += self.media
        return Item(
            role=role,
            digest=digest_of(*parts),
            size=self.size + len(text),
            calls=tuple(self.call_ids),
            returns=tuple(self.result_ids),
            observation=role == "user" and text[:24].lower().startswith(_OBSERVATIONS),
        )


def assistant_item(text: str, calls: Sequence[tuple[str, str, Any]]) -> Item:
    """The item that a reply will be when its client sends it back: its text and its calls `(id, name, arguments)`."""
    if not calls:
        text = clean(text, assistant=True)
        return Item(role="assistant", digest=digest_of(b"assistant", utf8(text)), size=len(text))
    pieces = _Pieces()
    pieces.texts.append(text)
    for call_id, name, arguments in calls:
        pieces.call(call_id, name, arguments)
    item = pieces.item("assistant")
    assert item is not None
    return item


def _canonical(message: Mapping[str, Any]) -> Item | None:
    """One message of any protocol: told apart by its shape."""
    pieces = _Pieces()
    kind = message.get("type")
    role = message.get("role")
    if role is None and isinstance(kind, str) and kind != "message":
        return _canonical_typed(message, kind, pieces)
    if word(role) in SYSTEM_ROLES:
        return None
    ours: Role = _ROLES.get(role, "user") if isinstance(role, str) else "user"
    if ours == "tool":
        pieces.result(message.get("tool_call_id", message.get("name")), message.get("content"))
        return pieces.item("tool")
    pieces.content(message.get("content"), assistant=ours == "assistant")
    if ours == "assistant":
        if isinstance(refusal := message.get("refusal"), str):
            pieces.texts.append(refusal)
        for call in message.get("tool_calls") or ():
            if isinstance(call, dict):
                inner = call.get("function", call.get("custom"))
                if isinstance(inner, dict):
                    pieces.call(call.get("id"), inner.get("name"), inner.get("arguments", inner.get("input")))
        if isinstance(legacy := message.get("function_call"), dict):
            pieces.call(legacy.get("name"), legacy.get("name"), legacy.get("arguments"))
    return pieces.item(ours)


def _canonical_typed(message: Mapping[str, Any], kind: str, pieces: _Pieces) -> Item | None:
    """An item of the Responses protocol that is not a message."""
    if kind in _THOUGHT_TYPES or kind == "item_reference":
        return None
    call_id = message.get("call_id", message.get("id"))
    if kind.endswith("_output"):
        pieces.result(call_id, message.get("output"))
        return pieces.item("tool")
    if kind in _CALL_ITEMS:
        arguments = message.get("arguments", message.get("input", message.get("action")))
        pieces.call(call_id, message.get("name", kind), arguments)
        return pieces.item("assistant")
    pieces.media.append(canonical_json(steady(message)))
    pieces.size = min(len(pieces.media[0]), MEDIA_CHARS_MAX)
    return pieces.item("assistant")


_NOTHING = Item(role="user", digest=0)  # what a message that does not count is remembered as


class Canon:
    """Canonical items, remembered: the same message in a later request costs one hash of its raw form."""

    def __init__(self, *, items_max: int = ITEMS_REMEMBERED_MAX) -> None:
        self.canonicalised = 0  # messages that were not known yet
        self._items: Remembered[Item] = Remembered(items_max)
        self._digests: Remembered[int] = Remembered(4_096)

    def item(self, message: Any) -> Item | None:
        """The canonical item, or None when the message is no part of the conversation (system, noise, not a dict)."""
        if not isinstance(message, dict):
            return None
        try:
            key = self._key(message)
        except TypeError:  # something that cannot be hashed where a name should be
            key = _spelled(message)[: 1 << 16]
        item = self._items.get(key)
        if item is None:
            self.canonicalised += 1
            try:
                item = _canonical(message) or _NOTHING
            except (RecursionError, TypeError, ValueError, AttributeError):
                item = Item(role="user", digest=digest_of(b"unreadable", canonical_json(message)))
            self._items.put(key, item)
        return None if item is _NOTHING else item

    def _key(self, message: dict[str, Any]) -> Any:
        """A cheap fingerprint of the message as it was sent; the usual shapes need no encoding."""
        content = message.get("content")
        if len(message) == 2 and isinstance(content, str) and "role" in message:  # as most are
            return hash((message["role"], content, ""))
        if (isinstance(content, str) or content is None) and len(message) <= 3:
            calls = message.get("tool_calls")
            rest = _call_key(calls) if calls is not None else message.get("tool_call_id", "")
            if rest is not None and _PLAIN_KEYS.issuperset(message):
                return hash((message.get("role"), content, rest))
        try:
            raw = _encode_raw(message)
        except (TypeError, ValueError, UnicodeError, RecursionError):
            return _spelled(message)[: 1 << 16]
        return hash(raw), len(raw)

    def age(self) -> None:
        """Forget the messages that nobody sent since the last time: their conversations are over."""
        self._items.age()

    def items(self, messages: Iterable[Any]) -> list[Item]:
        """All items that count, in order."""
        return [item for message in messages if (item := self.item(message)) is not None]

    def role(self, system: str) -> int:
        """A fingerprint of a system text that survives new dates, folders, ids and numbers."""
        return self._digest("role", system, _masked)

    def exact(self, text: str) -> int:
        """A digest of a text as it is: for shared prefixes, where one character counts."""
        return self._digest("exact", text, lambda full: utf8(clean(full)))

    @staticmethod
    def raw(value: Any) -> bytes:
        """A JSON value as it would stand in a body, or as near as can be."""
        try:
            return _encode_raw(value)
        except (TypeError, ValueError, UnicodeError, RecursionError):
            return _spelled(value)

    def bytes_digest(self, raw: bytes) -> int:
        """A digest of bytes."""
        return self._digest("bytes", raw, bytes)

    def _digest(self, kind: str, full: Any, form: Any) -> int:
        key = (kind, hash(full), len(full))
        known = self._digests.get(key)
        if known is None:
            state = hashlib.blake2b(form(full), digest_size=8)
            known = int.from_bytes(state.digest(), "little") % PRIME
            self._digests.put(key, known)
        return known


def _call_key(calls: Any) -> tuple[Any, ...] | None:
    """The tool calls of a chat message as something hashable; None when they have another shape."""
    try:
        return tuple(
            [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]
        )
    except (KeyError, TypeError):
        return None


def _masked(system: str) -> bytes:
    head = clean(system[: 2 * SYSTEM_HEAD_CHARS])[:SYSTEM_HEAD_CHARS]
    return utf8(" ".join(_VOLATILE.sub("#", head).split()))
