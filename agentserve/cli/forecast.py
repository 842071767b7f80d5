"""`agentserve forecast evaluate`: how well the forecasters do on recorded tool calls or programs.

Reads a CSV or JSONL file, plain or gzipped, replays it online in time order, and prints scores beside baselines.
This module reads files and prints; what is measured is in `core.forecast.evaluation`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from agentserve.core.forecast.evaluation import (
    CallRow,
    ProgramRow,
    ProgramsReport,
    Report,
    call_row,
    evaluate_calls,
    evaluate_programs,
    program_row,
)
from agentserve.core.forecast.evaluation.calls import OURS
from agentserve.core.forecast.evaluation.page import page
from agentserve.core.forecast.evaluation.rows import BadRow, missing_columns
from agentserve.core.forecast.evaluation.scores import BREAK_EVENS_S
from agentserve.errors import UsageError

HELP = "score forecasts on recorded tool calls or programs"

_BAD_ROWS_NAMED = 3
_TOOLS_SHOWN = 15
_PIPED_WIDTH = 150
_LINES_MAX = 5_000_000
_NEEDED = "a tool call needs a tool, its seconds (exec_s) and when it was emitted (emit_epoch_s)"
_NEEDED_OF_PROGRAMS = "a line of JSON for each program, with an id and a list of turns"

_Row = TypeVar("_Row", CallRow, ProgramRow)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    evaluate = actions.add_parser(
        "evaluate",
        help="replay a file of tool calls (or of programs) and score the forecasts",
        description="Replays recorded tool calls online, in time order, and scores forecasts made before each "
        "outcome: CRPS and quantile loss in log-seconds, coverage, and the cost of keeping KV by them, beside "
        "baselines.",
    )
    evaluate.add_argument(
        "file", metavar="FILE", type=Path, help="CSV or JSONL of tool calls, plain or gzipped"
    )
    evaluate.add_argument(
        "--programs", action="store_true", help="FILE holds whole programs: score their remaining length"
    )
    evaluate.add_argument(
        "--score-last",
        type=_share,
        metavar="SHARE",
        help="score this share of the rows, the latest (default: 0.7; 0.4 of programs)",
    )
    evaluate.add_argument("--all-rows", action="store_true", help="keep rows whose quality is not 'clean'")
    evaluate.add_argument("--strict", action="store_true", help="refuse a file with any malformed row")
    evaluate.add_argument("--json", action="store_true", help="print everything as JSON")
    evaluate.add_argument(
        "--plot", type=Path, metavar="FILE.html", help="write calibration and survival plots"
    )


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return value


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    return _evaluate_programs(args) if args.programs else _evaluate_calls(args)


def _evaluate_calls(args: argparse.Namespace) -> int:
    rows, malformed = _read(args, call_row, missing_columns)
    used = [row for row in rows if args.all_rows or row.clean]
    if not used:
        raise UsageError(
            f"{args.file}: none of its {len(rows)} rows is a clean tool call",
            remedy="keep the others with --all-rows" if rows else _NEEDED,
        )
    with _bar(len(used), "tool calls") as told:
        report = evaluate_calls(used, score_last=args.score_last or 0.7, told=told)
    if args.plot is not None:
        _write(args.plot, page(report, title=f"Forecasts on {args.file.name}"))
    counts = {"rows": len(used), "unclean": len(rows) - len(used), "malformed": malformed}
    if args.json:
        _print_json({"file": args.file.name, **counts, **report.numbers()})
    else:
        _show_calls(
            report, f"{args.file.name}: {len(used):,} calls, {counts['unclean']:,} unclean ones left out"
        )
        _say_malformed(malformed)
    return 0


def _evaluate_programs(args: argparse.Namespace) -> int:
    if args.plot is not None:
        raise UsageError("--plot draws tool calls", remedy="leave out --programs or --plot")
    rows, malformed = _read(args, program_row, lambda columns: [])
    if not rows:
        raise UsageError(f"{args.file}: no programs in it", remedy=_NEEDED_OF_PROGRAMS)
    by_source: dict[str, list[ProgramRow]] = {}
    for row in rows:
        by_source.setdefault(row.source or args.file.name, []).append(row)
    reports: dict[str, ProgramsReport] = {}
    for source, programs in by_source.items():
        with _bar(sum(1 for row in programs if row.steps and not row.child), source) as told:
            reports[source] = evaluate_programs(programs, learn_first=1 - (args.score_last or 0.4), told=told)
    if args.json:
        sources = {source: report.numbers() for source, report in reports.items()}
        _print_json({"file": args.file.name, "malformed": malformed, "sources": sources})
    else:
        _show_programs(reports)
        _say_malformed(malformed)
    return 0


# -- reading ----------------------------------------------------------------------------------------------


def _read(
    args: argparse.Namespace,
    parse: Callable[[Mapping[str, Any]], _Row],
    missing: Callable[[Sequence[str]], list[str]],
) -> tuple[list[_Row], list[str]]:
    """The rows of the file, and a line for each that could not be used."""
    rows: list[_Row] = []
    malformed: list[str] = []
    try:
        with _opened(args.file) as stream:
            for number, record in _records(args.file, stream, missing):
                try:
                    if isinstance(record, str):
                        raise BadRow(record)
                    rows.append(parse(record))
                except BadRow as error:
                    malformed.append(f"line {number}: {error}")
                    if args.strict:
                        raise UsageError(
                            f"{args.file}: {malformed[-1]}",
                            remedy="mend it, or leave out --strict to skip such rows",
                        ) from None
                if number > _LINES_MAX:
                    raise UsageError(f"{args.file}: more than {_LINES_MAX:,} lines", remedy="split the file")
    except FileNotFoundError:
        raise UsageError(
            f"{args.file}: no such file", remedy="give the path of a CSV or JSONL file"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise UsageError(
            f"{args.file}: broken gzip data", remedy="compress it again, or give it plain"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(
            f"{args.file}: not text in UTF-8", remedy="give a CSV or JSONL file, plain or gzipped"
        ) from None
    except OSError as error:
        raise UsageError(f"{args.file}: {error.strerror}", remedy="give a readable file") from None
    if malformed and not rows:
        needed = _NEEDED_OF_PROGRAMS if args.programs else _NEEDED
        raise UsageError(f"{args.file}: no usable row; {malformed[0]}", remedy=needed)
    return rows, malformed


def _opened(path: Path) -> IO[str]:
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")  # a spreadsheet writes a mark first
    return path.open(encoding="utf-8-sig", newline="")


def _records(
    path: Path, stream: IO[str], missing: Callable[[Sequence[str]], list[str]]
) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Each record with its line number; a string says what is wrong with one."""
    first = stream.readline()
    if first.lstrip().startswith("{"):
        for number, line in enumerate(chain([first], stream), 1):
            if not line.strip():
                continue
            try:
                record = msgspec.json.decode(line)
            except (msgspec.DecodeError, RecursionError) as error:
                yield number, f"not JSON: {error}"
                continue
            if not isinstance(record, dict):
                yield number, "not an object"
            elif not (number == 1 and "schema" in record):  # a head line that describes the rest
                yield number, record
        return
    reader = csv.DictReader(chain([first], stream))
    lacking = missing(reader.fieldnames or [])
    if lacking:
        raise UsageError(f"{path}: no column {' and none '.join(lacking)}", remedy=_NEEDED)
    try:
        for record in reader:
            yield (
                reader.line_num,
                "too few or too many fields" if None in record or None in record.values() else record,
            )
    except csv.Error as error:
        raise UsageError(f"{path}: line {reader.line_num}: {error}", remedy="mend that line") from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}", remedy="give --plot a file that can be written"
        ) from None


