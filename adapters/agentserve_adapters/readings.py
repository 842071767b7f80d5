"""Values found in engines' answers, read leniently: what is absent or malformed is None."""

from __future__ import annotations

import math
import re
from typing import Any

NUMBER_MAX = 2**53  # nothing that an engine counts is more, and a database takes it


def whole(value: Any) -> int | None:
    """A whole number from 0, from a number or its text."""
    if isinstance(value, bool):
        return None
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number <= NUMBER_MAX else None


def real(value: Any) -> float | None:
    """A number, from a number or its text."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def at(tree: Any, *keys: str) -> Any:
    """What lies at this path of nested objects."""
    for key in keys:
        if not isinstance(tree, dict):
            return None
        tree = tree.get(key)
    return tree


def summed(numbers: list[int | None]) -> int | None:
    """The sum of those that are known; None if none is."""
    known = [n for n in numbers if n is not None]
    return sum(known) if known else None


def version_tuple(version: str) -> tuple[int, ...]:
    """The leading numbers of a version; empty where there are none."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(int(n) for n in found.group(1).split(".")) if found else ()
