"""Fleets whose engines serve different models: who waits for one holds up nobody, and a second model costs no seat."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core import decisions as do
from agentserve.core import events as ev

TOOL = (ev.PendingTool(id="c", name="bash"),)


@pytest.fixture
def fleet(desk: Any) -> Any:
    """`e0` serves the big model, `e1` the small one."""
    d = desk(engines=2)
    d.report("e0", models=("big",))
    d.report("e1", models=("small",))
    return d


def test_an_auxiliary_step_for_another_model_goes_there_and_the_seat_stays(fleet: Any) -> None:
    fleet.arrive("a", model="big")
    fleet.finish("a", tools=TOOL)
    began = fleet.board.programs["a"].gap_started_at
    fleet.arrive("a", 1, model="small", tokens=100, relation="auxiliary")
    assert fleet.sent("a", 1) == "e1"
    fleet.finish("a", 1, tokens=100)
    assert fleet.board.programs["a"].gap_started_at == began, "the tool still runs"
    assert fleet.scheduler.policy.seats()["e1"] == (0, 0), "a guest leaves nothing behind"
    fleet.arrive("a", 2, model="big")
    assert fleet.sent("a", 2) == "e0"


def test_a_step_for_another_model_beside_a_running_one_is_a_guest(fleet: Any) -> None:
    fleet.arrive("a", model="big")
    fleet.arrive("a", 1, model="small", relation="fork")
    assert (fleet.sent("a"), fleet.sent("a", 1)) == ("e0", "e1")
    fleet.finish("a", tools=TOOL)
    fleet.finish("a", 1, tools=TOOL)
    assert fleet.scheduler.policy.seats()["e0"][0] == 1
    assert fleet.board.programs["a"].gap_started_at == fleet.now
    assert fleet.board.programs["a"].own.kept_since == fleet.now, (
        "its gap begins when the last of them is done"
    )


def test_a_program_that_goes_on_with_another_model_takes_its_seat_there(fleet: Any) -> None:
    fleet.arrive("a", model="big")
    fleet.finish("a", tools=TOOL)
    fleet.arrive("a", 1, model="small")
    assert fleet.sent("a", 1) == "e1"
    assert {e: n for e, (n, _) in fleet.scheduler.policy.seats().items()} == {"e0": 0, "e1": 1}


def test_a_program_that_waits_for_a_seat_may_ask_another_model_meanwhile(fleet: Any) -> None:
    fleet.arrive("x", model="big", tokens=8000)
    fleet.arrive("a", model="big", tokens=8000)
    fleet.arrive("a", 1, model="small", tokens=100, relation="auxiliary")
    assert (fleet.sent("a"), fleet.sent("a", 1)) == (None, "e1")
    fleet.finish("a", 1, tokens=100)
    fleet.finish("x", tokens=8000, final=True)
    assert fleet.sent("a") == "e0"


def test_who_waits_for_a_full_engine_holds_up_nobody_elsewhere(fleet: Any) -> None:
    fleet.arrive("x", model="big", tokens=8000)
    fleet.arrive("a", model="big", tokens=8000)
    fleet.arrive("b", model="small")
    assert (fleet.sent("a"), fleet.sent("b")) == (None, "e1")


def test_a_model_that_no_engine_serves_any_more_holds_up_nobody(fleet: Any) -> None:
    fleet.arrive("x", model="big", tokens=8000)
    fleet.arrive("a", model="big", tokens=8000)
    fleet.report("e0", models=("new",))
    fleet.finish("x", tokens=8000, final=True)
    fleet.arrive("b", model="new")
    assert (fleet.sent("a"), fleet.sent("b")) == (None, "e0")
    fleet.fire(fleet.board.limits.queue_timeout_s)
    assert [d.step for d in fleet.of(do.Reject)] == ["a/0"]


def test_an_engine_that_stops_serving_a_model_gets_no_more_of_it(desk: Any) -> None:
    d = desk(engines=2)
    d.arrive("a", model="m")
    d.finish("a", tools=TOOL)
    d.report("e0", models=("other",))
    d.arrive("a", 1, model="m")
    assert (d.sent("a"), d.sent("a", 1)) == ("e0", "e1")


def test_a_program_returns_elsewhere_when_its_engine_began_to_drain_under_its_step(desk: Any) -> None:
    d = desk(engines=2)
    d.arrive("a")
    d.report("e0", draining=True)
    d.finish("a", tools=TOOL)
    d.arrive("a", 1)
    assert (d.sent("a"), d.sent("a", 1)) == ("e0", "e1")


def test_a_guest_waits_for_room_but_not_for_ever(fleet: Any) -> None:
    fleet.arrive("x", model="small", tokens=8900)
    fleet.arrive("a", model="big")
    fleet.arrive("a", 1, model="small", tokens=3000, relation="auxiliary")
    assert fleet.sent("a", 1) is None
    fleet.fire(11.0)
    assert fleet.sent("a", 1) == "e1"


def test_a_waiting_guest_may_be_given_up_with_its_program(fleet: Any) -> None:
    fleet.arrive("x", model="small", tokens=8900)
    fleet.arrive("a", model="big")
    fleet.arrive("a", 1, model="small", tokens=3000, relation="auxiliary")
    fleet.lose("e0")
    fleet.leave("a", 1)
    assert list(fleet.board.programs["a"].open_steps) == ["a/0"], "which waits for its engine"
    fleet.leave("a")
    fleet.end("a")
    assert "a" not in fleet.board.programs


def test_a_seat_is_charged_for_its_context_while_only_an_auxiliary_step_runs(desk: Any) -> None:
    d = desk()
    d.arrive("a", tokens=4000)
    d.finish("a", tokens=4000, output=10, tools=TOOL)
    before = d.scheduler.policy.seats()["e0"][1]
    d.arrive("a", 1, tokens=100, relation="auxiliary")
    assert d.scheduler.policy.seats()["e0"][1] > before


def pinned(desk: Any) -> Any:
    """`a` is in a gap and keeps its KV on e0, which `b` wants."""
    d = desk(engines=1, kv_tokens=10_000, ttl_s=60.0)
    d.arrive("a", tokens=5000)
    d.finish("a", tokens=5000, tools=TOOL)
    d.arrive("x", tokens=500)  # the engine does not idle
    d.arrive("b", tokens=5000)
    d.fire(1.0)
    return d


def test_a_seat_that_is_lost_in_a_gap_since_its_engine_drains_is_told(desk: Any) -> None:
    d = pinned(desk)
    d.report("e0", draining=True)
    assert [(u.program, u.engine, u.reason) for u in d.of(do.Unpin)] == [("a", "e0", "drained")]


def test_the_pin_of_a_program_that_returns_for_another_model_is_told_to_be_over(desk: Any) -> None:
    d = pinned(desk)
    d.report("e0", models=("m",))
    d.back("e1")
    d.report("e1", models=("n",), kv_tokens=20_000)
    d.arrive("a", 1, tokens=5200, model="n")
    assert d.sent("a", 1) == "e1"
    assert [(u.program, u.engine, u.reason) for u in d.of(do.Unpin)] == [("a", "e0", "moved")]


@pytest.mark.parametrize("away", ["lost", "drained", "serves another model"])
def test_a_step_that_no_engine_takes_is_told_to_wait_for_one_and_not_for_a_seat(desk: Any, away: str) -> None:
    d = desk(kv_tokens=10_000)
    d.arrive("a", tokens=9000)
    d.arrive("b", model="m")
    if away == "lost":
        d.lose("e0")
    else:
        d.report("e0", **({"draining": True} if away == "drained" else {"models": ("n",)}))
    d.arrive("c", model="m")
    why = {w.step: w.reason for w in d.of(do.Wait)}
    assert (why["b/0"], why["c/0"]) == ("no_seat", "no_engine")


def test_a_step_that_goes_elsewhere_after_its_engine_failed_ends_no_pin(desk: Any) -> None:
    d = desk(engines=2)
    d.arrive("a")
    d.report("e0", draining=True)  # while it is looked at
    d.dispatched.clear()
    d.fail("a", reason="broke", retryable=True)
    assert d.sent("a") == "e1"
    assert not d.of(do.Unpin)
