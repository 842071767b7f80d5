"""Justitia and UWFQ: the fluid server's clock, the tags, and what splitting a program earns."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.core.foresight import Naive
from agentserve.core.policies.literature.virtual_time import KvTime, VirtualTime, turnover

flows = st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 5), st.sampled_from([1.0, 2.0])), max_size=6)


class Left(Naive):
    """Steps left and output as told."""

    def __init__(self, left: dict[str, float]) -> None:
        super().__init__()
        self.left = left

    def steps_left(self, program: Any) -> float:
        return self.left.get(program.id, 1.0)

    def output_tokens(self, step: Any) -> float:
        return 100.0


@settings(max_examples=30, deadline=None)
@given(flows)
def test_virtual_finishes_order_flows_as_fair_sharing_ends_them(
    flows: list[tuple[float, float, float]],
) -> None:
    flows = sorted(flows)
    clock, finish = VirtualTime(), []
    for at, cost, weight in flows:
        clock.advance(at)
        finish.append(clock.join(cost, weight))
    ends = fluid(flows)
    for a, end_a in enumerate(ends):
        for b, end_b in enumerate(ends):
            if finish[a] < finish[b] - 1e-9:
                assert end_a <= end_b + 1e-6


def fluid(flows: list[tuple[float, float, float]]) -> list[float]:
    """Fair sharing played out event by event; when each flow ends."""
    left = [cost for _, cost, _ in flows]
    ends = [float("inf")] * len(flows)
    now = 0.0
    while any(end == float("inf") for end in ends):
        live = [i for i, f in enumerate(flows) if f[0] <= now and ends[i] == float("inf")]
        coming = [f[0] for f in flows if f[0] > now]
        weight = sum(flows[i][2] for i in live)
        steps = [c - now for c in coming] + [left[i] * weight / flows[i][2] for i in live]
        dt = min(steps)
        for i in live:
            left[i] -= dt * flows[i][2] / weight
            if left[i] <= 1e-9:
                ends[i] = now + dt
        now += dt
    return ends


def test_an_agent_costs_its_kv_token_time(desk: Any) -> None:
    d = desk("justitia", foresight=Left({"a": 3.0}))
    d.arrive("a", tokens=1000)
    step = d.scheduler.board.steps["a/0"]
    known = KvTime()
    known.growth_tokens = 200.0
    expected = sum((1000 + 200 * k) * 100 + 100**2 / 2 for k in range(3))
    assert known.of_program(step, d.board.foresight) == pytest.approx(expected)
    assert turnover(d.board.fleet) == pytest.approx(10_000 / 0.015)


def test_the_cheapest_agent_goes_first_and_keeps_its_tag(desk: Any) -> None:
    d = desk("justitia", foresight=Left({"long": 50.0, "short": 2.0}))
    d.arrive("wall", tokens=9000)
    d.arrive("long", tokens=5000)
    d.arrive("short", tokens=5000, after=1.0)
    tag = d.board.programs["short"].own.tag
    d.finish("wall", tokens=9000, final=True, after=0.1)
    assert d.sent("short") == "e0"
    assert d.sent("long") is None
    d.finish("short", tokens=5000)
    assert d.sent("long") == "e0"
    d.arrive("short", 1, tokens=5200)
    assert d.board.programs["short"].own.tag == tag
    d.arrive("late", tokens=5000, after=3000.0)
    assert d.board.programs["late"].own.tag > d.board.programs["long"].own.tag, (
        "in the end everyone's turn comes"
    )


def test_sub_agents_share_their_roots_tag(desk: Any) -> None:
    d = desk("justitia")
    d.arrive("a", tokens=100)
    d.arrive("child", tokens=100, parent="a", after=5.0)
    assert d.board.programs["child"].own.tag == d.board.programs["a"].own.tag


def deadlines(d: Any, names: list[str]) -> list[float]:
    return [d.board.programs[n].own.tag for n in names]


def test_splitting_a_program_gains_a_tenant_nothing(desk: Any) -> None:
    d = desk("uwfq", foresight=Left({}))
    d.arrive("whole", tokens=4000, tenant="u", prefix=())
    parts = [f"part{i}" for i in range(4)]
    for name in parts:
        d.arrive(name, tokens=4000, tenant="v")
    one, *rest = deadlines(d, ["whole", *parts])
    assert rest == pytest.approx([one * k for k in (1, 2, 3, 4)])
    d.arrive("next", tokens=4000, tenant="u")
    assert deadlines(d, ["next"])[0] == pytest.approx(2 * one)


def test_a_small_program_moves_only_its_own_tenants_larger_ones(desk: Any) -> None:
    d = desk("uwfq", foresight=Left({"big": 10.0, "other": 10.0, "small": 1.0}))
    for name, tenant in (("big", "u"), ("other", "v")):
        d.arrive(name, tokens=4000, tenant=tenant)
    big, other = deadlines(d, ["big", "other"])
    d.arrive("small", tokens=1000, tenant="u")
    small, pushed, same = deadlines(d, ["small", "big", "other"])
    assert small < pushed
    assert pushed == pytest.approx(big + small)
    assert same == other


def test_ending_early_earns_no_credit(desk: Any) -> None:
    d = desk("uwfq", foresight=Left({}))
    d.arrive("a", tokens=4000, tenant="u")
    (first,) = deadlines(d, ["a"])
    d.arrive("other", tokens=4000, tenant="v")
    d.finish("a", tokens=4000, final=True, after=0.0)
    d.arrive("b", tokens=4000, tenant="u")
    assert deadlines(d, ["b"])[0] == pytest.approx(2 * first)


def test_an_auxiliary_prompt_says_nothing_of_how_contexts_grow(desk: Any) -> None:
    d = desk("justitia")
    known = d.scheduler.policy.kv_time
    d.arrive("a", tokens=3000)
    d.finish("a", tokens=3000)
    d.arrive("a", 1, tokens=100, relation="auxiliary")
    d.finish("a", 1, tokens=100)
    d.arrive("a", 2, tokens=3500)
    assert known.growth_tokens == 500.0, "grown by 500, as was assumed"
