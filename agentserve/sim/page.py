"""A run as one self-contained page: table, completion-time curves, KV use over time, and a timeline of programs.

Rule: plain HTML with inline SVG; no script, no external request; readable in dark and light, and on paper.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from agentserve.sim.programs import Workload
from agentserve.sim.report import Figures, quantile
from agentserve.sim.traces import Result

WIDTH, HEIGHT = 720, 260
LEFT, BOTTOM, TOP, RIGHT = 56, 34, 12, 12
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
KV_BANDS = (
    ("running steps", COLOURS[0], 0.75),
    ("kept, idle", COLOURS[3], 0.45),
    ("never used", "#6b7280", 0.15),
)
STEP_PARTS = (
    ("waiting and prefill", COLOURS[1], 0.35),
    ("tokens come", COLOURS[0], 0.9),
    ("gap", COLOURS[2], 1.0),
)
PROGRAMS_SHOWN_MAX = 60
STYLE = """
:root{color-scheme:light dark;--ink:#111827;--soft:#6b7280;--line:#d1d5db;--bg:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e5e7eb;--soft:#9ca3af;--line:#374151;--bg:#111827}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--bg)}
body{max-width:980px;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:right}
th:first-child,td:first-child{text-align:left}
svg{width:100%;height:auto;margin:.5rem 0 1.5rem} text{fill:var(--soft);font-size:11px}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;margin:.5rem 0 0} .key i{width:.8em;height:.8em;margin-right:.4em}
.key span{display:flex;align-items:center} .axis{stroke:var(--line)} h2{margin-top:2rem} p{color:var(--soft)}
"""
ROWS = (
    ("jct_mean_s", "mean completion, s"),
    ("jct_p50_s", "median"),
    ("jct_p95_s", "p95"),
    ("jct_p99_s", "p99"),
    ("slowdown_mean", "mean slowdown"),
    ("ttft_mean_s", "mean time to first token, s"),
    ("steps_per_min", "steps a minute"),
    ("cached_share", "cached share of prompts"),
    ("cached_of_belady", "of what Belady's eviction would hit"),
    ("reprefilled_tokens", "re-prefilled tokens"),
    ("preemptions", "preemptions"),
    ("kv_running_share", "KV held by running steps"),
    ("kv_kept_share", "KV kept and used again"),
    ("kv_waste_share", "KV kept for nothing"),
    ("pins_saved_s", "prefill that pins spared, s"),
    ("pins_cost_s", "what pins cost, s"),
    ("engine_busy_share", "engines busy"),
    ("warm_restored_tokens", "prefilled by warms, tokens"),
    ("warm_refreshed_tokens", "refreshed by warms, tokens"),
    ("fairness", "fairness between programs (Jain, of slowdowns)"),
    ("jain_slowdown", "fairness between tenants (Jain, of slowdowns)"),
    ("service_gap_tokens", "largest gap in service between tenants, tokens"),
    ("slo_ttft_met", "steps within the objective"),
    ("slo_slowdown_met", "programs within the objective"),
    ("deadlines_met", "deadlines met"),
)
SILENT = {  # a row of nothing but these says nothing: there were no warms, or one tenant
    "preemptions": 0.0,
    "warm_restored_tokens": 0.0,
    "warm_refreshed_tokens": 0.0,
    "jain_slowdown": 1.0,
    "service_gap_tokens": 0.0,
}
STEPS_OF_TEN = (1.0, 2.0, 2.5, 5.0, 10.0)
MARKS_WANTED = 5


class Arm:
    """One run on the page."""

    def __init__(self, label: str, figures: Figures, workload: Workload, result: Result) -> None:
        self.label = label
        self.figures = figures
        self.workload = workload
        self.result = result


def page(arms: Sequence[Arm], title: str, lead: Sequence[str] = ()) -> str:
    """The whole page. `lead` says what came of it and of what, a paragraph each."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>",
        '<meta name=viewport content="width=device-width,initial-scale=1">',
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(words)}</p>" for words in lead),
        _table(arms),
        "<h2>Completion time</h2><p>The share of programs done within a time; further left is better.</p>",
        _completion(arms),
    ]
    for arm in arms:
        if arm.result.samples:
            parts.append(f"<h2>KV memory: {html.escape(arm.label)}</h2>")
            parts.append("<p>Of all engines together.</p>")
            parts.append(_kv(arm))
    parts.append("<h2>Timelines</h2>")
    parts.append(
        "<p>One line a program, to one scale: light while a step waits for its first token, solid while tokens come, "
        f"thin in tool gaps.</p>{_key(STEP_PARTS)}"
    )
    x_max = max((t.ended_at for arm in arms for t in arm.result.programs), default=1.0) or 1.0
    for arm in arms:
        parts.append(f"<h3>{html.escape(arm.label)}</h3>")
        parts.append(_timeline(arm, x_max))
    return "\n".join(parts) + "\n"


