"""Pipelines that want more of an engine than is free let those of other roles pass, for a while and no longer."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core import events as ev

# an engine of 9,700 tokens; where nothing is kept, fresh seats are given up to 13,095
ONE, OTHER = (ev.Segment(1, 2000),), (ev.Segment(2, 2000),)


def shown(d: Any) -> Any:
    """The engine's programs find nothing of what they left, in the first role and in the other; one runs there."""
    for k in range(60):
        d.arrive(f"p{k}", tokens=3000, prefix=ONE)
        d.finish(f"p{k}", tokens=3000)
        d.arrive(f"p{k}", 1, tokens=3000, prefix=OTHER)
        d.finish(f"p{k}", 1, tokens=3000, cached_tokens=2000, final=True)
    d.arrive("runs", tokens=9500, prefix=ONE)
    assert d.sent("runs")
    return d


@pytest.fixture
def known(desk: Any) -> Any:
    return shown(desk())


def test_whose_role_is_not_there_and_has_no_room_lets_those_pass_whose_role_is(known: Any) -> None:
    known.arrive("other", tokens=4200, prefix=OTHER)
    assert known.sent("other") is None
    known.arrive("same", tokens=4200, prefix=ONE, after=1.0)
    assert known.sent("same") == "e0"
    assert known.sent("other") is None
    known.finish("runs", tokens=9500, final=True)
    assert known.sent("other") == "e0"


def test_nobody_is_passed_by_those_who_come_much_later(known: Any) -> None:
    known.arrive("other", tokens=4200, prefix=OTHER)
    known.arrive("same", tokens=4200, prefix=ONE, after=2000.0)
    assert known.sent("same") is None


def test_another_tenants_programs_are_not_passed(known: Any) -> None:
    known.arrive("other", tokens=4200, prefix=OTHER, tenant="patient")
    known.arrive("same", tokens=4200, prefix=ONE, after=1.0)
    assert known.sent("same") is None


def test_of_two_that_fit_the_one_whose_role_is_there_goes_first(known: Any) -> None:
    known.arrive("also", tokens=3000, prefix=ONE)
    for name, prefix in (("other", OTHER), ("same", ONE)):
        known.arrive(name, tokens=4900, prefix=prefix)
        assert known.sent(name) is None
    known.finish("runs", tokens=9500, final=True)
    assert list(known.dispatched)[-2:] == ["same/0", "other/0"]


def test_where_starts_alone_make_the_rank_nobody_is_passed(desk: Any) -> None:
    d = shown(desk(beta=0.0, gamma=0.0))
    d.arrive("other", tokens=4200, prefix=OTHER)
    d.arrive("same", tokens=4200, prefix=ONE, after=1.0)
    assert d.sent("other") is None
    assert d.sent("same") is None
