"""What KV is to its engine: running, pinned, resting; and how a pin ends."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.audience import Audience
from agentserve.core.board import Board
from agentserve.core.foresight import Naive
from agentserve.core.policies import make_policy
from agentserve.core.scheduler import Scheduler
from agentserve.live import holdings
from agentserve.live.holdings import Pins, holding


class Stage:
    """A scheduler with one engine of 10,000 tokens, and the pins that stand."""

    def __init__(self) -> None:
        self.board = Board(foresight=Naive())
        self.scheduler = Scheduler(self.board, make_policy("agentserve", self.board, {}))
        self.pins = Pins()
        self.audience = Audience(self.pins.hears)
        self.tell(ev.EngineBack(engine=_id("e")))
        self.tell(ev.EngineReported(engine=_id("e"), kv_tokens=10_000))

    def tell(self, event: ev.AnyEvent, now: float = 0.0, *more: do.AnyDecision) -> None:
        self.audience.tell(event, now, [*self.scheduler.handle(event, now), *more])

    def step(self, program: str, tokens: int, now: float, *, finish: bool = True, **more: Any) -> None:
        step = f"{program}-{now}"
        self.tell(
            ev.StepArrived(
                step=_id(step), program=_id(program), tenant=_id("t"), prompt_tokens=tokens, **more
            ),
            now,
        )
        if finish:
            self.tell(
                ev.StepFinished(step=_id(step), prompt_tokens=tokens, output_tokens=10, cached_tokens=0), now
            )

    def pin(self, program: str, until: float, now: float = 1.0) -> None:
        pin = do.Pin(program=_id(program), engine=_id("e"), tokens=100, until=until, reason="worth_keeping")
        self.audience.tell(ev.TimerFired(), now, [pin])

    def what(self, program: str, now: float) -> str:
        return holding(self.board.programs[_id(program)], self.board, self.pins, now)[0]


def _id(text: str) -> Any:
    return text


def test_a_first_step_holds_kv_while_it_runs() -> None:
    stage = Stage()
    stage.step("t/p", 700, 1.0, finish=False)
    program = stage.board.programs[_id("t/p")]
    assert holding(program, stage.board, stage.pins, 1.5) == ("running", "e", 700)


def test_kv_in_a_gap_rests_unless_a_pin_stands() -> None:
    stage = Stage()
    stage.step("t/p", 700, 1.0)
    assert stage.what("t/p", 2.0) == "resting"
    stage.pin("t/p", until=10.0)
    assert stage.what("t/p", 2.0) == "pinned"
    assert stage.what("t/p", 10.5) == "resting", "a pin is over when its time is"


@pytest.mark.parametrize(
    "event",
    [
        ev.EngineLost(engine=_id("e")),
        ev.ProgramEnded(program=_id("t/p")),
        ev.DecisionDone(decision="Pin", program=_id("t/p"), engine=_id("e"), outcome="refused"),
    ],
)
def test_what_ends_a_pin_before_its_time(event: ev.AnyEvent) -> None:
    stage = Stage()
    stage.step("t/p", 700, 1.0)
    stage.pin("t/p", until=100.0)
    program = stage.board.programs[_id("t/p")]
    stage.audience.tell(event, 2.0, [])
    assert stage.pins.of(program, 3.0) is None


def test_a_return_and_an_unpin_end_a_pin() -> None:
    stage = Stage()
    stage.step("t/p", 700, 1.0)
    program = stage.board.programs[_id("t/p")]
    stage.pin("t/p", until=100.0)
    stage.step("t/p", 800, 2.0)
    assert stage.what("t/p", 3.0) == "resting"
    stage.pin("t/p", until=100.0)
    stage.audience.tell(ev.TimerFired(), 4.0, [do.Unpin(program=_id("t/p"), engine=_id("e"))])
    assert stage.pins.of(program, 5.0) is None


def test_an_engine_s_sums_count_shared_segments_once() -> None:
    stage = Stage()
    shared = (ev.Segment(hash=1, tokens=500),)
    for name in ("t/a", "t/b", "t/c"):
        stage.step(name, 700, 1.0, prefix=shared)
    stage.pin("t/b", until=50.0)
    stage.step("t/c", 900, 2.0, finish=False, prefix=shared)
    sums = holdings.by_engine(stage.board, stage.pins, 3.0)["e"]
    assert sums == {"running": 400, "pinned": 210, "resting": 210, "shared": 500}
    rows = holdings.kept(stage.board, stage.pins, 3.0)
    assert {row["program"]: row["pinned"] for row in rows} == {"a": False, "b": True}


def test_kv_that_an_lru_has_let_go_is_nobody_s() -> None:
    stage = Stage()
    stage.step("t/old", 4000, 1.0)
    for i in range(4):
        stage.step(f"t/new{i}", 4000, 2.0 + i)
    assert stage.what("t/old", 9.0) == "none"
