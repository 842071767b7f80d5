"""PLAS and ATLAS: least attained service, its queues, starvation, and where short and long prompts go."""

from __future__ import annotations

from typing import Any

import pytest


def busy(d: Any, seconds: float, **extra: Any) -> None:
    """Program `old` gets this much service; then `wall` fills the engine."""
    d.arrive("old", tokens=3000, **extra)
    d.finish("old", tokens=3000, after=seconds)
    d.arrive("wall", tokens=9000)


def test_service_demotes_a_program_by_doubling_quanta(desk: Any) -> None:
    plas = desk("plas", quantum_s=2.0, growth=2.0, levels=4).scheduler.policy
    assert [plas.level(s) for s in (0.0, 1.9, 2.0, 3.9, 4.0, 7.9, 8.0, 1e6)] == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("policy", ["plas", "atlas"])
def test_a_young_program_goes_before_one_that_was_served(desk: Any, policy: str) -> None:
    d = desk(policy, beta=100.0)
    busy(d, 5.0)
    d.arrive("old", 1, tokens=5000)
    d.arrive("young", tokens=5000, after=1.0)
    d.finish("wall", tokens=9000, final=True)
    assert d.sent("young") == "e0"
    assert d.sent("old", 1) is None


def test_waiting_beyond_beta_times_service_promotes_to_the_first_queue(desk: Any) -> None:
    d = desk("plas", beta=3.0)
    busy(d, 5.0)
    d.arrive("old", 1, tokens=5000)
    due = d.scheduler.policy.wake()
    assert due == pytest.approx(d.now + 15.0)
    d.timer()
    assert d.now == due
    d.arrive("young", tokens=5000)
    d.finish("wall", tokens=9000, final=True)
    assert d.sent("old", 1) == "e0"


def test_plas_adds_parallel_calls_where_atlas_takes_the_longest_path(desk: Any) -> None:
    attained = {}
    for policy in ("plas", "atlas"):
        d = desk(policy, engines=2)
        d.arrive("a", 0, tokens=100)
        d.arrive("a", 1, tokens=100, relation="fork")
        d.finish("a", 0, tokens=100, after=3.0)
        d.finish("a", 1, tokens=100, after=1.0)
        d.arrive("a", 2, tokens=100)
        step = d.scheduler.board.steps["a/2"]
        attained[policy] = d.scheduler.policy.attained_s(step)
    assert attained == {"plas": pytest.approx(7.0), "atlas": pytest.approx(4.0)}


def test_a_sub_agent_starts_from_its_parent_and_lifts_its_path(desk: Any) -> None:
    d = desk("atlas")
    d.arrive("a", tokens=100)
    d.finish("a", tokens=100, after=2.0)
    d.arrive("child", tokens=100, parent="a")
    d.finish("child", tokens=100, after=3.0, final=True)
    d.arrive("a", 1, tokens=100)
    assert d.scheduler.policy.attained_s(d.scheduler.board.steps["a/1"]) == pytest.approx(5.0)


def test_short_prompts_go_to_the_least_used_engine_and_long_ones_home(desk: Any) -> None:
    d = desk("plas", engines=2)
    d.arrive("a", tokens=3000)
    assert d.sent("a") == "e0"
    d.arrive("b", tokens=2000)
    assert d.sent("b") == "e1"
    d.finish("b", tokens=2000)
    d.finish("a", tokens=3000)
    d.arrive("c", tokens=100)
    d.arrive("a", 1, tokens=3200)
    assert (d.sent("c"), d.sent("a", 1)) == ("e0", "e0")
