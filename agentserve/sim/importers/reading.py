"""What every format's reader needs: a file's lines with their numbers, and values that are what they should be.

Rule: a malformed line is named by number and reason and counted; it ends the run only when `strict`.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentserve.errors import UsageError

PROBLEMS_KEPT_MAX = 20
GAP_S_MAX = 7200.0  # a person who is away longer starts, for a cache, a new program
TOKENS_MAX = 1 << 20
REPLY_S_PER_TOKEN = 0.02  # of a reply whose time was not recorded: roughly what served it, and not its client


class Malformed(Exception):
    """A line that cannot be used, and why."""


UNFIT = (
    Malformed,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
)  # what reading such a line raises


def fault(error: Exception) -> str:
    """What is wrong with a line, in words."""
    if isinstance(error, KeyError):
        return f"has no field `{error.args[0]}`"
    if isinstance(error, Malformed):
        return str(error)
    return f"is not of the expected shape ({type(error).__name__}: {error})"


class Reader:
    """Lines of a file with their numbers; keeps account of the malformed."""

    def __init__(self, path: Path, *, strict: bool) -> None:
        self.path = path
        self.strict = strict
        self.lines = 0
        self.bad = 0
        self.problems: list[str] = []

    def text(self) -> Iterator[str]:
        try:
            opens = gzip.open if self.path.suffix == ".gz" else open
            with opens(self.path, "rt", encoding="utf-8-sig") as stream:  # a spreadsheet writes a mark first
                for line in stream:
                    self.lines += 1
                    yield line
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise UsageError(
                f"cannot read {self.path}: {error}", remedy="name a readable text or .gz file"
            ) from error

    def objects(self) -> Iterator[dict[str, Any]]:
        for line in self.text():
            if not line.strip():
                continue
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise Malformed("not a JSON object")
                yield value
            except (ValueError, RecursionError, Malformed) as error:  # a number of thousands of digits too
                self.complain(str(error))

    def complain(self, why: str) -> None:
        self.bad += 1
        problem = f"{self.path.name}:{self.lines}: {why}"
        if self.strict:
            raise UsageError(problem, remedy="mend the line, or leave --strict away to skip it")
        if len(self.problems) < PROBLEMS_KEPT_MAX:
            self.problems.append(problem)


def count(value: Any, what: str, *, least: int = 0) -> int:
    """A number of tokens."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise Malformed(f"{what} is {value!r}, not a number")
    if not least <= value <= TOKENS_MAX:
        raise Malformed(f"{what} is {value}, outside {least} to {TOKENS_MAX}")
    return int(value)


def moment(value: Any, what: str) -> float:
    """A time of a clock, of whichever."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value < 0
    ):
        raise Malformed(f"{what} is {value!r}, not a time")
    return float(value)


def seconds(value: Any, what: str) -> float:
    """A time between two things; none is none at all."""
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or value < 0:
        raise Malformed(f"{what} is {value!r}, not seconds")
    return min(float(value), GAP_S_MAX)
