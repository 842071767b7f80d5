"""The driver adds nothing to the scheduler: same events, same decisions; and it survives the core's failure."""

from __future__ import annotations

import asyncio
import heapq
import random
from typing import Any

import msgspec
import pytest

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.board import Board, Limits
from agentserve.core.events import AnyEvent
from agentserve.core.foresight import Naive
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId
from agentserve.core.policies import make_policy
from agentserve.core.scheduler import Scheduler
from agentserve.live.driver import Driver
from agentserve.ports import Outcome, Receipt
from tests.live.virtual_time import run_virtually

POLICIES = ("fifo", "affinity", "agentserve")
E0, E1, A, B = EngineId("e0"), EngineId("e1"), EngineId("a"), EngineId("b")
Story = list[tuple[float, AnyEvent, list[do.AnyDecision]]]


def fresh(policy: str) -> Scheduler:
    board = Board(foresight=Naive(), limits=Limits(program_idle_s=30.0, queue_timeout_s=50.0))
    return Scheduler(board, make_policy(policy, board))


def arrives(step: str, program: str = "p", *, tenant: str = "t", tokens: int = 5) -> ev.StepArrived:
    return ev.StepArrived(
        step=StepId(step), program=ProgramId(program), tenant=TenantId(tenant), prompt_tokens=tokens
    )


def script(seed: int) -> list[tuple[float, AnyEvent]]:
    """Arrivals, endings, hints and engine trouble at times that never coincide."""
    rng = random.Random(seed)
    out: list[tuple[float, AnyEvent]] = []
    for i, engine in enumerate((E0, E1)):
        out.append((0.01 * (i + 1), ev.EngineBack(engine=engine)))
        out.append((0.005 + 0.01 * (i + 1), ev.EngineReported(engine=engine, kv_tokens=12_000)))
    for p in range(14):
        at = 0.1 + rng.random() * 5
        tokens = rng.randrange(500, 3000)
        for k in range(rng.randrange(1, 6)):
            step = StepId(f"p{p}/{k}")
            out.append((at, arrives(step, f"p{p}", tenant=f"t{p % 3}", tokens=tokens)))
            at += 3 + rng.random() * 6
            out.append(
                (at, ev.StepFinished(step=step, prompt_tokens=tokens, output_tokens=50, cached_tokens=0))
            )
            at += 0.5 + rng.random() * 8
            tokens += rng.randrange(50, 900)
    out.append((21.0 + rng.random(), ev.EngineLost(engine=E1)))
    out.append((29.0 + rng.random(), ev.EngineBack(engine=E1)))
    return sorted(out, key=lambda pair: pair[0])


def by_heap(policy: str, events: list[tuple[float, AnyEvent]], until: float) -> Story:
    """As the simulator drives it: a heap, and timers that are asked for again after each event."""
    scheduler = fresh(policy)
    story: Story = []
    heap: list[tuple[float, int, AnyEvent | None]] = [(at, i, e) for i, (at, e) in enumerate(events)]
    heapq.heapify(heap)
    sequence = len(heap)
    timer: float | None = None
    while heap and heap[0][0] <= until:
        now, _, event = heapq.heappop(heap)
        if event is None:
            if timer != now:
                continue
            timer = None
            event = ev.TimerFired()
        story.append((now, event, scheduler.handle(event, now)))
        due = scheduler.next_deadline()
        if due is not None and (timer is None or due < timer - 1e-3):
            timer = max(due, now)
            sequence += 1
            heapq.heappush(heap, (timer, sequence, None))
    return story


