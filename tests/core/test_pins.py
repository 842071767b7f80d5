"""Pins: where their end lies, what they cost, and that those which do not pay are switched off."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agentserve.core.foresight import Exponential, Known, Pointwise
from agentserve.core.ids import TenantId, WorkflowId
from agentserve.core.pins import PROBE_EVERY, SETTLED_MIN, Bet, PinAccounts, gain_forecast_s, ttl_s

T, W = TenantId("t"), WorkflowId("w")


class Mixed(Pointwise):
    """Mostly back at once, else hardly ever: the longer it is away, the less it is worth waiting."""

    def survival(self, t: float) -> float:
        return 0.9 * math.exp(-t / 1.0) + 0.1 * math.exp(-t / 1000.0)

    def quantile(self, q: float) -> float:
        raise NotImplementedError


def test_a_gap_shorter_than_filling_the_memory_is_kept_to_its_end_and_a_long_one_not_at_all() -> None:
    assert ttl_s(Known(3.0), fill_s=10.0, price=0.5, longest_s=300.0) == 300.0
    assert ttl_s(Known(100.0), fill_s=10.0, price=0.5, longest_s=300.0) == 0.0


def test_a_pin_ends_where_its_return_has_become_unlikely() -> None:
    ttl = ttl_s(Mixed(), fill_s=10.0, price=0.5, longest_s=300.0)
    # by then 0.9 e^-t has sunk below what the slow tenth would need to be worth it
    assert 2.0 < ttl < 6.0


def test_a_higher_price_never_keeps_longer() -> None:
    ends = [ttl_s(Mixed(), fill_s=10.0, price=price, longest_s=300.0) for price in (0.0, 0.2, 0.5, 2.0, 9.0)]
    assert ends == sorted(ends, reverse=True)
    assert ends[0] == 300.0


@settings(max_examples=50, deadline=None)
@given(
    mean=st.floats(0.01, 1e4),
    fill=st.floats(0.1, 1e3),
    price=st.floats(0.0, 5.0),
    longest=st.floats(1.0, 1e3),
)
def test_an_exponential_gap_is_kept_for_good_or_not_at_all(
    mean: float, fill: float, price: float, longest: float
) -> None:
    assume(longest <= 20 * mean)  # after that nothing is left of it to tell its rate by
    assert ttl_s(Exponential(mean), fill_s=fill, price=price, longest_s=longest) in (0.0, longest)


def bet(price: float = 0.5) -> Bet:
    return Bet(made_at=10.0, tokens=1000, price=price, capacity=10_000.0)


def test_what_a_pin_cost_is_its_share_of_the_memory_for_as_long_as_it_had_a_price() -> None:
    assert bet().cost_s(30.0) == pytest.approx(20.0 * 0.5 * 0.1)
    assert bet().cost_s(5.0) == 0.0


def test_gains_and_regrets_add_up() -> None:
    accounts = PinAccounts()
    accounts.settle(T, W, bet(), until=30.0, saved_s=4.0)
    accounts.settle(T, W, bet(), until=50.0, saved_s=0.0)
    figures = accounts.figures()
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


def test_the_gain_that_is_forecast_is_the_gain_that_comes() -> None:
    # back after 2 s for sure: all of the prefill is spared, two seconds are paid for
    known = gain_forecast_s(Known(2.0), kept_s=10.0, elapsed=0.0, spared_s=3.0, rent=0.1)
    assert known == pytest.approx(3.0 - 0.2, abs=0.11)
    never = gain_forecast_s(Known(1e9), kept_s=10.0, elapsed=0.0, spared_s=3.0, rent=0.1)
    assert never == pytest.approx(-1.0)
