import math
import random
from collections.abc import Callable

import pytest

from agentserve.core.forecast import ToolCall, ToolForecaster
from agentserve.core.forecast.evaluation import evaluate_calls
from agentserve.core.forecast.evaluation.rows import CallRow
from agentserve.core.forecast.tools import PROGRAM_KEYS_MAX

FAST = ToolCall(name="Read", argument_class=".py")
SLOW = ToolCall(name="Shell", argument_class="pytest")
PERSON = ToolCall(name="AskUser", kind="human")


def taught(*pairs: tuple[ToolCall, float], times: int = 12, program: str | None = "p") -> ToolForecaster:
    forecaster = ToolForecaster()
    for _ in range(times):
        for call, seconds in pairs:
            forecaster.observe(tenant="t", program=program, call=call, seconds=seconds)
    return forecaster


def median(
    forecaster: ToolForecaster, *calls: ToolCall, tenant: str = "t", program: str | None = "p"
) -> float:
    return forecaster.predict(tenant=tenant, program=program, calls=calls).quantile(0.5)


def test_what_was_seen_often_is_forecast() -> None:
    forecaster = taught((FAST, 0.05), (SLOW, 20.0))
    assert median(forecaster, FAST) == pytest.approx(0.05, rel=0.25)
    assert median(forecaster, SLOW) == pytest.approx(20.0, rel=0.25)


def test_with_nothing_seen_the_forecast_is_wide() -> None:
    forecast = ToolForecaster().predict(tenant="t", program=None, calls=[FAST])
    assert forecast.quantile(0.9) / forecast.quantile(0.1) > 1_000


def test_a_new_argument_class_is_forecast_as_its_tool_is() -> None:
    forecaster = taught((SLOW, 20.0), (FAST, 0.05))
    unseen = ToolCall(name="Shell", argument_class="tox")
    assert 5.0 < median(forecaster, unseen, program="new") < 60.0


def test_a_program_on_a_slow_machine_gets_its_own_forecast() -> None:
    forecaster = ToolForecaster()
    for i in range(40):
        seconds = 8.0 if i % 2 else 0.1
        forecaster.observe(tenant="t", program=f"p{i % 2}", call=FAST, seconds=seconds)
    assert median(forecaster, FAST, program="p1") > 2.0
    assert median(forecaster, FAST, program="p0") < 0.5


def test_an_exact_repeat_is_told_from_its_class() -> None:
    quick = ToolCall(name="Shell", argument_class="make", exact_hash=1)
    long = ToolCall(name="Shell", argument_class="make", exact_hash=2)
    forecaster = taught((quick, 0.2), (long, 60.0), times=25, program=None)
    assert median(forecaster, quick, program=None) < 2.0
    assert median(forecaster, long, program=None) > 10.0


def test_a_change_of_pace_is_followed_within_a_few_calls() -> None:
    forecaster = taught((FAST, 0.05), times=60)
    for _ in range(8):
        forecaster.observe(tenant="t", program="p", call=FAST, seconds=4.0)
    assert median(forecaster, FAST) > 1.0


def test_parallel_calls_return_with_the_dominant_one() -> None:
    forecaster = taught((FAST, 0.05), (SLOW, 20.0))
    both = median(forecaster, FAST, SLOW)
    assert both == pytest.approx(median(forecaster, SLOW), rel=0.5)
    assert forecaster.dominant(tenant="t", program="p", calls=[FAST, SLOW]) == 1
    assert forecaster.dominant(tenant="t", program="p", calls=[FAST, PERSON, SLOW]) == 1


def test_waits_for_people_are_counted_apart() -> None:
    forecaster = taught((FAST, 0.05), times=40)
    for _ in range(20):
        forecaster.observe(tenant="t", program="p", call=PERSON, seconds=7200.0)
    assert median(forecaster, PERSON) == pytest.approx(7200.0, rel=0.5)
    assert median(forecaster, FAST) < 0.2


