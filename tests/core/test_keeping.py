"""Seats in gaps: which are pinned and for how long, which are touched, and which are given up."""

from __future__ import annotations

from typing import Any

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.board import Share
from agentserve.core.ids import EngineId, ProgramId
from tests.core.conftest import Gaps


def test_a_long_context_is_kept_longer_than_a_short_one(desk: Any) -> None:
    # 150,000 tokens are prefilled in 150 s when prompts are short, and in more than twice that by long ones
    kept = {}
    for name, tokens in (("long", 80_000), ("short", 10_000)):
        d = desk(foresight=Gaps({name: 290.0}), kv_tokens=150_000)
        d.arrive("runs on", tokens=30_000)
        d.arrive(name, tokens=tokens)
        d.finish(name, tokens=tokens)
        d.arrive("waits", tokens=110_000)
        d.fire(2.0)
        kept[name] = name in d.scheduler.policy._books["e0"].seated
    assert kept == {"long": True, "short": False}


def touched(desk: Any, **params: Any) -> Any:
    """`a` and others rest in their seats; `b` comes, goes and leaves newer blocks behind."""
    d = desk(foresight=Gaps({"a": 0.5}), touch_s=2.0, **params)
    d.arrive("a", tokens=4000)
    d.finish("a", tokens=4000)
    d.arrive("b", tokens=3000)
    d.finish("b", tokens=3000, after=1.0)
    d.arrive("b", 1, tokens=3500)
    d.finish("b", 1, tokens=3500, after=1.0, final=True)
    d.arrive("c", tokens=3400)
    return d


def test_idle_seats_are_touched_before_newer_dead_blocks_push_them_out(desk: Any) -> None:
    d = touched(desk, touch_seat_max=1.0)
    d.timer()
    warms = [x for x in d.all if isinstance(x, do.Warm)]
    assert [w.program for w in warms] == ["a"]
    assert warms[0].refresh


def test_where_few_programs_fit_none_is_touched(desk: Any) -> None:
    d = touched(desk)
    d.timer()
    assert not [x for x in d.all if isinstance(x, do.Warm)], "it would come too late"


def test_what_is_evicted_already_is_not_touched(desk: Any) -> None:
    d = touched(desk, touch_seat_max=1.0)
    d.board.fleet[EngineId("e0")].written += 10_000
    d.timer()
    assert not [x for x in d.all if isinstance(x, do.Warm)], "it would be prefilled anew"


def restored(d: Any, *, cached: int, prompt: int | None = None) -> int:
    """What a warm of `a` wrote that found so much of its prompt."""
    engine = d.board.fleet[EngineId("e0")]
    before = engine.written
    d.tell(
        ev.DecisionDone(
            decision="Warm",
            program=ProgramId("a"),
            engine=engine.id,
            outcome="accepted",
            prompt_tokens=prompt,
            cached_tokens=cached,
        )
    )
    return int(engine.written - before)


def test_what_a_touch_had_to_restore_pushed_others_out(desk: Any) -> None:
    d = touched(desk, touch_seat_max=1.0)
    d.timer()
    assert restored(d, cached=4_100) == 0, "all of it was there"
    assert restored(d, cached=100) == d.board.programs[ProgramId("a")].home_tokens - 100


def test_a_touch_restores_no_more_than_it_sent(desk: Any) -> None:
    d = touched(desk, touch_seat_max=1.0)
    d.timer()
    assert restored(d, prompt=3_800, cached=3_792) == 8, "the reply to the prompt was not sent"


def test_memory_that_others_want_is_pinned_with_an_end_and_let_go_after_it(desk: Any) -> None:
    d = desk(foresight=Gaps({"a": 3.0}))
    d.arrive("a", tokens=4000)
    d.finish("a", tokens=4000)
    assert not d.of(do.Pin), "nobody wants it yet"
    d.arrive("b", tokens=6000)
    (pin,) = d.of(do.Pin)
    assert (pin.program, pin.engine, pin.mode) == ("a", "e0", "reserved")
    assert pin.until > d.now
    d.fire(after=301.0)
    assert d.sent("b") == "e0", "no pin outlasts its longest, whatever was forecast"


