"""One table and one plot of what `run` measured: `python -m tests.bench.peers.report FILE [--plot SVG] [--markdown]`.

Rule: every arm that was run is shown, those that are ahead of agentserve and those that failed too. A figure is the
mean over the arm's seeds, with the least and the most beside it, and arms are compared on the seeds that both have; an
arm short of processor time is marked.
"""

from __future__ import annotations

import argparse
import html
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.bench.peers.arms import ARMS
from tests.bench.peers.run import CPU_SHARE_MAX

OURS = "agentserve"
COLUMNS = (
    ("jct_mean_s", "mean JCT, s", ",.0f"),
    ("jct_p95_s", "p95, s", ",.0f"),
    ("steps_per_min", "steps/min", ",.1f"),
    ("ttft_mean_s", "TTFT, s", ",.1f"),
    ("cached_share", "cached", ".0%"),
)
WIDTH, LEFT, BAR, GAP = 760, 170, 14, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An arm on a workload, over its seeds."""

    arm: str
    cells: Sequence[dict[str, Any]]
    errors: Sequence[str]

    def values(self, figure: str) -> list[float]:
        return [float(c["figures"][figure]) for c in self.cells]

    def mean(self, figure: str) -> float:
        return statistics.fmean(self.values(figure))

    def over(self, other: Row, figure: str) -> float | None:
        """Its mean over the other's, on the seeds that both have: others are other agents."""
        both = {c["seed"] for c in self.cells} & {c["seed"] for c in other.cells}
        if not both:
            return None
        mine, theirs = (
            statistics.fmean(float(c["figures"][figure]) for c in row.cells if c["seed"] in both)
            for row in (self, other)
        )
        return mine / theirs

    @property
    def cpu_max(self) -> float:
        return max((share for c in self.cells for share in c["cpu"].values()), default=0.0)

    @property
    def failed(self) -> int:
        return int(sum(self.values("failed")))


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--plot", type=Path, metavar="SVG")
    parser.add_argument("--markdown", action="store_true", help="the table in Markdown")
    args = parser.parse_args(argv)
    cells = json.loads(args.file.read_text(encoding="utf-8"))
    print(markdown(cells) if args.markdown else plain(cells))
    if args.plot:
        args.plot.write_text(plot(cells), encoding="utf-8")
    return 0


def workloads(cells: Sequence[dict[str, Any]]) -> dict[str, list[Row]]:
    """The rows of each workload, in the order of the arms."""
    out: dict[str, list[Row]] = {}
    for name in dict.fromkeys(c["workload"] for c in cells):
        here = [c for c in cells if c["workload"] == name]
        rows = []
        for arm in ARMS:
            mine = [c for c in here if c["arm"] == arm]
            if mine:
                rows.append(
                    Row(
                        arm=arm,
                        cells=[c for c in mine if "figures" in c],
                        errors=[c["error"] for c in mine if "error" in c],
                    )
                )
        out[name] = rows
    return out


def grid(rows: Sequence[Row]) -> list[list[str]]:
    """The cells of a table: the arm, what it is told, its figures, and how its mean completion compares with ours."""
    ours = next((r for r in rows if r.arm == OURS and r.cells), None)
    out = []
    for row in rows:
        told = ARMS[row.arm].told or "nothing"
        if not row.cells:
            failed = (row.errors or ["-"])[0].splitlines()[-1][:60]
            out.append([row.arm, told, "0", *["-"] * len(COLUMNS), failed])
            continue
        figures = [_spread(row.values(name), form) for name, _, form in COLUMNS]
        times = row.over(ours, "jct_mean_s") if ours else None
        ratio = f"{times:.2f}" if times is not None else ""
        notes = [f"{row.failed} resent"] if row.failed else []
        notes += ["short of CPU"] if row.cpu_max > CPU_SHARE_MAX else []
        notes += [f"{len(row.errors)} runs failed"] if row.errors else []
        seeds = str(len(row.cells))
        out.append([row.arm, told, seeds, *figures, " ".join([ratio, *(f"({n})" for n in notes)])])
    return out


