"""What a gateway keeps is what it was wired to: each figure by the clock that it was counted by."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agentserve import config
from agentserve.cli.gateway import composed
from agentserve.core import events as ev
from agentserve.core.ids import ProgramId, TenantId
from agentserve.core.policies.working_set import WorkingSet


async def test_what_a_tenant_is_charged_is_kept_by_the_clock_that_charges_it(tmp_path: Path) -> None:
    settings = config.load(
        environ={"AGENTSERVE_STORE_URL": f"sqlite:///{tmp_path}/x.db"},
        flags=[("scheduler.time_scale", 1000.0, "here")],
    )
    async with composed(settings) as made:
        policy = made.scheduler.policy
        assert isinstance(policy, WorkingSet)
        await asyncio.sleep(0.01)  # ten seconds of the scheduler's
        policy.accounts.hold(TenantId("acme"), 100, made.gateway.driver.now())
    async with composed(settings) as again:
        assert again.store.recovered.accounts["acme"] > 0.0


async def test_the_bound_on_live_programs_holds_for_what_is_told_of_them_too(tmp_path: Path) -> None:
    settings = config.load(
        environ={"AGENTSERVE_STORE_URL": f"sqlite:///{tmp_path}/x.db"},
        flags=[("limits.live_programs_max", 3, "here")],
    )
    async with composed(settings) as made:
        for number in range(5):
            name = ProgramId(f"acme/p{number}")
            made.gateway.driver.tell(ev.ProgramDeclared(program=name, tenant=TenantId("acme")))
        assert len(made.scheduler.board.programs) == 3
        assert b"agentserve_programs_live 3.0" in made.telemetry.render("")[1]
