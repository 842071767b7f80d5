"""Continuum: the time to live, and the order pinned before unpinned, by program."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.policies.literature.continuum import Durations, Turns, best_ttl

TOOL = (ev.PendingTool(id="c", name="bash"),)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 50.0), min_size=1, max_size=30), st.floats(0.0, 60.0))
def test_the_ttl_is_the_best_of_zero_and_the_observed_durations(
    durations: list[float], worth_s: float
) -> None:
    def gain(tau: float) -> float:
        return sum(d <= tau for d in durations) / len(durations) * worth_s - tau

    chosen = best_ttl(sorted(durations), worth_s)
    assert chosen == 0.0 or chosen in durations
    assert gain(chosen) == pytest.approx(max([0.0, *map(gain, durations)]))


def test_eta_is_minus_the_correlation_of_turns_done_and_left() -> None:
    turns = Turns()
    lengths = [random.Random(7).randint(1, 30) for _ in range(50)]
    pairs = [(k, n - k) for n in lengths for k in range(1, n + 1)]
    for n in lengths:
        turns.add(n)
    mean = [sum(p[i] for p in pairs) / len(pairs) for i in (0, 1)]
    product = sum((x - mean[0]) * (y - mean[1]) for x, y in pairs)
    spread = [math.sqrt(sum((p[i] - mean[i]) ** 2 for p in pairs)) for i in (0, 1)]
    assert turns.eta(100) == pytest.approx(-product / (spread[0] * spread[1]))
    assert Turns().eta(100) == 1.0
    equal = Turns()
    for _ in range(20):
        equal.add(10)
    assert equal.eta(100) == pytest.approx(1.0), "equal lengths: what is done says exactly what is left"


def test_only_the_latest_durations_count() -> None:
    known = Durations()
    for i in range(1000):
        known.add(float(i))
    assert known.seen == 1000
    assert known.ordered == [float(i) for i in range(488, 1000)]


def test_a_cold_start_pins_for_the_logarithm_of_what_a_pin_is_worth(desk: Any) -> None:
    d = desk("continuum")  # prefill is 1,000 tokens a second: 4,000 tokens are worth 4 s
    d.arrive("a", tokens=3990)
    pin = next(x for x in d.finish("a", tokens=3990, output=10, tools=TOOL) if isinstance(x, do.Pin))
    assert pin.until - d.now == pytest.approx(math.log(4.0))
    d.arrive("b", tokens=500)
    assert not any(isinstance(x, do.Pin) for x in d.finish("b", tokens=500, tools=TOOL)), (
        "worth half a second"
    )


def test_a_known_tool_is_pinned_for_its_own_duration(desk: Any) -> None:
    d = desk("continuum", samples_min=3)
    d.arrive("a", tokens=3000)
    for turn in range(8):
        d.finish("a", turn, tokens=3000, tools=TOOL)
        d.arrive("a", turn + 1, tokens=3000, after=2.0)
    pin = next(x for x in d.finish("a", 8, tokens=3000, tools=TOOL) if isinstance(x, do.Pin))
    assert pin.until - d.now == pytest.approx(2.0)


def test_a_pin_holds_room_until_it_expires(desk: Any) -> None:
    d = desk("continuum", wait_s=10.0)  # ln(10 + 6) = 2.8 s
    d.arrive("a", tokens=6000)
    d.arrive("x", tokens=1000)
    d.finish("a", tokens=6000, tools=TOOL, after=0.0)
    d.arrive("b", tokens=4000)
    assert d.sent("b") is None
    out = d.timer()
    assert any(isinstance(x, do.Unpin) and x.reason == "expired" for x in out)
    assert d.sent("b") == "e0"


def test_the_pinned_go_before_the_unpinned_and_programs_by_arrival(desk: Any) -> None:
    d = desk("continuum", wait_s=10.0)
    d.arrive("wall", tokens=5000)
    d.arrive("pinned", tokens=3000, after=1.0)
    d.finish("pinned", tokens=3000, tools=TOOL)
    for name, after in (("first", 0.0), ("second", 0.1)):
        d.arrive(name, tokens=4000, after=after)
    d.arrive("pinned", 1, tokens=4500)
    assert not any(d.sent(*step) for step in (("pinned", 1), ("first",), ("second",)))
    d.finish("wall", tokens=5000, final=True, after=0.1)
    assert list(d.dispatched)[2:] == ["pinned/1", "first/0"]
    d.arrive("pinned", 2, tokens=100, relation="fork")
    d.finish("first", tokens=4000, final=True, after=0.1)
    assert list(d.dispatched)[4:] == ["pinned/2", "second/0"], "by the program's arrival, not the step's"


def test_a_younger_pinned_program_goes_before_an_older_one_that_lost_its_pin(desk: Any) -> None:
    d = desk("continuum", wait_s=10.0)
    d.arrive("old", tokens=500)
    d.finish("old", tokens=500, tools=TOOL)
    d.timer()  # its pin ran out
    d.arrive("young", tokens=3000, after=1.0)
    d.arrive("wall", tokens=5000)
    d.finish("young", tokens=3000, tools=TOOL)
    d.arrive("old", 1, tokens=6000)
    d.arrive("young", 1, tokens=4700)
    assert d.sent("old", 1) is None
    assert d.sent("young", 1) is None
    d.finish("wall", tokens=5000, final=True, after=0.1)
    assert d.sent("young", 1) == "e0"
    assert d.sent("old", 1) is None


def test_when_nothing_runs_the_latest_program_is_unpinned(desk: Any) -> None:
    d = desk("continuum", wait_s=100.0)
    for name in "ab":
        d.arrive(name, tokens=3000, after=1.0)
    for name in "ab":
        d.finish(name, tokens=3000, tools=TOOL, after=0.0)
    out = d.arrive("c", tokens=5000)
    assert [x.program for x in out if isinstance(x, do.Unpin)] == ["b"]
    assert d.sent("c") == "e0"


def test_an_auxiliary_step_in_a_gap_begins_no_other(desk: Any) -> None:
    d = desk("continuum")
    d.arrive("a", tokens=3000)
    d.finish("a", tokens=3000, tools=TOOL)
    d.arrive("a", 1, tokens=100, relation="auxiliary", after=5.0)
    d.finish("a", 1, tokens=100, after=1.0)
    d.arrive("a", 2, tokens=3100, after=4.0)
    assert d.scheduler.policy._of_tool["bash"].ordered == [10.0]


def test_only_those_who_come_back_from_a_gap_tell_what_a_pin_spares(desk: Any) -> None:
    d = desk("continuum")
    d.arrive("a", tokens=3000)
    d.finish("a", tokens=3000, tools=TOOL)
    d.fire(60.0)  # its pin is over by then
    d.arrive("wall", tokens=6500)
    d.arrive("a", 1, tokens=3100)
    d.arrive("a", 2, tokens=3100, relation="fork")
    d.finish("wall", tokens=6500, final=True, after=8.0)
    assert d.sent("a", 1) == d.sent("a", 2) == "e0"
    assert list(d.scheduler.policy._waits) == [8.0], "the fork was in no gap"
