"""Expected work, distances and the critical path, against worked examples and brute force."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.core.workflow.algebra import (
    collapsed,
    critical_path,
    hops,
    seconds_left,
    steps_to_execution,
    totals,
)

LOOP = {"gen": {"run": 1.0}, "run": {"gen": 0.35, "check": 0.65}, "check": {}}
ONE_EACH = dict.fromkeys(LOOP, (1.0,))


def test_a_loop_is_passed_as_often_as_its_odds_say() -> None:
    steps = totals(LOOP, ONE_EACH)
    assert steps["check"] == pytest.approx([1.0])
    assert steps["gen"] == pytest.approx([2 / 0.65 + 1.0])
    assert steps["run"] == pytest.approx([steps["gen"][0] - 1.0])


def test_a_loop_onto_itself_is_solved() -> None:
    assert totals({"a": {"a": 0.9, "b": 0.1}, "b": {}}, {"a": (1.0,), "b": (0.0,)})["a"] == pytest.approx(
        [10.0]
    )


def test_a_cycle_too_large_to_eliminate_is_swept_to_the_same_answer() -> None:
    rng = random.Random(5)
    names = [f"n{i}" for i in range(120)]  # more than are eliminated
    ring = {}
    for at, name in enumerate(names):
        ring[name] = {names[(at + 1) % 120]: 0.5, rng.choice(names): 0.3}
    swept = totals(ring, dict.fromkeys(names, (1.0,)))
    for name in names:  # the equation itself
        assert swept[name][0] == pytest.approx(
            1.0 + sum(w * swept[b][0] for b, w in ring[name].items()), rel=1e-4
        )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_what_is_solved_satisfies_its_equation(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"n{i}" for i in range(rng.randint(1, 8))]
    weights: dict[str, dict[str, float]] = {}
    for name in names:
        row = {b: rng.random() for b in names if rng.random() < 0.4}
        total = sum(row.values()) + rng.random() + 0.05
        weights[name] = {b: w / total for b, w in row.items()}
    own = {name: (1.0, rng.random()) for name in names}
    solved = totals(weights, own)
    for name in names:
        for k in range(2):
            right = own[name][k] + sum(w * solved[b][k] for b, w in weights[name].items())
            assert solved[name][k] == pytest.approx(right, rel=1e-6)


def test_a_join_of_all_waits_for_the_farthest_and_a_join_of_any_for_the_nearest() -> None:
    weights = {"s": {"a": 1.0, "b": 1.0}, "a": {"j": 1.0}, "b": {"c": 1.0}, "c": {"j": 1.0}, "j": {}}
    assert steps_to_execution(weights, ["s"])["j"] == 2
    assert steps_to_execution(weights, ["s"], {"j": ["a", "c"]})["j"] == 3


def test_an_edge_that_goes_back_is_not_waited_for() -> None:
    weights = {"s": {"j": 1.0}, "j": {"t": 1.0}, "t": {"j": 1.0}}
    assert steps_to_execution(weights, ["s"], {"j": ["s", "t"]}) == {"s": 0, "j": 1, "t": 2}


def test_joins_that_wait_for_each_other_are_reached_all_the_same() -> None:
    weights = {"s": {"a": 1.0, "x": 1.0}, "x": {"b": 1.0}, "a": {"b": 1.0}, "b": {"a": 1.0}}
    steps = steps_to_execution(weights, ["s"], {"a": ["s", "b"], "b": ["x", "a"]})
    assert steps.keys() == {"s", "a", "b", "x"}


def test_nodes_that_cannot_be_reached_have_no_distance() -> None:
    assert "gen" not in steps_to_execution(LOOP, ["check"])


def test_hops_give_the_chance_and_the_mean_distance() -> None:
    chance, steps = hops({"a": {"b": 0.5, "c": 0.25}, "b": {"c": 1.0}, "c": {}}, "a", "c")
    assert chance == pytest.approx(0.75)
    assert steps == pytest.approx((0.25 * 1 + 0.5 * 2) / 0.75)


def test_what_lies_between_kept_nodes_is_folded_in() -> None:
    weights = {"a": {"t": 1.0}, "t": {"u": 0.5, "b": 0.5}, "u": {"t": 0.5, "b": 0.5}, "b": {}}
    assert collapsed(weights, ["a", "b"]) == {"a": {"b": pytest.approx(1.0)}, "b": {}}


def test_the_critical_path_takes_the_slow_branch_of_a_fan_out_and_the_likely_one_of_a_choice() -> None:
    times = {"s": {"fast": 1.0, "slow": 1.0}, "fast": {"j": 1.0}, "slow": {"j": 1.0}, "j": {"x": 0.2, "y": 0.8},
             "x": {}, "y": {}}  # fmt: skip
    seconds = {"s": 1.0, "fast": 2.0, "slow": 9.0, "j": 1.0, "x": 10.0, "y": 1.0}
    path, length = critical_path(times, seconds, "s")
    assert path == ["s", "slow", "j", "y"]
    assert length == pytest.approx(1 + 9 + 1 + 0.2 * 10 + 0.8 * 1)


def test_time_in_a_plain_chain_is_the_sum() -> None:
    assert seconds_left(LOOP, {"gen": 2.0, "run": 1.0, "check": 4.0})["gen"] == pytest.approx(3 / 0.65 + 4)
