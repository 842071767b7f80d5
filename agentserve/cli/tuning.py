"""`agentserve simulate --tune`: its arguments, its progress, and what it prints.

Rule: the search itself is `agentserve.sim.tune`; here are words and files only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from agentserve.cli.beside import processes
from agentserve.cli.trials import figures_of, parse_policy, progress_bar, write_text
from agentserve.errors import UsageError
from agentserve.sim.run import Trial
from agentserve.sim.tune import RunAll, Tuned, Tuning, knobs_of, tune

TEST_SEEDS = (11, 12, 13)


def add_tuning_arguments(parser: argparse.ArgumentParser) -> None:
    """What only a search needs."""
    group = parser.add_argument_group("tuning (needs the extra `tune`)")
    group.add_argument(
        "--tune", type=int, metavar="TRIALS", help="search the policy's constants on the seeds of --seed"
    )
    group.add_argument(
        "--test-seed",
        type=int,
        action="append",
        help=f"seeds that judge what was found; default {', '.join(map(str, TEST_SEEDS))}",
    )
    group.add_argument(
        "--knob",
        action="append",
        metavar="NAME=LOW..HIGH",
        help="turn this constant only; may stand again; or NAME=one|another. Default: all with a number or a choice",
    )
    group.add_argument("--tune-seed", type=int, help="of the optimiser; default 1")


def run_tuning(args: argparse.Namespace, trials: Sequence[Trial]) -> int:
    """Search, print the best setting with its figures, and write the history where asked."""
    policies = args.policy or ["agentserve"]
    if len(policies) != 1:
        raise UsageError("--tune takes one policy at a time", remedy="give --policy once")
    name, fixed = parse_policy(policies[0])
    tuning = Tuning(
        cells=tuple(trial for trial in trials if trial.seed == trials[0].seed),
        policy=name,
        fixed=fixed,
        knobs=knobs_of(name, _ranges(args.knob or ()), tuple(fixed)),
        train_seeds=tuple(args.seed or (1, 2, 3)),
        test_seeds=tuple(args.test_seed or TEST_SEEDS),
        trials=args.tune,
        seed=1 if args.tune_seed is None else args.tune_seed,
    )
    with _runner(args.workers) as run_all, progress_bar(f"tune {name}", tuning.trials) as tick:
        tuned = tune(tuning, run_all, tick)
    if args.json:
        text = json.dumps(_told(tuning, tuned), indent=2, sort_keys=True)
        print(text) if args.json == "-" else write_text(args.json, text + "\n")
    if args.json != "-":
        _say(tuning, tuned)
    return 0


@contextmanager
def _runner(workers: int) -> Iterator[RunAll]:
    """Runs of one setting, side by side: the order of the search stays the same."""
    if workers <= 1:
        yield lambda trials: [figures_of(trial) for trial in trials]
        return
    with processes(workers) as pool:
        yield lambda trials: list(pool.map(figures_of, trials))


def _ranges(texts: Sequence[str]) -> dict[str, str]:
    out = {}
    for text in texts:
        name, sep, limits = text.partition("=")
        if not sep:
            raise UsageError(f"--knob {text} has no range", remedy="write --knob name=low..high")
        if name in out:
            raise UsageError(f"--knob {name} stands twice", remedy="give each constant one range")
        out[name] = limits
    return out


def _told(tuning: Tuning, tuned: Tuned) -> dict[str, Any]:
    return {
        "policy": tuned.policy,
        "best": dict(tuned.best),
        "paste": tuned.line,
        "train_seeds": tuning.train_seeds,
        "test_seeds": tuning.test_seeds,
        "train_ratio": tuned.train_ratio,
        "test_ratio": tuned.test_ratio,
        "workloads": sorted({cell.workload for cell in tuning.cells if isinstance(cell.workload, str)}),
        "history": [{"params": dict(tried.params), "ratio": tried.ratio} for tried in tuned.history],
    }


def _say(tuning: Tuning, tuned: Tuned) -> None:
    from rich.console import Console

    out = Console(highlight=False, soft_wrap=True)
    seeds = {"train": tuning.train_seeds, "test": tuning.test_seeds}
    for kind, ratio in (("train", tuned.train_ratio), ("test", tuned.test_ratio)):
        listed = ", ".join(map(str, seeds[kind]))
        out.print(f"{kind} seeds {listed}: mean completion {ratio:.3f} of what the defaults reach")
    if not tuned.best:
        out.print(f"none of {len(tuned.history) - 1} settings was better than the defaults")
    out.print(tuned.line)
