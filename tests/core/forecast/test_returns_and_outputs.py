import random

import pytest

from agentserve.core.forecast import OutputForecaster, ReturnForecaster, ToolCall
from agentserve.core.forecast.grid import TOKENS
from agentserve.core.forecast.ladder import Ladder, Rung
from agentserve.core.forecast.masses import Table
from agentserve.core.forecast.turns import Unfollowed, keys_of

FAST, SLOW = ToolCall(name="Read"), ToolCall(name="Shell", argument_class="make")


def test_a_gap_is_forecast_from_gaps_tool_time_and_client_together() -> None:
    forecaster = ReturnForecaster()
    for _ in range(30):
        forecaster.observe(tenant="t", program="p", calls=[FAST], seconds=0.8)
        forecaster.observe(tenant="t", program="p", calls=[FAST, SLOW], seconds=30.0)
    assert forecaster.predict(tenant="t", program="p", calls=[FAST]).quantile(0.5) == pytest.approx(
        0.8, rel=0.3
    )
    both = forecaster.predict(tenant="t", program="p", calls=[FAST, SLOW])
    assert both.quantile(0.5) == pytest.approx(30.0, rel=0.4)


def test_after_a_turn_a_person_is_next() -> None:
    forecaster = ReturnForecaster()
    for i in range(60):
        forecaster.observe(tenant="t", program=f"p{i}", seconds=120.0)
        forecaster.observe(tenant="t", program=f"p{i}", calls=[FAST], seconds=0.1)
    turn = forecaster.predict(tenant="t", program="q")
    assert turn.quantile(0.5) == pytest.approx(120.0, rel=0.4)
    assert turn.best_ttl(5.0) == 0.0
    assert forecaster.predict(tenant="t", program="q", calls=[FAST]).best_ttl(5.0) > 0.0


def test_programs_that_were_given_up_show_as_never_returning() -> None:
    forecaster = ReturnForecaster()
    for i in range(80):
        given_up = i % 4 == 0
        forecaster.observe(
            tenant="t", program=None, seconds=700_000.0 if given_up else 60.0, censored=given_up
        )
    assert 0.1 < forecaster.predict(tenant="t", program=None).never_returns < 0.4


def test_turns_that_nobody_followed_speak_against_a_return_before_any_was_given_up() -> None:
    forecaster = ReturnForecaster()
    for _ in range(20):
        forecaster.turn_ended(tenant="t", workflow="asks once")
    assert forecaster.predict(tenant="t", program=None, workflow="asks once").never_returns > 0.8
    assert forecaster.predict(tenant="t", program=None, workflow="another").never_returns < 0.2


def test_a_turn_that_was_followed_is_not_held_against_the_next() -> None:
    forecaster = ReturnForecaster()
    for _ in range(40):
        forecaster.turn_ended(tenant="t")
        forecaster.observe(tenant="t", program=None, seconds=5.0)
    assert forecaster.predict(tenant="t", program=None).never_returns < 0.05


def test_a_turn_that_was_given_up_goes_on_speaking_against_a_return_and_is_counted_once() -> None:
    forecaster = ReturnForecaster()
    for i in range(30):
        forecaster.turn_ended(tenant="t", steps=1)
        given_up = i % 3 == 0
        forecaster.observe(
            tenant="t", program=None, seconds=1_800.0, steps=1, censored=given_up, given_up=given_up
        )
    assert forecaster.predict(tenant="t", program=None, steps=1).never_returns == pytest.approx(
        1 / 3, abs=0.1
    )


def test_a_turn_whose_end_was_told_or_not_seen_says_nothing_of_the_next() -> None:
    forecaster = ReturnForecaster()
    for _ in range(40):
        forecaster.turn_ended(tenant="t", steps=2)
        forecaster.turn_was_last(tenant="t", steps=2)
        forecaster.turn_ended(tenant="t", steps=2)
        forecaster.observe(tenant="t", program=None, seconds=5.0, steps=2, censored=True)
    assert forecaster.predict(tenant="t", program=None, steps=2).never_returns < 0.1


def stopped_at(limit: int, *, programs: int, calls: list[ToolCall]) -> ReturnForecaster:
    """What is known after programs that come back five seconds after each step, and not after the `limit`th."""
    forecaster = ReturnForecaster()
    for i in range(programs):
        for steps in range(1, limit + 1):
            over = steps == limit
            if not calls:
                forecaster.turn_ended(tenant="t", steps=steps)
            forecaster.observe(
                tenant="t",
                program=f"p{i}",
                calls=calls,
                seconds=1_800.0 if over else 5.0,
                steps=steps,
                censored=over,
                given_up=over,
            )
    return forecaster


@pytest.mark.parametrize("calls", [[], [SLOW]], ids=["turns", "calls"])
def test_where_programs_stop_at_a_number_of_steps_none_is_waited_for_there_and_all_before(
    calls: list[ToolCall],
) -> None:
    forecaster = stopped_at(8, programs=12, calls=calls)
    gaps = {
        steps: forecaster.predict(tenant="t", program="q", calls=calls, steps=steps) for steps in (3, 7, 8)
    }
    assert gaps[8].survival(600.0) > 0.7
    assert gaps[3].survival(600.0) < 0.2
    assert gaps[7].survival(600.0) < 0.2
    assert gaps[8].best_ttl(10.0) < gaps[7].best_ttl(10.0), "the memory of one that is over is let go sooner"


def test_a_limit_of_steps_that_is_lifted_is_forgotten() -> None:
    forecaster = stopped_at(8, programs=30, calls=[])
    for _ in range(300):
        forecaster.turn_ended(tenant="t", steps=8)
        forecaster.observe(tenant="t", program=None, seconds=5.0, steps=8)
    assert forecaster.predict(tenant="t", program=None, steps=8).never_returns < 0.2


