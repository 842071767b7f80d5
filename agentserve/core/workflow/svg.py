"""Draws a step graph as SVG, by layers: each node below those that lead to it, edges that go back as arcs at the side.

Rule: one self-contained element, no scripts, no styles from outside; colours follow the page through `currentColor`
and a few variables, so that it reads on light and dark. Names come from clients and are escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from xml.sax.saxutils import escape

from agentserve.core.workflow.declared import Kind, WorkflowGraph
from agentserve.core.workflow.learned import LearnedGraph
from agentserve.core.workflow.picture import EdgeView, NodeView, Picture, picture_of, visible

CHAR_W, NODE_H, DETAIL_H, PAD_X = 7.2, 34.0, 15.0, 14.0
GAP_X, GAP_Y, MARGIN = 36.0, 64.0, 24.0
LABEL_CHARS_MAX = 48
ARC_STEP = 18.0
ARC_LABEL_W = 110.0
ORDER_SWEEPS = 6

_FILLS: Mapping[Kind, str] = {
    "llm": "#4c78a8", "tool": "#f58518", "human": "#e45756", "code": "#72b7b2", "start": "#888888", "end": "#888888",
}  # fmt: skip


@dataclass(slots=True)
class _Box:
    node: NodeView
    layer: int = 0
    x: float = 0.0
    y: float = 0.0
    w: float = 0.0
    h: float = NODE_H


def render_svg(graph: WorkflowGraph | LearnedGraph) -> str:
    """An `<svg>` element."""
    picture = picture_of(graph)
    layers, back = _layers(picture)
    boxes = {node.id: _box(node, layers[node.id]) for node in picture.nodes}
    rows = _ordered(picture, boxes, back)
    width, height = _place(rows)
    arcs = [edge for edge in picture.edges if (edge.source, edge.target) in back]
    width += GAP_X + ARC_STEP * len(arcs) + ARC_LABEL_W if arcs else 0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" font-family="sans-serif" font-size="12">',
        "<title>Step graph</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerUnits="userSpaceOnUse" markerWidth="9" '
        'markerHeight="9" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>',
    ]
    right = max((box.x + box.w for box in boxes.values()), default=0.0) + GAP_X
    for at, edge in enumerate(arcs):
        parts.append(_arc(edge, boxes, right + ARC_STEP * at))
    parts += [_line(edge, boxes) for edge in picture.edges if (edge.source, edge.target) not in back]
    parts += [_drawn(box) for box in boxes.values()]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _layers(picture: Picture) -> tuple[dict[str, int], set[tuple[str, str]]]:
    """Each node's layer (its longest way from a start), and the edges that go back, found by depth-first search."""
    leaving: dict[str, list[str]] = {node.id: [] for node in picture.nodes}
    arriving: dict[str, int] = dict.fromkeys(leaving, 0)
    for edge in picture.edges:
        if edge.target in leaving and edge.source in leaving:
            leaving[edge.source].append(edge.target)
            arriving[edge.target] += edge.source != edge.target
    back: set[tuple[str, str]] = set()
    state: dict[str, int] = {}  # 1: on the path, 2: done
    done: list[str] = []
    for root in sorted(leaving, key=lambda n: arriving[n] > 0):
        todo = [(root, iter(leaving[root]))] if root not in state else []
        state.setdefault(root, 1)
        while todo:
            node, rest = todo[-1]
            after = next((b for b in rest if state.get(b) != 2), None)
            if after is None:
                state[node] = 2
                done.append(node)
                todo.pop()
            elif state.get(after) == 1:
                back.add((node, after))
            else:
                state[after] = 1
                todo.append((after, iter(leaving[after])))
    layer = dict.fromkeys(leaving, 0)
    for node in reversed(done):
        for after in leaving[node]:
            if (node, after) not in back:
                layer[after] = max(layer[after], layer[node] + 1)
    return layer, back


def _box(node: NodeView, layer: int) -> _Box:
    longest = max(len(_short(node.label)), 0.82 * len(_short(node.detail)))
    return _Box(
        node=node, layer=layer, w=longest * CHAR_W + 2 * PAD_X, h=NODE_H + (DETAIL_H if node.detail else 0.0)
    )


def _short(text: str) -> str:
    text = visible(text)
    return text if len(text) <= LABEL_CHARS_MAX else text[: LABEL_CHARS_MAX - 1] + "…"