def test_few_engines_pins_are_priced_in_one_event_and_the_others_at_once_after_it(desk: Any) -> None:
    d = desk(engines=5, foresight=Gaps({f"p{i}": 3.0 for i in range(5)}))
    for i in range(5):
        d.arrive(f"p{i}", tokens=4000)
    for i in range(5):
        d.finish(f"p{i}", tokens=4000, after=0.0)
    priced = [len({x.engine for x in d.arrive("late", tokens=6000) if isinstance(x, do.Pin)})]
    came = d.now
    while sum(priced) < 5:
        priced.append(len({x.engine for x in d.timer() if isinstance(x, do.Pin)}))
    assert priced == [2, 2, 1]
    assert d.now == came


def test_an_engine_that_keeps_kv_itself_is_told_to_until_it_refuses(desk: Any) -> None:
    d = desk(foresight=Gaps({"a": 3.0}))
    d.report("e0", pins_natively=True)
    d.arrive("a", tokens=4000)
    d.finish("a", tokens=4000)
    (pin,) = d.of(do.Pin)
    assert pin.mode == "native"
    d.tell(ev.DecisionDone(decision="Pin", program=ProgramId("a"), engine=EngineId("e0"), outcome="refused"))
    d.arrive("a", 1, tokens=4100)
    d.finish("a", 1, tokens=4100)
    assert len(d.of(do.Pin)) == 1, "it refused once and is not asked again"


def test_a_tenants_pins_stay_within_its_budget_while_others_wait(desk: Any) -> None:
    d = desk(foresight=Gaps({"a": 1.0}), shares={"t": Share(pin_share_max=0.1)})
    d.arrive("a", tokens=4000)
    d.finish("a", tokens=4000)
    d.arrive("b", tokens=6000, tenant="u")
    assert d.sent("b") == "e0"


def test_an_engine_that_stands_still_gives_up_a_pin_for_who_waits(desk: Any) -> None:
    d = desk(foresight=Gaps({"a": 4.0}))
    d.arrive("a", tokens=4000)
    d.finish("a", tokens=4000)
    d.arrive("b", tokens=6000)
    assert d.sent("b") is None
    d.fire(after=1.5)
    assert d.sent("b") == "e0"


def test_an_engine_that_goes_on_standing_still_gives_up_ever_more_pins(desk: Any) -> None:
    names = [f"p{i}" for i in range(10)]
    d = desk(foresight=Gaps(dict.fromkeys(names, 6.0)))
    for name in names:
        d.arrive(name, tokens=400)
        d.finish(name, tokens=400)
    seated = d.scheduler.policy._books["e0"].seated
    assert len(seated) == len(names)
    d.arrive("large", tokens=9000)
    left = []
    while d.sent("large") is None:
        d.fire(after=0.5)
        left.append(len(seated))
    assert left == [9, 9, 8, 6, 1], "who needs less comes back to its seat once, ahead of its return"
    reasons = [x.reason for x in d.all if isinstance(x, do.Unpin)]
    assert set(reasons) <= {"stalled"}, "all would have been kept"


def test_who_waits_is_looked_after_again_and_again_though_nothing_else_happens(desk: Any) -> None:
    d = desk(foresight=Gaps({"a": 3.0}))
    d.arrive("a", tokens=4000)
    d.arrive("runs on", tokens=3000)
    d.finish("a", tokens=4000)
    d.arrive("b", tokens=5000)
    for _ in range(5):
        assert d.scheduler.next_deadline() - d.now <= 0.5
        d.timer()


def test_what_a_pin_spared_is_what_the_engine_says_that_it_found(desk: Any) -> None:
    d = desk(foresight=Gaps({"a": 3.0}))
    d.arrive("a", tokens=4000)
    d.finish("a", tokens=4000)
    d.arrive("b", tokens=6000)  # from now on the memory has a price
    d.arrive("a", 1, tokens=4100, after=2.0)
    d.finish("a", 1, tokens=4100, cached_tokens=3000)
    figures = d.scheduler.policy.figures()
    engine = d.board.fleet[EngineId("e0")]
    assert figures["pins_settled"] == 1
    assert figures["pins_saved_s"] == engine.restore_s(3000)
    assert figures["pins_cost_s"] > 0.0


