"""`agentserve simulate --plan`: how many engines of which profile for an objective, now and with agentserve.

Rule: what has to be served is said in terms that do not depend on the fleet: programs a second, or so many at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from agentserve.cli.shapes import profile_of
from agentserve.cli.trials import check_files, check_numbers, parse_policy, progress_bar, write_text
from agentserve.errors import UsageError
from agentserve.sim.importers import read
from agentserve.sim.plan import ENGINES_MAX, Answer, Objective, Planner, parse_objective
from agentserve.sim.report import Figures
from agentserve.sim.run import Trial, run, workload_of

NOW = "affinity"  # what a fleet without agentserve does at best: every program stays where it began
POLICIES = (NOW, "agentserve")


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """What only a plan takes."""
    parser.add_argument(
        "--plan",
        metavar="OBJECTIVE",
        help="how many engines meet it, as in 'jct_p95<600' or 'ttft_p99<800ms'; --profile may name several, "
        f"comma between; policies compared are {' and '.join(POLICIES)} unless --policy says otherwise",
    )
    parser.add_argument(
        "--from", dest="file", metavar="FILE", help="plan for recorded traffic: what `replay` reads"
    )
    parser.add_argument(
        "--at-once", type=int, metavar="N", help="plan for so many programs under way at once"
    )
    parser.add_argument(
        "--as-recorded", action="store_true", help="plan for the recorded traffic's own arrival times"
    )
    parser.add_argument(
        "--engines-max", type=int, default=64, help="largest fleet that is tried in a plan (default 64)"
    )


def plan(args: argparse.Namespace) -> int:
    """Answer, print, and say so in the status: 0 when every fleet asked for has an answer, else 1."""
    objective = parse_objective(args.plan)
    check_numbers(args)
    check_files(args)
    load = load_from(args)
    # unknown ones are refused before anything runs
    shapes = [profile_of(name.strip()) for name in args.profile.split(",") if name.strip()]
    policies = [parse_policy(text) for text in args.policy or POLICIES]
    answers = []
    for shape in shapes:
        for policy, params in policies:
            planner = Planner(
                objective=objective,
                load=load,
                seeds=tuple(args.seed or [1]),
                engines_max=args.engines_max,
                run=_shown,
            )
            answers.append(planner.answer(shape, policy, params))
    _emit(args, objective, load, answers)
    return 0 if all(a.engines is not None for a in answers) else 1


def load_from(args: argparse.Namespace) -> Trial:
    """What has to be served, as a trial whose fleet is still open."""
    if args.pressure:
        raise UsageError(
            "--pressure depends on the fleet that --plan looks for",
            remedy="say what has to be served with --rate or --at-once",
        )
    if not 1 <= args.engines_max <= ENGINES_MAX:
        raise UsageError(f"--engines-max is {args.engines_max}", remedy=f"it is 1 to {ENGINES_MAX}")
    ways = [w for w in (args.rate, args.at_once, args.as_recorded or None) if w is not None]
    if len(ways) != 1 or (args.rate and len(args.rate) > 1):
        raise UsageError(
            "--plan needs to know the load, once",
            remedy="give one of --rate PROGRAMS_PER_SECOND, --at-once PROGRAMS or, with --from, --as-recorded",
        )
    if args.at_once is not None and args.at_once < 1:
        raise UsageError(f"--at-once is {args.at_once}", remedy="it is at least 1")
    if args.workload and len(args.workload) > 1:
        raise UsageError(
            "--plan takes one --workload", remedy="plan for one at a time, or for a recording of all"
        )
    trial = Trial(
        workload=args.workload[0] if args.workload else "coding",
        pressure=None,
        at_once=args.at_once,
        rate_per_s=args.rate[0] if args.rate else None,
        burst=args.burst,
        programs=args.programs,
        kv_tokens=args.kv_tokens,
        forecast=args.forecast,
        block_tokens=args.block_tokens,
    )
    if args.file is None:
        if args.as_recorded:
            raise UsageError(
                "generated programs have no recorded arrivals", remedy="give --rate, or --from FILE"
            )
        workload_of(trial)  # refuses what cannot be run
        return trial
    found = read(args.file, limit=args.programs)
    if args.as_recorded and any(found.workload.programs[i].arrives_s is None for i in found.workload.roots):
        raise UsageError("this trace has no arrival times", remedy="give --rate or --at-once")
    print(
        f"{found.format}: {len(found.workload.roots)} programs, {found.workload.steps()} steps",
        file=sys.stderr,
    )
    return dataclasses.replace(trial, workload=found.workload, programs=len(found.workload.roots))


def _shown(trial: Trial) -> Figures:
    with progress_bar(f"{trial.policy} on {trial.engines} x {trial.profile}", trial.programs) as tick:
        return run(trial, tick)[0]


def _emit(args: argparse.Namespace, objective: Objective, load: Trial, answers: Sequence[Answer]) -> None:
    if args.json:
        text = json.dumps(_told(objective, load, answers), indent=2, sort_keys=True)
        if args.json == "-":
            print(text)
            return
        write_text(args.json, text + "\n")
    _table(objective, load, answers)


def _told(objective: Objective, load: Trial, answers: Sequence[Answer]) -> dict[str, Any]:
    kept = (
        "jct_mean_s",
        "jct_p95_s",
        "ttft_mean_s",
        "ttft_p99_s",
        "steps_per_min",
        "cached_share",
        "engine_busy_share",
    )
    return {
        "objective": objective.text,
        "load": {
            "workload": load.workload if isinstance(load.workload, str) else load.workload.name,
            "programs": load.programs,
            "at_once": load.at_once,
            "rate_per_s": load.rate_per_s,
        },
        "answers": [
            dataclasses.asdict(a)
            | {"profile": str(a.profile)}
            | {"figures": {name: a.figures.get(name) for name in kept if a.figures}}
            for a in answers
        ],
    }


def _table(objective: Objective, load: Trial, answers: Sequence[Answer]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"engines for {objective.text}, {_load_words(load)}")
    for title in ("profile", "policy"):
        table.add_column(title)
    for title in ("engines", objective.name, "one fewer", "steps/min", "cached", "busy"):
        table.add_column(title, justify="right")
    for a in answers:
        if a.engines is None:
            table.add_row(str(a.profile), a.policy, "none", f"{a.best:,.4g} at best", *[""] * 4)
            continue
        below = f"{a.value_below:,.4g}" if a.value_below is not None else "-"
        f = a.figures
        table.add_row(
            str(a.profile),
            a.policy,
            str(a.engines),
            f"{a.value:,.4g}",
            below,
            f"{f['steps_per_min']:,.0f}",
            f"{f['cached_share']:.0%}",
            f"{f['engine_busy_share']:.0%}",
        )
    out = Console()
    (out if out.is_terminal else Console(width=150)).print(table)
    for line in _savings(answers):
        print(line)


def _load_words(load: Trial) -> str:
    if load.at_once is not None:
        return f"{load.at_once} programs at once"
    return f"{load.rate_per_s:g} programs a second" if load.rate_per_s else "arrivals as recorded"


def _savings(answers: Sequence[Answer]) -> list[str]:
    """For each profile, what the last policy needs beside the first."""
    out = []
    for name in dict.fromkeys(a.profile for a in answers):
        here = [a for a in answers if a.profile == name]
        first, last = here[0], here[-1]
        if len(here) > 1 and first.engines and last.engines:
            out.append(
                f"{name}: {last.engines} {'engine' if last.engines == 1 else 'engines'} with {last.policy}, "
                f"{first.engines} with {first.policy}"
            )
    return out