def _ordered(picture: Picture, boxes: Mapping[str, _Box], back: set[tuple[str, str]]) -> list[list[_Box]]:
    """Rows of boxes; within a row near those that they are joined to, which keeps crossings few."""
    rows: list[list[_Box]] = [[] for _ in range(max((b.layer for b in boxes.values()), default=-1) + 1)]
    for box in boxes.values():
        rows[box.layer].append(box)
    joined: dict[str, list[str]] = {node: [] for node in boxes}
    for edge in picture.edges:
        if (edge.source, edge.target) not in back and edge.source in boxes and edge.target in boxes:
            joined[edge.source].append(edge.target)
            joined[edge.target].append(edge.source)
    place = {box.node.id: float(at) for row in rows for at, box in enumerate(row)}
    for sweep in range(ORDER_SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            means = {
                b.node.id: sum(place[n] for n in joined[b.node.id]) / len(joined[b.node.id])
                if joined[b.node.id]
                else place[b.node.id]
                for b in row
            }
            row.sort(key=lambda box: (means[box.node.id], place[box.node.id]))
            place.update({box.node.id: float(at) for at, box in enumerate(row)})
    turning = {source for source, _ in back}
    for row in rows:  # an edge that goes back leaves to the right, where nothing should be in its way
        row.sort(key=lambda box: box.node.id in turning)
    return rows


def _place(rows: list[list[_Box]]) -> tuple[float, float]:
    """Give each box its place, rows centred; the size of it all."""
    widths = [sum(box.w for box in row) + GAP_X * (len(row) - 1) for row in rows]
    widest = max(widths, default=0.0)
    y = MARGIN
    for row, width in zip(rows, widths, strict=True):
        x = MARGIN + (widest - width) / 2
        for box in row:
            box.x, box.y = x, y
            x += box.w + GAP_X
        y += max(box.h for box in row) + GAP_Y
    return widest + 2 * MARGIN, max(y - GAP_Y, MARGIN) + MARGIN


def _label(edge: EdgeView, x: float, y: float, anchor: str = "middle") -> str:
    weight = f"{edge.weight:.2f}" if edge.weight is not None else ""
    text = " ".join(filter(None, (weight, _short(edge.label))))
    if not text:
        return ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="11" fill="currentColor" '
        f'paint-order="stroke" stroke="var(--surface, #fff)" stroke-width="3">{escape(text)}</text>'
    )


def _stroke(edge: EdgeView) -> str:
    width = 1.0 + 1.5 * min(edge.weight if edge.weight is not None else 0.5, 1.0)
    dash = ' stroke-dasharray="5 3"' if edge.choice else ""
    return (
        f'fill="none" stroke="currentColor" stroke-opacity="0.65" stroke-width="{width:.1f}"{dash} '
        'marker-end="url(#tip)"'
    )


def _line(edge: EdgeView, boxes: Mapping[str, _Box]) -> str:
    a, b = boxes.get(edge.source), boxes.get(edge.target)
    if a is None or b is None:
        return ""
    x1, y1, x2, y2 = a.x + a.w / 2, a.y + a.h, b.x + b.w / 2, b.y
    bend = (y2 - y1) / 2
    path = f"M{x1:.1f} {y1:.1f}C{x1:.1f} {y1 + bend:.1f} {x2:.1f} {y2 - bend:.1f} {x2:.1f} {y2:.1f}"
    return f'<path d="{path}" {_stroke(edge)}/>{_label(edge, (x1 + x2) / 2, (y1 + y2) / 2 + 4)}'


def _arc(edge: EdgeView, boxes: Mapping[str, _Box], x: float) -> str:
    a, b = boxes[edge.source], boxes[edge.target]
    y1, y2 = a.y + a.h * 0.6, b.y + b.h * (0.4 if a is not b else 0.2)
    path = f"M{a.x + a.w:.1f} {y1:.1f}C{x:.1f} {y1:.1f} {x:.1f} {y2:.1f} {b.x + b.w:.1f} {y2:.1f}"
    peak = 0.25 * (a.x + a.w + b.x + b.w) / 2 + 0.75 * x
    return f'<path d="{path}" {_stroke(edge)}/>{_label(edge, peak + 8, (y1 + y2) / 2 + 4, "start")}'


def _drawn(box: _Box) -> str:
    node, fill = box.node, _FILLS[box.node.kind]
    radius = box.h / 2 if node.kind in ("tool", "start", "end") else 6
    middle = box.x + box.w / 2
    parts = [
        f"<g><title>{escape(visible(f'{node.id} {node.detail}'.strip()))}</title>",
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.w:.1f}" height="{box.h:.1f}" rx="{radius:.1f}" '
        f'fill="{fill}" fill-opacity="0.18" stroke="{fill}" stroke-width="1.5"/>',
        f'<text x="{middle:.1f}" y="{box.y + 21:.1f}" text-anchor="middle" fill="currentColor">'
        f"{escape(_short(node.label))}</text>",
    ]
    if node.detail:
        parts.append(
            f'<text x="{middle:.1f}" y="{box.y + 37:.1f}" text-anchor="middle" font-size="10" fill="currentColor" '
            f'fill-opacity="0.75">{escape(_short(node.detail))}</text>'
        )
    return "".join([*parts, "</g>"])
