"""Graphs that clients declare: what is accepted, and how what is wrong is named."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core.workflow import LearnedGraph, WorkflowGraph
from agentserve.errors import BadRequest, TooLarge


def langgraph_node(name: str, cls: str = "RunnableCallable", **extra: Any) -> dict[str, Any]:
    return {
        "id": name,
        "type": "runnable",
        "data": {"id": ["langgraph", "_internal", cls], "name": name},
        **extra,
    }


LANGGRAPH: dict[str, Any] = {
    "nodes": [
        langgraph_node("__start__"),
        langgraph_node("plan"),
        langgraph_node("left"),
        langgraph_node("right"),
        langgraph_node("tools", "ToolNode", metadata={"__tools": ["search"]}),
        langgraph_node("gather"),
        {"id": "__end__"},
    ],
    "edges": [
        {"source": "__start__", "target": "plan"},
        {"source": "plan", "target": "left"},
        {"source": "plan", "target": "right"},
        {"source": "left", "target": "gather"},
        {"source": "right", "target": "gather"},
        {"source": "gather", "target": "__end__", "data": "done", "conditional": True},
        {"source": "gather", "target": "tools", "conditional": True},
        {"source": "tools", "target": "plan"},
    ],
}


def test_what_langgraph_exports_is_accepted_unchanged() -> None:
    graph = WorkflowGraph.parse(LANGGRAPH)
    kinds = {node.id: node.kind for node in graph.nodes}
    assert kinds["__start__"] == "start"
    assert kinds["__end__"] == "end"
    assert kinds["tools"] == "tool"
    assert kinds["plan"] == "llm"
    assert graph.joins() == {"gather": ("left", "right")}
    assert graph.weights()["gather"] == {"__end__": 0.5, "tools": 0.5}


def test_a_cycle_a_fan_out_and_a_join_give_the_work_that_they_mean() -> None:
    left = LearnedGraph(declared=WorkflowGraph.parse(LANGGRAPH)).whole()
    assert left.steps == pytest.approx(8.0)  # plan, left, right, gather, and all of it twice on average
    assert left.seconds == pytest.approx(30.0)  # left and right beside each other: three steps of 5 s a round


def test_a_line_of_steps_is_short_for_a_chain() -> None:
    graph = WorkflowGraph.parse(
        {"steps": ["plan", {"id": "draft", "expect": {"output_tokens": 900}}, "review"]}
    )
    assert [(e.source, e.target) for e in graph.edges] == [("plan", "draft"), ("draft", "review")]
    learned = LearnedGraph(declared=graph)
    assert learned.whole().steps == pytest.approx(3)
    assert learned.remaining("plan").steps == pytest.approx(2)
    assert learned.steps_to("plan") == {"plan": 0, "draft": 1, "review": 2}


def test_the_declaration_of_the_api_is_read_in_full() -> None:
    graph = WorkflowGraph.parse(
        {
            "nodes": [
                {"id": "plan", "kind": "llm", "role": "planner", "model": "m",
                 "prefix": {"system": "You plan.", "tools_hash": "ab"}, "expect": {"output_tokens": 300, "calls": 1}},
                {"id": "search", "kind": "tool", "tool": "web_search", "annotations": {"readOnlyHint": True},
                 "duration_ms": {"p50": 900, "p95": 6000}},
                {"id": "review", "kind": "llm", "join": "all", "metadata": {"own": [1, 2]}},
            ],
            "edges": [
                {"source": "plan", "target": "search"},
                {"source": "search", "target": "review", "conditional": True, "data": "ok", "p": 0.8},
            ],
        }
    )  # fmt: skip
    plan, search = graph.node("plan"), graph.node("search")
    assert plan is not None
    assert search is not None
    assert (plan.label, plan.model, plan.output_tokens) == ("planner", "m", 300)
    assert plan.prefix is not None
    assert plan.prefix.chars == len("You plan.")
    assert (search.tool, search.duration_s) == ("web_search", 0.9)
    assert graph.weights()["search"] == pytest.approx({"review": 0.8, "__end__": 0.2})
    assert LearnedGraph(declared=graph).remaining("plan").steps == pytest.approx(0.8)


NODES = {"nodes": ["a", "b"]}


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        ([], "graph", "graph: is not an object"),
        ({**NODES, "edge": []}, "edge", "'edges'"),
        ({"nodes": [{"id": "a", "after": "b"}]}, "nodes[0].after", "known here: id, kind, role"),
        ({"nodes": [{"id": "a", "modle": "m"}]}, "nodes[0].modle", "did you mean 'model'?"),
        ({"steps": [{"id": "a", "probability": 1}]}, "steps[0].probability", "known here"),
        ({"nodes": [{"id": "a", "expect": {"tokens": 3}}]}, "nodes[0].expect.tokens", "output_tokens"),
        ({"nodes": [{"id": "a", "prefix": {"hash": 3}}]}, "nodes[0].prefix.hash", "tools_hash"),
        (
            {**NODES, "edges": [{"source": "a", "target": "b", "probability": 0.5}]},
            "edges[0].probability",
            "known here: source, target, conditional, p",
        ),
        ({"nodes": []}, "nodes", "empty"),
        ({"nodes": {}}, "nodes", "not a list"),
        ({"steps": []}, "steps", "empty"),
        ({"nodes": [4]}, "nodes[0]", "neither"),
        ({"nodes": [{"id": ""}]}, "nodes[0].id", "printable"),
        ({"nodes": ["a", "a"]}, "nodes[1].id", "twice"),
        ({"nodes": [{"id": "a", "kind": "llama"}]}, "nodes[0].kind", "llama"),
        ({"nodes": [{"id": "a", "join": "some"}]}, "nodes[0].join", "some"),
        ({"nodes": [{"id": "a", "expect": {"output_tokens": -1}}]}, "nodes[0].expect.output_tokens", "-1"),
        ({"nodes": [{"id": "a", "expect": 3}]}, "nodes[0].expect", "not an object"),
        ({"nodes": [{"id": "a", "duration_ms": {"p50": "x"}}]}, "nodes[0].duration_ms.p50", "'x'"),
        ({"nodes": [{"id": "a", "duration_ms": True}]}, "nodes[0].duration_ms", "True"),
        ({"nodes": [{"id": "a", "duration_ms": {"p99": 1}}]}, "nodes[0].duration_ms", "none of p50"),
        ({**NODES, "edges": [{"source": "a", "target": "bb"}]}, "edges[0].target", "did you mean 'b'"),
        ({**NODES, "edges": [{"target": "b"}]}, "edges[0].source", "missing"),
        ({**NODES, "edges": [{"source": "a", "target": "b", "p": 2}]}, "edges[0].p", "2"),
        (
            {
                **NODES,
                "edges": [{"source": "a", "target": "b", "p": 0.7}, {"source": "a", "target": "a", "p": 0.7}],
            },
            "edges[1].p",
            "1.4",
        ),
    ],
)
def test_a_mistake_is_named_by_its_field(given: Any, field: str, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        WorkflowGraph.parse(given)
    assert caught.value.field == field
    assert says in f"{caught.value} {caught.value.remedy}"
    assert caught.value.remedy
    assert "graph: graph" not in str(caught.value)


def test_a_graph_that_was_taken_before_is_read_again_with_keys_that_are_no_longer_known() -> None:
    sent = {
        "nodes": ["a", {"id": "b", "after": "a", "duration_ms": {"p99": 1}}],
        "edges": [{"source": "a", "target": "b", "old": 1}],
    }
    assert [node.id for node in WorkflowGraph.parse(sent, kept=True).nodes] == ["a", "b"]


def test_too_much_is_refused_by_count_and_by_size() -> None:
    with pytest.raises(TooLarge, match="512"):
        WorkflowGraph.parse({"nodes": [f"n{i}" for i in range(513)]})
    assert len(WorkflowGraph.parse({"nodes": [f"n{i}" for i in range(512)]}).nodes) == 512
    with pytest.raises(TooLarge, match="65,536"):
        WorkflowGraph.parse({"nodes": [{"id": "a", "prefix": {"system": "x" * 70_000}}]})


def test_a_cycle_that_nothing_leaves_has_a_finite_answer() -> None:
    graph = WorkflowGraph.parse({"nodes": ["a", "b"], "edges": [{"source": "a", "target": "b"},
                                                               {"source": "b", "target": "a"}]})  # fmt: skip
    steps = LearnedGraph(declared=graph).whole().steps
    assert 1_000 < steps < 1_000_000


def test_a_fan_out_inside_a_cycle_has_a_finite_answer() -> None:
    edges = [{"source": "a", "target": "b"}, {"source": "a", "target": "c"}, {"source": "b", "target": "a"},
             {"source": "c", "target": "a"}]  # fmt: skip
    graph = WorkflowGraph.parse({"nodes": [*("a", "b", "c")], "edges": edges})
    learned = LearnedGraph(declared=graph)
    assert 0 < learned.whole().steps < 1e7
    assert learned.whole().seconds < 1e8
