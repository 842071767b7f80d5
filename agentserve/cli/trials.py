"""What `simulate` and `replay` share: their arguments, the runs over policies, seeds and pressures, and the output."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agentserve.cli.beside import processes
from agentserve.cli.shapes import profile_of
from agentserve.cli.whole import whole
from agentserve.errors import UsageError
from agentserve.sim.programs import Workload
from agentserve.sim.report import Figures, over_seeds
from agentserve.sim.run import FORECASTS, Trial, run
from agentserve.sim.traces import Result

WRITTEN = ("json", "html", "curve")  # flags that name files
WIDTH = 260  # of a table in a file or pipe, where nothing has to fit a screen
COLUMNS = (
    ("jct_mean_s", "JCT mean s"),
    ("jct_p95_s", "p95 s"),
    ("jct_p99_s", "p99 s"),
    ("slowdown_mean", "slowdown"),
    ("ttft_mean_s", "TTFT s"),
    ("steps_per_min", "steps/min"),
    ("cached_share", "cached"),
    ("reprefilled_tokens", "re-prefilled"),
    ("engine_busy_share", "busy"),
)
# Shown where an arm has them: objectives that were set, and what pins spared and cost in seconds of engine time.
MORE_COLUMNS = (
    ("slo_ttft_met", "TTFT met"),
    ("slo_slowdown_met", "slowdown met"),
    ("pins_saved_s", "pins saved s"),
    ("pins_cost_s", "pins cost s"),
)


def add_trial_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything but where the programs come from."""
    parser.add_argument(
        "--policy",
        action="append",
        metavar="NAME[:k=v,…]",
        help="a policy and its constants; may stand again",
    )
    parser.add_argument("--engines", type=int, default=4, help="how many engines (default 4)")
    parser.add_argument(
        "--profile",
        default="llama-3.1-8b-h100",
        metavar="NAME|FILE.json",
        help="model and accelerator of each engine",
    )
    parser.add_argument(
        "--kv-tokens", type=int, help="KV tokens of each engine; default: what its memory leaves"
    )
    parser.add_argument(
        "--pressure",
        type=float,
        action="append",
        help="live contexts over the fleet's KV; closed loop; default 2",
    )
    parser.add_argument("--rate", type=float, action="append", help="open loop: programs a second")
    parser.add_argument("--burst", type=float, default=1.0, help="of open-loop arrivals; 1 is Poisson")
    parser.add_argument("--programs", type=int, default=300, help="how many root programs (default 300)")
    parser.add_argument(
        "--seed", type=int, action="append", help="may stand again: intervals over seeds; default 1"
    )
    parser.add_argument(
        "--forecast", choices=FORECASTS, default="learned", help="what the scheduler knows ahead"
    )
    parser.add_argument("--faults", type=int, default=0, help="how many faults to strike, by seed")
    parser.add_argument("--block-tokens", type=int, default=16, help="KV block size (default 16)")
    parser.add_argument("--slo-ttft", type=float, metavar="S", help="report the share of steps within this")
    parser.add_argument(
        "--slo-slowdown", type=float, metavar="X", help="report the share of programs within this"
    )
    parser.add_argument(
        "--native-pins", action="store_true", help="engines that hold KV when told to; stock ones do not"
    )
    parser.add_argument("--ends-untold", action="store_true", help="clients never say that a program is over")
    parser.add_argument(
        "--host-kv-tokens", type=int, default=0, help="second KV tier of each engine in host memory"
    )
    parser.add_argument(
        "--host-gb-per-s", type=float, default=50.0, help="from host memory to the accelerator (default 50)"
    )
    parser.add_argument("--check", action="store_true", help="check every invariant after every event (slow)")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side, a process each")
    parser.add_argument("--json", metavar="FILE", help="figures as JSON; - for standard output")
    parser.add_argument("--html", metavar="FILE", help="one self-contained page with plots")


LEAST = {
    "engines": 1, "programs": 1, "workers": 1, "block_tokens": 1, "kv_tokens": 1, "faults": 0,
    "host_kv_tokens": 0, "seed": 0,
}  # fmt: skip
ABOVE_ZERO = ("pressure", "rate", "burst", "slo_ttft", "slo_slowdown", "host_gb_per_s")
MAY_REPEAT = ("workload", "policy", "pressure", "rate", "seed", "test_seed")  # flags that may stand again


