"""What was forecast, beside what came."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core import events as ev
from agentserve.core.audience import Audience
from agentserve.core.board import Board
from agentserve.core.forecast.grid import HUMAN_SECONDS
from agentserve.core.learned import Learned
from agentserve.core.policies import make_policy
from agentserve.core.remembered import JUDGED_ALL, JUDGED_OF
from agentserve.core.scheduler import Scheduler
from agentserve.live import insight
from agentserve.live.feed import Feed
from agentserve.live.foretold import LATEST_MAX, PERSON, Foretold, calibration, steps_left
from agentserve.live.holdings import Pins


def _id(text: str) -> Any:
    return text


class Stage:
    """A scheduler that learns, and what was foretold."""

    def __init__(self) -> None:
        self.board = Board(foresight=Learned())
        self.scheduler = Scheduler(self.board, make_policy("agentserve", self.board, {}))
        self.feed = Feed(clock=lambda: 0.0)
        self.foretold = Foretold(self.board, self.feed.owner)
        self.audience = Audience(self.foretold.hears)
        self.audience.listen(self.feed.heard)  # it forgets a step that is over
        self.tell(ev.EngineBack(engine=_id("e")), 0.0)

    def tell(self, event: ev.AnyEvent, now: float) -> None:
        decided = list(self.scheduler.handle(event, now))
        self.audience.tell(event, now, decided)

    def step(self, program: str, now: float, tool: str = "bash", *, final: bool = False) -> None:
        step = f"{program}-{now}"
        self.tell(
            ev.StepArrived(step=_id(step), program=_id(program), tenant=_id("t"), prompt_tokens=50), now
        )
        tools = (ev.PendingTool(id=f"c{now}", name=tool),) if tool else ()
        self.tell(
            ev.StepFinished(
                step=_id(step),
                prompt_tokens=50,
                output_tokens=5,
                tools=tools,
                turn_done=not tool,
                final=final,
            ),
            now + 1,
        )


def test_a_gap_is_kept_with_its_forecast_when_the_program_is_back() -> None:
    stage = Stage()
    stage.step("t/p", 0.0)
    stage.step("t/p", 5.0, tool="")
    stage.step("t/p", 65.0)
    first, second = stage.foretold.gaps("t/p")
    assert (first["tool"], first["actual_s"]) == ("bash", 4.0)
    assert 0 < first["forecast_p50_s"] <= first["forecast_p90_s"]
    assert (second["tool"], second["actual_s"]) == (PERSON, 59.0)
    assert stage.foretold.gaps() == [first, second]
    assert calibration(stage.board)["gaps"]["outcomes"] >= 1


def test_the_end_of_a_forecast_is_not_told_as_a_forecast() -> None:
    stage = Stage()
    for i in range(40):  # turns after which nobody comes back
        stage.step(f"t/{i}", 10.0 * i, tool="")
    stage.step("t/p", 1_000.0, tool="")
    told = insight.outlook(stage.board, Pins(), "t/p", 1_010.0)
    assert (told["gap_p50_s"], told["gap_p90_s"]) == (None, None)
    assert told["gap_horizon_s"] == HUMAN_SECONDS.high
    stage.step("t/p", 1_020.0)
    (row,) = stage.foretold.gaps("t/p")
    assert (row["forecast_p50_s"], row["forecast_p90_s"]) == (None, None)
    assert (row["horizon_s"], row["actual_s"]) == (HUMAN_SECONDS.high, 19.0)


def test_what_is_told_of_a_gap_is_of_those_who_are_still_away() -> None:
    stage = Stage()
    now = 0.0
    for i in range(200):  # nine in ten are back after two seconds, the others after forty
        stage.step("t/p", now)
        now += 1.0 + (40.0 if i % 10 == 9 else 2.0)
    stage.step("t/p", now)
    soon = insight.outlook(stage.board, Pins(), "t/p", now + 1.5)
    assert soon["gap_p50_s"] == pytest.approx(2.0, rel=0.3)
    late = insight.outlook(stage.board, Pins(), "t/p", now + 1.0 + 10.0)
    assert late["gap_s"] == 10.0
    assert late["gap_p50_s"] == pytest.approx(40.0, rel=0.3), "it is none of those who come back at once"
    assert 10.0 < late["gap_p50_s"] <= late["gap_p90_s"]
    past = insight.outlook(stage.board, Pins(), "t/p", now + 1.0 + 1e6)
    assert (past["gap_p50_s"], past["gap_p90_s"]) == (None, None), "beyond all that was ever seen"


def test_looking_asks_for_no_forecast_that_nobody_made() -> None:
    stage = Stage()
    for i in range(JUDGED_ALL + 100):
        stage.step("t/p", 5.0 * i)
        assert stage.board.programs[_id("t/p")].survival is None, "nobody wants the memory"
    stage.step("t/q", 5.0)
    rows = len(stage.foretold.gaps("t/q"))
    for i in range(1, 17):
        stage.step("t/q", 10.0 * i)
    assert len(stage.foretold.gaps("t/q")) == rows + 16 // JUDGED_OF, "one in a few is judged"


def test_the_steps_that_were_left_are_compared_once_the_program_is_over() -> None:
    stage = Stage()
    stage.tell(
        ev.ProgramDeclared(program=_id("t/p"), tenant=_id("t"), steps_expected=10),
        0.0,
    )
    stage.tell(ev.HintGiven(program=_id("t/p"), steps_left=10), 0.0)
    for i in range(5):
        stage.step("t/p", 10.0 * i, final=i == 4)
    rows = [(row["after"], row["forecast"], row["actual"]) for row in stage.foretold.lengths()]
    assert rows == [(1, 9.0, 4), (2, 8.0, 3), (4, 6.0, 1)]


def test_a_program_that_only_fell_silent_says_nothing_of_its_length() -> None:
    stage = Stage()
    stage.tell(ev.HintGiven(program=_id("t/p"), steps_left=10), 0.0)
    stage.step("t/p", 1.0)
    stage.tell(ev.ProgramEnded(program=_id("t/p"), reason="idle"), 100.0)
    assert stage.foretold.lengths() == []


def test_looking_asks_no_forecaster_anything() -> None:
    stage = Stage()
    stage.step("t/p", 0.0)
    program = stage.board.programs[_id("t/p")]
    program.steps_left_said = None
    assert steps_left(program) is None
    assert program.steps_left_said is None, "it was asked for, and will be remembered"


def test_what_is_kept_is_bounded() -> None:
    stage = Stage()
    for i in range(LATEST_MAX + 20):
        stage.step("t/p", 10.0 * i)
    assert len(stage.foretold.gaps()) == LATEST_MAX
    assert len(stage.foretold.gaps("t/p")) == 32
