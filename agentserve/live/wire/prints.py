"""Fingerprints of texts: enough to tell that one text contains another, nothing to read it back from.

Rule: a window of five words is kept when its *first word* says so, never because of where it stands. So the windows
of a text are also windows of every text that contains it, and a sub-agent's opening is recognised by the argument
that its parent passed, without either being kept. Of a reply only those windows and lines are kept that its own prompt
did not hold: what a model repeats of a document is no sign of who made it say so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar
from zlib import crc32

from agentserve.core.identity.evidence import Trace

WINDOW_WORDS = 5
SHORT_WINDOW_WORDS = 3  # of texts of a sentence or two, where every window counts
SHORT_TEXT_WORDS = 24
SHORT_PRINTS_WORDS_MAX = 1_200  # short windows are made of no more than this of each text
KEPT_OF = 3  # of so many first words one lets its window be kept
WINDOWS_KEPT_MAX = 32
TEXT_CHARS_MAX = 16_384  # of a longer text, its beginning and its end
# and of one to be found again less, so that it is found behind a few pages of something else
TRACED_CHARS_MAX = 8_192
LINES_CHARS_MAX = 262_144  # lines cost so little that they are looked for in nearly all of a prompt
LINES_MAX = 4_096
LINES_KEPT_MAX = 16
PARAGRAPH_CHARS_MIN = 80  # so long a line is nobody else's
TOLD_CHARS_MAX = 32_768  # of a prompt, in which a reply's words are looked for
TRACEABLE_CHARS_MIN = 24  # shorter texts are found everywhere
TRACEABLE_WORDS_MIN = 4


T = TypeVar("T")


# A window's print is the hash of its words' checksums as a tuple: of integers it is the same in every process, and
# it is made in C.
def _print(text: str) -> int:
    return crc32(text.encode("utf-8", "surrogatepass"))


def _words(text: str) -> list[int]:
    """A hash of each word."""
    return list(map(crc32, _bare(text)))


def _bare(text: str) -> list[bytes]:
    """Its words, those of a text inside a JSON string too."""
    if "\\" in text:
        text = text.replace("\\n", " ").replace('\\"', '"')
    return text.encode("utf-8", "surrogatepass").split()


def _lines(text: str) -> list[str]:
    """The longer lines of a text of several."""
    if "\n" not in text:
        return []
    lines = [line.strip() for line in text.split("\n", LINES_MAX)[:LINES_MAX]]
    return [line for line in lines if len(line) >= TRACEABLE_CHARS_MIN]


def _long_windows(words: list[int]) -> list[int]:
    return [
        hash(window)
        for window in zip(words, words[1:], words[2:], words[3:], words[4:], strict=False)
        if window[0] % KEPT_OF == 0
    ]


def _short_windows(words: list[int]) -> list[int]:
    return list(map(hash, zip(words, words[1:], words[2:], strict=False)))


def _traced(bare: list[bytes], told: bytes) -> tuple[int, ...]:
    """The windows by which a text is found again, no more than are kept, and none that it was told. The first and the
    last word are left out of them where there are others: they may be glued to a quote where the text is embedded."""
    words = list(map(crc32, bare))
    count = len(words)
    if count >= SHORT_TEXT_WORDS:
        at = [k for k in range(1, count - WINDOW_WORDS) if words[k] % KEPT_OF == 0]
        length = WINDOW_WORDS
    elif count >= TRACEABLE_WORDS_MIN:
        inner = count > TRACEABLE_WORDS_MIN + 1
        at = list(range(int(inner), count - SHORT_WINDOW_WORDS + (not inner)))
        length = SHORT_WINDOW_WORDS
    else:
        return ()
    at = _spread(at, WINDOWS_KEPT_MAX)
    if told and length == WINDOW_WORDS:
        at = [k for k in at if b" ".join(bare[k : k + length]) not in told]
    return tuple([hash(tuple(words[k : k + length])) for k in at])


def _kept_lines(text: str, told: bytes) -> tuple[tuple[int, ...], int]:
    """The lines by which a text is found again, and how many of them, which come first, are paragraphs."""
    lines = _spread(_lines(text), LINES_KEPT_MAX)
    if told:
        lines = [line for line in lines if b" ".join(_bare(line)) not in told]
    lines.sort(key=lambda line: len(line) < PARAGRAPH_CHARS_MIN)
    paragraphs = sum(len(line) >= PARAGRAPH_CHARS_MIN for line in lines)
    return tuple(map(_print, lines)), paragraphs


def _spread(places: list[T], most: int) -> list[T]:
    """No more of them than that, from all over."""
    if len(places) <= most:
        return places
    step = len(places) / most
    return [places[int(k * step)] for k in range(most)]


def _clip(text: str, chars_max: int) -> str:
    if len(text) <= chars_max:
        return text
    half = chars_max // 2
    return f"{text[:half]} {text[-half:]}"


def nothing_told() -> bytes:
    """The words of a prompt that nobody looks into."""
    return b""


def told_of(texts: Iterable[str]) -> bytes:
    """The words of a prompt, to be given to `trace_of` with the reply to it."""
    return b" ".join(_bare(_clip(" ".join(texts), TOLD_CHARS_MAX)))


def trace_of(text: str, told: bytes = b"") -> Trace | None:
    """What to remember of a text that may turn up inside another; None when it is too short, or was told as it is."""
    text = text.strip()
    if len(text) < TRACEABLE_CHARS_MIN:
        return None
    bare = _bare(_clip(text, TRACED_CHARS_MAX))
    if told and b" ".join(bare) in told:
        return None
    lines, paragraphs = _kept_lines(text, told)
    return Trace(
        whole=_print(text),
        windows=_traced(bare, told),
        lines=lines,
        paragraphs=paragraphs,
        short=len(bare) < SHORT_TEXT_WORDS,
    )


def prints_of(texts: Iterable[str]) -> frozenset[int]:
    """All that a trace may be looked up in: whole texts, their lines, and their windows."""
    found: set[int] = set()
    budget = 4 * TEXT_CHARS_MAX
    for text in texts:
        text = text.strip()
        if budget <= 0:
            break
        budget -= min(len(text), TEXT_CHARS_MAX)
        found.add(_print(text))
        found.update(map(_print, _lines(_clip(text, LINES_CHARS_MAX))))
        words = _words(_clip(text, TEXT_CHARS_MAX))
        found.update(_long_windows(words))
        found.update(_short_windows(words[:SHORT_PRINTS_WORDS_MAX]))
    return frozenset(found)
