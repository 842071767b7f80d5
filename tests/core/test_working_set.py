"""Ours: seats, growth, gaps, order and fairness, each shown with the fewest events."""

from __future__ import annotations

from typing import Any

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.board import Share
from agentserve.core.ids import ProgramId
from tests.core.conftest import Gaps

# capacity 10,000 with the default margin of 3% is 9,700: fresh seats up to 8,730, growth up to 9,700


def test_programs_beyond_the_working_set_wait_for_a_seat(desk: Any) -> None:
    d = desk(foresight=Gaps())
    for name in "abc":
        d.arrive(name, tokens=3000)
    assert d.sent("a")
    assert d.sent("b")
    assert d.sent("c") is None
    d.finish("a", tokens=3000, final=True)
    assert d.sent("c") == "e0"


def test_a_program_in_a_tool_gap_keeps_its_seat(desk: Any) -> None:
    d = desk(foresight=Gaps({"a": 0.5}))
    d.arrive("a", tokens=4000)
    d.finish("a", tokens=4000)
    d.arrive("b", tokens=5000)
    assert d.sent("b") is None, "the memory is kept for a, which is soon back"
    d.arrive("a", 1, tokens=4200)
    assert d.sent("a", 1) == "e0"


def test_a_long_gap_loses_its_seat_only_when_someone_waits(desk: Any) -> None:
    # the whole KV is filled in 9.7 s at 1,000 tokens a second: a gap of 100 s is not worth its memory
    d = desk(foresight=Gaps({"a": 100.0}))
    d.arrive("a", tokens=4000)
    d.finish("a", tokens=4000)
    seated = d.scheduler.policy._books["e0"].seated
    assert "a" in seated, "nobody waits, so it costs nothing to keep"
    d.arrive("b", tokens=5000)
    assert d.sent("b") == "e0"
    assert "a" not in seated
    assert any(isinstance(x, do.Unpin) and x.reason == "not_worth" for x in d.all)


def test_an_announced_return_keeps_the_seat(desk: Any) -> None:
    d = desk(foresight=Gaps({"a": 100.0}))
    d.arrive("a", tokens=4000)
    d.finish("a", tokens=4000, tools=(ev.PendingTool(id="c", name="bash"),))
    d.tell(ev.ToolEnded(program=ProgramId("a"), tool_id="c", duration_s=3.0), after=3.0)
    d.arrive("b", tokens=5000)
    assert d.sent("b") is None


def test_shared_prefixes_are_charged_once(desk: Any) -> None:
    shared = (ev.Segment(77, 3000),)
    d = desk(foresight=Gaps())
    for i in range(4):
        d.arrive(f"p{i}", tokens=3500, prefix=shared)
    # 3,000 once, and 500 + 100 + a margin of 4% of the believed capacity for each
    assert all(d.sent(f"p{i}") for i in range(4))
    assert d.scheduler.policy._books["e0"].load == 3000 + 4 * (500 + 100 + 388)


def test_a_small_engine_is_not_given_away_in_margins(desk: Any) -> None:
    d = desk(kv_tokens=6000, foresight=Gaps())
    for i in range(5):
        d.arrive(f"p{i}", tokens=900)
    assert [i for i in range(5) if d.sent(f"p{i}")] == [0, 1, 2, 3]


def test_an_engine_that_holds_few_programs_is_filled_nearer_to_its_ceiling(desk: Any) -> None:
    def admitted(tokens: int, **params: Any) -> bool:
        """Beside seats that hold 7,000 tokens, is there room for one of 2,400?"""
        d = desk(foresight=Gaps(), **params)
        for i in range(round(7000 / (tokens + 488))):
            d.arrive(f"p{i}", tokens=tokens)
        d.arrive("new", tokens=1900)
        return d.sent("new") is not None

    assert admitted(3000), "two large ones"
    assert not admitted(900), "five small ones: as many more would find their room taken when they grow"
    assert not admitted(3000, coarse=0.0)


