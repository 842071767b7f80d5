"""Pins: where their end lies, what they cost, and that those which do not pay are switched off."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.core.forecast import Survival
from agentserve.core.forecast.grid import TOOL_SECONDS
from agentserve.core.foresight import Exponential, Known
from agentserve.core.ids import TenantId, WorkflowId
from agentserve.core.pins import PROBE_EVERY, SETTLED_MIN, Bet, PinAccounts

T, W = TenantId("t"), WorkflowId("w")


def mixed() -> Survival:
    """Mostly back at once, else hardly ever: the longer it is away, the less it is worth waiting."""

    def back_by(t: float) -> float:
        return 1.0 - 0.9 * math.exp(-t / 1.0) - 0.1 * math.exp(-t / 1000.0)

    by = [0.0, *map(back_by, TOOL_SECONDS.edges[1:-1]), 1.0]
    return Survival(TOOL_SECONDS, [later - earlier for earlier, later in pairwise(by)])


def test_a_gap_shorter_than_the_break_even_is_kept_to_its_end_and_a_longer_one_not_at_all() -> None:
    assert Known(3.0).keeping(20.0, 300.0) == (300.0, 1.0, 3.0)
    assert Known(100.0).keeping(20.0, 300.0).ttl_s == 0.0
    assert Known(100.0).keeping(20.0, 300.0, 90.0).held_s == 10.0, "most of it has gone"


def test_a_pin_ends_where_its_return_has_become_unlikely() -> None:
    # by then 0.9 e^-t has sunk below what the slow tenth would need to be worth it
    assert 2.0 < mixed().keeping(20.0, 300.0).ttl_s < 6.0
    assert mixed().keeping(20.0, 300.0, 8.0).ttl_s == 0.0, "it has been away for too long already"


def test_a_higher_price_never_keeps_longer() -> None:
    ends = [mixed().keeping(10.0 / price, 300.0).ttl_s for price in (0.001, 0.2, 0.5, 2.0, 9.0)]
    assert ends == sorted(ends, reverse=True)
    assert ends[0] == 300.0


@settings(max_examples=50, deadline=None)
@given(mean=st.floats(0.01, 1e4), break_even=st.floats(0.1, 1e3), longest=st.floats(1.0, 1e3))
def test_an_exponential_gap_is_kept_for_good_or_not_at_all(
    mean: float, break_even: float, longest: float
) -> None:
    keeping = Exponential(mean).keeping(break_even, longest)
    assert keeping.ttl_s == (longest if mean <= break_even else 0.0)
    assert Exponential(mean).keeping(break_even, longest, 50.0) == keeping, "how long it is away says nothing"


@pytest.mark.parametrize("break_even", [3.0, 20.0, 100.0])
@pytest.mark.parametrize("elapsed", [0.0, 2.5, 8.0])
def test_the_gain_that_is_forecast_is_the_gain_that_comes(break_even: float, elapsed: float) -> None:
    gap = mixed()
    ttl, back, held = gap.keeping(break_even, 300.0, elapsed)
    alive = gap.survival(elapsed)
    assert back == pytest.approx(1.0 - gap.survival(elapsed + ttl) / alive, abs=0.02)
    cuts = [gap.survival(elapsed + ttl * (i + 0.5) / 400) / alive for i in range(400)]
    assert held == pytest.approx(sum(cuts) * ttl / 400, rel=0.15, abs=0.05)  # as finely as the grid tells


def bet(price: float = 0.5, expected_s: float = 0.0) -> Bet:
    return Bet(made_at=10.0, tokens=1000, price=price, capacity=10_000.0, expected_s=expected_s)


def test_what_a_pin_cost_is_its_share_of_the_memory_for_as_long_as_it_had_a_price() -> None:
    assert bet().cost_s(30.0) == pytest.approx(20.0 * 0.5 * 0.1)
    assert bet().cost_s(5.0) == 0.0


def test_gains_and_regrets_add_up() -> None:
    accounts = PinAccounts()
    accounts.settle(T, W, bet(), until=30.0, saved_s=4.0)
    accounts.settle(T, W, bet(expected_s=1.5), until=50.0, saved_s=0.0)
    figures = accounts.figures()
    assert figures["pins_settled"] == 2
    assert figures["pins_expected_s"] == pytest.approx(1.5)
    assert figures["pins_saved_s"] == pytest.approx(4.0)
    assert figures["pins_cost_s"] == pytest.approx(3.0)
    assert figures["pins_lost_s"] == pytest.approx(2.0)


def test_a_workflow_whose_pins_do_not_pay_is_switched_off_probed_and_taken_back() -> None:
    accounts = PinAccounts()
    for _ in range(SETTLED_MIN):
        assert accounts.allowed(T, W)
        accounts.settle(T, W, bet(), until=30.0, saved_s=0.0)
    asked = [accounts.allowed(T, W) for _ in range(3 * PROBE_EVERY)]
    assert asked.count(True) == 3, "one in so many is tried again"
    assert accounts.switched_off == 1
    assert accounts.allowed(T, WorkflowId("other")), "others are not punished for it"
    for _ in range(60):
        accounts.settle(T, W, bet(), until=30.0, saved_s=5.0)
    assert accounts.allowed(T, W)
    assert accounts.switched_off == 0


def test_a_workflow_is_judged_by_the_plain_mean_of_its_first_bets() -> None:
    """One that lost much and then gained a little each time has not paid, however it went lately."""
    accounts = PinAccounts()
    for saved_s in [0.0, 0.0] + [1.05] * (SETTLED_MIN - 2):  # each costs 1, so the sum is -0.6
        accounts.settle(T, W, bet(), until=30.0, saved_s=saved_s)
    assert accounts.switched_off == 1


def test_pins_that_only_break_even_do_not_pay() -> None:
    accounts = PinAccounts()
    for _ in range(SETTLED_MIN):
        accounts.settle(T, W, bet(), until=30.0, saved_s=bet().cost_s(30.0))
    assert accounts.switched_off == 1
