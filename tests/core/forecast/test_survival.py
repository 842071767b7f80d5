import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.core.forecast import Survival
from agentserve.core.forecast.grid import TOOL_SECONDS, Grid, spread
from agentserve.core.foresight import Exponential, Known

masses_of = st.lists(st.floats(0.0, 1.0), min_size=TOOL_SECONDS.bins, max_size=TOOL_SECONDS.bins).filter(
    lambda xs: sum(xs) > 0.1
)
times = st.floats(0.0005, 7200.0)


def always(seconds: float) -> Survival:
    """A forecast that was told one duration."""
    masses = [0.0] * TOOL_SECONDS.bins
    for place, part in TOOL_SECONDS.smear(seconds):
        masses[place] += part
    return Survival(TOOL_SECONDS, masses)


@settings(max_examples=60, deadline=None)
@given(masses_of, st.floats(0.01, 0.99), st.floats(0.0, 600.0))
def test_a_quantile_is_where_the_distribution_reaches_it(
    masses: list[float], q: float, elapsed: float
) -> None:
    forecast = Survival(TOOL_SECONDS, masses, elapsed_s=elapsed)
    t = forecast.quantile(q)
    assert t >= elapsed
    if t < TOOL_SECONDS.high:
        assert forecast.cdf(t) == pytest.approx(q, abs=0.02) or forecast.cdf(t * 1.0001) >= q


@settings(max_examples=60, deadline=None)
@given(masses_of, st.floats(0.01, 0.99), st.floats(0.0, 600.0))
def test_a_quantile_of_those_still_away_is_where_that_share_of_them_is_back(
    masses: list[float], q: float, elapsed: float
) -> None:
    forecast = Survival(TOOL_SECONDS, masses)
    away = forecast.survival(elapsed)
    t = forecast.quantile(q, elapsed)
    assert t >= elapsed
    if away > 1e-3 and t < TOOL_SECONDS.high:
        assert forecast.survival(t) <= away * (1.0 - q) + 0.02
        assert forecast.survival(max(t * 0.999, elapsed)) >= away * (1.0 - q) - 0.02


def test_a_gap_that_has_outlasted_the_longest_pin_is_not_kept() -> None:
    for gap in (Exponential(1e-3), Known(5.0), always(5.0)):
        assert gap.keeping(10.0, -4_000.0, 4_300.0).ttl_s == 0.0


def test_gaps_that_are_known_in_part_are_conditioned_too() -> None:
    assert Exponential(10.0).quantile(0.5, 30.0) == 30.0 + Exponential(10.0).quantile(0.5)
    assert (Known(20.0).quantile(0.5, 5.0), Known(20.0).quantile(0.5, 30.0)) == (20.0, 30.0)


@settings(max_examples=60, deadline=None)
@given(masses_of, times, times)
def test_survival_never_rises(masses: list[float], a: float, b: float) -> None:
    forecast = Survival(TOOL_SECONDS, masses)
    first, second = sorted((a, b))
    assert forecast.survival(first) >= forecast.survival(second) - 1e-9
    assert -1e-9 <= forecast.survival(second) <= 1 + 1e-9