def test_a_small_program_takes_a_little_of_the_room_to_grow_while_large_ones_wait(desk: Any) -> None:
    # 788 tokens a small seat, of 970 that are set aside for them
    d = desk(foresight=Gaps(), small=0.1, small_room=0.1, coarse=0.0)
    for name in ("a", "b", "large"):
        d.arrive(name, tokens=3700)
    d.arrive("small", tokens=300)
    d.arrive("another", tokens=300)
    assert d.sent("large") is None
    assert d.sent("small") == "e0", "it waits for no large one"
    assert d.sent("another") is None, "no more than a little"
    d.arrive("later agent", tokens=100, tools_offered=3)
    d.finish("small", tokens=300, final=True)
    assert d.sent("another") == "e0"
    assert d.sent("later agent") is None, "what is offered tools grows, however it begins"


def test_a_flood_of_small_programs_keeps_no_large_one_out(desk: Any) -> None:
    d = desk(foresight=Gaps(), small=0.1, small_room=0.1, coarse=0.0)
    for name in ("a", "b", "large"):
        d.arrive(name, tokens=3700)
    for i in range(20):
        d.arrive(f"small{i}", tokens=300, after=0.0 if i else 200.0)  # among equals who needs less goes first
    d.finish("a", tokens=3700, final=True)
    assert d.sent("large") == "e0", "what small ones hold of their own room is not charged to it"


def test_a_program_that_has_grown_is_not_small_any_more(desk: Any) -> None:
    d = desk(foresight=Gaps(), small=0.1, small_room=0.1, coarse=0.0)
    for name in ("a", "b", "large"):
        d.arrive(name, tokens=3700)
    d.arrive("grows", tokens=300)
    book = d.scheduler.policy._books["e0"]
    assert book.aside == 788
    d.finish("grows", tokens=300)
    d.arrive("grows", 1, tokens=900)
    assert book.aside == 0


def test_where_no_program_returns_the_engine_is_given_more_than_it_can_keep(desk: Any) -> None:
    def admitted(d: Any) -> int:
        for i in range(12):
            d.arrive(f"new{i}", tokens=1000)
        return sum(1 for i in range(12) if d.sent(f"new{i}"))

    strict, loose = desk(foresight=Gaps()), desk(foresight=Gaps())
    for i in range(300):  # one-shot requests on one desk, one long program on the other
        loose.arrive(f"once{i}", tokens=1000)
        loose.finish(f"once{i}", tokens=1000, final=True)
        strict.arrive("agent", i, tokens=1000)
        strict.finish("agent", i, tokens=1000)
    assert admitted(loose) > admitted(strict)


def test_programs_that_all_come_before_any_could_return_are_not_taken_for_one_shot_ones(desk: Any) -> None:
    def admitted(programs: int) -> int:
        d = desk(foresight=Gaps())
        for i in range(programs):
            d.arrive(f"p{i}", tokens=1000)
        return sum(1 for i in range(programs) if d.sent(f"p{i}"))

    assert admitted(20) == admitted(300) < 20


def test_one_prefix_that_is_told_with_two_lengths_does_not_upset_the_books(desk: Any) -> None:
    d = desk(foresight=Gaps())
    d.arrive("a", tokens=3000, prefix=(ev.Segment(7, 1000),))
    d.arrive("b", tokens=3000, prefix=(ev.Segment(7, 1200),))
    d.finish("a", tokens=3000, final=True)
    d.finish("b", tokens=3000, final=True)
    assert d.scheduler.policy._books["e0"].load == 0


def test_growth_beyond_the_ceiling_takes_idle_seats_of_worse_rank_first(desk: Any) -> None:
    d = desk(foresight=Gaps({"b": 0.5}))
    d.arrive("a", tokens=3000)
    d.arrive("b", tokens=3000, after=1.0)
    d.finish("a", tokens=3000)
    d.finish("b", tokens=3000)
    d.arrive("a", 1, tokens=6000)
    assert d.sent("a", 1) == "e0"
    assert any(isinstance(x, do.Unpin) and x.program == "b" for x in d.all)


