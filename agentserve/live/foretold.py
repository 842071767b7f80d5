"""What was forecast beside what came: of gaps, when the program was back; of programs, how many steps were left.

Rule: it only looks, and never asks for a forecast: asking costs as much as deciding, and it changes what is remembered,
while a gateway that is watched must decide as one that is not. Of gaps it knows those whose end was forecast anyway, by
the scheduler when memory was wanted, or as one in a few to be judged. Bounded, the latest kept.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agentserve.core import events as ev
from agentserve.core.audience import Hears
from agentserve.core.board import Board
from agentserve.core.forecast import Survival as Forecast
from agentserve.core.foresight import Survival
from agentserve.core.ids import ProgramId
from agentserve.core.learned import GapEnded, Learned
from agentserve.core.program import Program

PROGRAMS_MAX = 2_000  # whose forecasts are remembered
SHOWN_MAX = 500  # the latest, whose gaps are remembered one by one, as is their story
GAPS_MAX = 32  # of one program
LATEST_MAX = 250  # of all
PERSON = "a person's turn"


class Foretold:
    """Joins forecasts to outcomes."""

    def __init__(self, board: Board, owner: Callable[[str], str | None]) -> None:
        self._board = board
        self._owner = owner  # whose step it is
        self._said: OrderedDict[str, _Said] = OrderedDict()
        self._gaps: OrderedDict[str, list[_Gap]] = OrderedDict()
        self._latest: deque[_Gap] = deque(maxlen=LATEST_MAX)
        self._lengths: deque[dict[str, Any]] = deque(maxlen=LATEST_MAX)
        self.hears: Hears = {
            ev.StepArrived: self._arrived,
            ev.StepFinished: self._finished,
            ev.ProgramEnded: self._program_ended,
        }

    def gaps(self, program: str | None = None) -> list[dict[str, Any]]:
        """The latest gaps that ended, of one program or of all: the forecast's quantiles, and what came."""
        return [gap.shown() for gap in (self._latest if program is None else self._gaps.get(program, ()))]

    def lengths(self) -> list[dict[str, Any]]:
        """Of programs that are over: how many steps were forecast to be left after so many, and how many there were."""
        return list(self._lengths)

    def _finished(self, event: ev.StepFinished, now: float) -> None:
        owner = self._owner(event.step)
        if owner is None:
            return
        program = self._board.programs.get(ProgramId(owner))
        if program is not None:
            self._look_ahead(program)
        if event.final:
            self._ended(owner, known=True, beside=1)

    def _look_ahead(self, program: Program) -> None:
        """What is forecast to be left, after 1, 2, 4, 8, ... steps."""
        done = program.steps_done
        said = self._said.get(program.id)
        if said is None:
            said = self._said[program.id] = _Said()
            if len(self._said) > PROGRAMS_MAX:
                self._said.popitem(last=False)
        said.done = done
        if not done & (done - 1) and (left := steps_left(program)) is not None:
            said.left[done] = left

    def _arrived(self, event: ev.StepArrived, now: float) -> None:
        learned = self._board.foresight
        if event.relation == "auxiliary" or not isinstance(learned, Learned):
            return
        gap = learned.gap_ended
        if gap is not None:
            self._returned(gap, event.program, event.step)

    def _returned(self, gap: GapEnded, owner: str, step: str) -> None:
        tool = ", ".join(gap.tools) or PERSON
        forecast = gap.forecast
        middle, late = forecast.quantile(0.5), forecast.quantile(0.9)
        row = _Gap(owner, step, tool, middle, late, forecast.grid.high, gap.seconds)
        self._latest.append(row)
        mine = self._gaps.setdefault(owner, [])
        mine.append(row)
        del mine[:-GAPS_MAX]
        if len(self._gaps) > SHOWN_MAX:
            self._gaps.popitem(last=False)

    def _program_ended(self, event: ev.ProgramEnded, now: float) -> None:
        self._ended(event.program, known=event.reason in ("told", "final"))

    def _ended(self, owner: str, *, known: bool, beside: int = 0) -> None:
        """The scheduler has dropped it already, the step that ended it (`beside`) included."""
        said = self._said.pop(owner, None)
        if said is None or not known:
            return
        done = said.done + beside
        for after, left in said.left.items():
            self._lengths.append(
                {"program": owner, "after": after, "forecast": round(left, 1), "actual": done - after}
            )


class _Gap(NamedTuple):
    """A gap that ended. Many are kept and few are looked at: plain values are made when somebody asks."""

    program: str
    step: str
    tool: str
    p50_s: float
    p90_s: float
    horizon_s: float
    actual_s: float

    def shown(self) -> dict[str, Any]:
        """As operators see it."""
        return {
            "program": self.program,
            "step": self.step,
            "tool": self.tool,
            "forecast_p50_s": _within(self.p50_s, self.horizon_s),
            "forecast_p90_s": _within(self.p90_s, self.horizon_s),
            "horizon_s": round(self.horizon_s, 3),
            "actual_s": round(self.actual_s, 3),
        }


def quantile(gap: Survival, q: float, elapsed_s: float = 0.0) -> float | None:
    """By when a share `q` is back of those who are not after so long, to be shown; None: not within the forecast's
    horizon, and nobody knows when."""
    return _within(gap.quantile(q, elapsed_s), horizon_s(gap))


def horizon_s(gap: Survival) -> float | None:
    """How far a forecast looks; None where it has no end."""
    return gap.grid.high if isinstance(gap, Forecast) else None


def _within(seconds: float, horizon: float | None) -> float | None:
    """A quantile at the horizon is where the forecast ends, and no forecast."""
    return None if horizon is not None and seconds >= horizon else round(seconds, 3)


@dataclass(slots=True)
class _Said:
    """Of a live program: its steps so far, and how many were forecast to be left after how many."""

    done: int = 0
    left: dict[int, float] = field(default_factory=dict)


def steps_left(program: Program) -> float | None:
    """How many steps are forecast to be left, as the client or the forecaster said last; None when nobody did."""
    if program.steps_left_told is not None:
        return program.steps_left_told if program.steps_left_told > 0.0 else 0.0
    if program.steps_left_said is None:
        return None
    after, left = program.steps_left_said
    left -= program.steps_done - after
    return left if left > 0.0 else 0.0


def calibration(board: Board) -> dict[str, dict[str, float]]:
    """How often outcomes lay within the forecasts' quantiles lately, of gaps and of replies' lengths."""
    learned = board.foresight
    if not isinstance(learned, Learned):
        return {}
    return {
        "gaps": {k: round(v, 4) for k, v in learned.gaps_calibration.numbers().items()},
        "outputs": {k: round(v, 4) for k, v in learned.outputs_calibration.numbers().items()},
    }