def check_numbers(args: argparse.Namespace) -> None:
    """A number that means nothing is refused before anything runs, and so is the same arm or seed twice."""
    check_repeated(args)
    for name in (*LEAST, *ABOVE_ZERO):
        given = getattr(args, name)
        for value in given if isinstance(given, list) else [given]:
            if value is None:
                continue
            if name in LEAST and value < LEAST[name]:
                raise UsageError(f"--{flag(name)} is {value}", remedy=f"it is at least {LEAST[name]}")
            if name in ABOVE_ZERO and not 0 < value < math.inf:
                raise UsageError(f"--{flag(name)} is {value:g}", remedy="it is a number above zero")


def check_repeated(args: argparse.Namespace) -> None:
    """Equal seeds give equal runs: counted twice, one run looks like two that agree."""
    for name in MAY_REPEAT:
        given = getattr(args, name, None) or ()
        for value in given:
            if given.count(value) > 1:
                shown = f"{value:g}" if isinstance(value, float) else value
                raise UsageError(
                    f"--{flag(name)} {shown} stands twice, and would run the same again",
                    remedy="give each once; several --seed that differ say how far runs vary",
                )


def flag(name: str) -> str:
    """An argument's name as it is typed."""
    return name.replace("_", "-")


def trials_from(args: argparse.Namespace, **source: Any) -> list[Trial]:
    """One trial for each policy, pressure or rate, and seed."""
    if args.rate and args.pressure:
        raise UsageError(
            "--rate and --pressure exclude each other",
            remedy="an open loop has a rate, a closed one a pressure",
        )
    check_numbers(args)
    check_files(args)
    shape = profile_of(args.profile)
    out = []
    for text in args.policy or ["agentserve"]:
        name, params = parse_policy(text)
        for load in args.rate or args.pressure or [2.0]:
            out += [
                Trial(
                    **source,
                    policy=name,
                    params=params,
                    engines=args.engines,
                    profile=shape,
                    kv_tokens=args.kv_tokens,
                    pressure=None if args.rate else load,
                    rate_per_s=load if args.rate else None,
                    burst=args.burst,
                    programs=args.programs,
                    seed=seed,
                    forecast=args.forecast,
                    faults=args.faults,
                    native_pins=args.native_pins,
                    ends_told=not args.ends_untold,
                    host_kv_tokens=args.host_kv_tokens,
                    host_gb_per_s=args.host_gb_per_s,
                    slo_ttft_s=args.slo_ttft,
                    slo_slowdown=args.slo_slowdown,
                    check=args.check,
                    block_tokens=args.block_tokens,
                    sample_every_s=20.0 if args.html else 0.0,
                )
                for seed in args.seed or [1]
            ]
    return out


def parse_policy(text: str) -> tuple[str, dict[str, Any]]:
    """`name:k=v,…`; values are read as JSON, or as words."""
    name, _, rest = text.partition(":")
    params: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        key, sep, value = pair.partition("=")
        if not sep:
            raise UsageError(
                f"policy parameter `{pair}` has no value", remedy="write name:key=value,key=value"
            )
        try:
            params[key] = json.loads(value)
        except json.JSONDecodeError:
            params[key] = value
    return name, params


@contextlib.contextmanager
def progress_bar(label: str, total: int) -> Iterator[Any]:
    """A bar on stderr when that is a terminal; else a function that does nothing."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)


Kept = dict[int, tuple[Workload, Result]]  # by the trial's place: what a page is drawn from


def run_all(trials: Sequence[Trial], workers: int, kept: Kept | None = None) -> list[Figures]:
    """The figures of every trial, in order; into `kept` goes what the runs of the first seed went through.

    Runs in other processes keep nothing: their traces are larger than what it takes to run them again.
    """
    if workers > 1 and len(trials) > 1:
        with (
            processes(workers) as pool,
            progress_bar("runs", len(trials)) as tick,
        ):
            out = []
            for done, figures in enumerate(pool.map(figures_of, trials), 1):
                out.append(figures)
                tick(done)
            return out
    out = []
    for place, trial in enumerate(trials):
        with progress_bar(f"{trial.policy} seed {trial.seed}", trial.programs) as tick:
            figures, world, result = run(trial, tick)
        out.append(figures)
        if kept is not None and trial.seed == trials[0].seed:
            kept[place] = (world.workload, result)
    return out


def figures_of(trial: Trial) -> Figures:
    """The figures of one run; at the module's top, so that another process can be asked for them."""
    return run(trial)[0]


def describe(trial: Trial) -> dict[str, Any]:
    """A trial as plain values, without the programs of a recorded workload."""
    out = {f.name: getattr(trial, f.name) for f in dataclasses.fields(trial)}
    del out["sample_every_s"]  # for a page's plots, and of no influence on the figures
    out["profile"] = str(trial.profile)
    if not isinstance(trial.workload, str):
        out["workload"] = trial.workload.name
    return out


