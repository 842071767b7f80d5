import random

import pytest

from agentserve.core.forecast import ToolCall, ToolForecaster

CALL = ToolCall(name="train")


def hinted(ratio: float, *, spread: float = 0.0, outcomes: int = 25) -> ToolForecaster:
    """A client declared each call's time, wrong by `ratio` and by chance within a factor e ** spread."""
    rng = random.Random(7)
    forecaster = ToolForecaster()
    for i in range(outcomes):
        call = ToolCall(name="train", exact_hash=i)
        seconds = rng.choice((0.5, 5.0, 50.0, 500.0))
        said = seconds * ratio * 2.718 ** rng.uniform(-spread, spread)
        forecaster.hint(tenant="t", client="sdk", call=call, seconds=said, program="p")
        forecaster.observe(tenant="t", program="p", call=call, seconds=seconds)
    return forecaster


def forecast(forecaster: ToolForecaster, said: float) -> float:
    call = ToolCall(name="train", exact_hash=10_000)
    forecaster.hint(tenant="t", client="sdk", call=call, seconds=said, program="p")
    return forecaster.predict(tenant="t", program="p", calls=[call]).quantile(0.5)


def test_a_declared_duration_is_heard_before_anything_was_seen() -> None:
    forecaster = ToolForecaster()
    forecaster.hint(tenant="t", client="sdk", call=CALL, seconds=30.0)
    said = forecaster.predict(tenant="t", program="p", calls=[CALL])
    silent = ToolForecaster().predict(tenant="t", program="p", calls=[CALL])
    assert said.cdf(60.0) - said.cdf(15.0) > 0.4 > silent.cdf(60.0) - silent.cdf(15.0)


def test_a_client_that_is_right_is_believed() -> None:
    forecaster = hinted(1.0)
    assert forecaster.hinter_trust(tenant="t", client="sdk") > 0.9
    assert forecast(forecaster, 5.0) == pytest.approx(5.0, rel=0.5)
    assert forecast(forecaster, 200.0) == pytest.approx(200.0, rel=0.5)


def test_a_client_that_always_declares_a_tenth_is_corrected() -> None:
    forecaster = hinted(0.1, outcomes=60)
    assert forecast(forecaster, 5.0) == pytest.approx(50.0, rel=0.6)


def test_a_client_that_declares_at_random_is_discounted() -> None:
    wild = hinted(1.0, spread=8.0, outcomes=60)
    assert wild.hinter_trust(tenant="t", client="sdk") < 0.2


def test_one_clients_record_is_not_anothers() -> None:
    forecaster = hinted(1.0, spread=8.0, outcomes=60)
    assert forecaster.hinter_trust(tenant="t", client="other") == 0.5
    assert forecaster.hinter_trust(tenant="u", client="sdk") == 0.5


def test_a_hint_for_one_program_says_nothing_of_others() -> None:
    forecaster = ToolForecaster()
    before = forecaster.predict(tenant="t", program="q", calls=[CALL]).quantile(0.5)
    forecaster.hint(tenant="t", client="sdk", call=CALL, seconds=30.0, program="p")
    assert forecaster.predict(tenant="t", program="q", calls=[CALL]).quantile(0.5) == before


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_declaration_that_is_no_time_is_ignored(seconds: float) -> None:
    forecaster = ToolForecaster()
    before = forecaster.predict(tenant="t", program="p", calls=[CALL]).quantile(0.5)
    forecaster.hint(tenant="t", client="sdk", call=CALL, seconds=seconds)
    assert forecaster.predict(tenant="t", program="p", calls=[CALL]).quantile(0.5) == before


def test_the_record_of_a_client_survives_storing_and_merging() -> None:
    forecaster = hinted(1.0)
    stored = ToolForecaster.from_bytes(forecaster.to_bytes())
    assert stored.hinter_trust(tenant="t", client="sdk") == pytest.approx(
        forecaster.hinter_trust(tenant="t", client="sdk")
    )
    empty = ToolForecaster()
    empty.merge(forecaster)
    assert empty.hinter_trust(tenant="t", client="sdk") > 0.9
