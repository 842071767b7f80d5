"""`agentserve simulate`: policies on generated workloads, in virtual time."""

from __future__ import annotations

import argparse

from agentserve.cli.trials import add_trial_arguments, emit, run_all, trials_from

HELP = "what policies would do with a generated workload, in virtual time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "--workload", default="coding", help="coding, slowtools, heavytail, interactive, chains, …"
    )
    add_trial_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run every arm and print the report."""
    trials = trials_from(args, workload=args.workload)
    emit(args, trials, run_all(trials, args.workers))
    return 0
