"""`agentserve simulate`: policies on generated workloads, in virtual time; ablations, sweeps, tuning, fleet plans."""

from __future__ import annotations

import argparse

from agentserve.cli.plans import add_plan_arguments, plan
from agentserve.cli.sweeps import ablated, add_sweep_arguments, emit_sweep
from agentserve.cli.trials import Kept, add_trial_arguments, emit, flag, run_all, trials_from
from agentserve.cli.tuning import add_tuning_arguments, run_tuning
from agentserve.errors import UsageError

HELP = "what policies would do with a generated workload, in virtual time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "--workload",
        action="append",
        help="coding (the default), slowtools, heavytail, interactive, chains, …; may stand again",
    )
    add_trial_arguments(parser)
    add_sweep_arguments(parser)
    add_tuning_arguments(parser)
    add_plan_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run every arm and print the report, or look for the fleet that meets an objective."""
    for name in ("test_seed", "knob", "tune_seed"):
        if args.tune is None and getattr(args, name) is not None:
            raise UsageError(f"--{flag(name)} belongs to --tune", remedy="say --tune TRIALS too")
    if sum(map(bool, (args.tune is not None, args.ablate, args.curve, args.plan))) > 1:
        raise UsageError(
            "--tune, --ablate, --curve and --plan exclude each other", remedy="run them one by one"
        )
    if args.plan:
        return plan(args)
    for name in ("file", "at_once", "as_recorded"):
        if getattr(args, name):
            raise UsageError(
                f"--{'from' if name == 'file' else flag(name)} belongs to --plan",
                remedy="to compare policies on recorded traffic use `agentserve replay FILE`",
            )
    if args.curve and len(set(args.rate or ())) < 2:
        raise UsageError("a curve needs several rates", remedy="give --rate several times")
    trials = [t for name in args.workload or ["coding"] for t in trials_from(args, workload=name)]
    if args.tune is not None:
        return run_tuning(args, trials)
    if args.ablate:
        return ablated(args, trials)
    kept: Kept = {}
    figures = run_all(trials, args.workers, kept if args.html else None)
    emit(args, trials, figures, kept)
    if args.curve:
        emit_sweep(args, trials, figures)
    return 0
