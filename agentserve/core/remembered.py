"""Forecasts kept until what they rest on has grown: a busy gateway asks the same question of the same histogram
thousands of times a second.

Rule: by counts, never by clocks, so that the same events give the same forecasts. An answer holds while less than one
part in `GROWTH` was learned under its key since it was made; one about few observations is thus made anew each time.
Calibration is sampled once there is plenty: the forecasts that it judges are then all alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from agentserve.core.forecast import Calibration, CallShape, OutputForecaster, ReturnForecaster, Survival
from agentserve.core.forecast.outputs import Asked
from agentserve.core.forecast.turns import steps_place

GROWTH = 16
PROGRAM_GROWTH = 4  # for what is asked of one program only, whose steps are few
ANSWERS_MAX = 16_384
ASKED_MAX = 64  # ways in which one program asks: roles, and limits of its replies
JUDGED_ALL = 256  # outcomes, from the start
JUDGED_OF = 16  # after these, one in so many

Key = TypeVar("Key")


class _Kind:
    """Outcomes of one kind: how many were seen, and what is foretold of one more."""

    __slots__ = ("answer", "made_at", "masses", "masses_at", "seen")

    def __init__(self) -> None:
        self.seen = 0
        self.masses: Sequence[float] | None = None  # that its programs' answers are made from
        self.masses_at = -1
        self.made_at = -1
        self.answer: Survival | None = None

    def holds(self) -> bool:
        """Is the answer still what would be foretold now?"""
        return self.answer is not None and (self.seen - self.made_at) * GROWTH <= self.made_at


class _Own:
    """Steps of one program: how many were seen, and what its next is charged. Small, as every live program has one."""

    __slots__ = ("made_at", "seen", "tokens")

    def __init__(self) -> None:
        self.seen = 0
        self.made_at = -1
        self.tokens = 0.0

    def holds(self) -> bool:
        """Is the charge still what would be foretold now?"""
        return self.made_at >= 0 and (self.seen - self.made_at) * PROGRAM_GROWTH <= self.made_at


_NONE: Mapping[Asked, _Own] = {}


class RememberedOutputs(OutputForecaster):
    """The same forecasts, made less often: of a kind the whole, of a program what its next step is charged."""

    def __init__(self, learned: OutputForecaster, *, quantile: float) -> None:
        self._ladder = learned._ladder
        self._quantile = quantile
        self._kinds: dict[Asked, _Kind] = {}
        self._programs: dict[str, dict[Asked, _Own]] = {}  # of those that are not over

    def tokens(
        self, *, tenant: str, workflow: str | None, role: int, tokens_max: int | None, program: str
    ) -> float:
        """The quantile that a step is charged; of a program that was never seen, its kind's."""
        asked = (tenant, workflow, role, tokens_max)
        own = self._programs.get(program, _NONE).get(asked)
        if own is None:
            return self._kept(asked).quantile(self._quantile)
        if not own.holds():
            own.tokens = self._foretold(self._of_kind(asked), asked, program).quantile(self._quantile)
            own.made_at = own.seen
        return own.tokens

    def predict(
        self,
        *,
        tenant: str,
        workflow: str | None = None,
        role: int = 0,
        tokens_max: int | None = None,
        program: str | None = None,
        written: int = 0,
    ) -> Survival:
        """As its parent, from what its kind's forecasts rest on at present; of a program that was never seen, those."""
        asked = (tenant, workflow, role, tokens_max)
        if program is None or asked not in self._programs.get(program, _NONE):
            if not written:
                return self._kept(asked)
            program = None
        above = _entry(self._kinds, asked).masses
        return self._foretold(self._of_kind(asked) if above is None else above, asked, program, written)

    def _kept(self, asked: Asked) -> Survival:
        """What is foretold of its kind."""
        known = _entry(self._kinds, asked)
        if known.answer is None or not known.holds():
            known.answer, known.made_at = self._foretold(self._of_kind(asked), asked, None), known.seen
        return known.answer

    def _of_kind(self, asked: Asked) -> Sequence[float]:
        """As its parent, made less often: all programs of a kind rest on it."""
        known = _entry(self._kinds, asked)
        if known.masses is None or (known.seen - known.masses_at) * GROWTH > known.masses_at:
            known.masses, known.masses_at = super()._of_kind(asked), known.seen
        return known.masses

    def observe(
        self,
        *,
        tenant: str,
        tokens: int,
        workflow: str | None = None,
        role: int = 0,
        tokens_max: int | None = None,
        program: str | None = None,
        truncated: bool = False,
    ) -> None:
        """As its parent, every time."""
        super().observe(
            tenant=tenant,
            tokens=tokens,
            workflow=workflow,
            role=role,
            tokens_max=tokens_max,
            program=program,
            truncated=truncated,
        )
        asked = (tenant, workflow, role, tokens_max)
        _entry(self._kinds, asked).seen += 1
        if program is not None:
            mine = self._programs.get(program)
            if mine is None:
                if len(self._programs) >= ANSWERS_MAX:
                    self.forget_program(next(iter(self._programs)))
                mine = self._programs[program] = {}
            own = mine.get(asked)
            if own is None and len(mine) < ASKED_MAX:
                own = mine[asked] = _Own()
            if own is not None:
                own.seen += 1

    def forget_program(self, program: str) -> None:
        """It is over: its own histograms with it, which are the most of all that is remembered."""
        for tenant, workflow, role, tokens_max in self._programs.pop(program, _NONE):
            self.forget(tenant=tenant, workflow=workflow, role=role, tokens_max=tokens_max, program=program)