def test_programs_that_stop_anywhere_are_doubted_alike_after_every_step() -> None:
    forecaster, rng = ReturnForecaster(), random.Random(5)
    for _ in range(2_000):
        over = rng.random() < 0.05
        forecaster.observe(
            tenant="t",
            program=None,
            calls=[FAST],
            seconds=1_800.0 if over else 0.8,
            steps=rng.randint(1, 13),
            censored=over,
            given_up=over,
        )
    for steps in range(1, 14):
        gap = forecaster.predict(tenant="t", program=None, calls=[FAST], steps=steps)
        assert gap.survival(600.0) < 0.25


def test_steps_are_told_apart_up_to_some_and_by_eighths_beyond() -> None:
    places = [keys_of(1, steps)[1] for steps in range(1, 5_000)]
    assert len(set(places[:64])) == 64
    assert places[1_000] == places[1_020] != places[1_200]
    assert len(set(places)) < 130


def test_no_more_than_so_many_kinds_of_gaps_are_remembered() -> None:
    known = Unfollowed()
    for kind in range(20_000):
        known.missing(keys_of(kind, 1))
    assert len(known) <= 16_384


def test_returns_are_restored_as_they_were_stored_and_merge() -> None:
    forecaster = ReturnForecaster()
    for _ in range(30):
        forecaster.observe(tenant="t", program="p", calls=[SLOW], seconds=30.0)
        forecaster.observe(tenant="t", program="p", seconds=90.0)
    forecaster.merge(stopped_at(4, programs=20, calls=[FAST]))
    again = ReturnForecaster.from_bytes(forecaster.to_bytes())
    merged = ReturnForecaster()
    merged.merge(forecaster)
    for copy in (again, merged):
        stops = copy.predict(tenant="t", program=None, calls=[FAST], steps=4)
        assert stops.survival(600.0) > 0.7
        assert copy.predict(tenant="t", program="p", calls=[SLOW]).quantile(0.5) == pytest.approx(
            30.0, rel=0.3
        )
        assert copy.predict(tenant="t", program="p").quantile(0.5) == pytest.approx(90.0, rel=0.3)
    again.forget_program("p", tenant="t")
    with pytest.raises(ValueError):
        ReturnForecaster.from_bytes(b"x")


def test_roles_write_differently_and_no_forecast_passes_the_limit() -> None:
    forecaster = OutputForecaster()
    for _ in range(60):
        forecaster.observe(tenant="t", role=1, tokens=40)
        forecaster.observe(tenant="t", role=2, tokens=3_000)
    assert forecaster.predict(tenant="t", role=1).quantile(0.5) == pytest.approx(40, rel=0.3)
    assert forecaster.predict(tenant="t", role=2).quantile(0.5) == pytest.approx(3_000, rel=0.3)
    limited = forecaster.predict(tenant="t", role=2, tokens_max=256)
    assert limited.quantile(0.99) <= 256 * 1.3


def test_before_anything_was_seen_a_step_is_taken_for_an_ordinary_one() -> None:
    unknown = OutputForecaster().predict(tenant="t", role=1, program="p")
    assert 100 < unknown.quantile(0.5) < 250
    assert 300 < unknown.quantile(0.75) < 900  # what the first programs are charged for
    assert unknown.quantile(0.99) > 2_000


def test_a_step_that_writes_on_is_forecast_from_what_it_wrote() -> None:
    forecaster = OutputForecaster()
    for tokens in (100, 100, 100, 2_000) * 20:
        forecaster.observe(tenant="t", tokens=tokens)
    assert forecaster.predict(tenant="t").quantile(0.5) < 200
    assert forecaster.predict(tenant="t", written=400).quantile(0.5) > 1_000


def test_a_reply_cut_by_its_limit_counts_as_longer() -> None:
    cut, whole = OutputForecaster(), OutputForecaster()
    for i in range(60):
        for forecaster in (cut, whole):
            forecaster.observe(tenant="t", tokens=2_000 if i % 3 == 0 else 100)
            if i % 3:
                forecaster.observe(tenant="t", tokens=150, truncated=forecaster is cut)
    assert cut.predict(tenant="t").survival(1_000) > whole.predict(tenant="t").survival(1_000) + 0.1


def test_outputs_are_restored_as_they_were_stored() -> None:
    forecaster = OutputForecaster()
    forecaster.observe(tenant="t", tokens=500, program="p")
    again = OutputForecaster.from_bytes(forecaster.to_bytes())
    assert list(again.predict(tenant="t").masses) == list(forecaster.predict(tenant="t").masses)
    with pytest.raises(ValueError):
        OutputForecaster.from_bytes(b"\x01")


def test_a_rung_with_few_observations_says_what_the_one_above_says() -> None:
    ladder = Ladder(TOKENS, [Rung(half_life=100, strength=1), Rung(half_life=50, strength=50)], keys_max=100)
    for _ in range(100):
        ladder.learn((0, 1), 10.0)
    ladder.learn((0, 2), 5_000.0)
    assert ladder.forecast((0, 2)).quantile(0.5) == pytest.approx(10.0, rel=0.3)


def test_a_table_forgets_what_was_not_used_for_longest() -> None:
    table = Table(TOKENS, keys_max=10)
    for key in range(100):
        table.at(key)
        table.at(0)
    assert len(table) <= 10
    assert table.get(0) is not None
    assert table.get(99) is not None
    assert table.get(50) is None
    with pytest.raises(ValueError, match="bytes"):
        table.load({1: b"abc"})
