"""The frame: what holds for every policy."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.board import Limits, Share
from agentserve.core.events import AnyEvent
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId
from agentserve.core.policies import POLICIES
from agentserve.errors import ConfigError, InvariantBroken

SIMPLE = ("fifo", "affinity", "agentserve")


@pytest.mark.parametrize("policy", SIMPLE)
def test_a_step_is_dispatched_at_once_when_there_is_room(desk: Any, policy: str) -> None:
    d = desk(policy)
    (decision,) = d.arrive("p")
    assert isinstance(decision, do.Dispatch)
    assert decision.engine == "e0"
    assert decision.reason
    assert decision.cause.startswith("StepArrived#")


@pytest.mark.parametrize("policy", SIMPLE)
def test_a_step_waits_while_no_engine_is_up_and_goes_when_one_is_back(desk: Any, policy: str) -> None:
    d = desk(policy)
    d.lose("e0")
    (decision,) = d.arrive("p")
    assert isinstance(decision, do.Wait)
    assert d.sent("p") is None
    d.back("e0")
    assert d.sent("p") == "e0"


@pytest.mark.parametrize("policy", SIMPLE)
def test_a_step_whose_engine_is_lost_is_dispatched_again_once(desk: Any, policy: str) -> None:
    d = desk(policy, engines=2)
    d.arrive("p")
    first = d.sent("p")
    out = d.lose(first)
    assert any(isinstance(x, do.Abort) and x.step == "p/0" for x in out)
    second = d.sent("p")
    assert second not in (None, first)
    d.fail("p", reason="reset", retryable=True)
    assert d.board.steps == {}, "the second failure is final"


@pytest.mark.parametrize("policy", SIMPLE)
def test_a_step_that_is_given_up_while_it_waits_is_gone(desk: Any, policy: str) -> None:
    d = desk(policy, engines=1)
    d.arrive("p")
    d.lose(d.sent("p"))
    d.fail("p", reason="reset", retryable=False)
    assert (d.board.steps, dict(d.board.waiting)) == ({}, {})


@pytest.mark.parametrize("policy", SIMPLE)
def test_a_step_that_sent_a_byte_is_not_dispatched_again(desk: Any, policy: str) -> None:
    d = desk(policy, engines=2)
    d.arrive("p")
    d.start("p")
    out = d.lose(d.sent("p"))
    assert not any(isinstance(x, do.Dispatch) for x in out)
    d.fail("p", reason="reset")
    assert not d.board.steps


@pytest.mark.parametrize("policy", SIMPLE)
def test_a_client_that_goes_frees_its_engine_and_is_aborted_upstream(desk: Any, policy: str) -> None:
    d = desk(policy)
    d.arrive("p")
    out = d.leave("p")
    assert [type(x) for x in out if isinstance(x, do.Abort)] == [do.Abort]
    assert d.board.fleet["e0"].in_flight_tokens == 0
    assert d.tell(ev.StepFinished(step=StepId("p/0"), prompt_tokens=1, output_tokens=1)) == []


@pytest.mark.parametrize("policy", SIMPLE)
def test_models_go_only_to_engines_that_serve_them(desk: Any, policy: str) -> None:
    d = desk(policy, engines=2)
    d.report("e0", models=("small",))
    d.report("e1", models=("large",))
    for i in range(4):
        d.arrive(f"p{i}", model="large", tokens=100)
        assert d.sent(f"p{i}") == "e1"


@pytest.mark.parametrize("policy", SIMPLE)
def test_a_draining_engine_gets_nothing_new(desk: Any, policy: str) -> None:
    d = desk(policy, engines=2)
    d.report("e0", draining=True)
    for i in range(3):
        d.arrive(f"p{i}", tokens=100)
        assert d.sent(f"p{i}") == "e1"


def test_a_step_that_waits_too_long_is_refused_with_a_time_to_come_back(desk: Any) -> None:
    d = desk("agentserve", limits=Limits(queue_timeout_s=5.0))
    d.lose("e0")
    d.arrive("p")
    while "p/0" in d.board.steps:
        d.timer()
    (reject,) = [x for x in d.all if isinstance(x, do.Reject)]
    assert d.now == pytest.approx(5.0)
    assert reject.status == 503
    assert reject.retry_after_s >= 1.0
    assert not d.board.steps


def test_overload_sheds_batch_before_interactive(desk: Any) -> None:
    d = desk("agentserve", limits=Limits(waiting_steps_max=2))
    d.lose("e0")
    d.arrive("a", priority="interactive")
    d.arrive("b", priority="batch")
    out = d.arrive("c", priority="interactive")
    assert [x.step for x in out if isinstance(x, do.Reject)] == ["b/0"]
    out = d.arrive("d", priority="batch")
    assert [x.step for x in out if isinstance(x, do.Reject)] == ["d/0"]


def test_the_least_of_the_waiting_is_shed_whoever_came_last(desk: Any) -> None:
    d = desk("agentserve", limits=Limits(waiting_steps_max=2))
    d.lose("e0")
    d.arrive("a", priority="batch")
    d.arrive("b", priority="standard")
    out = d.arrive("c", priority="interactive")
    assert [x.step for x in out if isinstance(x, do.Reject)] == ["a/0"]


@pytest.mark.parametrize("policy", SIMPLE)
def test_a_program_told_over_while_its_step_waits_is_gone_once_that_is_refused(
    desk: Any, policy: str
) -> None:
    d = desk(policy, limits=Limits(queue_timeout_s=5.0))
    d.lose("e0")
    d.arrive("p")
    d.end("p")
    assert "p" in d.board.programs, "it still waits"
    d.fire(6.0)
    assert "p" not in d.board.programs


@pytest.mark.parametrize("priority", ["batch", "interactive"])
def test_a_program_told_over_is_gone_when_its_step_is_shed(desk: Any, priority: str) -> None:
    d = desk("agentserve", limits=Limits(waiting_steps_max=1))
    d.lose("e0")
    d.arrive("p", priority="batch")
    d.end("p")
    d.arrive("q", priority=priority)
    assert ("p" in d.board.programs) == (priority == "batch"), "of two alike the newer one is refused"


def test_a_refused_program_is_in_a_gap_until_it_tries_again(desk: Any) -> None:
    d = desk("agentserve", limits=Limits(waiting_steps_max=1))
    d.arrive("a")
    d.finish("a", tools=(ev.PendingTool(id="c", name="bash"),))
    d.lose("e0")
    d.arrive("b")
    out = d.arrive("a", 1, after=3.0)
    assert [x.step for x in out if isinstance(x, do.Reject)] == ["a/1"]
    assert d.board.programs["a"].gap_started_at == d.now


def test_a_tenant_cannot_ask_for_more_than_its_ceiling(desk: Any) -> None:
    d = desk("fifo", shares={"t": Share(priority_max="standard")})
    d.arrive("p", priority="interactive")
    assert d.board.programs["p"].priority == "standard"
    d.arrive("q", priority="batch")
    assert d.board.programs["q"].priority == "batch"


def test_a_program_unheard_of_is_over_and_leaves_nothing_behind(desk: Any) -> None:
    d = desk("agentserve", limits=Limits(program_idle_s=60.0))
    d.arrive("p")
    d.finish("p")
    assert "p" in d.board.programs
    while "p" in d.board.programs:
        d.timer()
    assert d.now == pytest.approx(61.0, abs=3.0)
    assert d.scheduler.policy._books["e0"].load == 0


def test_live_programs_are_bounded_by_dropping_the_longest_unheard_of(desk: Any) -> None:
    d = desk("affinity", limits=Limits(live_programs_max=3))
    for i in range(5):
        d.arrive(f"p{i}", tokens=10, after=1.0)
        d.finish(f"p{i}", tokens=10)
    assert list(d.board.programs) == ["p2", "p3", "p4"]


def test_a_final_step_ends_the_program(desk: Any) -> None:
    d = desk("agentserve")
    d.arrive("p")
    d.finish("p", final=True)
    assert "p" not in d.board.programs
    d.arrive("q")
    d.end("q")
    assert "q" in d.board.programs, "its step still runs"
    d.finish("q")
    assert "q" not in d.board.programs


def test_an_auxiliary_step_does_not_change_the_program(desk: Any) -> None:
    d = desk("agentserve")
    d.arrive("p", tokens=2000)
    d.finish("p", tokens=2000)
    d.arrive("p", 99, tokens=50, relation="auxiliary")
    d.finish("p", 99, tokens=50)
    assert d.board.programs["p"].context_tokens == 2010
    assert d.board.programs["p"].steps_done == 1


def test_unknown_capacity_is_learned_from_a_miss(desk: Any) -> None:
    d = desk("affinity")
    d.back("x")
    d.lose("e0")
    for i in range(30):
        d.arrive(f"p{i}", tokens=3000)
        d.finish(f"p{i}", tokens=3000, cached_tokens=0)
    d.arrive("p0", 1, tokens=3100)
    d.finish("p0", 1, tokens=3100, cached_tokens=0)
    engine = d.board.fleet["x"]
    assert 60_000 < engine.kv_tokens < 91_000


def test_an_engine_of_unknown_capacity_that_caches_nothing_is_not_taken_for_one_without_room(
    desk: Any,
) -> None:
    d = desk("agentserve")
    d.back("x")
    d.lose("e0")
    for turn in range(4):
        d.arrive("p", turn, tokens=8000)
        d.finish("p", turn, tokens=8000, cached_tokens=0)
        assert d.board.fleet["x"].kv_tokens > 2 * 8000
    d.arrive("q", tokens=8000)
    assert d.board.fleet["x"].steps


def test_an_engines_prefill_speed_is_learned_from_its_first_bytes(desk: Any) -> None:
    d = desk("affinity")
    d.back("x")
    d.lose("e0")
    for i in range(12):
        d.arrive(f"p{i}", tokens=4000)
        d.start(f"p{i}", after=0.08)
        d.finish(f"p{i}", tokens=4000, cached_tokens=0)
    # 50,000 tokens a second, a fifteenth of the time to attend to each other
    assert 50_000 < d.board.fleet["x"].prefill_tokens_per_s < 54_000
    d.report("x", prefill_tokens_per_s=7.0)
    assert d.board.fleet["x"].prefill_tokens_per_s == 7.0


def test_a_slow_engine_is_known_for_one_from_its_first_prefill(desk: Any) -> None:
    d = desk("affinity")
    d.back("x")
    d.report("x", kv_tokens=6000)
    d.lose("e0")
    d.arrive("p", tokens=600)
    d.start("p", after=1.0)
    d.finish("p", tokens=600, cached_tokens=0)
    assert d.board.fleet["x"].prefill_tokens_per_s == pytest.approx(606.0)
    d.arrive("q", tokens=300)  # too little to tell
    d.start("q", after=0.01)
    d.finish("q", tokens=300, cached_tokens=0)
    assert d.board.fleet["x"].prefill_tokens_per_s == pytest.approx(606.0)


def test_an_engine_is_not_taken_for_slow_because_prompts_are_long(desk: Any) -> None:
    d = desk("affinity", kv_tokens=200_000)
    d.back("x")
    d.lose("e0")
    d.arrive("p", tokens=60_000)
    d.start("p", after=12.0)  # twice what it would take if nothing attended to anything before it
    d.finish("p", tokens=60_000, cached_tokens=0)
    engine = d.board.fleet["x"]
    assert engine.prefill_tokens_per_s == pytest.approx(10_000)
    assert engine.restore_s(60_000) == pytest.approx(12.0), "which is told by what was seen"
    d.arrive("p", 1, tokens=63_000)
    d.start("p", 1, after=0.3 * 3.05)  # few tokens, each attending to many
    d.finish("p", 1, tokens=63_000, cached_tokens=60_000)
    assert engine.prefill_tokens_per_s == pytest.approx(10_000)


def test_the_same_events_give_the_same_decisions(desk: Any) -> None:
    def script(d: Any) -> list[Any]:
        for i in range(12):
            d.arrive(f"p{i}", tokens=900 + i, after=0.1)
        for i in range(12):
            if d.sent(f"p{i}"):
                d.finish(f"p{i}", tokens=900 + i)
        d.timer()
        return list(d.all)

    assert script(desk(engines=2)) == script(desk(engines=2))


def test_a_journal_of_events_survives_json(desk: Any) -> None:
    d = desk(engines=2)
    a, p, t = StepId("a"), ProgramId("p"), TenantId("t")
    events: list[AnyEvent] = [
        ev.StepArrived(step=a, program=p, tenant=t, prompt_tokens=5, prefix=(ev.Segment(7, 3),)),
        ev.StepFinished(
            step=a, prompt_tokens=5, output_tokens=2, tools=(ev.PendingTool(id="c", name="bash"),)
        ),
        ev.EngineLost(engine=EngineId("e0")),
    ]
    raw = msgspec.json.encode(events)
    assert msgspec.json.decode(raw, type=list[AnyEvent]) == events
    for event in events:
        d.tell(event, after=1.0)


def test_a_step_cannot_arrive_twice(desk: Any) -> None:
    d = desk()
    d.arrive("p")
    with pytest.raises(InvariantBroken, match="arrived twice"):
        d.arrive("p")


def test_an_unknown_policy_or_parameter_names_the_nearest(desk: Any) -> None:
    with pytest.raises(ConfigError, match="did you mean `affinity`"):
        desk("afinity")
    with pytest.raises(ConfigError, match="did you mean `ceiling`"):
        desk("agentserve", celing=1.0)
    for value in ("high", True, float("nan"), None):
        with pytest.raises(ConfigError, match="give it a number"):
            desk("agentserve", ceiling=value)
    with pytest.raises(ConfigError, match="true or false"):
        desk("agentserve", reserve_gaps="no")
    assert "agentserve" in POLICIES