@pytest.mark.parametrize("how", ["censored", "dropped", "taken as seen"])
def test_calls_that_were_cut_off_are_not_forgotten(how: str) -> None:
    """Half of all calls take 60 s, and most of those are cut off at 2 s: only counting them as censored shows it."""
    rng = random.Random(3)
    forecaster = ToolForecaster()
    for _ in range(400):
        if rng.random() < 0.5:
            forecaster.observe(tenant="t", program=None, call=SLOW, seconds=0.2)
        elif rng.random() < 0.25:
            forecaster.observe(tenant="t", program=None, call=SLOW, seconds=60.0)
        elif how != "dropped":
            forecaster.observe(tenant="t", program=None, call=SLOW, seconds=2.0, censored=how == "censored")
    beyond = forecaster.predict(tenant="t", program=None, calls=[SLOW]).survival(10.0)
    assert (0.35 < beyond < 0.65) == (how == "censored")


def test_calls_that_never_come_back_show_as_such() -> None:
    forecaster = ToolForecaster()
    for i in range(60):
        forecaster.observe(
            tenant="t", program=None, call=SLOW, seconds=1.0 if i % 4 else 4000.0, censored=not i % 4
        )
    forecast = forecaster.predict(tenant="t", program=None, calls=[SLOW])
    assert 0.12 < forecast.never_returns < 0.4


def test_a_wait_that_goes_on_is_forecast_from_where_it_is() -> None:
    forecaster = taught((SLOW, 10.0), (SLOW, 100.0), times=20)
    later = forecaster.predict(tenant="t", program="p", calls=[SLOW], elapsed_s=40.0)
    assert later.quantile(0.5) == pytest.approx(100.0, rel=0.4)


def test_tenants_share_what_tools_are_like_but_not_their_own_calls() -> None:
    forecaster = ToolForecaster()
    secret = ToolCall(name="Shell", argument_class="deploy", exact_hash=42, pipes=True)
    for _ in range(40):
        forecaster.observe(tenant="a", program=None, call=secret, seconds=500.0)
        forecaster.observe(tenant="b", program=None, call=secret, seconds=0.5)
    assert median(forecaster, secret, tenant="a", program=None) > 100.0
    assert median(forecaster, secret, tenant="b", program=None) < 3.0


def test_forgetting_a_program_keeps_what_it_taught_about_tools() -> None:
    forecaster = taught((FAST, 0.05), times=30)
    keys = len(forecaster)
    forecaster.forget_program("p", tenant="t")
    assert len(forecaster) < keys
    assert median(forecaster, FAST, program="other") == pytest.approx(0.05, rel=0.4)
    forecaster.forget_program("p", tenant="t")


def test_the_number_of_keys_is_bounded() -> None:
    forecaster = ToolForecaster(keys_max=500, programs_max=10)
    for i in range(3_000):
        call = ToolCall(name=f"tool{i % 7}", argument_class=f"c{i}", exact_hash=i)
        forecaster.observe(tenant="t", program=f"p{i % 40}", call=call, seconds=1.0)
        for j in range(4):
            forecaster.observe(tenant="t", program="busy", call=ToolCall(name=f"x{i * 4 + j}"), seconds=1.0)
    assert len(forecaster) <= 500 + 10 * PROGRAM_KEYS_MAX


def test_the_program_not_heard_of_for_longest_is_forgotten_first() -> None:
    forecaster = ToolForecaster(programs_max=5)
    for i in range(60):
        forecaster.observe(tenant="t", program="old but busy", call=FAST, seconds=9.0)
        forecaster.observe(tenant="t", program=f"p{i}", call=FAST, seconds=0.05)
    assert median(forecaster, FAST, program="old but busy") == pytest.approx(9.0, rel=0.3)
    assert median(forecaster, FAST, program="p0") == median(forecaster, FAST, program=None)


def test_what_is_used_is_not_forgotten() -> None:
    forecaster = ToolForecaster(keys_max=400)
    for i in range(3_000):
        forecaster.observe(tenant="t", program=None, call=FAST, seconds=0.05)
        forecaster.observe(tenant="t", program=None, call=ToolCall(name="x", exact_hash=i), seconds=30.0)
    assert median(forecaster, FAST, program=None) == pytest.approx(0.05, rel=0.3)


