"""A busy workflow teaches its forecasts by a random share, a quiet one by everything it does."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agentserve.core.ids import ProgramId, TenantId, WorkflowId
from agentserve.core.learned import Learned
from agentserve.core.program import Program
from agentserve.core.share import Share


def program(name: str = "p", workflow: str | None = "w") -> Program:
    made = Program(id=ProgramId(name), tenant=TenantId("t"), created_at=0.0)
    made.workflow = None if workflow is None else WorkflowId(workflow)
    return made


def test_every_step_of_a_quiet_workflow_teaches() -> None:
    share = Share(200.0)
    assert all(share.of_step(program(), at / 150) for at in range(3_000))
    assert share.left_out == 0


def test_a_busy_workflow_teaches_at_the_rate_that_was_set_and_what_is_left_out_is_counted() -> None:
    share = Share(200.0)
    drawn = [share.of_step(program(), at / 2_000) for at in range(20_000)]
    settled = drawn[2_000:]
    assert sum(settled) / 9 == pytest.approx(200, rel=0.15), "steps a second, over nine of them"
    assert share.left_out == drawn.count(False)


def test_one_busy_workflow_takes_nothing_from_another() -> None:
    share = Share(200.0)
    for at in range(10_000):
        share.of_step(program("busy", "batch"), at / 2_000)
    assert share.left_out
    assert all(share.of_step(program("calm", "agent"), 5.0 + at / 50) for at in range(500))


def test_a_workflow_that_falls_quiet_teaches_all_it_does_again() -> None:
    share = Share(200.0)
    for at in range(10_000):
        share.of_step(program(), at / 2_000)
    assert all(share.of_step(program(), 10.0 + at / 50) for at in range(200))


def test_the_same_events_draw_the_same() -> None:
    def drawn() -> list[bool]:
        share = Share(100.0)
        return [share.of_step(program(), at / 1_000) for at in range(5_000)]

    assert drawn() == drawn()


def test_what_is_learned_of_a_share_is_what_is_learned_of_all(desk: Any) -> None:
    """Two thousand steps a second, of lengths drawn from one distribution: the medians agree."""

    def median(steps_per_s: float) -> float:
        lengths = random.Random(5)
        learned = Learned(steps_per_s=steps_per_s)
        d = desk(foresight=learned, kv_tokens=10_000_000)
        for number in range(6_000):
            name, step = f"p{number % 20}", number // 20
            d.arrive(name, step, tokens=100, after=1 / 2_000)
            d.finish(name, step, tokens=100, output=round(lengths.lognormvariate(5.0, 0.7)), after=0.0)
        d.scheduler.settle()
        assert (learned.share.left_out > 3_000) == (steps_per_s == 200.0)
        return learned.outputs.predict(tenant="t").quantile(0.5)

    assert median(200.0) == pytest.approx(median(1e9), rel=0.2)
