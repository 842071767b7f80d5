"""Tuning of a policy's constants over the simulator, with the seeds to learn from kept apart from those to judge by.

Rule: nothing that a test seed showed may reach the search; a `Tuning` whose train and test seeds overlap is refused.
The search is sequential in its trials and repeats exactly for a seed, however many processes share the runs of a trial.

The figure sought is the geometric mean, over workloads, loads and train seeds, of mean completion time over what the
policy's own defaults reach there: 1.0 is the default, less is better. It knows no policy: what can be turned is read
from the constants that a policy declares.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentserve.core.policies import policy_class
from agentserve.errors import AgentServeError, UsageError
from agentserve.sim.report import Figures
from agentserve.sim.run import Trial

TRIALS_MAX = 10_000
SPAN = 4.0  # a constant that names no range is sought between its default over and times this
RATIO_MAX = 1e3  # what a setting under which nothing ends counts for

RunAll = Callable[[Sequence[Trial]], Sequence[Figures]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """A constant that may be turned, and how far."""

    name: str
    default: Any
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    def ask(self, trial: Any) -> Any:
        """The value that the optimiser's trial proposes."""
        if self.choices:
            return trial.suggest_categorical(self.name, list(self.choices))
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return _rounded(trial.suggest_float(self.name, self.low, self.high, log=self.log))

    def holds(self, value: Any) -> bool:
        """Whether the value can be proposed at all."""
        if self.choices:
            return value in self.choices
        return value is not None and self.low <= value <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """A search: what is varied, on what it learns, by what it is judged."""

    cells: tuple[Trial, ...]  # one for each workload and load; policy, constants and seed are set here
    policy: str
    fixed: Mapping[str, Any] = field(default_factory=dict)  # constants that stay as given
    knobs: tuple[Knob, ...]
    train_seeds: tuple[int, ...]
    test_seeds: tuple[int, ...]
    trials: int = 40
    seed: int = 1  # of the optimiser

    def __post_init__(self) -> None:
        both = sorted(set(self.train_seeds) & set(self.test_seeds))
        if both:
            raise UsageError(
                f"seed {both[0]} is both learnt from and judged by",
                remedy="keep --seed and --test-seed apart",
            )
        if not self.train_seeds or not self.test_seeds or not self.cells:
            raise UsageError("nothing to tune on", remedy="give --seed, --test-seed and --workload")
        if not self.knobs:
            raise UsageError(
                f"policy {self.policy} has no constant to turn", remedy="name one: --knob name=low..high"
            )
        if not 1 <= self.trials <= TRIALS_MAX:
            raise UsageError(f"--tune is {self.trials}", remedy=f"it is from 1 to {TRIALS_MAX}")

    def runs(self, seeds: Sequence[int], params: Mapping[str, Any]) -> list[Trial]:
        """One trial for each cell and seed."""
        wanted = {**self.fixed, **params}
        return [
            dataclasses.replace(cell, policy=self.policy, params=wanted, seed=seed)
            for cell, seed in itertools.product(self.cells, seeds)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One setting, and its figure on the train seeds."""

    params: Mapping[str, Any]
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What came of it."""

    policy: str
    best: Mapping[str, Any]  # only what differs from the defaults, and what was fixed
    train_ratio: float
    test_ratio: float
    history: tuple[Tried, ...]

    @property
    def line(self) -> str:
        """The setting as an argument to paste."""
        pairs = ",".join(f"{k}={_word(v)}" for k, v in self.best.items())
        return f"--policy {self.policy}:{pairs}" if pairs else f"--policy {self.policy}"


def knobs_of(policy: str, ranges: Mapping[str, str], fixed: Sequence[str] = ()) -> tuple[Knob, ...]:
    """What can be turned: those that `ranges` names, else every constant with a number or a choice for its default."""
    declared = policy_class(policy).Params
    known = {f.name: f for f in dataclasses.fields(declared)}
    for name in ranges:
        if name not in known:
            raise UsageError(
                f"policy {policy} has no parameter `{name}`", remedy=f"it knows {', '.join(known) or 'none'}"
            )
    hints = typing.get_type_hints(declared)
    made = []
    for name, declared_field in known.items():
        default = declared_field.default
        if name in ranges:
            made.append(_given(name, default, ranges[name], whole=_is(hints[name], int)))
        elif not ranges and name not in fixed:
            knob = _guessed(name, default)
            if knob is not None:
                made.append(knob)
    return tuple(made)


def tune(tuning: Tuning, run_all: RunAll, progress: Callable[[int], None] | None = None) -> Tuned:
    """Search, then judge the best setting by the test seeds."""
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            "tuning needs optuna", remedy="install it: pip install 'agentserve-gateway[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    defaults = _mean_times(run_all(tuning.runs(tuning.train_seeds, {})))
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=tuning.seed))
    history = [Tried(params={}, ratio=1.0)]
    start = {k.name: k.default for k in tuning.knobs}
    if all(k.holds(k.default) for k in tuning.knobs):
        study.add_trial(
            optuna.trial.create_trial(params=start, distributions=_distributions(tuning.knobs), value=1.0)
        )
    for done in range(tuning.trials):
        asked = study.ask()
        params = {knob.name: knob.ask(asked) for knob in tuning.knobs}
        try:
            times = _mean_times(run_all(tuning.runs(tuning.train_seeds, params)))
            ratio = min(_geomean([t / d for t, d in zip(times, defaults, strict=True)]), RATIO_MAX)
        except AgentServeError:
            ratio = RATIO_MAX  # under this setting a program never ended
        study.tell(asked, ratio)
        history.append(Tried(params=params, ratio=ratio))
        if progress is not None:
            progress(done + 1)
    best = min(history, key=lambda tried: tried.ratio)
    changed = {name: value for name, value in best.params.items() if value != start[name]}
    return Tuned(
        policy=tuning.policy,
        best={**tuning.fixed, **changed},
        train_ratio=best.ratio,
        test_ratio=_judged(tuning, changed, run_all),
        history=tuple(history),
    )