def test_an_arriving_step_is_held_when_better_ones_fill_the_engine_and_goes_later(desk: Any) -> None:
    d = desk(foresight=Gaps())
    d.arrive("a", tokens=4000)
    d.arrive("b", tokens=3000, after=1.0)
    d.finish("b", tokens=3000)
    out = d.arrive("b", 1, tokens=6000)
    assert [x.reason for x in out if isinstance(x, do.Wait)] == ["held"]
    d.finish("a", tokens=4000, final=True)
    assert d.sent("b", 1) == "e0"


def test_one_program_larger_than_the_engine_runs_alone(desk: Any) -> None:
    d = desk(foresight=Gaps())
    d.arrive("big", tokens=50_000)
    assert d.sent("big") == "e0"
    d.arrive("small", tokens=100)
    assert d.sent("small") is None
    d.finish("big", tokens=50_000, final=True)
    assert d.sent("small") == "e0"


def test_when_everything_is_pinned_and_the_queue_is_full_something_moves(desk: Any) -> None:
    """Every token belongs to a program that wants more, and nothing runs: the worst gives up its seat."""
    d = desk(foresight=Gaps({"a": 0.1, "b": 0.1}))
    d.arrive("a", tokens=3500)
    d.arrive("b", tokens=3500, after=0.1)
    for i in range(5):
        d.arrive(f"w{i}", tokens=5000)
    d.finish("a", tokens=3500)
    d.finish("b", tokens=3500)
    d.arrive("b", 1, tokens=9000)
    d.arrive("a", 1, tokens=9000)
    assert d.sent("a", 1) or d.sent("b", 1)
    for _ in range(60):
        running = next((s for s in d.board.steps.values() if s.in_flight), None)
        if running is None:
            break
        d.finish(running.program.id, int(running.id.split("/")[1]), tokens=running.prompt_tokens, final=True)
    assert not d.board.steps, "everyone was served in the end"


def test_the_queue_goes_by_start_and_by_what_is_left(desk: Any) -> None:
    d = desk(foresight=Gaps(left={"long": 100.0, "short": 1.0}), beta=1.0)
    d.arrive("first", tokens=8000)
    d.arrive("long", tokens=8000, after=1.0)
    d.arrive("short", tokens=8000, after=1.0)
    d.finish("first", tokens=8000, final=True)
    assert d.sent("short")
    assert not d.sent("long")


def test_with_the_tail_preferred_the_queue_is_program_fcfs(desk: Any) -> None:
    d = desk(foresight=Gaps(left={"long": 100.0, "short": 1.0}), beta=0.0)
    d.arrive("first", tokens=8000)
    d.arrive("long", tokens=8000, after=1.0)
    d.arrive("short", tokens=8000, after=1.0)
    d.finish("first", tokens=8000, final=True)
    assert d.sent("long")
    assert not d.sent("short")


def test_a_light_tenant_is_served_before_the_heavy_ones_backlog(desk: Any) -> None:
    d = desk(foresight=Gaps(), shares={"heavy": Share(weight=1.0), "light": Share(weight=1.0)})
    for i in range(6):
        d.arrive(f"h{i}", tokens=3000, tenant="heavy", after=0.1)
    d.arrive("l", tokens=3000, tenant="light", after=5.0)
    d.finish("h0", tokens=3000, final=True)
    assert d.sent("l") == "e0"
    assert sum(d.sent(f"h{i}") is not None for i in range(6)) == 2


def test_splitting_into_many_programs_gains_a_tenant_nothing(desk: Any) -> None:
    d = desk(foresight=Gaps())
    for i in range(20):
        d.arrive(f"s{i}", tokens=1000, tenant="split")
        d.arrive(f"w{i}", tokens=1000, tenant="whole") if i < 3 else None
    for _ in range(4):
        step = next(s for s in d.board.steps.values() if s.in_flight)
        d.finish(step.program.id, tokens=1000, final=True)
    assert all(d.sent(f"w{i}") for i in range(3))


def test_an_engine_that_is_lost_gives_up_all_seats_and_others_take_over(desk: Any) -> None:
    d = desk(foresight=Gaps(), engines=2)
    for i in range(4):
        d.arrive(f"p{i}", tokens=3000, after=0.1)
    on_e0 = [p for p in ("p0", "p1", "p2", "p3") if d.sent(p) == "e0"]
    d.lose("e0")
    assert d.scheduler.policy._books["e0"].load == 0
    for _ in range(8):
        step = next((s for s in d.board.steps.values() if s.in_flight), None)
        if step is None:
            break
        d.finish(step.program.id, tokens=3000, final=True)
    assert on_e0
    assert not d.board.steps