def by_driver(
    policy: str, events: list[tuple[float, AnyEvent]], until: float, *, time_scale: float = 1.0
) -> Story:
    """As it runs live, on a loop whose clock jumps; events and engines may be so much faster than that clock."""
    story: Story = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        driver = Driver(
            fresh(policy), check=True, clock=lambda: loop.time() * time_scale, time_scale=time_scale
        )
        driver.listen(lambda event, now, decided: story.append((now, event, decided)))
        for at, event in events:
            if isinstance(event, ev.StepArrived):
                loop.call_at(at / time_scale, driver.submit, event)
            else:
                loop.call_at(at / time_scale, driver.tell, event)
        await asyncio.sleep(until / time_scale)
        assert driver.healthy
        await driver.stop()

    run_virtually(main())
    return story


def essence(story: Story) -> list[tuple[str, list[tuple[str, Any, Any]]]]:
    """Everything but the times of timers, which the two hosts may round differently, and the causes' numbers."""
    return [
        (
            type(event).__name__ + getattr(event, "step", ""),
            [(type(d).__name__, getattr(d, "step", getattr(d, "program", "")), d.reason) for d in decided],
        )
        for _, event, decided in story
        if decided or not isinstance(event, ev.TimerFired)
    ]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_live_and_simulated_hosts_give_the_same_decisions(policy: str, seed: int) -> None:
    events = script(seed)
    simulated = by_heap(policy, events, until=120.0)
    live = by_driver(policy, events, until=120.0)
    assert essence(live) == essence(simulated)
    assert any(isinstance(d, do.Dispatch) for _, _, decided in live for d in decided)


@pytest.mark.parametrize("policy", POLICIES)
def test_before_engines_that_run_faster_the_same_is_decided_in_less_time(policy: str) -> None:
    live = by_driver(policy, script(3), until=120.0, time_scale=32.0)
    assert essence(live) == essence(by_heap(policy, script(3), until=120.0))
    assert any(isinstance(event, ev.TimerFired) for _, event, _ in live)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_journal_recorded_live_replays_to_the_same_decisions(policy: str) -> None:
    recorded = by_driver(policy, script(7), until=120.0)
    raw = msgspec.json.encode([(now, event) for now, event, _ in recorded])
    scheduler = fresh(policy)
    for (now, event), (_, _, decided) in zip(
        msgspec.json.decode(raw, type=list[tuple[float, AnyEvent]]), recorded, strict=True
    ):
        assert scheduler.handle(event, now) == decided


class Broken(Scheduler):
    """Fails at the third event."""

    handled = 0

    def handle(self, event: AnyEvent, now: float) -> list[do.AnyDecision]:
        self.handled += 1
        if self.handled == 5:
            raise RuntimeError("a bug")
        return super().handle(event, now)


class Unteachable(Naive):
    """Fails to learn from the third event."""

    heard = 0

    def settle(self) -> None:
        self.heard += 1
        if self.heard == 3:
            raise RuntimeError("a lesson")


class Counting:
    """Telemetry that remembers counters."""

    def __init__(self) -> None:
        self.counts: dict[str, float] = {}

    def count(self, name: str, value: float = 1.0, /, **labels: str) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + value


def broken() -> Broken:
    board = Board(foresight=Naive())
    return Broken(board, make_policy("agentserve", board))


def test_when_the_core_fails_steps_are_placed_plainly_and_it_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        telemetry: Any = Counting()
        driver = Driver(broken(), telemetry=telemetry)
        for engine in (A, B):
            driver.tell(ev.EngineBack(engine=engine))
        first = driver.submit(arrives("1"))
        assert isinstance(await first.decision, do.Dispatch)
        driver.tell(ev.EngineLost(engine=B))
        hit = driver.submit(arrives("2", "q"))
        assert not driver.healthy
        decision = await hit.decision
        assert isinstance(decision, do.Dispatch)
        assert (decision.engine, decision.reason) == ("a", "fallback")
        driver.tell(ev.EngineBack(engine=B))
        driver.tell(ev.StepFailed(step=StepId("2"), reason="reset", retryable=True))
        again = await hit.again()
        assert isinstance(again, do.Dispatch)
        assert again.engine == "b"
        driver.tell(ev.StepFailed(step=StepId("2"), reason="reset", retryable=True))
        assert isinstance(await hit.again(), do.Reject), "a second retry is not made"
        assert telemetry.counts["fallbacks"] == 1
        await driver.stop()

    with caplog.at_level("CRITICAL"):
        run_virtually(main())
    assert "the scheduler failed" in caplog.text


