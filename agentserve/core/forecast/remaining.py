"""Forecasts how much of a program is still to come: steps, output tokens and seconds, as distributions.

One rule: a program is compared with finished ones as they looked at the same point, never with how they ended.
It knows programs only by the numbers of `progress`, and learns which of those matter from the programs it saw.

Two views are mixed. Neighbours: what was left of the finished programs that looked most like this one. Ladder:
what was left of programs of the same workflow and role at this step. How much each is heard is learned from how
well each foretold the programs that ended since.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import msgspec

from agentserve.core.forecast.calls import joined, text_hash
from agentserve.core.forecast.grid import STEPS, TOKENS, Grid, lognormal
from agentserve.core.forecast.ladder import Ladder, Rung
from agentserve.core.forecast.neighbours import MILESTONES, Kinds, Neighbours, Panel, Sample
from agentserve.core.forecast.progress import FEATURES, Progress, StepFacts
from agentserve.core.forecast.survival import Survival

PROGRAMS_MAX = 131_072
MADE_MAX = 1_024
_KEYS_MAX = 8_192
_KINDS_BESIDE_MAX = 256
_VERSION = 2

QUANTITIES = ("steps", "tokens", "seconds")
WORK_SECONDS = Grid(low=0.1, high=604_800.0, bins=48, beyond=2_592_000.0)

# What is left of a program of which nothing is known, as published runs had it halfway (SWE-rebench, Claude Code,
# Terminal-Bench: medians of 18 to 46 steps in all). Were it flat, the first programs would be taken for endless ones.
_PRIORS = (
    (STEPS, lognormal(STEPS, median=12.0, sigma=1.2)),
    (TOKENS, lognormal(TOKENS, median=2_500.0, sigma=1.5)),
    (WORK_SECONDS, lognormal(WORK_SECONDS, median=150.0, sigma=1.7)),
)
_RUNGS = (Rung(half_life=200, strength=2), Rung(half_life=60, strength=6), Rung(half_life=40, strength=4))
_UNHEARD = 0.02  # neighbours whose share of the forecast is below this are not worth the looking
_LEARNING_RATE, _FORGETTING = 0.5, 0.98
# As much weight as this many perfect neighbours goes to all samples alike, so that a stranger gets the average.
_ANYONE = 0.5
_BLUR_BINS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What is left of one quantity: a forecast made a little while ago, less what was spent since."""

    forecast: Survival
    spent: float = 0.0

    def quantile(self, q: float) -> float:
        """What is left with probability `q` is no more than this."""
        return max(0.0, self.forecast.quantile(q) - self.spent)

    def mean(self) -> float:
        """The expected amount left, nothing counted beyond the grid."""
        return self.forecast.mean_remaining(self.spent, self.forecast.grid.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remaining:
    """What is still to come of a program."""

    steps: Left
    tokens: Left
    seconds: Left


@dataclass(slots=True, kw_only=True)
class _Open:
    """A running program."""

    progress: Progress
    kinds: Kinds
    # At each milestone passed: its index, the features, and the tokens and seconds until then.
    looks: list[tuple[int, array[float], int, float]]


class RemainingForecaster:
    """`step` after each finished step, `predict` whenever asked, `finish` when the program is over."""

    def __init__(self, *, programs_max: int = PROGRAMS_MAX) -> None:
        self._programs_max = programs_max
        self._open: dict[tuple[str, str], _Open] = {}
        # What was forecast at the last milestone, for the programs asked about lately.
        self._made: OrderedDict[tuple[str, str], tuple[int, Survival]] = OrderedDict()
        self._neighbours = Neighbours(FEATURES)
        self._ladders = tuple(
            Ladder(grid, _RUNGS, keys_max=_KEYS_MAX, prior=prior) for grid, prior in _PRIORS
        )
        self._scores = [0.0, 0.0]  # of the neighbours, of the ladder
        self._turn = 0

    # -- following programs -------------------------------------------------------------------------------

    def begin(
        self,
        *,
        tenant: str,
        program: str,
        workflow: str | None = None,
        role: int = 0,
        tools_offered: int = 0,
        system_tokens: int = 0,
        steps_declared: float = 0.0,
    ) -> None:
        """A program begins; calling again for an open one only corrects what was declared."""
        opened = self._open.get((tenant, program))
        if opened is None:
            while len(self._open) >= self._programs_max:
                del self._open[next(iter(self._open))]
            progress = Progress(tools_offered=tools_offered, system_tokens=system_tokens)
            opened = _Open(progress=progress, kinds=(0, 0, 0), looks=[])
            self._open[tenant, program] = opened
        opened.kinds = (role, text_hash(workflow or ""), text_hash(tenant))
        opened.progress.steps_declared = steps_declared or opened.progress.steps_declared

    def step(self, *, tenant: str, program: str, facts: StepFacts) -> None:
        """One step of a program ended."""
        opened = self._open.get((tenant, program))
        if opened is None:
            self.begin(tenant=tenant, program=program)
            opened = self._open[tenant, program]
        progress = opened.progress
        progress.add(facts)
        milestone = _milestone(progress.steps)
        if MILESTONES[milestone] == progress.steps:
            look = (milestone, progress.features(), progress.output_tokens, progress.ended_s)
            opened.looks.append(look)

    def finish(self, *, tenant: str, program: str) -> None:
        """The program ended: learn from it."""
        self._made.pop((tenant, program), None)
        opened = self._open.pop((tenant, program), None)
        if opened is None or not opened.looks:
            return
        progress = opened.progress
        samples = [
            (
                milestone,
                Sample(
                    features=tuple(features),
                    kinds=opened.kinds,
                    steps=progress.steps - MILESTONES[milestone],
                    tokens=float(progress.output_tokens - tokens),
                    seconds=progress.ended_s - seconds,
                ),
            )
            for milestone, features, tokens, seconds in opened.looks
        ]
        self._judge(*samples[self._turn % len(samples)])
        self._turn += 1
        self._neighbours.add(samples)
        for milestone, sample in samples:
            keys = _ladder_keys(sample.kinds, milestone)
            for ladder, value in zip(
                self._ladders, (sample.steps, sample.tokens, sample.seconds), strict=True
            ):
                ladder.learn(keys, value)

    def forget(self, *, tenant: str, program: str) -> None:
        """Drop a program without learning from it."""
        self._made.pop((tenant, program), None)
        self._open.pop((tenant, program), None)

    # -- asking -------------------------------------------------------------------------------------------

    def steps_left(self, *, tenant: str, program: str, continues: bool = False) -> Left | None:
        """How many steps are left after the last that was told; None before the first.

        `continues`: at least one more step is certain, for instance because a tool call is out.
        """
        opened = self._open.get((tenant, program))
        if opened is None or not opened.looks:
            return None
        milestone = opened.looks[-1][0]
        made = self._made.get((tenant, program))
        if made is None or made[0] != milestone:
            made = (milestone, self._forecasts(opened, ("steps",))[0])
            self._made[tenant, program] = made
            self._made.move_to_end((tenant, program))
            if len(self._made) > MADE_MAX:
                self._made.popitem(last=False)
        return self._steps_left(opened, made[1], continues)

    def predict(self, *, tenant: str, program: str, continues: bool = False) -> Remaining | None:
        """What is left of everything: `steps_left`, and their output tokens and seconds."""
        opened = self._open.get((tenant, program))
        if opened is None or not opened.looks:
            return None
        _, _, tokens, seconds = opened.looks[-1]
        steps, of_tokens, of_seconds = self._forecasts(opened, QUANTITIES)
        return Remaining(
            steps=self._steps_left(opened, steps, continues),
            tokens=_left(of_tokens, float(opened.progress.output_tokens - tokens)),
            seconds=_left(of_seconds, opened.progress.ended_s - seconds),
        )

    def _steps_left(self, opened: _Open, steps: Survival, continues: bool) -> Left:
        done = float(opened.progress.steps - MILESTONES[opened.looks[-1][0]])
        return Left(forecast=_beyond(steps, done + 0.5 if continues else done), spent=done)

    def _forecasts(self, opened: _Open, quantities: Sequence[str]) -> list[Survival]:
        """What was left at the last milestone."""
        milestone, features, _, _ = opened.looks[-1]
        panel = self._neighbours.panel(milestone)
        of_neighbours, of_ladder = self._shares()
        weights: list[float] = []
        if len(panel) and of_neighbours >= _UNHEARD:
            weights = panel.weights(features, opened.kinds)
        made = []
        for quantity in quantities:
            ladder = self._ladders[QUANTITIES.index(quantity)]
            masses = self._of_kind(panel, opened.kinds, milestone, quantity)
            if weights:
                seen = _seen(panel, weights, quantity, ladder.grid)
                masses = [of_ladder * m + of_neighbours * x for m, x in zip(masses, seen, strict=True)]
            made.append(Survival(ladder.grid, masses))
        return made

    def _of_kind(self, panel: Panel, kinds: Kinds, milestone: int, quantity: str) -> Sequence[float]:
        """What the ladder says, asked once while the panel stands: both move with the programs that end."""
        masses = panel.beside.get((kinds, quantity))
        if masses is None:
            if len(panel.beside) >= _KINDS_BESIDE_MAX:
                panel.beside.clear()
            ladder = self._ladders[QUANTITIES.index(quantity)]
            masses = panel.beside[kinds, quantity] = ladder.masses(_ladder_keys(kinds, milestone))
        return masses

    def _shares(self) -> tuple[float, float]:
        neighbours, ladder = self._scores
        of_ladder = 1.0 / (1.0 + math.exp(min(neighbours - ladder, 700.0)))
        return 1.0 - of_ladder, of_ladder

    def _judge(self, milestone: int, sample: Sample) -> None:
        """Compare the views on one look at a program that has just ended."""
        panel = self._neighbours.panel(milestone)
        if len(panel) < 8:
            return
        at = STEPS.index(sample.steps)
        seen = _seen(panel, panel.weights(sample.features, sample.kinds), "steps", STEPS)[at]
        ladder = self._ladders[0].masses(_ladder_keys(sample.kinds, milestone))[at]
        self._scores = [
            score * _FORGETTING + _LEARNING_RATE * math.log(probability + 1e-4)
            for score, probability in zip(self._scores, (seen, ladder), strict=True)
        ]

    # -- sharing ------------------------------------------------------------------------------------------

    def merge(self, other: RemainingForecaster) -> None:
        """Add what another forecaster learned from finished programs."""
        self._neighbours.merge(other._neighbours)
        for mine, theirs in zip(self._ladders, other._ladders, strict=True):
            mine.merge(theirs)
        self._scores = [(a + b) / 2 for a, b in zip(self._scores, other._scores, strict=True)]

    def to_bytes(self) -> bytes:
        """What was learned from finished programs; open ones are not included."""
        return msgspec.msgpack.encode(
            _Dumped(
                version=_VERSION,
                samples=list(self._neighbours.items()),
                programs=self._neighbours.programs,
                ladders=[ladder.dump() for ladder in self._ladders],
                scores=self._scores,
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, programs_max: int = PROGRAMS_MAX) -> RemainingForecaster:
        """The inverse of `to_bytes`; raises ValueError on anything that is not its output."""
        dumped = msgspec.msgpack.decode(data, type=_Dumped)
        if dumped.version != _VERSION or len(dumped.ladders) != 3 or len(dumped.scores) != 2:
            raise ValueError(f"forecasts of remaining work of version {dumped.version} cannot be read here")
        made = cls(programs_max=programs_max)
        made._neighbours.load(dumped.samples, dumped.programs)
        for ladder, rungs in zip(made._ladders, dumped.ladders, strict=True):
            ladder.load(rungs)
        made._scores = dumped.scores
        return made


class _Dumped(msgspec.Struct, kw_only=True):
    version: int
    samples: list[tuple[int, Sample]]
    programs: int
    ladders: list[dict[int, bytes]]
    scores: list[float]


def _milestone(steps: int) -> int:
    """The last milestone at or before a step."""
    return (bisect_right(MILESTONES, steps) or 1) - 1


def _ladder_keys(kinds: tuple[int, int, int], milestone: int) -> tuple[int, int, int]:
    role, workflow, tenant = kinds
    same = joined(joined(role, workflow), milestone)
    return milestone, same, joined(same, tenant)


def _seen(panel: Panel, weights: Sequence[float], quantity: str, grid: Grid) -> list[float]:
    """What became of the samples, as masses on the grid."""
    counted = [0.0] * (grid.bins + 4 * _BLUR_BINS)  # two blurs wider on either side
    scale = 1.0 / (sum(weights) + _ANYONE)
    floor = _ANYONE / len(panel)
    if quantity == "steps":
        for place, begin, end in panel.parts:
            mass = sum(weights[begin:end]) + floor * (end - begin)
            counted[place + 2 * _BLUR_BINS] = scale * mass
    else:
        for place, weight in zip(panel.bins(grid, quantity), weights, strict=True):
            counted[place + 2 * _BLUR_BINS] += scale * (weight + floor)
    return _blurred(counted)


def _blurred(counted: list[float]) -> list[float]:
    """Each mass spread evenly over the few bins around it; what falls off the grid stays in its outer bins."""
    below = list(accumulate(counted, initial=0.0))
    width = 2 * _BLUR_BINS + 1
    out = [(upper - lower) / width for lower, upper in zip(below, below[width:], strict=False)]
    inner = out[_BLUR_BINS:-_BLUR_BINS]
    inner[0] += sum(out[:_BLUR_BINS])
    inner[-1] += sum(out[-_BLUR_BINS:])
    return inner


def _beyond(forecast: Survival, at_least: float) -> Survival:
    return Survival(forecast.grid, forecast.masses, elapsed_s=at_least) if at_least > 0 else forecast


def _left(forecast: Survival, spent: float) -> Left:
    return Left(forecast=_beyond(forecast, spent), spent=spent)
