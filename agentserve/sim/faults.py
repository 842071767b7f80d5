"""Faults by seed: what goes wrong, where and when."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

FaultKind = Literal["crash", "stall", "slow_network", "wrong_metrics"]
KINDS: tuple[FaultKind, ...] = ("crash", "stall", "slow_network", "wrong_metrics")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: an engine (by index, modulo the fleet) is hit at `at_s` for `seconds`."""

    at_s: float
    kind: FaultKind
    engine: int = 0
    seconds: float = 30.0
    factor: float = 1.0  # of the network delay, or of the capacity that is reported


def draw_faults(*, seed: int, count: int, until_s: float) -> list[Fault]:
    """`count` faults spread over the run."""
    rng = random.Random(f"faults:{seed}")
    out = []
    for _ in range(count):
        kind = rng.choice(KINDS)
        out.append(
            Fault(
                at_s=rng.uniform(0.0, until_s),
                kind=kind,
                engine=rng.randrange(64),
                seconds=rng.uniform(1.0, 60.0),
                factor=rng.choice((0.5, 2.0)) if kind == "wrong_metrics" else rng.uniform(5.0, 200.0),
            )
        )
    return sorted(out, key=lambda f: f.at_s)
