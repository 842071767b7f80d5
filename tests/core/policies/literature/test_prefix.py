"""Prefix-aware routing: the longest match, unless the fleet is unbalanced."""

from __future__ import annotations

from typing import Any

from agentserve.core import events as ev


def test_a_step_goes_where_most_of_its_prompt_is_cached(desk: Any) -> None:
    d = desk("prefix", engines=3)
    d.arrive("x", tokens=100)
    d.arrive("a", tokens=3000)
    assert d.sent("a") == "e1"
    d.finish("a", tokens=3000, cached_tokens=0)
    d.finish("x", tokens=100)
    d.arrive("a", 1, tokens=3200)
    assert d.sent("a", 1) == "e1"


def test_a_shared_prefix_draws_other_programs(desk: Any) -> None:
    shared = (ev.Segment(5, 2000),)
    d = desk("prefix", engines=2)
    d.arrive("x", tokens=100)
    d.arrive("a", tokens=3000, prefix=shared)
    d.finish("a", tokens=3000)
    d.finish("x", tokens=100)
    d.arrive("b", tokens=3000, prefix=shared)
    assert d.sent("b") == "e1"
    d.arrive("c", tokens=9000, prefix=shared)
    assert d.sent("c") == "e0", "2,000 of 9,000 is not much of a match"


def test_an_unbalanced_fleet_is_levelled_first(desk: Any) -> None:
    shared = (ev.Segment(5, 2000),)
    d = desk("prefix", engines=2, balance_abs=2)
    d.arrive("a", tokens=2500, prefix=shared)
    d.finish("a", tokens=2500)
    for name in "bcd":
        d.arrive(name, tokens=2500, prefix=shared)
        assert d.sent(name) == "e0"
    d.arrive("e", tokens=2500, prefix=shared)
    assert d.sent("e") == "e1"
