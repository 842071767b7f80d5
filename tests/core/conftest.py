"""A tiny hand-driven world: engines that do nothing by themselves, and a scheduler under test."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.board import Board, Limits, Share
from agentserve.core.foresight import Naive
from agentserve.core.policies import make_policy
from agentserve.core.scheduler import Scheduler


class Desk:
    """Feeds events, keeps the clock, remembers decisions, and checks every invariant after each event."""

    def __init__(
        self,
        policy: str = "agentserve",
        *,
        engines: int = 1,
        kv_tokens: int = 10_000,
        limits: Limits | None = None,
        shares: dict[str, Share] | None = None,
        foresight: Any = None,
        **params: Any,
    ) -> None:
        self.board = Board(
            foresight=foresight or Naive(), limits=limits or Limits(), shares=dict(shares or {})
        )
        self.scheduler = Scheduler(self.board, make_policy(policy, self.board, params))
        self.now = 0.0
        self.dispatched: dict[str, str] = {}
        self.all: list[do.AnyDecision] = []
        for i in range(engines):
            self.tell(ev.EngineBack(engine=f"e{i}"))
            self.tell(ev.EngineReported(engine=f"e{i}", kv_tokens=kv_tokens, prefill_tokens_per_s=1000.0))

    def tell(self, event: ev.AnyEvent, after: float = 0.0) -> list[do.AnyDecision]:
        self.now += after
        out = self.scheduler.handle(event, self.now)
        self.scheduler.check()
        self.all += out
        for decision in out:
            if isinstance(decision, do.Dispatch):
                assert decision.step not in self.dispatched, f"{decision.step} dispatched twice"
                self.dispatched[decision.step] = decision.engine
            elif isinstance(decision, do.Abort):
                self.dispatched.pop(decision.step, None)
        return out

    def arrive(
        self, program: str, step: int = 0, *, tokens: int = 1000, after: float = 0.0, **extra: Any
    ) -> list[do.AnyDecision]:
        extra.setdefault("tenant", "t")
        event = ev.StepArrived(step=f"{program}/{step}", program=program, prompt_tokens=tokens, **extra)
        return self.tell(event, after)

    def finish(
        self,
        program: str,
        step: int = 0,
        *,
        tokens: int = 1000,
        output: int = 10,
        after: float = 1.0,
        **extra: Any,
    ) -> list[do.AnyDecision]:
        event = ev.StepFinished(step=f"{program}/{step}", prompt_tokens=tokens, output_tokens=output, **extra)
        return self.tell(event, after)

    def timer(self) -> list[do.AnyDecision]:
        due = self.scheduler.next_deadline()
        assert due is not None
        self.now = max(self.now, due)
        return self.tell(ev.TimerFired())

    def fire(self, after: float) -> list[do.AnyDecision]:
        """All timers that fall within so many seconds, and one at their end."""
        end = self.now + after
        while (due := self.scheduler.next_deadline()) is not None and due < end:
            self.timer()
        self.now = end
        return self.tell(ev.TimerFired())

    def of(self, kind: type[Any]) -> list[Any]:
        """All decisions of this kind so far."""
        return [d for d in self.all if isinstance(d, kind)]

    def sent(self, program: str, step: int = 0) -> str | None:
        return self.dispatched.get(f"{program}/{step}")


@pytest.fixture
def desk() -> type[Desk]:
    return Desk
