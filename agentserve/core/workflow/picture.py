"""A step graph for people: as text, and in Graphviz's DOT language. `svg` draws it.

Rule: it shows what the graph says and computes nothing of its own; the same graph gives the same output, so that two
printings can be compared. Names come from clients, so each format quotes them in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentserve.core.workflow.algebra import STEPS_HORIZON
from agentserve.core.workflow.declared import END, START, Kind, WorkflowGraph
from agentserve.core.workflow.learned import LearnedGraph

WEIGHT_SHOWN_MIN = 0.005
STEPS_SHOWN_MAX = STEPS_HORIZON / 2  # more than that is a cycle that nobody was seen to leave


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node as it is shown."""

    id: str
    label: str
    kind: Kind = "llm"
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeView:
    """An edge as it is shown."""

    source: str
    target: str
    weight: float | None = None
    label: str = ""
    choice: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What every format shows."""

    nodes: tuple[NodeView, ...]
    edges: tuple[EdgeView, ...]


def picture_of(graph: WorkflowGraph | LearnedGraph) -> Picture:
    """The picture of a declared or a learned graph."""
    return _declared(graph) if isinstance(graph, WorkflowGraph) else _learned(graph)


def _declared(graph: WorkflowGraph) -> Picture:
    joins = graph.joins()
    nodes = []
    for node in graph.nodes:
        detail = [
            node.model or "",
            f"{node.output_tokens:,.0f} tokens" if node.output_tokens is not None else "",
        ]
        detail += [_seconds(node.duration_s) if node.duration_s is not None else ""]
        detail += ["joins all" if node.id in joins else ""]
        nodes.append(
            NodeView(
                id=node.id,
                label=node.label or node.id,
                kind=node.kind,
                detail=", ".join(filter(None, detail)),
            )
        )
    edges = [
        EdgeView(source=e.source, target=e.target, weight=e.p, label=e.label, choice=e.conditional)
        for e in graph.edges
    ]
    return Picture(nodes=tuple(nodes), edges=tuple(edges))


def _learned(graph: LearnedGraph) -> Picture:
    names = graph.in_order()
    nodes, edges = [], []
    for name in names:
        left = graph.remaining(name)
        ahead = (
            f"{left.steps:.1f} steps and {_seconds(left.seconds)} to go"
            if left.steps < STEPS_SHOWN_MAX
            else "no end seen"
        )
        nodes.append(NodeView(id=name, label=name, detail=f"{graph.visits(name):,.0f} visits, {ahead}"))
        for after in graph.next_nodes(name):
            if after.weight >= WEIGHT_SHOWN_MIN:
                gap = f"after {_seconds(after.gap_s)}" if after.gap_s is not None else ""
                edges.append(
                    EdgeView(
                        source=name,
                        target=after.node,
                        weight=after.weight,
                        label=gap,
                        choice=after.weight < 0.995,
                    )
                )
        if (ends := graph.ends_after(name)) >= WEIGHT_SHOWN_MIN:
            edges.append(EdgeView(source=name, target=END, weight=ends, choice=ends < 0.995))
    if any(edge.target == END for edge in edges):
        nodes.append(NodeView(id=END, label="end", kind="end"))
    return Picture(nodes=tuple(nodes), edges=tuple(edges))


def _seconds(seconds: float) -> str:
    if seconds < 0.95:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _weight(edge: EdgeView) -> str:
    return f"{edge.weight:.2f}" if edge.weight is not None else ("?" if edge.choice else "")


def visible(text: str) -> str:
    """Text whose control characters cannot act on a terminal or break a line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def render_text(graph: WorkflowGraph | LearnedGraph) -> str:
    """For a terminal: each node, and under it where it leads."""
    picture = picture_of(graph)
    lines = []
    for node in picture.nodes:
        if node.id in (START, END):
            continue
        kind = "" if node.kind == "llm" else f" [{node.kind}]"
        label = f" ({visible(node.label)})" if node.label != node.id else ""
        detail = f"  {visible(node.detail)}" if node.detail else ""
        lines.append(f"{visible(node.id)}{label}{kind}{detail}")
        leaving = [edge for edge in picture.edges if edge.source == node.id]
        for at, edge in enumerate(leaving):
            corner = "└─" if at == len(leaving) - 1 else "├─"
            target = "end" if edge.target == END else visible(edge.target)
            extra = f"  {visible(edge.label)}" if edge.label else ""
            lines.append(f"  {corner}{_weight(edge):>5} → {target}{extra}")
    return "\n".join(lines) + ("\n" if lines else "")


def _quoted(text: str) -> str:
    return '"' + visible(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


_SHAPES = {
    "llm": "box",
    "tool": "ellipse",
    "human": "octagon",
    "code": "component",
    "start": "point",
    "end": "doublecircle",
}


def render_dot(graph: WorkflowGraph | LearnedGraph) -> str:
    """For Graphviz."""
    picture = picture_of(graph)
    lines = [
        "digraph workflow {",
        '  rankdir="TB"; node [fontname="sans-serif"]; edge [fontname="sans-serif"];',
    ]
    for node in picture.nodes:
        label = _quoted(node.label)[:-1] + ("\\n" + _quoted(node.detail)[1:-1] if node.detail else "") + '"'
        lines.append(f"  {_quoted(node.id)} [shape={_SHAPES[node.kind]}, label={label}];")
    for edge in picture.edges:
        text = " ".join(filter(None, (_weight(edge), edge.label)))
        style = ", style=dashed" if edge.choice else ""
        lines.append(f"  {_quoted(edge.source)} -> {_quoted(edge.target)} [label={_quoted(text)}{style}];")
    return "\n".join([*lines, "}"]) + "\n"
