"""`agentserve replay FILE`: policies on recorded traffic, in virtual time."""

from __future__ import annotations

import argparse
import sys

from agentserve.cli.trials import Kept, add_trial_arguments, emit, run_all, trials_from
from agentserve.errors import UsageError
from agentserve.sim.importers import read

HELP = "what policies would do with recorded traffic, in virtual time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "file", help="a trace: our export, agent_programs, Mooncake, kv-cache-tester, Azure, BurstGPT"
    )
    parser.add_argument("--strict", action="store_true", help="end at the first malformed line")
    parser.add_argument(
        "--as-recorded", action="store_true", help="open loop with the trace's own arrival times"
    )
    add_trial_arguments(parser)
    parser.set_defaults(programs=0)


def run(args: argparse.Namespace) -> int:
    """Import, run every arm, print the report."""
    if args.programs < 0:
        raise UsageError(f"--programs is {args.programs}", remedy="it is at least 1; left away, all are read")
    limit = args.programs or None
    args.programs = args.programs or 1
    found = read(args.file, strict=args.strict, limit=limit)
    args.programs = len(found.workload.roots)
    print(
        f"{found.format}: {len(found.workload.roots)} programs, {found.workload.steps()} steps, "
        f"{found.bad} of {found.lines} lines unusable",
        file=sys.stderr,
    )
    for problem in found.problems:
        print(f"  {problem}", file=sys.stderr)
    trials = trials_from(args, workload=found.workload)
    if args.as_recorded:
        if args.rate or args.pressure:
            raise UsageError(
                "--as-recorded is a load of its own", remedy="leave --rate and --pressure away, or this"
            )
        if any(p.arrives_s is None for p in found.workload.programs if p.parent is None):
            raise UsageError(
                "this trace has no arrival times", remedy="leave --as-recorded away, give --pressure"
            )
        import dataclasses

        trials = [dataclasses.replace(t, pressure=None) for t in trials]
    kept: Kept = {}
    emit(args, trials, run_all(trials, args.workers, kept if args.html else None), kept)
    return 0