def emit(args: argparse.Namespace, trials: Sequence[Trial], figures: Sequence[Figures], kept: Kept) -> None:
    """JSON, HTML and the table, as asked for."""
    for trial, found in zip(trials, figures, strict=True):
        if found["unfinished"]:
            print(
                f"{label(trial)} seed {trial.seed}: cut off at {found['makespan_s']:,.0f} s with "
                f"{found['unfinished']} programs unfinished",
                file=sys.stderr,
            )
    _say_unreached(trials, figures)
    rows = [{"trial": describe(t), "figures": f} for t, f in zip(trials, figures, strict=True)]
    if args.json:
        text = json.dumps({"runs": rows, "over_seeds": _grouped(trials, figures)}, indent=2, sort_keys=True)
        if args.json == "-":
            print(text)
        else:
            write_text(args.json, text + "\n")
    if args.html:
        from agentserve.sim.page import Arm, page

        arms = []
        for place, trial in enumerate(trials):
            if trial.seed != trials[0].seed:
                continue
            if place not in kept:
                _, world, result = run(trial)
                kept[place] = (world.workload, result)
            arms.append(Arm(label(trial), figures[place], *kept[place]))
        write_text(
            args.html, page(arms, f"agentserve: {describe(trials[0])['workload']}, seed {trials[0].seed}")
        )
    if args.json != "-":
        _table(trials, figures)


def _say_unreached(trials: Sequence[Trial], figures: Sequence[Figures]) -> None:
    """A pressure that all programs together do not make: its row is of another load than its name says."""
    for arm in dict.fromkeys((t.pressure, workload_name(t)) for t in trials if t.pressure is not None):
        wanted = [
            (f["concurrency"], t.programs)
            for t, f in zip(trials, figures, strict=True)
            if (t.pressure, workload_name(t)) == arm
        ]
        at_once, programs = max(wanted)
        if at_once > programs:
            print(
                f"{arm[1]} @ pressure {arm[0]:g} is not reached: it takes {at_once:,} programs at once, and there are "
                f"{programs:,}",
                file=sys.stderr,
            )


def check_files(args: argparse.Namespace) -> None:
    """Refuse, before the work, a file that could not be written after it."""
    for name in WRITTEN:
        path = getattr(args, name, None)
        if path is None or (path == "-" and name == "json"):
            continue
        if path == "-":
            raise UsageError(f"--{name} cannot go to standard output", remedy="name a file")
        asked = path if os.path.exists(path) else os.path.dirname(path) or "."
        if os.path.isdir(path) or not os.access(asked, os.W_OK):
            raise UsageError(f"--{name}: cannot write {path}", remedy="name a file that can be written")


def write_text(path: str, text: str) -> None:
    """Write a file that the user named."""
    try:
        with whole(path) as part:
            Path(part).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}", remedy="name a file that can be written"
        ) from error


def _grouped(trials: Sequence[Trial], figures: Sequence[Figures]) -> list[dict[str, Any]]:
    groups: dict[str, list[Figures]] = {}
    several = len({workload_name(trial) for trial in trials}) > 1
    for trial, figure in zip(trials, figures, strict=True):
        arm = f"{workload_name(trial)}: {label(trial)}" if several else label(trial)
        groups.setdefault(arm, []).append(figure)
    return [{"arm": arm, **over_seeds(runs)} for arm, runs in groups.items()]


def workload_name(trial: Trial) -> str:
    """What the trial runs."""
    return trial.workload if isinstance(trial.workload, str) else trial.workload.name


def label(trial: Trial) -> str:
    """An arm, as it stands in tables: policy, constants and load."""
    params = ",".join(f"{k}={v}" for k, v in trial.params.items())
    if trial.rate_per_s:
        load = f"rate {trial.rate_per_s:g}/s"
    else:
        load = "as recorded" if trial.pressure is None else f"pressure {trial.pressure:g}"
    return f"{trial.policy}{':' + params if params else ''} @ {load}"


def _table(trials: Sequence[Trial], figures: Sequence[Figures]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=None)
    table.add_column("arm")
    groups = list(_grouped(trials, figures))
    columns = [*COLUMNS, *(c for c in MORE_COLUMNS if any(group.get(c[0]) is not None for group in groups))]
    for _, title in columns:
        table.add_column(title, justify="right")
    for group in groups:
        cells = [str(group["arm"])]
        for name, _ in columns:
            value = group.get(name)
            if value is None:
                cells.append("–")
                continue
            spread = group.get(f"{name}_ci")
            cells.append(_short(value) + (f" ±{_short(spread)}" if spread else ""))
        table.add_row(*cells)
    out = Console()
    if not out.is_terminal:
        out = Console(width=WIDTH)
    out.print(table)


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.1f}M"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 10 else f"{value:.1f}"
