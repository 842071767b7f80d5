"""Programs whose prompts each begin anew: what is kept of them, how many are admitted, and who of them goes first."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core import events as ev
from agentserve.core.ids import ProgramId, TenantId
from agentserve.core.policies.reranking import RANKED_MOST
from agentserve.core.program import Program
from tests.core.conftest import Gaps


def roles(d: Any, name: str, steps: int, *, cached: int) -> None:
    """A program whose prompts begin each with another role's 2,000 tokens; the engine finds so many cached."""
    for k in range(steps):
        d.arrive(name, k, tokens=4000, prefix=(ev.Segment(100 + k, 2000),))
        d.finish(name, k, tokens=4000, cached_tokens=cached if k else 0, final=k == steps - 1)


@pytest.mark.parametrize("others", [(), ("b", "c")], ids=["and nobody waits", "and others wait"])
def test_where_prompts_each_begin_anew_no_seat_is_kept_in_a_gap(desk: Any, others: tuple[str, ...]) -> None:
    for cached, kept in ((2000, False), (3500, True)):  # only what all share, or more than that
        d = desk(foresight=Gaps())
        for k in range(60):
            roles(d, f"p{k}", 5, cached=cached)
        d.arrive("a", tokens=4000, prefix=(ev.Segment(1, 2000),))
        d.finish("a", tokens=4000)
        d.arrive("a", 1, tokens=4000, prefix=(ev.Segment(2, 2000),))
        for name in others:
            d.arrive(name, tokens=9000)
        d.finish("a", 1, tokens=4000, cached_tokens=cached)
        assert ("a" in d.scheduler.policy._books["e0"].seated) is kept


def test_where_programs_find_nothing_of_their_own_growth_may_pass_the_ceiling_too(desk: Any) -> None:
    d = desk(foresight=Gaps())
    for k in range(60):
        roles(d, f"p{k}", 5, cached=2000)
    for name in "abc":  # 3,700 tokens each with its output, of an engine of 9,700
        d.arrive(name, tokens=3600, prefix=(ev.Segment(1, 100),))
    assert all(d.sent(name) for name in "abc")
    d.finish("a", tokens=3600)
    d.arrive("a", 1, tokens=3800, prefix=(ev.Segment(2, 100),))
    assert d.sent("a", 1), "not held: admitted past the ceiling, it goes on past it"


def test_a_dozen_returns_show_what_fresh_programs_will_find(desk: Any) -> None:
    for cached, kept in ((2000, False), (3500, True)):
        d = desk(foresight=Gaps())
        for k in range(3):
            roles(d, f"p{k}", 5, cached=cached)
        d.arrive("a", tokens=4000, prefix=(ev.Segment(1, 2000),))
        d.arrive("b", tokens=9000)
        d.arrive("c", tokens=9000)
        d.finish("a", tokens=4000)
        assert ("a" in d.scheduler.policy._books["e0"].seated) is kept


def test_of_programs_that_begin_anew_those_with_less_work_left_go_first(desk: Any) -> None:
    left = {"large": 4.0, "small": 4.0, "small, long": 20.0}
    d = desk(foresight=Gaps(left=left))
    for k in range(60):
        roles(d, f"p{k}", 5, cached=2000)
    d.arrive("first", tokens=15_000)
    for name, tokens in (("large", 8000), ("small, long", 2500), ("small", 2500)):
        d.arrive(name, tokens=tokens)
    d.finish("first", tokens=15_000, final=True)
    assert [name for name in ("small", "large", "small, long") if d.sent(name)] == ["small", "large"]
    assert list(d.dispatched)[-2:] == ["small/0", "large/0"]


def test_a_pipeline_is_known_by_its_second_steps_and_who_has_gone_furthest_goes_first(desk: Any) -> None:
    for second, first in ((2, "begun"), (1, "fresh")):  # another role's prompt before it, or the same
        d = desk(foresight=Gaps(left={"begun": 12.0, "fresh": 12.0}))
        for name in ("a", "b", "c", "begun"):
            d.arrive(name, tokens=2000, prefix=(ev.Segment(1, 400),))
            d.finish(name, tokens=2000)
        for name in ("a", "b", "c", "begun"):  # none of their second steps is over
            d.arrive(name, 1, tokens=2000, prefix=(ev.Segment(second, 400),))
        d.arrive("fresh", tokens=1800, prefix=(ev.Segment(1, 400),))
        key, programs = d.scheduler.policy._order.key, d.scheduler.board.programs
        assert min(("begun", "fresh"), key=lambda name: key(programs[name])) == first


def test_who_joined_before_a_pipeline_was_known_is_ranked_anew_once_it_is(desk: Any) -> None:
    d = desk(foresight=Gaps())
    d.arrive("seated", tokens=9000)
    names = [f"w{i}" for i in range(RANKED_MOST + 1)]
    for name in names:  # they wait, ranked as agents that will keep so much context
        d.arrive(name, tokens=5000)
    policy, programs = d.scheduler.policy, d.scheduler.board.programs
    as_agent = programs["w0"].own.key
    pipelines = Program(id=ProgramId("p"), tenant=TenantId("t"), created_at=0.0)
    pipelines.moved = True
    for _ in range(12):
        policy._anew.came_back(pipelines)
    for ranked in (RANKED_MOST, RANKED_MOST + 1):  # no more than so many at one look
        d.timer()
        keys = [programs[name].own.key for name in names]
        assert sum(key < as_agent - 100 for key in keys) == ranked
    assert keys == [pytest.approx(policy._order.key(programs[name])) for name in names]
    d.arrive("late", tokens=5000)
    d.finish("seated", tokens=9000, final=True)
    assert d.sent("w0"), "who came first goes first"
    assert not d.sent("late")
