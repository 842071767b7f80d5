"""A tenant that cuts its programs into many ids is served no more than one that does not."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core import events as ev

CLIENTS = 6  # of each tenant, always one step each
STEPS = 800  # one program more of one tenant is 2% of its steps
TOKENS = 1_500


def served(desk: Any, ids_per_program: int) -> dict[str, int]:
    """Two tenants with work without end on one engine: how many steps of each were served.

    A program has ten steps. The honest tenant sends them under one id, the other under so many.
    """
    world = desk(kv_tokens=10_000)
    done = {"honest": 0, "splitter": 0}
    sent = dict.fromkeys(((t, c) for t in done for c in range(CLIENTS)), 0)
    names: dict[str, tuple[str, int]] = {}

    def send(tenant: str, client: int) -> None:
        count = sent[tenant, client]
        sent[tenant, client] += 1
        part = count * ids_per_program // 10 if tenant == "splitter" else count // 10
        program = f"{tenant}{client}.{part}"
        names[f"{program}/{count}"] = (tenant, client)
        world.arrive(program, count, tokens=TOKENS, tenant=tenant)

    for tenant, client in list(sent):
        send(tenant, client)
    for _ in range(STEPS):
        flying = [s for s in world.scheduler.board.steps.values() if s.in_flight]
        if not flying:
            world.timer()
            continue
        step = min(flying, key=lambda s: (s.dispatched_at or 0.0, s.id))
        tenant, client = names[step.id]
        count = sent[tenant, client]
        last = (count * ids_per_program) % 10 < ids_per_program if tenant == "splitter" else count % 10 == 0
        world.tell(
            ev.StepFinished(step=step.id, prompt_tokens=TOKENS, output_tokens=10, final=last),
            after=1.0,
        )
        done[tenant] += 1
        send(tenant, client)
    return done


@pytest.mark.parametrize("ids", [2, 5, 10])
def test_splitting_a_program_into_many_ids_gains_a_tenant_nothing(desk: Any, ids: int) -> None:
    whole, split = served(desk, 1), served(desk, ids)
    assert whole["honest"] == pytest.approx(whole["splitter"], rel=0.1), "alike when both are honest"
    assert split["splitter"] <= 1.05 * whole["splitter"]
    assert split["honest"] >= 0.95 * whole["honest"]