def test_who_joins_behind_others_is_not_seated_before_them(desk: Any) -> None:
    d = desk(foresight=Gaps())
    for name in ("a", "first", "second"):
        d.arrive(name, tokens=6000)
    d.arrive("small", tokens=100, tools_offered=1, after=600.0)
    assert d.sent("small") is None
    d.finish("a", tokens=6000, final=True)
    assert d.sent("first"), "who was first still is"
    assert d.sent("second") is None


def test_of_programs_that_begin_who_needs_less_goes_first_until_the_other_is_old(desk: Any) -> None:
    def first(later: float) -> str:
        d = desk(foresight=Gaps())
        d.arrive("a", tokens=6000)
        d.arrive("large", tokens=7000)
        d.arrive("small", tokens=4000, tools_offered=1, after=later)
        d.finish("a", tokens=6000, final=True)
        return "large" if d.sent("large") else "small"

    assert first(later=100.0) == "small", "3,000 tokens less are worth 150 seconds"
    assert first(later=200.0) == "large"


def test_a_program_that_lost_its_seat_and_is_expected_gets_another_before_it_comes(desk: Any) -> None:
    d = desk(foresight=Gaps({"a": 100.0}))
    d.arrive("a", tokens=4000)
    d.finish("a", tokens=4000, tools=(ev.PendingTool(id="c", name="bash"),))
    for other in "bc":  # together they write over all that the engine held of a
        d.arrive(other, tokens=6000)
        assert d.sent(other) == "e0", "a's long gap gave up its seat"
        d.finish(other, tokens=6000, final=True)
    d.tell(ev.ToolEnded(program=ProgramId("a"), tool_id="c", duration_s=50.0), after=50.0)
    assert "a" in d.scheduler.policy._books["e0"].seated
    (warm,) = [w for w in d.of(do.Warm) if not w.refresh]
    assert (warm.program, warm.reason) == ("a", "announced")
    d.arrive("a", 1, tokens=4100)
    assert d.sent("a", 1) == "e0"


def test_a_program_that_is_expected_and_does_not_come_holds_nobody_up(desk: Any) -> None:
    d = desk(foresight=Gaps({"a": 1000.0, "b": 1000.0}))
    d.arrive("a", tokens=8000)
    d.finish("a", tokens=8000, tools=(ev.PendingTool(id="c", name="bash"),))
    d.arrive("b", tokens=8000)
    d.tell(ev.ToolEnded(program=ProgramId("a"), tool_id="c", duration_s=5.0), after=5.0)
    d.finish("b", tokens=8000, final=True)
    assert "a" in d.scheduler.policy._books["e0"].seated
    d.arrive("c", tokens=8000)
    assert d.sent("c") is None
    d.fire(after=30.0)
    assert d.sent("c") == "e0"


def test_the_last_step_of_a_program_gives_its_own_seat_away_and_nobody_elses(desk: Any) -> None:
    d = desk(foresight=Gaps({"idle": 10_000.0, "over": 1.0}))
    d.arrive("idle", tokens=3000)
    d.arrive("over", tokens=4000)
    d.finish("idle", tokens=3000, tools=(ev.PendingTool(id="c", name="bash"),))
    d.finish("over", tokens=4000, tools=(ev.PendingTool(id="c", name="bash"),))
    d.arrive("over", 1, tokens=4000)
    d.scheduler.policy._books[
        "e0"
    ].swept_at = d.now  # the idle seat is not looked at when the next program comes
    d.arrive("waits", tokens=4000)
    assert d.sent("waits") is None
    d.finish("over", 1, tokens=4000, final=True, after=5.0)
    assert d.sent("waits") == "e0"
    assert "idle" in d.scheduler.policy._books["e0"].seated
    assert not [pin for pin in d.of(do.Pin) if pin.program == "over"]