# -- showing ----------------------------------------------------------------------------------------------


@contextmanager
def _bar(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; nothing where nobody watches."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda done: progress.update(bar, completed=done)


def _console() -> Console:
    """Wide enough for the tables when the output is not a terminal."""
    # names of tools and workflows are the recording's, and no markup
    return Console(markup=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH)


def _table(console: Console, title: str, *columns: str) -> Table:
    """An empty table under its title, which may be wider than it."""
    console.print(f"\n{title}", style="bold", highlight=False)
    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def _accuracy_cells(numbers: Mapping[str, float]) -> list[str]:
    return [
        f"{numbers['outcomes']:,.0f}",
        f"{numbers['crps']:.3f}",
        f"{numbers['median_ln_error']:.3f}",
        "/".join(f"{numbers[f'pinball_{q}']:.3f}" for q in ("p50", "p90", "p99")),
        "/".join(f"{numbers[f'coverage_{q}']:.3f}" for q in ("p50", "p90", "p99")),
    ]


_ACCURACY = ("calls", "CRPS ln s", "median |ln err|", "pinball p50/p90/p99", "coverage p50/p90/p99")


def _show_calls(report: Report, title: str) -> None:
    console = _console()
    table = _table(console, f"{title}; {report.scored:,} scored", "forecaster", *_ACCURACY)
    for name, accuracy in report.accuracy.items():
        table.add_row(name, *_accuracy_cells(accuracy.numbers()), style="bold" if name == OURS else "")
    console.print(table)
    table = _table(
        console,
        "Cost of keeping by it above the clairvoyant choice, by break-even time",
        "rule",
        *(f"{m:g} s" for m in BREAK_EVENS_S),
    )
    for name, costs in report.costs.items():
        cells = [f"{costs.by[m].regret:.3f}" for m in BREAK_EVENS_S]
        table.add_row(name, *cells, style="bold" if name == OURS else "")
    console.print(table)
    table = _table(
        console,
        "Hits, and ours when holding as much in all, by break-even time",
        "rule",
        *(f"{m:g} s" for m in BREAK_EVENS_S),
    )
    for name in report.costs:
        if name != OURS:
            pairs = [report.equal_memory(name, m) for m in BREAK_EVENS_S]
            table.add_row(name, *(f"{100 * theirs:.1f}% / {100 * ours:.1f}%" for theirs, ours in pairs))
    console.print(table)
    table = _table(
        console, "By tool", "tool", *_ACCURACY, "regret " + "/".join(f"{m:g}" for m in BREAK_EVENS_S) + " s"
    )
    busiest = sorted(report.tools.items(), key=lambda item: -item[1][0].outcomes)
    for name, (accuracy, costs) in busiest[:_TOOLS_SHOWN]:
        regrets = "/".join(f"{cost.regret:.2f}" for cost in costs.by.values())
        table.add_row(name[:32], *_accuracy_cells(accuracy.numbers()), regrets)
    console.print(table)
    if len(busiest) > _TOOLS_SHOWN:
        console.print(f"and {len(busiest) - _TOOLS_SHOWN} more tools; --json has them all")
    if report.censored:
        console.print(f"{report.censored:,} censored calls were learned from and not scored")


def _show_programs(reports: Mapping[str, ProgramsReport]) -> None:
    console = _console()
    for source, report in reports.items():
        table = _table(
            console,
            f"{source}: remaining steps of {report.forecast} programs from {report.learned} earlier ones",
            "after step",
            "programs",
            "mean |ln err|",
            "median",
            "naive mean",
            "gain",
            "coverage p10/p25/p50/p75/p90/p99",
        )
        for k, at in report.at.items():
            n = at.numbers()
            if not n["programs"]:
                continue  # none was so long
            covered = "/".join(f"{n[f'coverage_p{q}']:.2f}" for q in (10, 25, 50, 75, 90, 99))
            table.add_row(
                str(k),
                f"{n['programs']:.0f}",
                f"{n['mean_ln_error']:.3f}",
                f"{n['median_ln_error']:.3f}",
                f"{n['naive_mean_ln_error']:.3f}",
                _percent(n["gain"]),
                covered,
            )
        table.add_row("all", "", "", "", "", _percent(report.gain), "", style="bold")
        console.print(table)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}%"


def _say_malformed(malformed: Sequence[str]) -> None:
    if malformed:
        named = "; ".join(malformed[:_BAD_ROWS_NAMED])
        more = f"; and {len(malformed) - _BAD_ROWS_NAMED} more" if len(malformed) > _BAD_ROWS_NAMED else ""
        print(f"{len(malformed):,} malformed rows skipped: {named}{more}", file=sys.stderr)


def _print_json(numbers: Mapping[str, Any]) -> None:
    print(msgspec.json.format(msgspec.json.encode(numbers), indent=2).decode())
