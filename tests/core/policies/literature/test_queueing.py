"""The frame: steps find another line when theirs is gone, shared prefixes count once, and an idle engine takes all."""

from __future__ import annotations

from typing import Any

from agentserve.core import events as ev


def test_steps_in_the_line_of_a_lost_engine_join_another(desk: Any) -> None:
    d = desk("plas", engines=2)
    for name in "abcd":
        d.arrive(name, tokens=6000)
    assert [d.sent(n) for n in "abcd"] == ["e0", "e1", None, None]
    d.lose("e0")
    assert d.sent("a") is None, "no byte of it had come: it waits again"
    served = []
    while d.board.steps:
        (running,) = (s for s in d.board.steps.values() if s.in_flight)
        served.append((running.program.id, running.engine))
        d.finish(running.program.id, tokens=6000, final=True)
    assert sorted(served) == [(n, "e1") for n in "abcd"]


def test_steps_of_a_draining_engine_wait_elsewhere_and_nothing_more_goes_there(desk: Any) -> None:
    d = desk("infercept", engines=2)
    for name in "abcd":
        d.arrive(name, tokens=6000)
    d.report("e0", draining=True)
    d.finish(next(n for n in "abcd" if d.sent(n) == "e0"), tokens=6000, final=True)
    assert not d.board.fleet["e0"].steps
    assert len(d.board.waiting) == 2


def test_without_any_engine_steps_wait_for_the_first_to_come(desk: Any) -> None:
    d = desk("continuum", engines=1)
    d.lose("e0")
    out = d.arrive("a")
    assert [x.reason for x in out] == ["no_engine"]
    d.back("e0")
    assert d.sent("a") == "e0"


def test_a_shared_prefix_is_charged_once(desk: Any) -> None:
    shared = (ev.Segment(7, 4000),)
    d = desk("plas")
    for name in "abcd":
        d.arrive(name, tokens=4500, prefix=shared)
    assert all(d.sent(n) for n in "abcd"), "4,000 once, and 700 each with the output"


def test_a_step_larger_than_an_engine_goes_alone(desk: Any) -> None:
    d = desk("vtc")
    d.arrive("a", tokens=1000)
    d.arrive("huge", tokens=50_000)
    assert d.sent("huge") is None
    d.finish("a", final=True)
    assert d.sent("huge") == "e0"


def test_an_engine_takes_no_more_steps_than_it_has_places(desk: Any) -> None:
    d = desk("justitia")
    d.report("e0", seqs_max=2)
    for name in "abc":
        d.arrive(name, tokens=100)
    assert [d.sent(n) for n in "abc"] == ["e0", "e0", None]
    d.finish("a", tokens=100)
    assert d.sent("c") == "e0"


def test_models_that_only_one_engine_serves_wait_for_it_alone(desk: Any) -> None:
    d = desk("vtc", engines=2)
    d.report("e0", models=("small",))
    d.report("e1", models=("large",))
    d.arrive("a", tokens=9000, model="large")
    d.arrive("b", tokens=9000, model="large")
    d.arrive("c", tokens=9000, model="small")
    assert (d.sent("a"), d.sent("b"), d.sent("c")) == ("e1", None, "e0")