def test_a_core_that_cannot_learn_is_left_out_as_one_that_cannot_decide() -> None:
    async def main() -> None:
        board = Board(foresight=Unteachable())
        driver = Driver(Scheduler(board, make_policy("agentserve", board)))
        driver.tell(ev.EngineBack(engine=A))
        await asyncio.sleep(0.01)
        first = driver.submit(arrives("1"))
        assert isinstance(await first.decision, do.Dispatch)
        await asyncio.sleep(0.01)
        assert not driver.healthy
        second = driver.submit(arrives("2"))
        decision = await second.decision
        assert isinstance(decision, do.Dispatch)
        assert decision.reason == "fallback"
        await driver.stop()

    run_virtually(main())


def test_stopping_sends_waiting_steps_away() -> None:
    async def main() -> None:
        driver = Driver(fresh("agentserve"))
        ticket = driver.submit(arrives("1"))
        assert not ticket.decision.done()
        await driver.stop()
        decision = await ticket.decision
        assert isinstance(decision, do.Reject)
        assert decision.status == 503

    run_virtually(main())


def test_a_client_that_leaves_while_waiting_is_forgotten() -> None:
    async def main() -> None:
        driver = Driver(fresh("agentserve"))
        ticket = driver.submit(arrives("1"))
        ticket.cancel()
        driver.tell(ev.EngineBack(engine=A))
        assert not ticket.decision.done()
        assert not driver.scheduler.board.steps
        await driver.stop()

    run_virtually(main())


def test_the_outcome_of_a_warm_comes_back_to_the_core() -> None:
    class Hands:
        async def warm(self, decision: do.Warm) -> Receipt:
            return Receipt(outcome=Outcome.ACCEPTED, prompt_tokens=9, cached_tokens=7)

        async def pin(self, decision: do.Pin) -> Receipt:
            raise AssertionError

        async def unpin(self, decision: do.Unpin) -> Receipt:
            return Receipt(outcome=Outcome.ACCEPTED)

        def abort(self, decision: do.Abort) -> None:
            raise AssertionError

    async def main() -> None:
        seen: list[AnyEvent] = []
        driver = Driver(fresh("agentserve"), hands=Hands())
        driver.listen(lambda event, now, decided: seen.append(event))
        driver._carry_out(do.Warm(program=ProgramId("p"), engine=A, tokens=5, due=0.0))
        await asyncio.sleep(0.01)
        (done,) = [e for e in seen if isinstance(e, ev.DecisionDone)]
        assert (done.decision, done.outcome) == ("Warm", "accepted")
        assert (done.prompt_tokens, done.cached_tokens) == (9, 7)
        await driver.stop()

    run_virtually(main())


async def test_who_listens_hears_of_an_arrival_after_the_decision_and_before_anything_else_happens() -> None:
    driver = Driver(fresh("fifo"))
    heard: list[tuple[str, int]] = []
    steps = driver.scheduler.board.steps
    driver.listen(lambda event, now, decided: heard.append((type(event).__name__, len(steps))))
    driver.tell(ev.EngineBack(engine=E0))
    ticket = driver.submit(arrives("s1"))
    assert ticket.decision.done()
    assert heard == [("EngineBack", 0)]
    driver.submit(arrives("s2"))
    assert heard[1:] == [("StepArrived", 1)]
    await asyncio.sleep(0)
    assert heard[2:] == [("StepArrived", 2)]
    driver.submit(arrives("s3"))
    await driver.stop()
    assert heard[3:] == [("StepArrived", 3)]
