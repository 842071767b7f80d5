"""How near the literature's policies come to ours when their constants are searched as hard as may be.

`python -m tests.bench.rivals --workers 2`: for each rival the setting whose worst workload is nearest to ours, and for
each workload the best setting of any. Both are sought on seed 1 and judged on seeds 11 to 13, where nothing was tuned;
ours runs with its defaults everywhere. Needs the extra `tune`; the whole search takes an hour of one core.

Rule: every figure is mean completion over ours in the same cell and seed, so above 1.0 the rival is behind.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentserve.cli.trials import figures_of
from agentserve.errors import AgentServeError
from agentserve.sim.run import Trial
from agentserve.sim.tune import RATIO_MAX, Knob, knobs_of

WORKLOADS = ("coding", "slowtools", "mixed")
PRESSURES = (2.0, 4.0)
TRAIN_SEEDS, TEST_SEEDS = (1,), (11, 12, 13)
RIVALS: Mapping[str, Mapping[str, str]] = {
    "thunderagent": {
        "tick_s": "0.5..10",
        "lambda_pause": "0.8..1.1",
        "lambda_resume": "0.7..1.1",
        "buffer_tokens": "0..2000",
        "half_life_s": "0..60",
    },
    "infercept": {"room": "0.8..1.05", "foresee": "true|false"},
    "continuum": {
        "room": "0.8..1.05",
        "wait_s": "1..300",
        "samples_min": "10..400",
        "prior_mean_s": "0.3..10",
    },
}

Cell = tuple[str, float]
Params = Mapping[str, Any]
Seconds = dict[tuple[Cell, int], float]  # mean completion by cell and seed
CELLS: tuple[Cell, ...] = tuple(itertools.product(WORKLOADS, PRESSURES))


@dataclass(frozen=True, slots=True)
class Bench:
    """Runs policies on cells and seeds, side by side where there are processes for it."""

    programs: int
    map: Callable[[Callable[[Trial], float], Sequence[Trial]], Iterable[float]]

    def seconds(
        self, policy: str, params: Params, seeds: Sequence[int], cells: Sequence[Cell] = CELLS
    ) -> Seconds:
        asked = list(itertools.product(cells, seeds))
        trials = [
            Trial(workload=w, pressure=p, programs=self.programs, seed=seed, policy=policy, params=params)
            for (w, p), seed in asked
        ]
        return dict(zip(asked, self.map(mean_completion_s, trials), strict=True))

    def ratios(
        self, policy: str, params: Params, ours: Seconds, cells: Sequence[Cell] = CELLS
    ) -> dict[Cell, float]:
        """By cell, the mean over those seeds that ours was run on."""
        seeds = sorted({seed for _, seed in ours})
        theirs = self.seconds(policy, params, seeds, cells)
        return {
            cell: statistics.fmean(theirs[cell, s] for s in seeds)
            / statistics.fmean(ours[cell, s] for s in seeds)
            for cell in cells
        }


@dataclass(frozen=True, slots=True)
class Tried:
    """One setting of a rival, on the train seeds."""

    policy: str
    params: Params
    ratios: Mapping[Cell, float]

    @property
    def worst(self) -> float:
        return max(self.ratios.values())


def mean_completion_s(trial: Trial) -> float:
    """Endless, where a program never ends under this setting."""
    try:
        return float(figures_of(trial)["jct_mean_s"])
    except AgentServeError:
        return math.inf


def search(policy: str, trials: int, bench: Bench, ours: Seconds) -> list[Tried]:
    """Its defaults, then settings sought for the least worst ratio."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))
    knobs: tuple[Knob, ...] = knobs_of(policy, RIVALS[policy])
    tried = [Tried(policy, {}, bench.ratios(policy, {}, ours))]
    for _ in range(trials):
        asked = study.ask()
        params = {knob.name: knob.ask(asked) for knob in knobs}
        tried.append(Tried(policy, params, bench.ratios(policy, params, ours)))
        study.tell(asked, min(tried[-1].worst, RATIO_MAX))
    return tried


def judged(tried: Sequence[Tried], bench: Bench) -> dict[str, Any]:
    """Each rival's most even setting, and each cell's best of any rival, on the test seeds."""
    ours = bench.seconds("agentserve", {}, TEST_SEEDS)
    even = [min(mine, key=lambda t: t.worst) for mine in by_policy(tried)]
    even = [dataclasses.replace(t, ratios=bench.ratios(t.policy, t.params, ours)) for t in even]
    best: dict[Cell, Tried] = {}
    for cell in CELLS:
        won = min(tried, key=lambda t: t.ratios[cell])
        best[cell] = dataclasses.replace(won, ratios=bench.ratios(won.policy, won.params, ours, [cell]))
    return {
        "one setting for all": [told(t) for t in even],
        "the best of each workload": [told(t) for t in best.values()],
        "their geometric mean": statistics.geometric_mean([best[cell].ratios[cell] for cell in CELLS]),
    }


def by_policy(tried: Sequence[Tried]) -> list[list[Tried]]:
    return [list(mine) for _, mine in itertools.groupby(tried, key=lambda t: t.policy)]


def told(tried: Tried) -> dict[str, Any]:
    ratios = {f"{w} {p:g}": round(r, 3) for (w, p), r in tried.ratios.items()}
    return {
        "policy": tried.policy,
        "params": dict(tried.params),
        "ratios": ratios,
        "worst": round(tried.worst, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=30, help="settings tried of each rival; default 30")
    parser.add_argument("--programs", type=int, default=150)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", action="append", choices=sorted(RIVALS))
    parser.add_argument("--json", type=Path, help="write everything tried here")
    args = parser.parse_args()
    with concurrent.futures.ProcessPoolExecutor(args.workers) as pool:
        bench = Bench(args.programs, pool.map)
        ours = bench.seconds("agentserve", {}, TRAIN_SEEDS)
        tried = [t for policy in args.only or RIVALS for t in search(policy, args.trials, bench, ours)]
        found = judged(tried, bench)
    if args.json:
        args.json.write_text(json.dumps({**found, "tried": [told(t) for t in tried]}, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