def test_it_is_restored_as_it_was_stored() -> None:
    forecaster = taught((FAST, 0.05), (SLOW, 20.0), (PERSON, 300.0))
    again = ToolForecaster.from_bytes(forecaster.to_bytes())
    for call in (FAST, SLOW, PERSON):
        before = forecaster.predict(tenant="t", program="p", calls=[call])
        after = again.predict(tenant="t", program="p", calls=[call])
        assert list(after.masses) == pytest.approx(list(before.masses), abs=2e-3)
    assert len(again) == len(forecaster)


@pytest.mark.parametrize("data", [b"", b"\x00", b"not this", b"\x80"])
def test_bytes_that_are_not_a_forecaster_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        ToolForecaster.from_bytes(data)


def test_two_gateways_merged_know_what_both_saw() -> None:
    here, there = taught((FAST, 0.05), times=30), taught((SLOW, 20.0), times=30)
    for _ in range(30):
        here.observe(tenant="t", program=None, call=ToolCall(name="Both"), seconds=1.0)
        there.observe(tenant="t", program=None, call=ToolCall(name="Both"), seconds=100.0)
    here.merge(there)
    assert median(here, FAST, program=None) == pytest.approx(0.05, rel=0.3)
    assert median(here, SLOW, program=None) == pytest.approx(20.0, rel=0.3)
    both = here.predict(tenant="t", program=None, calls=[ToolCall(name="Both")])
    assert 0.3 < both.cdf(10.0) < 0.7


def test_it_learns_a_very_long_history_without_losing_precision() -> None:
    forecaster = ToolForecaster()
    for i in range(30_000):
        forecaster.observe(tenant="t", program="p", call=FAST, seconds=0.05 if i < 29_900 else 2.0)
    assert median(forecaster, FAST) == pytest.approx(2.0, rel=0.2)
    total = sum(forecaster.predict(tenant="t", program="p", calls=[FAST]).masses)
    assert math.isclose(total, 1.0, rel_tol=1e-3)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="zero seconds or more"):
        ToolForecaster().observe(tenant="t", program=None, call=FAST, seconds=math.nan)
    with pytest.raises(ValueError, match="at least one call"):
        ToolForecaster().predict(tenant="t", program=None, calls=[])


def test_it_beats_every_baseline_on_agents_with_habits(calls_of: Callable[..., list[CallRow]]) -> None:
    report = evaluate_calls(calls_of(1_500))
    ours = report.accuracy["agentserve"].numbers()
    for name, accuracy in report.accuracy.items():
        if name != "agentserve":
            assert ours["crps"] < 0.9 * accuracy.numbers()["crps"], name
    for break_even_s, cost in report.costs["agentserve"].by.items():
        for name, costs in report.costs.items():
            assert cost.regret <= costs.by[break_even_s].regret + 0.02, (name, break_even_s)


def test_its_quantiles_keep_their_word(calls_of: Callable[..., list[CallRow]]) -> None:
    numbers = evaluate_calls(calls_of(2_000, seed=5)).accuracy["agentserve"].numbers()
    assert 0.42 < numbers["coverage_p50"] < 0.58
    assert 0.86 < numbers["coverage_p90"] < 0.95
    assert 0.97 < numbers["coverage_p99"] <= 1.0


def test_the_names_of_tools_do_not_matter(calls_of: Callable[..., list[CallRow]]) -> None:
    """Renamed one for one, tools are forecast as well as before: nothing is known of any name."""
    rows = calls_of(800)
    renamed = []
    for row in rows:
        call = ToolCall(
            name=row.call.name[::-1], argument_class=row.call.argument_class, exact_hash=row.call.exact_hash
        )
        fields = {f: getattr(row, f) for f in row.__slots__ if f != "call"}
        renamed.append(CallRow(call=call, **fields))
    before, after = (evaluate_calls(r).accuracy["agentserve"].numbers()["crps"] for r in (rows, renamed))
    assert after == pytest.approx(before, rel=1e-6)
