"""`agentserve simulate --ablate` and `--curve`: each mechanism off alone, and slowdown by arrival rate.

Rule: what an arm changes is `agentserve.sim.ablations`, where a rate stops being sustained is `agentserve.sim.rates`;
here are tables and files only.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence

from agentserve.cli.trials import label, run_all, workload_name, write_text
from agentserve.errors import UsageError
from agentserve.sim.ablations import ABLATIONS, POLICY
from agentserve.sim.rates import SLOWDOWN_MAX, Point, capped, sustained, svg
from agentserve.sim.report import Figures
from agentserve.sim.run import Trial


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """What only these need."""
    parser.add_argument(
        "--ablate", action="store_true", help=f"{POLICY} with each of its mechanisms off, one at a time"
    )
    parser.add_argument(
        "--curve",
        metavar="FILE.svg",
        help="with several --rate: slowdown by rate, and the highest rate that each policy sustains",
    )


def ablated(args: argparse.Namespace, trials: Sequence[Trial]) -> int:
    """A table of mean completion, p99 and cached share for each arm, as ratios to all mechanisms on."""
    if any(trial.policy != POLICY for trial in trials):
        raise UsageError(f"only {POLICY} has ablations", remedy="leave --policy away")
    arms = [arm.of(trial) for arm in ABLATIONS for trial in trials]
    figures = run_all(arms, args.workers)
    rows = {arm.name: figures[i * len(trials) : (i + 1) * len(trials)] for i, arm in enumerate(ABLATIONS)}
    whole = rows[ABLATIONS[0].name]
    told = []
    for arm in ABLATIONS:
        of = rows[arm.name]
        told.append(
            {
                "arm": arm.name,
                "meaning": arm.meaning,
                "runs": of,
                **{f"{name}_ratio": _ratio(of, whole, name) for name in ("jct_mean_s", "jct_p99_s")},
                "cached_share": statistics.fmean(f["cached_share"] for f in of),
            }
        )
    if args.json:
        text = json.dumps(told, indent=2, sort_keys=True)
        print(text) if args.json == "-" else write_text(args.json, text + "\n")
    if args.json != "-":
        _print(
            ("arm", "mean completion", "p99", "cached", "what it is"),
            [
                (
                    str(r["arm"]),
                    f"{r['jct_mean_s_ratio']:.3f}",
                    f"{r['jct_p99_s_ratio']:.3f}",
                    f"{r['cached_share']:.1%}",
                    str(r["meaning"]),
                )
                for r in told
            ],
        )
    return 0


def emit_sweep(args: argparse.Namespace, trials: Sequence[Trial], figures: Sequence[Figures]) -> None:
    """The curve as an SVG, and the highest rate that each arm sustains."""
    curves = points_of(trials, figures)
    names = ", ".join(sorted({workload_name(t) for t in trials}))
    write_text(args.curve, svg(curves, f"{names}: mean slowdown by arrival rate"))
    rows = []
    for arm, points in curves.items():
        rate = sustained(points)
        shown = "none" if rate is None else f"{rate:.3f}" + ("" if capped(points) else " or more")
        rows.append((arm, shown))
    _print(("arm", f"programs/s with mean slowdown under {SLOWDOWN_MAX:g}"), rows)


def points_of(trials: Sequence[Trial], figures: Sequence[Figures]) -> dict[str, list[Point]]:
    """Per arm, the mean over seeds at each rate."""
    groups: dict[str, dict[float, list[Figures]]] = {}
    several = len({workload_name(t) for t in trials}) > 1
    for trial, found in zip(trials, figures, strict=True):
        arm = f"{workload_name(trial)}: " * several + label(trial).partition(" @ ")[0]
        groups.setdefault(arm, {}).setdefault(trial.rate_per_s or 0.0, []).append(found)
    return {
        arm: [
            Point(
                rate_per_s=rate,
                slowdown=statistics.fmean(f["slowdown_mean"] for f in runs),
                jct_s=statistics.fmean(f["jct_mean_s"] for f in runs),
                p99_s=statistics.fmean(f["jct_p99_s"] for f in runs),
                steps_per_min=statistics.fmean(f["steps_per_min"] for f in runs),
            )
            for rate, runs in sorted(by_rate.items())
        ]
        for arm, by_rate in groups.items()
    }


def _ratio(of: Sequence[Figures], whole: Sequence[Figures], name: str) -> float:
    return math.exp(statistics.fmean(math.log(a[name] / b[name]) for a, b in zip(of, whole, strict=True)))


def _print(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for index, title in enumerate(head):
        table.add_column(title, justify="left" if index in (0, 4) else "right")
    for row in rows:
        table.add_row(*row)
    out = Console()
    if not out.is_terminal:
        out = Console(width=150)
    out.print(table)
