"""A tokenizer and chat template without files: four bytes of UTF-8 are a token, and a message is bracketed by marks.

Rule: deterministic and prefix-stable. A longer conversation begins with the tokens of the shorter one, and a reply's
tokens are those that its text has when the client sends it back, so prefix caching behaves as it does on a real engine.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

GROUP = 4  # bytes a token
BASE = 1024  # ids below are marks
MARKS = {"system": 1, "developer": 1, "user": 2, "assistant": 3, "tool": 4, "function": 4}
MARK_OTHER, MARK_END, MARK_TOOLS, MARK_IMAGE = 5, 6, 7, 8
IMAGE_TOKENS = 256


def encode(text: str) -> list[int]:
    """Tokens of a text: its bytes by fours; the length of the last group is part of its id."""
    raw = text.encode("utf-8", "surrogatepass")
    whole = len(raw) - len(raw) % GROUP
    words = array("I")
    words.frombytes(raw[:whole])
    out = [BASE + (w << 3) + GROUP for w in words]
    if whole < len(raw):
        rest = raw[whole:]
        out.append(BASE + (int.from_bytes(rest, "little") << 3) + len(rest))
    return out


def decode(tokens: Iterable[int]) -> str:
    """The text of tokens; marks are left out."""
    raw = bytearray()
    for token in tokens:
        if token >= BASE:
            value = token - BASE
            raw += (value >> 3).to_bytes(GROUP, "little")[: min(value & 7, GROUP)]
    return raw.decode("utf-8", "replace")


def template(messages: Sequence[Any], tools: Sequence[Any] | None, *, generate: bool = True) -> list[int]:
    """Tokens of a conversation, with the mark after which the assistant speaks."""
    out: list[int] = []
    if tools:
        out.append(MARK_TOOLS)
        out += encode(msgspec.json.encode(tools, order="deterministic").decode())
        out.append(MARK_END)
    for message in messages:
        role = message.get("role", "user")
        out.append(MARKS.get(role, MARK_OTHER))
        out += _content(message.get("content"))
        calls = message.get("tool_calls")
        if calls:
            out += encode(calls_text(calls))
        out.append(MARK_END)
    if generate:
        out.append(MARKS["assistant"])
    return out


def _content(content: Any) -> list[int]:
    if content is None:
        return []
    if isinstance(content, str):
        return encode(content)
    out: list[int] = []
    for part in content:
        if isinstance(part, str):
            out += encode(part)
        elif isinstance(part, dict):
            if "text" in part:
                out += encode(str(part["text"]))
            else:
                out += [MARK_IMAGE] * IMAGE_TOKENS
    return out


def calls_text(calls: Sequence[Any]) -> str:
    """How tool calls are written in the prompt: arguments in one spelling, whoever serialised them."""
    spelled = []
    for call in calls:
        function = call.get("function", call)
        arguments = function.get("arguments", "")
        if isinstance(arguments, str):
            try:
                arguments = msgspec.json.decode(arguments or "{}")
            except msgspec.DecodeError:
                arguments = {"": arguments}
        spelled.append({"name": function.get("name", ""), "arguments": arguments})
    return msgspec.json.encode(spelled, order="deterministic").decode()


def block_hashes(tokens: Sequence[int], block: int, salt: str = "") -> list[int]:
    """Chain hashes of the full blocks; a salt goes into the first and so into all."""
    data = array("Q", tokens).tobytes()
    width = 8 * block
    out = []
    before = salt.encode()
    for at in range(0, len(data) - width + 1, width):
        before = hashlib.blake2b(before + data[at : at + width], digest_size=8).digest()
        out.append(int.from_bytes(before, "little"))
    return out
