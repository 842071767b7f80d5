"""The scheduler under asyncio: tells it what happens, carries out what it decides, keeps its one timer.

Rule: nothing here decides. A step's fate reaches the relay through its `Ticket`. When the core raises, the driver
goes on without it: steps are placed on the engine with the fewest in flight, loudly and counted, for as long as
the process lives. Requests flow whatever happens here. Whoever only listens hears of each event before the next one
changes the scheduler's records, but of a step's arrival only once the step is on its way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.audience import Audience
from agentserve.core.ids import EngineId, ProgramId, StepId
from agentserve.core.scheduler import Scheduler
from agentserve.errors import AgentServeError
from agentserve.ports import Journal, Receipt, Telemetry

log = logging.getLogger("agentserve.driver")

ERRANDS_MAX = 256  # native actions under way at once; further ones are skipped, for they are only hints


class Hands(Protocol):
    """What carries out the decisions that are not about a waiting step: the engines' adapters."""

    async def pin(self, decision: do.Pin) -> Receipt: ...
    async def unpin(self, decision: do.Unpin) -> Receipt: ...
    async def warm(self, decision: do.Warm) -> Receipt: ...
    def abort(self, decision: do.Abort) -> None: ...


class Ticket:
    """A step's place in the scheduler. `decision` is resolved with its `Dispatch` or `Reject`."""

    __slots__ = ("_driver", "decision", "reasons", "step")

    def __init__(self, driver: Driver, step: StepId) -> None:
        self._driver = driver
        self.step = step
        self.decision: asyncio.Future[do.Dispatch | do.Reject] = driver.loop.create_future()
        self.reasons: list[do.AnyDecision] = []  # everything decided about the step, in order

    def again(self) -> Awaitable[do.Dispatch | do.Reject]:
        """The next decision, after it `failed` or was aborted for a lost engine."""
        return self.decision

    def failed(self, reason: str) -> None:
        """Its engine failed before a byte came. What was decided is void: the next decision may take a while."""
        if self.decision.done():
            self.decision = self._driver.loop.create_future()
        self._driver.tell(ev.StepFailed(step=self.step, reason=reason, retryable=True))

    def cancel(self) -> None:
        """The client is gone while the step waits or runs."""
        self._driver.tell(ev.ClientGone(step=self.step))