def _table(arms: Sequence[Arm]) -> str:
    head = "".join(f"<th>{html.escape(a.label)}</th>" for a in arms)
    rows = []
    for name, words in ROWS:
        values = [a.figures.get(name) for a in arms]
        if all(value in (None, SILENT.get(name)) for value in values):
            continue  # not measured in this kind of run, or without anything to say
        cells = "".join(f"<td>{_cell(name, v)}</td>" for v in values)
        rows.append(f"<tr><td>{words}</td>{cells}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _cell(name: str, value: float | str | None) -> str:
    if value is None:
        return "–"
    return f"{float(value):.1%}" if name.endswith("_share") else _short(float(value))


def _completion(arms: Sequence[Arm]) -> str:
    curves = []
    for arm in arms:
        plans = arm.workload.programs
        jct = sorted(t.ended_at - t.started_at for t in arm.result.programs if plans[t.index].parent is None)
        curves.append((arm.label, [(quantile(jct, q / 100), q / 100) for q in range(101)]))
    x_max = max((points[-1][0] for _, points in curves), default=1.0) or 1.0
    return _lines(curves, x_max, 1.0, "seconds", "share")


def _kv(arm: Arm) -> str:
    samples = arm.result.samples
    x_max = samples[-1][0] or 1.0
    totals = [(t, [sum(c) for c in zip(*row, strict=True)]) for t, row in samples]
    y_max = max(sum(v) for _, v in totals) or 1
    bands = []
    for k, (_, colour, opacity) in enumerate(KV_BANDS):
        upper = [_xy(t, sum(v[: k + 1]), x_max, y_max) for t, v in totals]
        lower = [_xy(t, sum(v[:k]), x_max, y_max) for t, v in reversed(totals)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in upper + lower)
        bands.append(f'<polygon points="{points}" fill="{colour}" fill-opacity="{opacity}"/>')
    return _key(KV_BANDS) + _svg("".join(bands) + _axes(x_max, y_max, "seconds", "tokens"))


def _timeline(arm: Arm, x_max: float) -> str:
    plans = arm.workload.programs
    shown = [t for t in arm.result.programs if plans[t.index].parent is None]
    shown = sorted(shown, key=lambda t: (t.started_at, t.index))[:PROGRAMS_SHOWN_MAX]
    lines = {t.index: i for i, t in enumerate(shown)}
    height = TOP + 7 * len(shown) + BOTTOM
    scale = (WIDTH - LEFT - RIGHT) / x_max
    marks = []
    reached = {trace.index: trace.started_at for trace in shown}
    for step in sorted(arm.result.steps, key=lambda s: s.sent_at):
        line = lines.get(step.program)
        if line is None or not step.ended_at:
            continue
        y = TOP + 7 * line
        start = step.first_at or step.ended_at
        if step.sent_at > reached[step.program]:
            x0, x1 = LEFT + reached[step.program] * scale, LEFT + step.sent_at * scale
            marks.append(
                f'<line x1="{x0:.1f}" x2="{x1:.1f}" y1="{y + 3}" y2="{y + 3}" stroke="{COLOURS[2]}"/>'
            )
        reached[step.program] = max(reached[step.program], step.ended_at)
        marks.append(_box(step.sent_at, start, y, scale, *STEP_PARTS[0][1:]))
        marks.append(_box(start, step.ended_at, y, scale, *STEP_PARTS[1][1:]))
    axis = "".join(
        f'<text x="{LEFT + mark * scale:.0f}" y="{height - 8}" text-anchor="middle">{_short(mark)} s</text>'
        for mark in _marks(x_max)
    )
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(marks)}{axis}</svg>'


def _box(start: float, end: float, y: int, scale: float, colour: str, opacity: float) -> str:
    width = max((end - start) * scale, 0.0)
    if width < 0.05:
        return ""
    return (
        f'<rect x="{LEFT + start * scale:.1f}" y="{y}" width="{width:.1f}" height="5" '
        f'fill="{colour}" fill-opacity="{opacity}"/>'
    )


def _lines(
    curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], x_max: float, y_max: float, x: str, y: str
) -> str:
    drawn, named = [], []
    for i, (label, points) in enumerate(curves):
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (_xy(px, py, x_max, y_max) for px, py in points))
        colour = COLOURS[i % len(COLOURS)]
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        named.append((label, colour, 1.0))
    return _key(named) + _svg("".join(drawn) + _axes(x_max, y_max, x, y))


def _xy(x: float, y: float, x_max: float, y_max: float) -> tuple[float, float]:
    return (
        LEFT + (WIDTH - LEFT - RIGHT) * x / x_max,
        HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * y / y_max,
    )


def _axes(x_max: float, y_max: float, x: str, y: str) -> str:
    out = [
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>',
        f'<line class="axis" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>',
    ]
    for mark in _marks(x_max):
        px, _ = _xy(mark, 0.0, x_max, y_max)
        out.append(
            f'<text x="{px:.0f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{_short(mark)}</text>'
        )
    for mark in _marks(y_max):
        _, py = _xy(0.0, mark, x_max, y_max)
        out.append(f'<text x="{LEFT - 6}" y="{py + 4:.0f}" text-anchor="end">{_short(mark)}</text>')
    out.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{x}</text>')
    out.append(f'<text x="4" y="{TOP + 2}">{y}</text>')
    return "".join(out)


def _marks(most: float) -> list[float]:
    """Round numbers from nought to `most`, about as many as are wanted."""
    apart = most / MARKS_WANTED
    power = 10.0 ** math.floor(math.log10(apart))
    step = next(s * power for s in STEPS_OF_TEN if s * power >= apart * (1 - 1e-9))
    return [k * step for k in range(int(most / step * (1 + 1e-9)) + 1)]


def _key(entries: Sequence[tuple[str, str, float]]) -> str:
    """What the colours mean, above the picture, where it covers nothing."""
    swatches = "".join(
        f'<span><i style="background:{colour};opacity:{opacity}"></i>{html.escape(label)}</span>'
        for label, colour, opacity in entries
    )
    return f'<p class="key">{swatches}</p>'


def _svg(inner: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{inner}</svg>'


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.1f}M"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
