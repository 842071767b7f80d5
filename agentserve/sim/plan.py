"""How many engines a workload needs for an objective: the smallest fleet of each profile and policy that meets it.

Rule: only simulated runs decide. A fleet of n engines serves the same programs, arriving at the same times or as many
at once, whatever n is; more engines never hurt, so the smallest fleet that meets the objective is found by doubling and
bisection, and the one below it was run and failed. This module knows no command line and prints nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentserve.engine import Profile
from agentserve.errors import UsageError
from agentserve.sim.report import Figures
from agentserve.sim.run import Trial, run

ENGINES_MAX = 256
# What an objective may bound: figures of a run, and which way is better.
LOWER = (
    "jct_mean", "jct_p50", "jct_p95", "jct_p99", "ttft_mean", "ttft_p50", "ttft_p99", "queue_mean", "queue_p99",
    "slowdown_mean", "slowdown_p95",
)  # fmt: skip
HIGHER = ("steps_per_min",)
UNITS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "min": 60.0, "h": 3600.0}
GRAMMAR = re.compile(r"\s*([a-z0-9_]+)\s*(<=?|>=?)\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z]*)\s*")
Runner = Callable[[Trial], Figures]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A bound on one figure."""

    name: str
    bound: float  # seconds, or what the figure counts
    text: str

    @property
    def figure(self) -> str:
        """Its key among a run's figures."""
        plain = self.name in HIGHER or self.name.startswith("slowdown")
        return self.name if plain else f"{self.name}_s"

    def met(self, value: float) -> bool:
        """Whether a figure is within the bound, or at it."""
        return value >= self.bound if self.name in HIGHER else value <= self.bound


def parse_objective(text: str) -> Objective:
    """`jct_p95<600`, `ttft_p99<=800ms`, `steps_per_min>120`: a figure, a sign, a number, a unit of time or none."""
    match = GRAMMAR.fullmatch(text.lower())
    if match is None:
        raise UsageError(
            f"`{text}` is not an objective",
            remedy="write a figure, < or >, and a bound, as in jct_p95<600 or ttft_p99<800ms",
        )
    name, sign, number, unit = match.groups()
    name = name.removesuffix("_s") if name.removesuffix("_s") in LOWER else name
    if name not in (*LOWER, *HIGHER):
        raise UsageError(f"no figure is called `{name}`", remedy=f"known are {', '.join((*LOWER, *HIGHER))}")
    timed = name in LOWER and not name.startswith("slowdown")
    if unit not in UNITS or (unit and not timed):
        what = "seconds: s, ms, min or h" if timed else "a plain number"
        raise UsageError(f"`{unit}` is no unit of {name}", remedy=f"its bound is {what}")
    if (sign[0] == "<") != (name in LOWER):
        wanted = "below" if name in LOWER else "above"
        raise UsageError(f"`{text}` asks for the worse of {name}", remedy=f"bound it from {wanted}")
    bound = float(number) * UNITS[unit]
    if bound <= 0:
        raise UsageError(f"the bound in `{text}` is not positive", remedy="give a number above zero")
    return Objective(name=name, bound=bound, text=text.strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The smallest fleet of one profile under one policy."""

    profile: str | Profile
    policy: str
    params: Mapping[str, Any] = field(default_factory=dict)
    engines: int | None = None  # None: not with `engines_max`, nor with more of the same
    value: float | None = None  # the objective's figure with so many
    value_below: float | None = None  # with one fewer, which fails
    best: float | None = None  # without an answer: what the largest fleet that was tried gives
    figures: Figures = field(default_factory=dict)
    runs: int = 0


@dataclass(slots=True)
class Planner:
    """Asks the simulator for one answer after another; runs are remembered."""

    objective: Objective
    load: (
        Trial  # what has to be served, the same on every fleet; its engines, profile and policy are replaced
    )
    seeds: Sequence[int] = (1,)
    engines_max: int = ENGINES_MAX
    tell: Callable[[str], None] = lambda text: None
    run: Runner = lambda trial: run(trial)[0]
    _seen: dict[tuple[Any, ...], Figures] = field(default_factory=dict)

    def answer(self, which: str | Profile, policy: str, params: Mapping[str, Any] | None = None) -> Answer:
        """The smallest fleet; by doubling to one that meets the objective, then by halving what is left."""
        params = params or {}
        before = len(self._seen)

        def value(engines: int) -> float:
            return float(self._figures(which, policy, params, engines)[self.objective.figure])

        known = Answer(profile=which, policy=policy, params=params)
        failing, meeting = 0, 1
        while not self.objective.met(value(meeting)):
            failing = meeting
            if meeting >= self.engines_max or self._idle(which, policy, params, meeting):
                return dataclasses.replace(known, best=value(meeting), runs=len(self._seen) - before)
            meeting = min(2 * meeting, self.engines_max)
        while meeting - failing > 1:
            middle = (failing + meeting) // 2
            if self.objective.met(value(middle)):
                meeting = middle
            else:
                failing = middle
        return dataclasses.replace(
            known,
            engines=meeting,
            value=value(meeting),
            value_below=value(failing) if failing else None,
            figures=self._figures(which, policy, params, meeting),
            runs=len(self._seen) - before,
        )

    def _idle(self, which: str | Profile, policy: str, params: Mapping[str, Any], engines: int) -> bool:
        """Whether more engines cannot help: there is one for every program that can be under way."""
        figures = self._figures(which, policy, params, engines)
        return engines >= min(self.load.at_once or ENGINES_MAX, int(figures["programs"]))

    def _figures(self, which: str | Profile, policy: str, params: Mapping[str, Any], engines: int) -> Figures:
        key = (which, policy, tuple(sorted(params.items())), engines)
        if key not in self._seen:
            self.tell(f"{policy} on {engines} x {which}")
            runs = [
                self.run(
                    dataclasses.replace(
                        self.load,
                        profile=which,
                        policy=policy,
                        params=params,
                        engines=engines,
                        seed=seed,
                    )
                )
                for seed in self.seeds
            ]
            # an objective is met when it is met on the mean over seeds
            self._seen[key] = {
                name: sum(float(r[name]) for r in runs) / len(runs)
                for name, kept in runs[0].items()
                if isinstance(kept, (int, float)) and not isinstance(kept, bool)
            }
        return self._seen[key]
