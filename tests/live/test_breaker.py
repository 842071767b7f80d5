"""When an engine is trusted."""

from __future__ import annotations

from agentserve.live.breaker import FAILURES_MAX, PAUSE_S_MAX, PAUSE_S_MIN, STEPS_FAILED_MAX, Breaker, State


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES_MAX):
        breaker.failed(at, "x")
    return breaker


def test_some_failures_in_a_row_open_it_and_that_is_said_once() -> None:
    breaker = Breaker()
    assert [breaker.failed(0.0, "x") for _ in range(FAILURES_MAX + 1)] == [False] * (FAILURES_MAX - 1) + [
        True,
        False,
    ]
    assert breaker.state is State.OPEN


def test_a_success_between_failures_keeps_it_closed() -> None:
    breaker = Breaker()
    for _ in range(20):
        breaker.failed(0.0, "x")
        breaker.succeeded()
    assert breaker.state is State.CLOSED


def test_one_probe_goes_through_after_the_pause_and_closes_it() -> None:
    breaker = opened(at=10.0)
    assert breaker.probe_in_s(10.0) == PAUSE_S_MIN
    assert breaker.probe_in_s(11.0) == 0.0
    breaker.probing()
    states = (breaker.state, breaker.succeeded(), breaker.state)
    assert states == (State.HALF_OPEN, True, State.CLOSED)


def test_a_probe_that_fails_doubles_the_pause_up_to_a_bound() -> None:
    breaker, pauses = opened(), []
    for i in range(8):
        breaker.probing()
        breaker.failed(float(i), "x")
        pauses.append(breaker.probe_in_s(float(i)))
    assert pauses[:3] == [2 * PAUSE_S_MIN, 4 * PAUSE_S_MIN, 8 * PAUSE_S_MIN]
    assert pauses[-1] == PAUSE_S_MAX


def test_many_steps_that_fail_at_once_do_not_open_it_when_probes_are_answered() -> None:
    breaker = Breaker()
    for _ in range(STEPS_FAILED_MAX - 1):
        assert not breaker.step_failed(0.0, "x")
        breaker.succeeded()
    assert breaker.state is State.CLOSED


def test_steps_that_fail_on_and_on_open_it_whatever_probes_say() -> None:
    breaker = Breaker()
    opened_by = []
    for _ in range(STEPS_FAILED_MAX):
        opened_by.append(breaker.step_failed(0.0, "x"))
        breaker.succeeded() if breaker.state is State.CLOSED else None
    assert opened_by[-1]
    breaker.probing()
    breaker.succeeded()
    breaker.step_failed(0.0, "x")
    breaker.step_succeeded()
    assert breaker.steps_failed == 0
