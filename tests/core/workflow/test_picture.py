"""Graphs as text, DOT and SVG."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from agentserve.core.workflow import LearnedGraph, WorkflowGraph, render_dot, render_svg, render_text

HOSTILE = 'x"]; evil -> y [label="<script>alert(1)</script>&\\'
DECLARED = WorkflowGraph.parse(
    {
        "nodes": ["plan", {"id": "search", "kind": "tool", "duration_ms": 900}, {"id": HOSTILE}, "review"],
        "edges": [
            {"source": "plan", "target": "search"},
            {"source": "search", "target": HOSTILE, "p": 0.8, "data": "ok & <fine>"},
            {"source": HOSTILE, "target": "plan", "conditional": True},
            {"source": "review", "target": "review", "conditional": True},
        ],
    }
)


def learned() -> LearnedGraph:
    graph = LearnedGraph()
    for at in range(10):
        graph.observe_step("draft", output_tokens=100, seconds=1.0)
        graph.observe_step("review", previous=["draft"], output_tokens=20, seconds=1.0, gap_s=0.2)
        if at % 2:
            graph.observe_step("draft", previous=["review"], output_tokens=100, seconds=1.0, gap_s=0.2)
            graph.observe_end("draft")
        else:
            graph.observe_end("review")
    return graph


def test_text_shows_where_each_step_leads_and_what_is_left() -> None:
    text = render_text(learned())
    assert text.index("draft") < text.index("review")
    assert "→ review" in text
    assert "→ end" in text
    assert "steps and" in text


@pytest.mark.parametrize("graph", [DECLARED, learned()], ids=["declared", "learned"])
def test_the_drawing_is_well_formed_and_everything_lies_inside_it(
    graph: WorkflowGraph | LearnedGraph,
) -> None:
    root = ElementTree.fromstring(render_svg(graph))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    boxes = root.findall(".//{http://www.w3.org/2000/svg}rect")
    assert boxes
    for box in boxes:
        assert 0 <= float(box.attrib["x"]) <= float(box.attrib["x"]) + float(box.attrib["width"]) <= width
        assert 0 <= float(box.attrib["y"]) <= float(box.attrib["y"]) + float(box.attrib["height"]) <= height


def test_boxes_do_not_overlap() -> None:
    edges = [{"source": "s", "target": f"n{i}"} for i in range(7)] + [
        {"source": f"n{i}", "target": "t"} for i in range(7)
    ]
    graph = WorkflowGraph.parse({"nodes": ["s", *(f"n{i}" for i in range(7)), "t"], "edges": edges})
    boxes = [
        tuple(float(box.attrib[k]) for k in ("x", "y", "width", "height"))
        for box in ElementTree.fromstring(render_svg(graph)).findall(".//{http://www.w3.org/2000/svg}rect")
    ]
    for at, (x, y, w, h) in enumerate(boxes):
        for x2, y2, w2, h2 in boxes[at + 1 :]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y


def test_names_that_clients_choose_cannot_break_out() -> None:
    svg, dot = render_svg(DECLARED), render_dot(DECLARED)
    assert "<script>" not in svg
    assert 'x\\"]; evil' in dot
    assert "\n" not in render_text(WorkflowGraph.parse({"nodes": ["a"]}))[:-1]


def test_an_empty_graph_can_be_shown() -> None:
    assert render_text(LearnedGraph()) == ""
    assert render_svg(LearnedGraph()).startswith("<svg")


def test_the_same_graph_gives_the_same_output() -> None:
    for render in (render_text, render_dot, render_svg):
        assert render(learned()) == render(learned())


@pytest.mark.parametrize(("ended", "said"), [(False, "visits, no end seen"), (True, "20.0 steps and")])
def test_a_cycle_that_nobody_was_seen_to_leave_has_no_steps_to_go(ended: bool, said: str) -> None:
    graph = LearnedGraph()
    graph.observe_step("work", output_tokens=10)
    for _ in range(20):
        graph.observe_step("work", previous=("work",), output_tokens=10)
    if ended:
        graph.observe_end("work")
    assert said in render_text(graph)
