"""Clairvoyant: Belady's victims and the shortest first."""

from __future__ import annotations

from typing import Any

from agentserve.core import decisions as do
from agentserve.core.foresight import Known, Naive


class Truth(Naive):
    """Gaps and steps left as told; a hundred tokens a step."""

    def __init__(self, gaps: dict[str, float], left: dict[str, float]) -> None:
        super().__init__()
        self.gaps, self.left = gaps, left

    def output_tokens(self, step: Any) -> float:
        return 100.0

    def gap(self, program: Any, now: float) -> Any:
        return Known(self.gaps.get(program.id, 1.0))

    def steps_left(self, program: Any) -> float:
        return self.left.get(program.id, 1.0)


def test_the_idle_program_that_returns_the_latest_makes_room(desk: Any) -> None:
    d = desk("clairvoyant", foresight=Truth({"soon": 2.0, "later": 6.0}, {}))
    for name in ("grow", "soon", "later"):
        d.arrive(name, tokens=2700)
    for name in ("grow", "soon", "later"):
        d.finish(name, tokens=2700, after=0.0)
    out = d.arrive("grow", 1, tokens=5000)
    assert [x.program for x in out if isinstance(x, do.Unpin)] == ["later"]
    assert d.sent("grow", 1) == "e0"


def test_the_least_work_left_goes_first(desk: Any) -> None:
    d = desk("clairvoyant", foresight=Truth({}, {"long": 40.0, "short": 2.0}))
    d.arrive("wall", tokens=8000)
    d.arrive("long", tokens=5000)
    d.arrive("short", tokens=5000, after=10.0)
    d.finish("wall", tokens=8000, final=True)
    assert d.sent("short") == "e0"
    assert d.sent("long") is None
