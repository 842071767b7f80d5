"""Draws a report as one self-contained page: calibration, survival curves, and the cost of TTLs.

One rule: no script, no font, no link: the page can be mailed. It writes text and does not touch files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from agentserve.core.forecast.evaluation.calls import OURS, Report
from agentserve.core.forecast.evaluation.scores import BREAK_EVENS_S

_WIDTH, _HEIGHT, _PAD = 360, 260, 42
_COLOURS = ("#0b6e99", "#d9730d", "#6940a5", "#0f7b6c", "#ad1a72", "#787774", "#b8860b", "#e03e3e")
_TOOLS_DRAWN = 8
_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1180px;color:#1f2328;background:#fff}
h1{font-size:1.4rem}h2{font-size:1.05rem;margin-top:2rem}
svg{background:#fbfbfa;border:1px solid #e3e2e0}
.row{display:flex;flex-wrap:wrap;gap:14px}figure{margin:0}figcaption{font-size:12px;color:#57606a;max-width:360px}
text{font:11px system-ui,sans-serif;fill:#57606a}
@media(prefers-color-scheme:dark){body{background:#191919;color:#e6e6e6}
svg{background:#202020;border-color:#333}text{fill:#aaa}}
"""

Curve = tuple[str, Sequence[tuple[float, float]], bool]  # name, points in 0..1, dashed


def page(report: Report, *, title: str) -> str:
    """The page, as HTML."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>"
        f"<p>{report.scored:,} tool calls scored, each forecast before its outcome was known.</p>"
        f"<h2>Calibration</h2><div class=row>{_calibrations(report)}</div>"
        f"<h2>Cost of time-to-live choices</h2><div class=row>{_regrets(report)}</div>"
        f"<h2>Survival by tool</h2><div class=row>{_survivals(report)}</div></html>"
    )


def _calibrations(report: Report) -> str:
    curves: list[Curve] = [
        (name, accuracy.calibration(), name != OURS)
        for name, accuracy in report.accuracy.items()
        if "mean" not in name
    ]
    curves.append(("perfect", ((0.0, 0.0), (1.0, 1.0)), True))
    caption = (
        "How often outcomes stayed below each promised quantile. On the diagonal, forecasts keep their word."
    )
    return _figure(curves, caption, x=_share_ticks(), y=_share_ticks())


def _regrets(report: Report) -> str:
    low, high = math.log(BREAK_EVENS_S[0]), math.log(BREAK_EVENS_S[-1])
    most = 1.5
    curves: list[Curve] = []
    for name, costs in report.costs.items():
        points = [
            ((math.log(m) - low) / (high - low), min(cost.regret, most) / most)
            for m, cost in costs.by.items()
        ]
        curves.append((name, points, name != OURS))
    ticks = [((math.log(m) - low) / (high - low), f"{m:g} s") for m in BREAK_EVENS_S]
    caption = f"Cost above the clairvoyant choice, as a share of it, by break-even time (cut at {most:g})."
    return _figure(curves, caption, x=ticks, y=[(v / most, f"{v:g}") for v in (0, 0.5, 1.0, 1.5)])


def _survivals(report: Report) -> str:
    busiest = sorted(report.curves.items(), key=lambda item: -len(item[1][1]))[:_TOOLS_DRAWN]
    out = []
    for name, (forecast, outcomes) in busiest:
        grid = forecast.grid
        low, high = grid.log_edges[0], math.log(grid.high)

        def place(t: float, low: float = low, high: float = high) -> float:
            return min(max((math.log(max(t, 1e-9)) - low) / (high - low), 0.0), 1.0)

        ordered = sorted(outcomes)
        n = len(ordered)
        every = max(1, n // 120)
        seen = [(place(t), 1.0 - (i + 1) / n) for i, t in enumerate(ordered) if i % every == 0]
        said = [(place(edge), forecast.survival(edge)) for edge in grid.edges[:-1]]
        ticks = [
            (place(t), label)
            for t, label in ((0.001, "1 ms"), (0.1, "0.1 s"), (10, "10 s"), (1000, "1000 s"))
        ]
        caption = f"{name}: {n} outcomes, and the forecast made for one of its calls."
        curves: list[Curve] = [("outcomes", seen, True), ("forecast", said, False)]
        out.append(_figure(curves, caption, x=ticks, y=_share_ticks()))
    return "".join(out)


def _share_ticks() -> list[tuple[float, str]]:
    return [(v, f"{v:g}") for v in (0, 0.25, 0.5, 0.75, 1)]


def _figure(
    curves: Sequence[Curve], caption: str, *, x: Sequence[tuple[float, str]], y: Sequence[tuple[float, str]]
) -> str:
    """One chart; coordinates run from 0 to 1."""

    def across(v: float) -> float:
        return _PAD + v * (_WIDTH - _PAD - 12)

    def up(v: float) -> float:
        return _HEIGHT - 28 - v * (_HEIGHT - 28 - 12)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img">']
    parts.append(f"<title>{escape(caption)}</title>")
    for at, label in x:
        parts.append(f'<path d="M{across(at):.1f} {up(0):.1f}V{up(1):.1f}" stroke="#8884" fill="none"/>')
        parts.append(
            f'<text x="{across(at):.1f}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(label)}</text>'
        )
    for at, label in y:
        parts.append(f'<path d="M{across(0):.1f} {up(at):.1f}H{across(1):.1f}" stroke="#8884" fill="none"/>')
        parts.append(f'<text x="{_PAD - 6}" y="{up(at) + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    for i, (_, points, dashed) in enumerate(curves):
        colour = _COLOURS[i % len(_COLOURS)]
        line = "L".join(f"{across(a):.1f} {up(b):.1f}" for a, b in points)
        dash = ' stroke-dasharray="5 3"' if dashed else ""
        width = 1.3 if dashed else 2.4
        if line:
            parts.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>')
    parts.append("</svg>")
    legend = " ".join(
        f'<span style="color:{_COLOURS[i % len(_COLOURS)]}">■ {escape(name)}</span>'
        for i, (name, _, _) in enumerate(curves)
    )
    return f"<figure>{''.join(parts)}<figcaption>{legend}<br>{escape(caption)}</figcaption></figure>"
