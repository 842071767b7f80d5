"""Graphs learned from programs whose true chain is known."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.core.workflow import LearnedGraph, WorkflowGraph, node_name

# Shaped as text-to-SQL agents are: link the schema, generate, run, repair in a loop, check at the end.
TEXT2SQL = {
    "link": {"generate": 1.0},
    "generate": {"execute": 1.0},
    "execute": {"repair": 0.35, "check": 0.65},
    "repair": {"execute": 1.0},
    "check": {},
}
TOKENS = {"link": 180, "generate": 320, "execute": 60, "repair": 280, "check": 90}


def walk(
    graph: LearnedGraph, chain: dict[str, dict[str, float]], rng: random.Random, start: str = "link"
) -> int:
    node, steps = start, 0
    previous: list[str] = []
    while True:
        steps += 1
        graph.observe_step(
            node,
            previous=previous,
            output_tokens=TOKENS.get(node, 100),
            seconds=2.0,
            gap_s=0.5 if previous else None,
        )
        draw = rng.random()
        for after, p in chain[node].items():
            if draw < p:
                previous, node = [node], after
                break
            draw -= p
        else:
            graph.observe_end(node)
            return steps


def true_remaining(chain: dict[str, dict[str, float]]) -> dict[str, float]:
    """By plain iteration, independent of the code under test."""
    left = dict.fromkeys(chain, 0.0)
    for _ in range(500):
        left = {node: sum(p * (1 + left[b]) for b, p in row.items()) for node, row in chain.items()}
    return left


def learned_from(programs: int, seed: int) -> LearnedGraph:
    rng, graph = random.Random(seed), LearnedGraph()
    for _ in range(programs):
        walk(graph, TEXT2SQL, rng)
    graph.check()
    return graph


@pytest.mark.parametrize("seed", range(3, 8))
def test_two_hundred_programs_teach_the_chain(seed: int) -> None:
    graph = learned_from(200, seed)
    learned = graph.weights()
    assert learned.keys() == TEXT2SQL.keys()
    for node, row in TEXT2SQL.items():
        assert learned[node].keys() == row.keys()
        for after, p in row.items():
            assert learned[node][after] == pytest.approx(p, abs=0.05), (node, after)
    for node, steps in true_remaining(TEXT2SQL).items():
        assert graph.remaining(node).steps == pytest.approx(steps, rel=0.15), node


def test_more_programs_come_closer() -> None:
    near, far = learned_from(3_000, 1), learned_from(100, 1)
    truth = TEXT2SQL["execute"]["repair"]
    assert abs(near.weights()["execute"]["repair"] - truth) < min(
        0.02, abs(far.weights()["execute"]["repair"] - truth)
    )


def test_remaining_counts_tokens_and_time_with_the_gaps() -> None:
    graph, rng = LearnedGraph(), random.Random(4)
    for _ in range(50):
        walk(graph, {"link": {"generate": 1.0}, "generate": {}}, rng)
    left = graph.remaining("link")
    assert left.output_tokens == pytest.approx(TOKENS["generate"])
    assert left.seconds == pytest.approx(2.0, rel=0.01)
    assert graph.whole().seconds == pytest.approx(2.0 + 0.5 + 2.0, rel=0.01)


def test_a_fan_out_is_learned_as_several_visits_and_a_join_as_one() -> None:
    graph = LearnedGraph()
    for _ in range(60):
        graph.observe_step("plan", output_tokens=50, seconds=1.0)
        for at in range(3):
            graph.observe_step(
                "work", previous=["plan"], beside=at > 0, output_tokens=200, seconds=4.0, gap_s=0.0
            )
        graph.observe_step("gather", previous=["work"] * 3, output_tokens=100, seconds=2.0, gap_s=0.0)
        graph.observe_end("gather")
    assert graph.weights()["plan"]["work"] == pytest.approx(3.0)
    assert graph.remaining("plan").steps == pytest.approx(4.0)
    assert graph.remaining("plan").seconds == pytest.approx(4.0 + 2.0, rel=0.05)
    assert graph.remaining("work", "work", "work").steps == pytest.approx(1.0)


def test_a_declaration_serves_until_observation_outweighs_it() -> None:
    declared = WorkflowGraph.parse(
        {"nodes": ["ask", "answer", "refuse"], "edges": [{"source": "ask", "target": "answer", "p": 0.5},
                                                         {"source": "ask", "target": "refuse", "p": 0.5}]}
    )  # fmt: skip
    graph, rng = LearnedGraph(declared=declared), random.Random(7)
    assert graph.weights()["ask"] == {"answer": 0.5, "refuse": 0.5}
    for _ in range(200):
        walk(graph, {"ask": {"answer": 1.0}, "answer": {}}, rng, start="ask")
    assert graph.weights()["ask"]["answer"] > 0.97
    assert graph.ends_after("answer") == pytest.approx(1.0, abs=0.01)


def test_old_programs_fade() -> None:
    graph, rng = LearnedGraph(memory_programs=50), random.Random(9)
    for _ in range(300):
        walk(graph, {"a": {"b": 1.0}, "b": {}}, rng, start="a")
    for _ in range(150):
        walk(graph, {"a": {"c": 1.0}, "c": {}}, rng, start="a")
    assert graph.weights()["a"]["c"] > 0.9


def test_counts_stay_sound_when_the_unit_is_brought_back_to_size() -> None:
    graph, rng = LearnedGraph(memory_programs=2), random.Random(1)
    for _ in range(120):  # 1.5 ** 120 is far beyond any limit
        walk(graph, {"a": {"b": 1.0}, "b": {}}, rng, start="a")
        graph.check()
    assert graph.visits("a") == pytest.approx(3.0, rel=0.01)  # 1 + 2/3 + 4/9 + ...
    assert graph.weights()["a"]["b"] == pytest.approx(1.0)


def test_what_two_gateways_saw_adds_up() -> None:
    rng, one, two, both = random.Random(3), LearnedGraph(), LearnedGraph(), LearnedGraph()
    for _ in range(100):
        walk(one, TEXT2SQL, rng)
        walk(two, TEXT2SQL, rng)
    both.merge(one)
    both.merge(two)
    both.check()
    for node in TEXT2SQL:
        for after, weight in both.weights()[node].items():
            means = [g.weights()[node].get(after, 0.0) for g in (one, two)]
            assert min(means) - 1e-9 <= weight <= max(means) + 1e-9


def test_what_is_kept_is_read_back_and_what_is_damaged_is_not() -> None:
    graph, rng = LearnedGraph(), random.Random(3)
    for _ in range(30):
        walk(graph, TEXT2SQL, rng)
    kept = graph.to_bytes()
    again = LearnedGraph.from_bytes(kept)
    assert again is not None
    assert again.weights() == graph.weights()
    assert again.to_bytes() == kept
    assert LearnedGraph.from_bytes(kept[:-3]) is None
    assert LearnedGraph.from_bytes(b"\x90") is None


def test_the_number_of_nodes_is_bounded_and_the_rarest_go() -> None:
    graph = LearnedGraph(nodes_max=10)
    for _ in range(20):
        graph.observe_step("usual", output_tokens=1)
        graph.observe_end("usual")
    for at in range(100):
        graph.observe_step(f"odd{at}", previous=["usual"], output_tokens=1)
        graph.check()
    assert "usual" in graph.nodes()
    assert len(graph.nodes()) == 10


def test_the_prefix_that_all_calls_share_is_known_and_no_more() -> None:
    graph = LearnedGraph()
    graph.observe_step("a", output_tokens=1, prefix=[(11, 900), (12, 50), (13, 7)])
    assert graph.prefix("a") == ()
    graph.observe_step("a", output_tokens=1, prefix=[(11, 900), (12, 50), (99, 7)])
    assert graph.prefix("a") == ((11, 900), (12, 50))
    graph.observe_step("b", previous=["a"], output_tokens=1)
    assert [n.node for n in graph.next_nodes("a")] == ["b"]


def test_a_node_is_named_by_declaration_or_by_role_and_tools() -> None:
    assert node_name(role=5, declared="plan") == "plan"
    assert node_name(role=5, tools=["b", "a", "a"]) == node_name(role=5, tools=["a", "b"])
    assert node_name(role=5) != node_name(role=6)
    assert node_name(role=5) != node_name(role=5, tools=["a"])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.lists(st.sampled_from("abcde"), max_size=3), st.booleans()),
        max_size=40,
    )
)
def test_any_order_of_observations_leaves_it_sound(seen: list[tuple[str, list[str], bool]]) -> None:
    graph = LearnedGraph(nodes_max=4)
    for node, previous, ends in seen:
        graph.observe_step(node, previous=previous, output_tokens=3, seconds=1.0)
        if ends:
            graph.observe_end(node)
        graph.check()
    for node in graph.nodes():
        assert graph.remaining(node).steps >= 0
        assert graph.critical_path(node)[0][0] == node
    graph.steps_to(*graph.nodes()[:1])
