"""Fingerprints of texts: enough to tell that one text contains another, nothing to read it back from.

Rule: a window of five words is kept when its *first word* says so, never because of where it stands. So the windows
of a text are also windows of every text that contains it, and a sub-agent's opening is recognised by the argument
that its parent passed, without either being kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

from agentserve.core.identity.evidence import Trace

WINDOW_WORDS = 5
SHORT_WINDOW_WORDS = 3  # of texts of a sentence or two, where every window counts
SHORT_TEXT_WORDS = 24
SHORT_PRINTS_WORDS_MAX = 1_200  # short windows are made of no more than this of each text
KEPT_OF = 3  # of so many first words one lets its window be kept
WINDOWS_KEPT_MAX = 32
TEXT_CHARS_MAX = 16_384  # of a longer text, its beginning and its end
TRACED_CHARS_MAX = (
    8_192  # and of one to be found again less, so that it is found behind a few pages of something else
)
LINES_MAX = 512
LINES_KEPT_MAX = 16
TRACEABLE_CHARS_MIN = 24  # shorter texts are found everywhere
TRACEABLE_WORDS_MIN = 4


# A window's print is the hash of its words' checksums as a tuple: of integers it is the same in every process, and
# it is made in C.
def _print(text: str) -> int:
    return crc32(text.encode("utf-8", "surrogatepass"))


def _words(text: str) -> list[int]:
    """A hash of each word."""
    return list(map(crc32, text.encode("utf-8", "surrogatepass").split()))


def _lines(text: str) -> list[int]:
    """The longer lines of a text of several."""
    if "\n" not in text:
        return []
    lines = [line.strip() for line in text.split("\n", LINES_MAX)[:LINES_MAX]]
    return [_print(line) for line in lines if len(line) >= TRACEABLE_CHARS_MIN]


def _long_windows(words: list[int]) -> list[int]:
    return [
        hash(window)
        for window in zip(words, words[1:], words[2:], words[3:], words[4:], strict=False)
        if window[0] % KEPT_OF == 0
    ]


def _short_windows(words: list[int]) -> list[int]:
    return list(map(hash, zip(words, words[1:], words[2:], strict=False)))


def _traced(words: list[int]) -> list[int]:
    """The windows by which a text is found again, no more than are kept. The first and the last word are left out of
    them where there are others: they may be glued to a quote where the text is embedded."""
    count = len(words)
    if count >= SHORT_TEXT_WORDS:
        at = [k for k in range(1, count - WINDOW_WORDS) if words[k] % KEPT_OF == 0]
        length = WINDOW_WORDS
    elif count >= TRACEABLE_WORDS_MIN:
        inner = count > TRACEABLE_WORDS_MIN + 1
        at = list(range(int(inner), count - SHORT_WINDOW_WORDS + (not inner)))
        length = SHORT_WINDOW_WORDS
    else:
        return []
    if len(at) > WINDOWS_KEPT_MAX:
        step = len(at) / WINDOWS_KEPT_MAX
        at = [at[int(k * step)] for k in range(WINDOWS_KEPT_MAX)]
    return [hash(tuple(words[k : k + length])) for k in at]


def _clip(text: str, chars_max: int) -> str:
    if len(text) <= chars_max:
        return text
    half = chars_max // 2
    return f"{text[:half]} {text[-half:]}"


def trace_of(text: str) -> Trace | None:
    """What to remember of a text that may turn up inside another; None when it is too short to tell."""
    text = text.strip()
    if len(text) < TRACEABLE_CHARS_MIN:
        return None
    words = _words(_clip(text, TRACED_CHARS_MAX))
    return Trace(
        whole=_print(text),
        windows=tuple(_traced(words)),
        lines=tuple(_lines(text))[:LINES_KEPT_MAX],
        short=len(words) < SHORT_TEXT_WORDS,
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
        clipped = _clip(text, TEXT_CHARS_MAX)
        found.update(_lines(clipped))
        words = _words(clipped)
        found.update(_long_windows(words))
        found.update(_short_windows(words[:SHORT_PRINTS_WORDS_MAX]))
    return frozenset(found)
