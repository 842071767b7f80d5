"""InferCept, SAGA and KVFlow: what they keep over tool calls, for how long, and what goes first."""

from __future__ import annotations

import math
from typing import Any

import pytest

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.foresight import Exponential, Known, Naive
from agentserve.core.policies.literature.saga import P95_Z, LogNormal

TOOL = (ev.PendingTool(id="c", name="bash"),)


class Gaps(Naive):
    """Gaps and steps left as told."""

    def __init__(self, gap_s: float = 1.0, left: dict[str, float] | None = None) -> None:
        super().__init__()
        self.gap_s = gap_s
        self.left = left or {}

    def gap(self, program: Any, now: float) -> Any:
        return Known(self.gap_s)

    def steps_left(self, program: Any) -> float:
        return self.left.get(program.id, 10.0)


def pins(decisions: list[Any]) -> list[do.Pin]:
    return [x for x in decisions if isinstance(x, do.Pin)]


# -- InferCept


def test_keeping_lasts_until_it_wasted_what_discarding_would(desk: Any) -> None:
    d = desk("infercept")  # a thousand tokens prefill in a second
    d.arrive("a", tokens=1990)
    d.arrive("b", tokens=3800)  # charged with 200 of output
    pin = pins(d.finish("a", tokens=1990, output=10, tools=TOOL))[0]
    assert pin.until - d.now == pytest.approx(2.0 * (2000 + 4000) / 2000)


def test_it_goes_on_keeping_while_more_is_at_stake(desk: Any) -> None:
    d = desk("infercept")
    d.arrive("a", tokens=1990)
    d.finish("a", tokens=1990, output=10, tools=TOOL)  # alone: two seconds
    d.arrive("b", tokens=3800, after=1.0)
    assert d.timer() == [], "b runs now and would be held up: six seconds instead of two"
    assert any(isinstance(x, do.Unpin) and x.reason == "expired" for x in d.timer())
    assert d.now == pytest.approx(1.0 + 6.0, abs=0.01)


@pytest.mark.parametrize(("gap_s", "kept"), [(1.0, 1.0), (50.0, 0.0)])
def test_with_a_forecast_it_decides_at_once(desk: Any, gap_s: float, kept: float) -> None:
    d = desk("infercept", foresight=Gaps(gap_s), foresee=True)
    d.arrive("a", tokens=1990)
    out = pins(d.finish("a", tokens=1990, output=10, tools=TOOL))
    assert [p.until - d.now for p in out] == ([pytest.approx(kept)] if kept else [])


def test_the_kept_go_on_before_older_programs_that_were_discarded(desk: Any) -> None:
    d = desk("infercept")
    d.arrive("old", tokens=500)
    d.finish("old", tokens=500)  # kept for half a second
    d.timer()
    d.arrive("a", tokens=4000, after=1.0)
    d.arrive("x", tokens=3500)
    d.finish("a", tokens=4000, tools=TOOL, after=0.1)
    d.arrive("old", 1, tokens=6000)
    d.arrive("a", 1, tokens=6000)
    assert d.sent("old", 1) is None
    assert d.sent("a", 1) is None
    d.finish("x", tokens=3500, final=True, after=0.1)
    assert d.sent("a", 1) == "e0"
    assert d.sent("old", 1) is None


# -- SAGA


def test_a_log_normal_is_fitted_to_durations() -> None:
    known = LogNormal()
    logs = [-1.0, 0.0, 0.5, 1.5, 2.0]
    for value in logs:
        known.add(math.exp(value))
    mean = sum(logs) / 5
    spread = math.sqrt(sum((v - mean) ** 2 for v in logs) / 4)
    assert known.p95_s() == pytest.approx(math.exp(mean + P95_Z * spread))


@pytest.mark.parametrize(("others", "share"), [(1000, 1.0), (7800, 0.5 + 0.25), (8950, 1.0 - 0.5 * 1.075)])
def test_the_ttl_shrinks_as_memory_fills(desk: Any, others: int, share: float) -> None:
    d = desk("saga", programs_min=0, foresight=Gaps())
    d.arrive("a", tokens=100)
    for turn in range(4):
        d.finish("a", turn, tokens=100, output=200, tools=TOOL)
        d.arrive("a", turn + 1, tokens=100, after=10.0)
    d.arrive("b", tokens=others)  # and 200 of output
    pin = pins(d.finish("a", 4, tokens=100, output=200, tools=TOOL))[0]
    assert pin.until - d.now == pytest.approx(10.0 * share)


def test_it_pins_nothing_until_it_has_seen_programs_end(desk: Any) -> None:
    d = desk("saga")
    d.arrive("a", tokens=800)
    for turn in range(3):
        assert not pins(d.finish("a", turn, tokens=800, tools=TOOL))
        d.arrive("a", turn + 1, tokens=800, after=1.0)