def _spread(values: Sequence[float], form: str) -> str:
    mean = format(statistics.fmean(values), form)
    if len(values) < 2:
        return mean
    return f"{mean} [{format(min(values), form)}-{format(max(values), form)}]"


HEAD = ("router", "told", "seeds", *(title for _, title, _ in COLUMNS), "JCT / agentserve")


def plain(cells: Sequence[dict[str, Any]]) -> str:
    """For a terminal."""
    out = []
    for name, rows in workloads(cells).items():
        table = [list(HEAD), *grid(rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(HEAD))]
        out.append(f"{name}, seeds {_seeds(cells, name)}")
        out += ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table]
        out.append("")
    return "\n".join(out)


def markdown(cells: Sequence[dict[str, Any]]) -> str:
    """For the documentation."""
    out = []
    for name, rows in workloads(cells).items():
        out += [f"**{name}**, seeds {_seeds(cells, name)}", "", "| " + " | ".join(HEAD) + " |"]
        out.append("|---|---|" + "---:|" * (len(HEAD) - 2))
        for line in grid(rows):
            bold = [f"**{line[0]}**" if line[0].startswith(OURS) else line[0], *line[1:]]
            out.append("| " + " | ".join(bold) + " |")
        out.append("")
    return "\n".join(out)


def _seeds(cells: Sequence[dict[str, Any]], name: str) -> str:
    return ", ".join(map(str, sorted({c["seed"] for c in cells if c["workload"] == name})))


def plot(cells: Sequence[dict[str, Any]]) -> str:
    """Mean completion time of each router, a panel for each workload, a tick for each seed; shorter is better.

    Bars stand beside one another, so only seeds that all of a panel's arms have are drawn.
    """
    parts: list[str] = []
    y = 8
    for name, rows in workloads(cells).items():
        shown = _alike([r for r in rows if r.cells])
        most = max((max(r.values("jct_mean_s")) for r in shown), default=1.0)
        scale = (WIDTH - LEFT - 70) / most
        y += 18
        parts.append(f'<text x="0" y="{y}" class="h">{html.escape(name)}: mean completion, s</text>')
        y += 8
        for row in sorted(shown, key=lambda r: r.mean("jct_mean_s")):
            parts.append(_bar(row, y, scale))
            y += BAR + GAP
        y += 12
    style = (
        "text{font:12px system-ui,sans-serif;fill:#6b7280}.h{font-weight:600;fill:#4b5563}"
        ".peer{fill:#9ca3af}.ours{fill:#2563eb}.seed{stroke:#111827;stroke-width:1.2}"
        "@media(prefers-color-scheme:dark){text,.h{fill:#d1d5db}.peer{fill:#6b7280}.ours{fill:#60a5fa}.seed{stroke:#fff}}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img">'
    return f"{head}<style>{style}</style>{''.join(parts)}</svg>\n"


def _alike(rows: Sequence[Row]) -> list[Row]:
    """The rows on the seeds that all of them have; as they are if there are none."""
    seeds = [{c["seed"] for c in row.cells} for row in rows]
    common = set.intersection(*seeds) if seeds else set()
    if not common:
        return list(rows)
    return [replace(row, cells=[c for c in row.cells if c["seed"] in common]) for row in rows]


def _bar(row: Row, y: int, scale: float) -> str:
    kind = "ours" if row.arm.startswith(OURS) else "peer"
    length = row.mean("jct_mean_s") * scale
    ticks = "".join(
        f'<line class="seed" x1="{LEFT + v * scale:.1f}" x2="{LEFT + v * scale:.1f}" y1="{y + 2}" y2="{y + BAR - 2}"/>'
        for v in row.values("jct_mean_s")
    )
    end = LEFT + max(row.values("jct_mean_s")) * scale + 6
    return (
        f'<text x="{LEFT - 8}" y="{y + BAR - 3}" text-anchor="end">{html.escape(row.arm)}</text>'
        f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>{ticks}'
        f'<text x="{end:.1f}" y="{y + BAR - 3}">{row.mean("jct_mean_s"):,.0f}</text>'
    )


if __name__ == "__main__":
    sys.exit(main())
