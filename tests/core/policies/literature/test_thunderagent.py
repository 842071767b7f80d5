"""ThunderAgent: who is paused, who is restored, and the marking bug of its public code."""

from __future__ import annotations

from typing import Any

import pytest


def paused(d: Any) -> set[str]:
    return set(d.scheduler.policy._paused)


def marked(d: Any) -> set[str]:
    return {p.id for h in d.scheduler.policy._houses.values() for p in h.active.values() if p.own.marked}


def grow(d: Any, sizes: dict[str, int]) -> None:
    """Programs that all fit at first and whose contexts then are `sizes`, with a step open each."""
    for name in sizes:
        d.arrive(name, tokens=100)
    for name, size in sizes.items():
        d.finish(name, tokens=100, after=0.0)
        d.arrive(name, 1, tokens=size)


def test_acting_programs_are_paused_before_reasoning_ones_and_the_smallest_first(desk: Any) -> None:
    d = desk("thunderagent")
    grow(d, {"a": 5000, "b": 3000, "c": 1000, "d": 1500})
    for name in "cd":
        d.finish(name, 1, tokens={"c": 1000, "d": 1500}[name], after=0.0)
    d.timer()
    assert paused(d) == {"c"}, "10,920 tokens with the buffers: without the smallest acting one 9,810"
    assert marked(d) == set()


def test_a_marked_program_is_paused_when_its_step_ends(desk: Any) -> None:
    d = desk("thunderagent")
    grow(d, {"a": 6000, "b": 3500, "c": 1000})
    d.timer()
    assert marked(d) == {"c"}
    assert paused(d) == set()
    d.finish("c", 1, tokens=1000)
    assert paused(d) == {"c"}
    d.arrive("c", 2, tokens=1200)
    assert d.sent("c", 2) is None


@pytest.mark.parametrize(("bug", "leaving"), [(False, {"c"}), (True, {"b", "c"})])
def test_the_marking_bug_marks_every_reasoning_program_there_is(
    desk: Any, bug: bool, leaving: set[str]
) -> None:
    d = desk("thunderagent", marking_bug=bug)
    grow(d, {"a": 6000, "b": 3500, "c": 1000})
    d.timer()
    assert marked(d) == leaving


def test_reasoning_programs_are_restored_before_acting_ones_on_any_engine(desk: Any) -> None:
    d = desk("thunderagent")
    grow(d, {"a": 6000, "b": 3500, "c": 900, "d": 500})
    d.timer()
    assert marked(d) == {"c", "d"}
    d.finish("d", 1, tokens=500)
    d.finish("c", 1, tokens=900)
    d.arrive("c", 2, tokens=1000)
    d.finish("b", 1, tokens=3500)
    d.arrive("b", 2, tokens=2700)
    d.timer()
    assert d.sent("c", 2) == "e0", "1,100 tokens are free: enough for c, and d would leave too little"
    assert paused(d) == {"d"}
    d.back("e1")
    d.report("e1", kv_tokens=10_000)
    d.arrive("e", tokens=9000)
    assert d.sent("e") == "e1"


def test_a_program_is_forced_in_after_half_an_hour(desk: Any) -> None:
    d = desk("thunderagent", force_after_s=20.0)
    d.arrive("a", tokens=9000)
    d.arrive("b", tokens=9000)
    for _ in range(3):
        d.timer()
        assert d.sent("b") is None
    d.timer()
    assert d.sent("b") == "e0"


def test_decay_lets_long_gaps_weigh_less(desk: Any) -> None:
    for half_life_s, expected in ((0.0, None), (1.0, "e0")):
        d = desk("thunderagent", half_life_s=half_life_s)
        d.arrive("a", tokens=8000)
        d.finish("a", tokens=8000)
        d.arrive("b", tokens=7000)
        assert d.sent("b") is None
        d.timer()
        assert d.sent("b") == expected