def _judged(tuning: Tuning, params: Mapping[str, Any], run_all: RunAll) -> float:
    if not params:
        return 1.0
    defaults = _mean_times(run_all(tuning.runs(tuning.test_seeds, {})))
    times = _mean_times(run_all(tuning.runs(tuning.test_seeds, params)))
    return _geomean([t / d for t, d in zip(times, defaults, strict=True)])


def _mean_times(figures: Sequence[Figures]) -> list[float]:
    return [max(float(f["jct_mean_s"]), 1e-9) for f in figures]


def _geomean(ratios: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(r) for r in ratios))


def _distributions(knobs: Sequence[Knob]) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    made: dict[str, Any] = {}
    for knob in knobs:
        if knob.choices:
            made[knob.name] = CategoricalDistribution(knob.choices)
        elif knob.whole:
            made[knob.name] = IntDistribution(int(knob.low), int(knob.high), log=knob.log)
        else:
            made[knob.name] = FloatDistribution(knob.low, knob.high, log=knob.log)
    return made


def _guessed(name: str, default: Any) -> Knob | None:
    """A range around a default; a constant that is off (zero or None) by default is only turned when asked."""
    if isinstance(default, bool):
        return Knob(name=name, default=default, choices=(False, True))
    if isinstance(default, int) and default > 0:
        low = max(1, math.floor(default / SPAN))
        return Knob(name=name, default=default, low=low, high=max(default * SPAN, 2), log=True, whole=True)
    if isinstance(default, float) and default > 0.0:
        return Knob(name=name, default=default, low=default / SPAN, high=default * SPAN, log=True)
    return None


def _given(name: str, default: Any, text: str, *, whole: bool) -> Knob:
    """`low..high`, or words with bars between them."""
    if "|" in text:
        return Knob(name=name, default=default, choices=tuple(_read(word) for word in text.split("|")))
    low, _, high = text.partition("..")
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = 0.0, 0.0
    if ends[0] >= ends[1]:
        raise UsageError(f"`{text}` is no range for {name}", remedy="write low..high, or one|another")
    return Knob(
        name=name,
        default=default,
        low=ends[0],
        high=ends[1],
        log=ends[0] > 0 and ends[1] >= 10 * ends[0],
        whole=whole,
    )


def _read(word: str) -> Any:
    words = {"true": True, "false": False, "null": None}
    if word in words:
        return words[word]
    try:
        return float(word) if "." in word or "e" in word else int(word)
    except ValueError:
        return word


def _is(hint: Any, kind: type) -> bool:
    if isinstance(hint, types.UnionType):
        return all(h in (kind, type(None)) for h in hint.__args__)
    return hint is kind


def _rounded(value: float) -> float:
    """Three digits are enough of a constant, and can be read."""
    return float(f"{value:.3g}")


def _word(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
