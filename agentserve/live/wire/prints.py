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
SHORT_PRINTS_CHARS_MAX = 8_192  # short windows are made of no more than this of each text
WINDOWS_KEPT_MAX = 64
TEXT_CHARS_MAX = 32_768  # of a longer text, its beginning and its end
LINES_MAX = 512
LINES_KEPT_MAX = 16
TRACEABLE_CHARS_MIN = 24  # shorter texts are found everywhere
TRACEABLE_WORDS_MIN = 4


def _print(text: str) -> int:
    return crc32(text.encode("utf-8", "surrogatepass"))


def _window(words: list[str]) -> int:
    return _print(" ".join(words))


def _lines(text: str) -> list[int]:
    """The longer lines of a text of several."""
    lines = [line.strip() for line in text.split("\n", LINES_MAX)[:LINES_MAX]]
    return [_print(line) for line in lines if len(line) >= TRACEABLE_CHARS_MIN] if len(lines) > 1 else []


def _long_windows(words: list[str], *, inner: bool) -> list[int]:
    """`inner` leaves out the first and the last word, which may be glued to a quote where the text is embedded."""
    first, last = (1, len(words) - WINDOW_WORDS) if inner else (0, len(words) - WINDOW_WORDS + 1)
    return [
        _window(words[at : at + WINDOW_WORDS])
        for at in range(first, last)
        if (len(words[at]) + ord(words[at][0])) % 3 == 0
    ]


def _short_windows(words: list[str], *, inner: bool) -> list[int]:
    size = SHORT_WINDOW_WORDS
    first, last = (1, len(words) - size) if inner else (0, len(words) - size + 1)
    return [_window(words[at : at + size]) for at in range(first, last)]


def _clip(text: str) -> str:
    if len(text) <= TEXT_CHARS_MAX:
        return text
    half = TEXT_CHARS_MAX // 2
    return f"{text[:half]} {text[-half:]}"


def trace_of(text: str) -> Trace | None:
    """What to remember of a text that may turn up inside another; None when it is too short to tell."""
    text = text.strip()
    if len(text) < TRACEABLE_CHARS_MIN:
        return None
    words = _clip(text).split()
    short = len(words) < SHORT_TEXT_WORDS
    windows: list[int] = []
    if not short:
        windows = _long_windows(words, inner=True)
    elif len(words) >= TRACEABLE_WORDS_MIN:
        windows = _short_windows(words, inner=len(words) > TRACEABLE_WORDS_MIN + 1)
    if len(windows) > WINDOWS_KEPT_MAX:
        step = len(windows) / WINDOWS_KEPT_MAX
        windows = [windows[int(k * step)] for k in range(WINDOWS_KEPT_MAX)]
    return Trace(
        whole=_print(text), windows=tuple(windows), lines=tuple(_lines(text))[:LINES_KEPT_MAX], short=short
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
        clipped = _clip(text)
        found.update(_lines(clipped))
        found.update(_long_windows(clipped.split(), inner=False))
        found.update(_short_windows(clipped[:SHORT_PRINTS_CHARS_MAX].split(), inner=False))
    return frozenset(found)
