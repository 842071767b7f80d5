"""Every policy, under random programs, gaps and faults: nothing is lost, nothing goes twice, everything ends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentserve.core.policies import POLICIES

LITERATURE = sorted(name for name, (module, _) in POLICIES.items() if ".literature." in module)

strikes = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 20_000)), max_size=60)


@pytest.mark.parametrize("policy", LITERATURE)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(strikes=strikes)
def test_every_step_is_dispatched_and_every_program_ends(
    chaos: Any, policy: str, strikes: list[tuple[int, int]]
) -> None:
    world = chaos(policy)
    for kind, number in strikes:
        world.strike(kind, number)
    world.settle()
    assert not world.sched.board.programs


@pytest.mark.parametrize("policy", LITERATURE)
def test_a_policy_has_a_name_and_says_when_it_loses(policy: str) -> None:
    import importlib

    module, cls = POLICIES[policy]
    loaded = importlib.import_module(module)
    assert getattr(loaded, cls).name == policy
    assert loaded.__doc__
    for word in ("Intent:", "Reads:", "Loses:"):
        assert word in loaded.__doc__, f"{module} does not say `{word}`"