class RememberedReturns(ReturnForecaster):
    """The same forecasts; those of a turn's end, which are alike for a workflow's programs of as many steps, made
    less often."""

    def __init__(self, learned: ReturnForecaster) -> None:
        self.gaps, self._turns = learned.gaps, learned._turns
        self._out, self._stopped = learned._out, learned._stopped
        self._kinds: dict[tuple[str, str | None, int], _Kind] = {}

    def predict(
        self,
        *,
        tenant: str,
        program: str | None,
        calls: Sequence[CallShape] = (),
        workflow: str | None = None,
        steps: int = 0,
        elapsed_s: float = 0.0,
    ) -> Survival:
        """As its parent."""
        known = None if calls or elapsed_s else _entry(self._kinds, (tenant, workflow, steps_place(steps)))
        if known is not None and known.answer is not None and known.holds():
            return known.answer
        answer = super().predict(
            tenant=tenant, program=program, calls=calls, workflow=workflow, steps=steps, elapsed_s=elapsed_s
        )
        if known is not None:
            known.answer, known.made_at = answer, known.seen
        return answer

    def turn_ended(self, *, tenant: str, workflow: str | None = None, steps: int = 0) -> None:
        """As its parent, every time."""
        super().turn_ended(tenant=tenant, workflow=workflow, steps=steps)
        _entry(self._kinds, (tenant, workflow, steps_place(steps))).seen += 1

    def observe(
        self,
        *,
        tenant: str,
        program: str | None,
        calls: Sequence[CallShape] = (),
        workflow: str | None = None,
        seconds: float,
        steps: int = 0,
        censored: bool = False,
        given_up: bool = False,
        last: int | None = None,
    ) -> None:
        """As its parent, every time."""
        super().observe(
            tenant=tenant,
            program=program,
            calls=calls,
            workflow=workflow,
            seconds=seconds,
            steps=steps,
            censored=censored,
            given_up=given_up,
            last=last,
        )
        if not calls:
            _entry(self._kinds, (tenant, workflow, steps_place(steps))).seen += 1


class SampledCalibration(Calibration):
    """All of the first outcomes, then one in so many: ask `due` of each, and forecast only what it wants to judge."""

    __slots__ = ("_met",)

    def __init__(self) -> None:
        super().__init__()
        self._met = 0

    def due(self) -> bool:
        """One more outcome: is it to be judged?"""
        self._met += 1
        return self._met <= JUDGED_ALL or self._met % JUDGED_OF == 0


def _entry(known: dict[Key, _Kind], key: Key) -> _Kind:
    """What is known under the key; the eldest of too many is forgotten, and only foretold anew."""
    found = known.get(key)
    if found is None:
        if len(known) >= ANSWERS_MAX:
            del known[next(iter(known))]
        found = known[key] = _Kind()
    return found