def test_only_an_engine_that_keeps_kv_itself_is_told_when_a_program_is_over(desk: Any) -> None:
    for natively in (False, True):
        d = desk(foresight=Gaps({"a": 3.0}))
        d.report("e0", pins_natively=natively)
        d.arrive("a", tokens=4000)
        d.finish("a", tokens=4000)
        d.end("a")
        assert [x.reason for x in d.of(do.Unpin)] == (["ended"] if natively else [])


def test_a_pin_ends_otherwise_once_more_is_known_of_the_gap(desk: Any) -> None:
    d = desk(foresight=Gaps({"a": 3.0}))
    d.arrive("a", tokens=4000)
    d.finish("a", tokens=4000)
    d.arrive("b", tokens=6000)
    (first,) = d.of(do.Pin)
    d.tell(ev.HintGiven(program=ProgramId("a"), returns_in_s=2.0), after=1.0)
    d.fire(0.6)
    *_, later = d.of(do.Pin)
    assert later is not first
    assert later.until == 1.0 + 1.0 + 2.0 + d.scheduler.policy.params.announced_s


def test_a_program_that_lost_its_seat_has_one_again_just_before_it_is_back(desk: Any) -> None:
    d = desk(foresight=Gaps({"a": 40.0}))
    d.arrive("a", tokens=4000)
    d.finish("a", tokens=4000)
    d.arrive("b", tokens=6000)
    assert d.sent("b") == "e0", "forty seconds are not worth the memory"
    d.finish("b", tokens=6000, final=True)
    seated = d.scheduler.policy._books["e0"].seated
    d.fire(30.0)
    assert "a" not in seated
    d.fire(8.0)
    assert "a" in seated
    d.arrive("a", 1, tokens=4100, after=1.0)
    assert d.sent("a", 1) == "e0"


def test_no_more_seats_are_taken_for_who_outgrew_the_ceiling_than_must_be(desk: Any) -> None:
    d = desk(foresight=Gaps({"b": 0.5, "c": 0.5}))
    for name, tokens in (("a", 2000), ("b", 2500), ("c", 2500)):
        d.arrive(name, tokens=tokens, after=0.1)
    for name, tokens in (("a", 2000), ("b", 2500), ("c", 2500)):
        d.finish(name, tokens=tokens, after=0.01)
    d.arrive("a", 1, tokens=4500)
    assert [(x.program, x.reason) for x in d.of(do.Unpin)] == [("c", "outranked")]
    assert d.sent("a", 1) == "e0"
    counts = d.scheduler.policy.counts
    assert {k: counts[k] for k in ("seats", "kept", "returned", "released", "outranked", "held")} == {
        "seats": 3, "kept": 3, "returned": 1, "released": 0, "outranked": 1, "held": 0,
    }  # fmt: skip


def test_without_reservation_a_seat_ends_with_each_step(desk: Any) -> None:
    d = desk(reserve_gaps=False)
    d.arrive("a", tokens=4000)
    d.finish("a", tokens=4000)
    assert d.scheduler.policy.seats()["e0"] == (0, 0)


def test_a_step_that_is_held_goes_elsewhere_when_its_engine_begins_to_drain(desk: Any) -> None:
    d = desk(engines=2, foresight=Gaps())
    d.report("e1", draining=True)
    for name in ("a", "b"):
        d.arrive(name, tokens=3500)
    d.finish("b", tokens=3500)
    d.arrive("b", 1, tokens=6500)
    assert d.sent("b", 1) is None, "beside a it is too much"
    d.report("e1", draining=False)
    assert d.sent("b", 1) is None, "its seat is where it is"
    d.report("e0", draining=True)
    assert d.sent("b", 1) == "e1"
