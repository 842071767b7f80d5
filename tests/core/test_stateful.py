"""Random events with faults: whatever happens, no step is lost or sent twice, nobody starves, and everything ends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from agentserve.core.board import Limits
from agentserve.core.foresight import Naive
from agentserve.core.learned import Learned
from agentserve.core.policies import POLICIES
from tests.core.machine import IMPATIENT, PATIENT, Fleet
from tests.core.mishaps import Mishaps

LITERATURE = sorted(name for name, (module, _) in POLICIES.items() if ".literature." in module)


def machine(
    policy: str,
    forecasts: type[Any] = Naive,
    limits: Limits = PATIENT,
    *,
    world: type[Fleet] = Mishaps,
    **more: Any,
) -> type[Fleet]:
    """The world under a policy; `more` are the machine's own settings, and under `params` the policy's."""
    chosen = {"policy": policy, "forecasts": forecasts, "limits": limits, **more}
    return type(f"{world.__name__}_{policy}", (world,), chosen)


ARMS: dict[str, type[Fleet]] = {
    "agentserve, engines lost and no other mishaps": machine("agentserve", world=Fleet),
    "agentserve": machine("agentserve"),
    "agentserve, learned forecasts": machine("agentserve", Learned),
    "agentserve, impatient": machine("agentserve", Learned, IMPATIENT),
    "agentserve, each program another tenant's": machine("agentserve", Learned, tenants_many=True),
    "agentserve, two models": machine("agentserve", Learned, models=(("big",), ("big", "small"))),
    "agentserve, two models apart": machine("agentserve", limits=IMPATIENT, models=(("big",), ("small",))),
    "agentserve, every gap pinned for an hour": machine("agentserve", params={"ttl_s": 3600.0}),
    "agentserve, memory without a price": machine("agentserve", params={"mu": 0.0}),
    "agentserve, no reservation": machine("agentserve", params={"reserve_gaps": False}),
    **{name: machine(name, Learned) for name in LITERATURE},
    **{f"{name}, impatient": machine(name, limits=IMPATIENT) for name in LITERATURE},
}


@pytest.mark.parametrize("arm", ARMS)
def test_whatever_happens_no_step_is_lost_or_sent_twice_and_everything_ends(arm: str) -> None:
    run_state_machine_as_test(
        ARMS[arm],
        settings=settings(
            max_examples=30 if arm.startswith("agentserve") else 12,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_program_whose_forks_are_held_goes_back_to_the_line_with_all_of_them(desk: Any) -> None:
    world = desk(kv_tokens=10_000)
    for name, tokens in (("x", 1500), ("a", 2500), ("b", 2500)):
        world.arrive(name, tokens=tokens)
    world.finish("a", tokens=2500)
    world.finish("b", tokens=2500)
    world.arrive("b", 1, tokens=6000)
    world.arrive("b", 2, tokens=6000, relation="fork")
    world.arrive("a", 1, tokens=2600)
    assert not {"a/1", "b/1", "b/2"} & set(world.dispatched), "the seated outgrew the ceiling"
    world.finish("x", tokens=1500, final=True)
    assert "a/1" in world.dispatched, "the better one goes on"
    world.finish("a", 1, tokens=2600, final=True)
    world.fire(5.0)
    assert {"b/1", "b/2"} <= set(world.dispatched)
