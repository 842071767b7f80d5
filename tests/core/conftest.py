"""A tiny hand-driven world: engines that do nothing by themselves, and a scheduler under test."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.board import Board, Limits, Share
from agentserve.core.foresight import Known, Naive
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId
from agentserve.core.policies import make_policy
from agentserve.core.scheduler import Scheduler


def step_of(program: str, index: int) -> StepId:
    return StepId(f"{program}/{index}")


class Gaps(Naive):
    """Every gap is known, and each program's steps left too."""

    def __init__(self, gaps: dict[str, float] | None = None, left: dict[str, float] | None = None) -> None:
        super().__init__()
        self.gaps = gaps or {}
        self.left = left or {}

    def output_tokens(self, step: Any) -> float:
        return 100.0

    def gap(self, program: Any, now: float) -> Any:
        return Known(self.gaps.get(program.id, 1.0))

    def steps_left(self, program: Any) -> float:
        return self.left.get(program.id, 1.0)


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
            foresight=foresight or Naive(),
            limits=limits or Limits(),
            shares={TenantId(tenant): share for tenant, share in (shares or {}).items()},
        )
        self.scheduler = Scheduler(self.board, make_policy(policy, self.board, params))
        self.now = 0.0
        self.dispatched: dict[str, str] = {}
        self.all: list[do.AnyDecision] = []
        for i in range(engines):
            self.back(f"e{i}")
            self.report(f"e{i}", kv_tokens=kv_tokens, prefill_tokens_per_s=1000.0)

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
        event = ev.StepArrived(
            step=step_of(program, step), program=ProgramId(program), prompt_tokens=tokens, **extra
        )
        return self.tell(event, after)

    def start(self, program: str, step: int = 0, *, after: float = 0.0) -> list[do.AnyDecision]:
        """The first byte of its reply comes."""
        return self.tell(ev.StepStarted(step=step_of(program, step)), after)

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
        name = step_of(program, step)
        event = ev.StepFinished(step=name, prompt_tokens=tokens, output_tokens=output, **extra)
        return self.tell(event, after)

    def fail(
        self, program: str, step: int = 0, *, reason: str, retryable: bool = False
    ) -> list[do.AnyDecision]:
        return self.tell(ev.StepFailed(step=step_of(program, step), reason=reason, retryable=retryable))

    def leave(self, program: str, step: int = 0) -> list[do.AnyDecision]:
        """Its client closes the connection."""
        return self.tell(ev.ClientGone(step=step_of(program, step)))

    def end(self, program: str) -> list[do.AnyDecision]:
        return self.tell(ev.ProgramEnded(program=ProgramId(program)))

    def lose(self, engine: str) -> list[do.AnyDecision]:
        return self.tell(ev.EngineLost(engine=EngineId(engine)))

    def back(self, engine: str) -> list[do.AnyDecision]:
        return self.tell(ev.EngineBack(engine=EngineId(engine)))

    def report(self, engine: str, **figures: Any) -> list[do.AnyDecision]:
        return self.tell(ev.EngineReported(engine=EngineId(engine), **figures))

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