def test_what_is_old_large_and_not_reused_is_evicted_first(desk: Any) -> None:
    d = desk("saga", programs_min=0, foresight=Gaps(left={"last": 0.2, "many": 30.0}))
    for name in ("last", "many"):
        d.arrive(name, tokens=2000)
        d.finish(name, tokens=2000, tools=TOOL)
        d.arrive(name, 1, tokens=2100, after=100.0)
    for name in ("last", "many"):
        d.finish(name, 1, tokens=2100, tools=TOOL, after=0.0)
    out = d.arrive("new", tokens=6000)
    assert [x.program for x in out if isinstance(x, do.Unpin)] == ["last"]
    assert d.sent("new") == "e0"


def test_an_idle_engine_steals_the_head_of_the_longest_line(desk: Any) -> None:
    d = desk("saga", engines=2)
    d.report("e1", draining=True)
    for name in "abc":
        d.arrive(name, tokens=7000)
    assert [d.sent(n) for n in "abc"] == ["e0", None, None]
    d.report("e1", draining=False)
    for _ in range(3):
        d.timer()
    assert [d.sent(n) for n in "abc"] == ["e0", "e1", None]


def test_the_tenant_that_uses_least_for_its_urgency_goes_next(desk: Any) -> None:
    d = desk("saga")
    d.arrive("h0", tokens=3000, tenant="heavy")
    d.arrive("x", tokens=6000, tenant="third")
    d.arrive("h2", tokens=5000, tenant="heavy")
    d.arrive("l0", tokens=5000, tenant="light", after=1.0)
    d.finish("x", tokens=6000, final=True)
    assert d.sent("l0") == "e0"
    assert d.sent("h2") is None


def test_what_runs_counts_for_its_tenants_share_as_what_waits_does(desk: Any) -> None:
    d = desk("saga", foresight=Gaps())
    for name in ("h0", "h1", "h2"):
        d.arrive(name, tokens=1000, tenant="heavy")
    d.arrive("l0", tokens=2200, tenant="light")
    d.arrive("x", tokens=3000, tenant="third")
    for name, tenant in (("l1", "light"), ("h3", "heavy")):
        d.arrive(name, tokens=3000, tenant=tenant)
    d.timer()
    d.finish("x", tokens=3000, final=True)
    assert d.sent("h3") == "e0", "3,000 for four programs are less than 2,200 for two"
    assert d.sent("l1") is None


# -- KVFlow


def test_a_parent_is_one_step_further_than_its_furthest_child(desk: Any) -> None:
    d = desk("kvflow", foresight=Gaps(left={"c1": 3.0, "c2": 7.0}))
    d.arrive("parent", tokens=1000)
    d.finish("parent", tokens=1000)
    parent = d.board.programs["parent"]
    steps = d.scheduler.policy.steps_to_execution
    assert steps(parent) == 1.0
    for name in ("c1", "c2"):
        d.arrive(name, tokens=100, parent="parent")
    assert steps(parent) == 8.0
    d.finish("c2", tokens=100, final=True)
    assert steps(parent) == 4.0
    d.finish("c1", tokens=100, final=True)
    assert steps(parent) == 1.0


def test_the_furthest_from_execution_makes_room_and_nothing_waits_for_idle_kv(desk: Any) -> None:
    d = desk("kvflow", foresight=Gaps())
    for name in ("parent", "next", "x"):
        d.arrive(name, tokens=2500)
    d.arrive("child", tokens=100, parent="parent")
    for name in ("parent", "next"):
        d.finish(name, tokens=2500, tools=TOOL)
    out = d.arrive("new", tokens=3500)
    assert d.sent("new") == "e0"
    assert [x.program for x in out if isinstance(x, do.Unpin)] == ["parent"]


def test_lost_kv_is_loaded_ahead_of_the_return(desk: Any) -> None:
    class Slow(Gaps):
        def gap(self, program: Any, now: float) -> Any:
            return Known(60.0) if program.id == "a" else Exponential(1e6)

    d = desk("kvflow", foresight=Slow(), refresh_s=0.0)
    d.arrive("a", tokens=3000)
    d.finish("a", tokens=3000, tools=TOOL)
    left_at = d.now
    for k in range(4):
        d.arrive(f"b{k}", tokens=6000)
        d.finish(f"b{k}", tokens=6000, final=True)
    warms = [x for x in d.timer() if isinstance(x, do.Warm)]
    assert [w.program for w in warms] == ["a"]
    assert d.now - left_at == pytest.approx(60.0 - 3.01), "the median less its prefill"
