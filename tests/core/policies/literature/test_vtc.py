"""VTC: counters, the lift on coming back, and the bounded gap."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core.board import Share


def test_the_tenant_with_the_least_counter_goes_next(desk: Any) -> None:
    d = desk("vtc")
    d.arrive("h0", tokens=9000, tenant="heavy")
    d.arrive("h1", tokens=9000, tenant="heavy")
    d.arrive("l0", tokens=500, tenant="light", after=1.0)
    d.finish("h0", tokens=9000, output=100, final=True)
    assert d.sent("l0") == "e0"
    assert d.sent("h1") is None
    assert d.scheduler.policy.counters["heavy"] == pytest.approx(9000 + 2 * 100)


def test_a_weight_divides_what_is_charged(desk: Any) -> None:
    d = desk("vtc", shares={"t": Share(weight=4.0)})
    d.arrive("a", tokens=1000)
    d.finish("a", tokens=1000, output=50)
    assert d.scheduler.policy.counters["t"] == pytest.approx((1000 + 100) / 4)


def test_a_tenant_that_comes_back_is_lifted_to_the_least_of_those_that_wait(desk: Any) -> None:
    d = desk("vtc")
    counters = d.scheduler.policy.counters
    for tenant in "uvw":
        d.arrive(f"{tenant}0", tokens=9000, tenant=tenant)
    assert d.sent("u0")
    counters.update(v=4000.0, w=7000.0)
    d.arrive("late", tokens=9000, tenant="late")
    assert counters["late"] == 4000.0
    counters["early"] = 6000.0
    d.arrive("early", tokens=9000, tenant="early")
    assert counters["early"] == 6000.0, "a lift, never a cut"


def test_with_nobody_waiting_it_is_lifted_to_the_last_who_waited(desk: Any) -> None:
    d = desk("vtc")
    d.arrive("u0", tokens=3000, tenant="u")
    level = d.scheduler.policy.counters["u"]
    d.arrive("v0", tokens=1000, tenant="v")
    assert d.scheduler.policy.counters["v"] == level + 1000


def test_counters_of_waiting_tenants_stay_within_the_papers_bound(desk: Any) -> None:
    d = desk("vtc")
    prompt, output, open_steps = 2000, 200, []
    for turn in range(30):
        for tenant, count in (("heavy", 3), ("light", 1)):
            for k in range(count):
                name = f"{tenant}{turn}.{k}"
                d.arrive(name, tokens=prompt, tenant=tenant)
                open_steps.append(name)
        ready = [n for n in open_steps if d.sent(n)][:2]
        for name in ready:
            open_steps.remove(name)
            d.finish(name, tokens=prompt, output=output, final=True)
    kv_tokens = 10_000
    gap = d.scheduler.policy.figures()["gap_max"]
    assert 0 < gap <= 2 * max(1.0 * prompt, 2.0 * kv_tokens)


def test_a_step_that_ends_is_no_tenant_leaving_the_line(desk: Any) -> None:
    d = desk("vtc")
    counters = d.scheduler.policy.counters
    d.arrive("u0", tokens=6000, tenant="u")
    d.arrive("v0", tokens=3000, tenant="v")  # the last to have waited
    counters.update(u=90_000.0, v=4000.0)
    d.finish("u0", tokens=6000, output=0)
    d.arrive("w0", tokens=1000, tenant="w")
    assert counters["w"] == 4000.0 + 1000
