"""Accounts: service accrues with what is held, absence earns nothing, weights divide."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.core.board import Share
from agentserve.core.fairness import Accounts
from agentserve.core.ids import TenantId
from tests.core.conftest import Gaps

TENANTS = [TenantId(name) for name in "abc"]


def test_service_accrues_with_tokens_held_over_time_and_weight() -> None:
    single, double = TenantId("single"), TenantId("double")
    accounts = Accounts(lambda t: 2.0 if t == double else 1.0)
    accounts.hold(double, 100, 0.0)
    accounts.hold(single, 100, 0.0)
    accounts.hold(double, -60, 10.0)
    services = accounts.services(10.0)
    assert services[single] == pytest.approx(1000.0)
    assert services[double] == pytest.approx(500.0)
    assert accounts.services(20.0)[double] == pytest.approx(700.0)


def test_another_weight_counts_from_then_on_and_what_was_had_stays() -> None:
    tenant, weights = TenantId("a"), {"a": 1.0}
    accounts = Accounts(lambda t: weights[t])
    accounts.hold(tenant, 100, 0.0)
    weights["a"] = 4.0
    accounts.reweigh(tenant, 10.0)
    assert accounts.services(10.0)[tenant] == pytest.approx(1000.0)
    assert accounts.services(20.0)[tenant] == pytest.approx(1250.0)


def test_a_tenant_that_was_away_starts_level_with_the_least_that_waited() -> None:
    back, busy, busier = TenantId("back"), TenantId("busy"), TenantId("busier")
    accounts = Accounts(lambda _: 1.0)
    accounts.hold(busy, 100, 0.0)
    accounts.hold(busier, 300, 0.0)
    accounts.rejoin(back, [busy, busier], 10.0)
    assert accounts.services(10.0)[back] == pytest.approx(1000.0)


def test_those_that_wait_without_memory_and_those_that_hold_some_both_count_as_others() -> None:
    back, waits, holds = TenantId("back"), TenantId("waits"), TenantId("holds")
    accounts = Accounts(lambda _: 1.0)
    accounts.hold(waits, 50, 0.0)
    accounts.hold(waits, -50, 4.0)  # 200 token-seconds, and now it holds nothing
    accounts.hold(holds, 100, 0.0)
    accounts.rejoin(back, [waits], 10.0)
    assert accounts.services(10.0)[back] == pytest.approx(200.0), "the least of both"
    later = TenantId("later")
    accounts.rejoin(later, [later], 10.0)
    assert accounts.services(10.0)[later] == pytest.approx(1000.0), "nobody else waits, but one works"


def test_a_tenant_that_had_more_than_the_others_keeps_its_debt() -> None:
    back, busy = TenantId("back"), TenantId("busy")
    accounts = Accounts(lambda _: 1.0)
    accounts.hold(back, 500, 0.0)
    accounts.hold(back, -500, 10.0)
    accounts.hold(busy, 100, 0.0)
    accounts.rejoin(back, [busy], 10.0)
    assert accounts.services(10.0)[back] == pytest.approx(5000.0)


def test_what_was_kept_of_services_counts_after_a_restart_and_the_largest_gap_is_remembered() -> None:
    tenant = TenantId("a")
    accounts = Accounts(lambda _: 1.0)
    accounts.restore({tenant: 700.0}, 5.0)
    assert accounts.services(9.0) == {tenant: 700.0}
    for gap in (3.0, 8.0, 5.0):
        accounts.note_gap(gap)
    assert accounts.gap_max == 8.0


def test_a_tenant_that_holds_memory_is_not_lifted() -> None:
    small, busy = TenantId("small"), TenantId("busy")
    accounts = Accounts(lambda _: 1.0)
    accounts.hold(busy, 300, 0.0)
    accounts.hold(small, 1, 0.0)
    accounts.rejoin(small, [busy], 10.0)
    assert accounts.services(10.0)[small] == pytest.approx(10.0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(TENANTS), st.integers(0, 50), st.floats(0.0, 10.0)), max_size=40))
def test_the_sum_of_service_is_the_sum_of_token_seconds(moves: list[tuple[TenantId, int, float]]) -> None:
    accounts = Accounts(lambda _: 1.0)
    now = 0.0
    held: dict[TenantId, int] = {}
    expected = 0.0
    for tenant, tokens, wait in moves:
        expected += sum(held.values()) * wait
        now += wait
        accounts.hold(tenant, tokens - held.get(tenant, 0), now)
        held[tenant] = tokens
        accounts.check()
    assert sum(accounts.services(now).values()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_tenants_that_wait_together_differ_by_no_more_than_an_engine_holds_for_its_longest_stay(
    desk: Any, seed: int
) -> None:
    """The heavy one has more programs, larger ones, and longer ones; both always have some that wait."""
    rng = random.Random(seed)
    weights = {"heavy": 1.0, "light": rng.choice([0.5, 1.0, 3.0])}
    d = desk(foresight=Gaps(), shares={t: Share(weight=w) for t, w in weights.items()})
    made, longest_s = 0, 0.0
    began: dict[str, float] = {}
    served = dict.fromkeys(weights, 0)
    for _ in range(300):
        for tenant, backlog in (("heavy", 6), ("light", 2)):
            while sum(s.program.tenant == tenant for s in d.board.waiting.values()) < backlog:
                tokens = rng.randint(1500, 4000) if tenant == "heavy" else rng.randint(200, 1500)
                d.arrive(f"p{made}", tokens=tokens, tenant=tenant)
                made += 1
        running = [s for s in d.board.steps.values() if s.in_flight]
        for step in running:
            began.setdefault(step.id, d.now)
        step = running[0] if rng.random() < 0.5 else rng.choice(running)
        after = rng.uniform(0.1, 3.0)
        longest_s = max(longest_s, d.now + after - began[step.id])
        served[step.program.tenant] += 1
        d.finish(step.program.id, tokens=step.prompt_tokens, after=after, final=True)
    gap = d.scheduler.policy.accounts.gap_max
    assert 0.0 < gap <= 2 * 9_700 * longest_s / min(weights.values())
    assert min(served.values()) > 20, "nobody starves"