class Driver:
    """One scheduler, one loop. Not thread-safe: everything happens on the loop's thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        hands: Hands | None = None,
        journal: Journal | None = None,
        telemetry: Telemetry | None = None,
        clock: Callable[[], float] | None = None,
        time_scale: float = 1.0,
        check: bool = False,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.scheduler = scheduler
        self.hands = hands
        self.journal = journal
        self.telemetry = telemetry
        self.healthy = True
        self.now: Callable[[], float] = clock or self.loop.time
        self._time_scale = time_scale  # seconds of `clock` to one of the loop's
        self._check = check
        self._settling: asyncio.Handle | None = None
        self._tickets: dict[StepId, Ticket] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._errands: set[asyncio.Task[None]] = set()
        self._placed: dict[StepId, EngineId] = {}  # only once the core has failed
        self._audience = Audience()
        self.hear, self.listen = self._audience.hear, self._audience.listen
        # what it has yet to hear
        self._untold: tuple[ev.AnyEvent, float, list[do.AnyDecision]] | None = None

    # -- what the relay calls

    def submit(self, event: ev.StepArrived) -> Ticket:
        """A step arrived. The ticket may already be resolved when this returns."""
        ticket = self._tickets[event.step] = Ticket(self, event.step)
        self._handle(event, arrival=True)
        return ticket

    def tell(self, event: ev.AnyEvent) -> None:
        """Anything else that happened."""
        self._handle(event)

    def _handle(self, event: ev.AnyEvent, *, arrival: bool = False) -> None:
        if self._untold is not None:
            self.catch_up()
        now = self.now()
        if not self.healthy:
            self._plainly(event)
            return
        try:
            decided = self.scheduler.handle(event, now)
            if self._check:
                self.scheduler.check()
        except Exception as error:
            self._fail(error, event)
            return
        self._untold = event, now, decided
        if not arrival:  # else the engine works meanwhile: the loop comes to this when the step was sent
            self.catch_up()
        for decision in decided:
            self._carry_out(decision)
        if isinstance(event, (ev.StepFinished, ev.ClientGone)):
            self._tickets.pop(event.step, None)
        elif isinstance(event, ev.StepFailed) and event.step not in self.scheduler.board.steps:
            self._forget(event.step)
        if self._settling is None:  # once who was waked by a decision has gone on
            self._settling = self.loop.call_soon(self._settle, event)

    def _settle(self, event: ev.AnyEvent) -> None:
        """What need not be done for each event, at the end of the loop's turn."""
        self._settling = None
        if self._untold is not None:
            self.catch_up()
        if self.healthy:
            try:
                self._rearm(self.now())
                self.scheduler.settle()
            except Exception as error:
                self._fail(error, event)

    def catch_up(self) -> None:
        """Let the audience hear of the latest event, if it has not."""
        if self._untold is None:
            return
        event, now, decided = self._untold
        self._untold = None
        if self.journal is not None:
            self.journal.event(event, now, decided)
        self._audience.tell(event, now, decided)

    async def stop(self) -> None:
        """End the timer and the errands under way; waiting steps are told to go elsewhere."""
        self.catch_up()
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for ticket in list(self._tickets.values()):
            if not ticket.decision.done():
                ticket.decision.set_result(
                    do.Reject(step=ticket.step, status=503, retry_after_s=5.0, reason="draining")
                )
        for task in list(self._errands):
            task.cancel()
        if self._errands:
            await asyncio.wait(self._errands, timeout=5.0)

    # -- carrying out

    def _carry_out(self, decision: do.AnyDecision) -> None:
        if isinstance(decision, (do.Dispatch, do.Reject)):
            self._resolve(decision)
        elif isinstance(decision, do.Wait):
            ticket = self._tickets.get(decision.step)
            if ticket is not None:
                ticket.reasons.append(decision)
        elif isinstance(decision, do.Abort):
            self._abort(decision)
        elif self.hands is not None and not (isinstance(decision, do.Pin) and decision.mode != "native"):
            self._errand(decision)

    def _resolve(self, decision: do.Dispatch | do.Reject) -> None:
        ticket = self._tickets.get(decision.step)
        if ticket is None:
            return
        ticket.reasons.append(decision)
        if ticket.decision.done():
            ticket.decision = self.loop.create_future()
        ticket.decision.set_result(decision)
        if isinstance(decision, do.Reject):
            self._tickets.pop(decision.step, None)

    def _abort(self, decision: do.Abort) -> None:
        ticket = self._tickets.get(decision.step)
        if ticket is not None:
            ticket.reasons.append(decision)
            if ticket.decision.done():
                ticket.decision = self.loop.create_future()
        if self.hands is not None:
            self.hands.abort(decision)

    def _errand(self, decision: do.Pin | do.Unpin | do.Warm) -> None:
        if len(self._errands) >= ERRANDS_MAX:
            return
        task = self.loop.create_task(self._run_errand(decision))
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _run_errand(self, decision: do.Pin | do.Unpin | do.Warm) -> None:
        assert self.hands is not None
        work: Coroutine[Any, Any, Receipt]
        if isinstance(decision, do.Pin):
            work = self.hands.pin(decision)
        elif isinstance(decision, do.Unpin):
            work = self.hands.unpin(decision)
        else:
            work = self.hands.warm(decision)
        try:
            receipt = await work
        except AgentServeError as error:
            log.debug("%s for %s failed: %s", type(decision).__name__, decision.program, error)
            return
        self.tell(
            ev.DecisionDone(
                decision=type(decision).__name__,
                program=ProgramId(decision.program),
                engine=decision.engine,
                outcome=receipt.outcome.value,
                detail=receipt.detail,
                prompt_tokens=receipt.prompt_tokens,
                cached_tokens=receipt.cached_tokens,
            )
        )

    def _forget(self, step: StepId) -> None:
        """No engine will serve it; whoever asks `again()` is told so."""
        reject = do.Reject(step=step, status=502, retry_after_s=1.0, reason="engine_failed")
        self._resolve(reject)

    # -- the timer

    def _rearm(self, now: float) -> None:
        due = self.scheduler.next_deadline()
        if due is None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = self._timer_at = None
            return
        if self._timer is not None and self._timer_at is not None and self._timer_at <= due + 1e-3:
            return  # it will fire early enough and ask again
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self.loop.call_later(max(due - now, 0.0) / self._time_scale, self._fire)

    def _fire(self) -> None:
        self._timer = self._timer_at = None
        self.tell(ev.TimerFired())

    # -- without the core

    def _fail(self, error: Exception, event: ev.AnyEvent) -> None:
        """The core broke. Say so once, then place what waits and everything that follows."""
        log.critical(
            "the scheduler failed on %s: %r; steps are now placed plainly until the gateway is restarted",
            type(event).__name__,
            error,
            exc_info=error,
        )
        self.healthy = False
        if self.telemetry is not None:
            self.telemetry.count("fallbacks", reason="scheduler")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for step in self.scheduler.board.steps.values():
            if step.in_flight and step.engine is not None:
                self._placed[step.id] = step.engine
        for ticket in list(self._tickets.values()):
            if not ticket.decision.done():
                self._place(ticket.step)

    def _plainly(self, event: ev.AnyEvent) -> None:
        """The least that keeps requests flowing: place on arrival and on retry, count what is in flight."""
        fleet = self.scheduler.board.fleet
        if isinstance(event, ev.StepArrived):
            self._place(event.step)
        elif isinstance(event, ev.StepFailed):
            failed = self._placed.pop(event.step, None)
            ticket = self._tickets.get(event.step)
            if (
                event.retryable
                and ticket is not None
                and not any(
                    isinstance(d, do.Dispatch) and d.reason == "fallback_retry" for d in ticket.reasons
                )
            ):
                self._place(event.step, avoid=failed, reason="fallback_retry")
            else:
                self._forget(event.step)
        elif isinstance(event, (ev.StepFinished, ev.ClientGone)):
            self._placed.pop(event.step, None)
            self._tickets.pop(event.step, None)
        elif isinstance(event, ev.EngineLost):
            if (engine := fleet.get(event.engine)) is not None:
                engine.up = False
        elif isinstance(event, ev.EngineBack):
            fleet.add(event.engine).up = True
        elif isinstance(event, ev.EngineReported):
            engine = fleet.add(event.engine)
            if event.draining is not None:
                engine.draining = event.draining

    def _place(self, step: StepId, *, avoid: EngineId | None = None, reason: str = "fallback") -> None:
        load = dict.fromkeys((e.id for e in self.scheduler.board.fleet if e.up and not e.draining), 0)
        for engine in self._placed.values():
            if engine in load:
                load[engine] += 1
        if len(load) > 1 and avoid is not None:
            load.pop(avoid, None)
        if not load:
            self._resolve(do.Reject(step=step, status=503, retry_after_s=5.0, reason="no_engine"))
            return
        engine = min(load, key=lambda e: (load[e], e))
        self._placed[step] = engine
        self._resolve(do.Dispatch(step=step, engine=engine, reason=reason))
