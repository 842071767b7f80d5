"""Synthetic agents whose habits are known, so that forecasts can be held to them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from agentserve.core.forecast import ToolCall
from agentserve.core.forecast.evaluation.rows import CallRow

# (median seconds, ln spread) by what runs: tools differ, and so do commands of one tool
HABITS = {
    ("Read", ".py"): (0.02, 0.4),
    ("Shell", "git status"): (0.1, 0.3),
    ("Shell", "pytest"): (12.0, 0.3),
    ("Fetch", "example.org"): (3.0, 0.9),
}


def synthetic_calls(count: int, seed: int = 1) -> list[CallRow]:
    """Calls of a few programs, one after the other within a program, at the pace of `HABITS`."""
    rng = random.Random(seed)
    kinds = list(HABITS)
    clocks = [float(i) for i in range(8)]
    rows = []
    for i in range(count):
        program = i % len(clocks)
        name, argument = rng.choice(kinds)
        middle, spread = HABITS[name, argument]
        # every other program runs on a machine half as fast
        seconds = middle * (1 + program % 2) * math.exp(rng.gauss(0, spread))
        at = clocks[program]
        clocks[program] += seconds + 1.0
        rows.append(
            CallRow(
                call=ToolCall(name=name, argument_class=argument, exact_hash=rng.randrange(50)),
                tenant="acme",
                program=f"p{program}",
                at=at,
                seconds=seconds,
                ended_at=at + seconds,
                group=(0, 1),
                censored=False,
                clean=True,
            )
        )
    return rows


@pytest.fixture
def calls_of() -> Callable[..., list[CallRow]]:
    return synthetic_calls