@settings(max_examples=60, deadline=None)
@given(masses_of, st.floats(0.0, 500.0), times)
def test_conditioning_agrees_with_the_ratio_of_survivals(
    masses: list[float], elapsed: float, t: float
) -> None:
    forecast = Survival(TOOL_SECONDS, masses)
    if forecast.survival(elapsed) > 1e-3:
        later = Survival(TOOL_SECONDS, masses, elapsed_s=elapsed)
        within = 1.0 - forecast.survival(elapsed + t) / forecast.survival(elapsed)
        assert later.cdf(elapsed + t) == pytest.approx(within, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(masses_of, st.floats(0.05, 200.0), st.floats(0.0, 60.0))
def test_no_fixed_choice_costs_less_than_the_best_ttl(
    masses: list[float], miss: float, elapsed: float
) -> None:
    forecast = Survival(TOOL_SECONDS, masses, elapsed_s=elapsed)

    def cost(ttl: float) -> float:
        """Held time plus misses, summed over a fine cut of the distribution."""
        total, cuts = 0.0, 250
        for i in range(cuts):
            t = forecast.quantile((i + 0.5) / cuts) - elapsed
            total += min(t, ttl) + (miss if t > ttl else 0.0)
        return total / cuts

    chosen = cost(forecast.best_ttl(miss))
    for share in (0.0, 0.25, 0.5, 1.0, 2.0):
        assert chosen <= cost(share * miss) * 1.06 + 0.002


def test_what_returns_within_a_moment_is_kept_and_what_takes_an_hour_is_let_go() -> None:
    assert always(0.2).best_ttl(5.0) >= 0.2
    assert always(2000.0).best_ttl(5.0) == 0.0


def test_a_wait_that_outlasted_its_forecast_is_let_go() -> None:
    masses = [0.0] * TOOL_SECONDS.bins
    for seconds in (0.2, 0.2, 0.2, 900.0):
        for place, part in TOOL_SECONDS.smear(seconds):
            masses[place] += part
    assert Survival(TOOL_SECONDS, masses).best_ttl(10.0) > 0.2
    assert Survival(TOOL_SECONDS, masses, elapsed_s=5.0).best_ttl(10.0) == 0.0


def test_the_cap_bounds_the_ttl() -> None:
    assert 0.0 < always(3.0).best_ttl(100.0, cap_s=4.5) <= 4.5
    assert always(30.0).best_ttl(100.0, cap_s=4.5) == 0.0
    assert always(3.0).best_ttl(0.0) == 0.0


def test_the_mass_beyond_the_horizon_never_returns() -> None:
    masses = [0.0] * TOOL_SECONDS.bins
    masses[10], masses[-1] = 0.75, 0.25
    forecast = Survival(TOOL_SECONDS, masses)
    assert forecast.never_returns == pytest.approx(0.25)
    assert forecast.survival(TOOL_SECONDS.high) == pytest.approx(0.25)
    assert forecast.quantile(0.9) == TOOL_SECONDS.high


def test_the_mean_remaining_of_a_known_wait_is_what_is_left_of_it() -> None:
    assert always(100.0).mean_remaining(0.0, 3600.0) == pytest.approx(100.0, rel=0.1)
    assert always(100.0).mean_remaining(60.0, 3600.0) == pytest.approx(40.0, rel=0.3)
    assert always(100.0).mean_remaining(0.0, 5.0) == pytest.approx(5.0, rel=0.01)


def test_outlasting_everything_seen_leaves_only_never() -> None:
    forecast = Survival(TOOL_SECONDS, [1.0, *[0.0] * (TOOL_SECONDS.bins - 1)], elapsed_s=50.0)
    assert forecast.never_returns == 1.0
    assert forecast.best_ttl(30.0) == 0.0


def test_a_quantile_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        always(1.0).quantile(1.5)


@settings(max_examples=80, deadline=None)
@given(st.floats(1e-5, 1e6))
def test_every_value_lands_in_its_own_bin_and_is_smeared_around_it(value: float) -> None:
    grid = TOOL_SECONDS
    place = grid.index(value)
    smear = grid.smear(value)
    assert sum(part for _, part in smear) == pytest.approx(1.0)
    assert max(smear, key=lambda item: item[1])[0] in (place - 1, place, place + 1)
    if grid.low < value < grid.high:
        at, part = grid.position(value)
        assert grid.value_at(at, part) == pytest.approx(value, rel=1e-6)


def test_a_censored_observation_lies_above_where_it_was_lost() -> None:
    masses = [1.0] * TOOL_SECONDS.bins
    kept = spread(TOOL_SECONDS, masses, 10.0)
    assert sum(part for _, part in kept) == pytest.approx(1.0)
    assert min(place for place, _ in kept) == TOOL_SECONDS.position(10.0)[0]


def test_a_grid_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="low < high < beyond"):
        Grid(low=2.0, high=1.0, bins=48, beyond=3.0)
