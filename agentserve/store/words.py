"""Words and counts that every database takes, whatever clients and engines call things and claim.

Rule: pure, and the same word always becomes the same word.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

TEXT_CHARS_MAX = 2_000
ID_CHARS_MAX = 1_000  # PostgreSQL cannot index much more
COUNT_MAX = 2**40  # leaves room for sums
WORDS_MAX = 10_000
WORD_CHARS_MAX = 200  # longer ones are not remembered


class Words(dict[Any, Any]):
    """What each word becomes. Names come again with every step, so one that is known costs a look-up in C."""

    def __init__(self, made: Callable[[str], str]) -> None:
        super().__init__({None: None})
        self._made = made

    def __missing__(self, given: str) -> str:
        word = self._made(given)
        if len(given) <= WORD_CHARS_MAX:
            if len(self) >= WORDS_MAX:
                self.clear()
                self[None] = None
            self[given] = word
        return word


def clean(text: Any) -> Any:
    """Text that every database takes: no NUL, no lone surrogate, bounded."""
    if not text:
        return text
    if "\0" in text:
        text = text.replace("\0", "")
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= TEXT_CHARS_MAX else text[:TEXT_CHARS_MAX]


def name(given: str) -> str:
    """A program's id, or where it is absurdly long its head and a hash of the whole."""
    text: str = clean(given)
    if len(text) <= ID_CHARS_MAX:  # nearly always
        return text
    digest = blake2b(given.encode("utf-8", "replace"), digest_size=16).hexdigest()
    return f"{text[: ID_CHARS_MAX - 33]}#{digest}"


def bounded(count: int | None) -> int | None:
    """A count that fits a column, whatever an engine claimed."""
    return count if count is None or 0 <= count <= COUNT_MAX else max(min(count, COUNT_MAX), 0)
