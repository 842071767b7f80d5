"""Arrival rates against slowdown: where an open loop stops keeping up, as figures and as a curve.

Rule: a rate is sustained while the mean slowdown stays under a bound; between two rates that were run the crossing is
interpolated, and beyond the last one nothing is claimed. Nothing is run here.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SLOWDOWN_MAX = 2.0
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 56, 16, 16, 44
SHOWN_MAX = 8.0  # slowdowns beyond this are drawn at the top edge
COLOURS = ("#0b6e4f", "#c44900", "#3a5a9b", "#7a4b94", "#8a8a00", "#9b2226", "#5c677d", "#00777f")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One rate, run."""

    rate_per_s: float
    slowdown: float
    jct_s: float = 0.0
    p99_s: float = 0.0
    steps_per_min: float = 0.0


def sustained(points: Sequence[Point], slowdown_max: float = SLOWDOWN_MAX) -> float | None:
    """The highest rate with mean slowdown under the bound; None if even the lowest is above."""
    best: float | None = None
    before: Point | None = None
    for point in sorted(points, key=lambda p: p.rate_per_s):
        if point.slowdown < slowdown_max:
            best = point.rate_per_s
        elif before is not None and before.slowdown < slowdown_max:
            part = (slowdown_max - before.slowdown) / (point.slowdown - before.slowdown)
            return before.rate_per_s + part * (point.rate_per_s - before.rate_per_s)
        else:
            return best
        before = point
    return best


def capped(points: Sequence[Point], slowdown_max: float = SLOWDOWN_MAX) -> bool:
    """Whether the bound was crossed at all; if not, `sustained` is only as high as was looked."""
    return any(p.slowdown >= slowdown_max for p in points)


def svg(curves: Mapping[str, Sequence[Point]], title: str, slowdown_max: float = SLOWDOWN_MAX) -> str:
    """Mean slowdown by arrival rate, a line for each arm, the bound dashed."""
    rates = [p.rate_per_s for points in curves.values() for p in points]
    low, high = min(rates), max(rates)

    def xy(rate: float, slowdown: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (rate - low) / max(high - low, 1e-9)
        y = min(max(slowdown, 1.0), SHOWN_MAX)
        return x, HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (y - 1.0) / (SHOWN_MAX - 1.0)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="system-ui,sans-serif" font-size="12">',
        f"<title>{html.escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for level in range(1, int(SHOWN_MAX) + 1):
        _, y = xy(low, level)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{level}</text>')
    for rate in sorted(set(rates)):
        x, _ = xy(rate, 1.0)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{rate:g}</text>')
    _, y = xy(low, slowdown_max)
    parts.append(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#666" stroke-dasharray="5 4"/>'
    )
    for index, (label, points) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(
            f"{x:.1f},{y:.1f}"
            for x, y in (xy(p.rate_per_s, p.slowdown) for p in sorted(points, key=lambda p: p.rate_per_s))
        )
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        at = TOP + 14 + 16 * index
        parts.append(
            f'<rect x="{LEFT + 10}" y="{at - 9}" width="14" height="4" fill="{colour}"/>'
            f'<text x="{LEFT + 30}" y="{at - 3}">{html.escape(label)}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"programs a second</text>"
        f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">mean slowdown</text></svg>'
    )
    return "\n".join(parts) + "\n"
