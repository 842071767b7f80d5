"""A small world that strikes at random: programs come and go, engines are lost, drained and come back."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core import events as ev
from agentserve.core.board import Limits
from agentserve.core.ids import ProgramId
from agentserve.core.program import StepState

TENANTS = ("t", "u", "v")
STEPS_MAX = 4
PATIENT = Limits(queue_timeout_s=1e9, program_idle_s=1e9)


class Chaos:
    """Interprets a list of `(kind, number)` as strikes; `settle` then lets everything finish."""

    def __init__(self, desk: type[Any], policy: str, **params: Any) -> None:
        self.desk = desk(policy, engines=2, kv_tokens=10_000, limits=PATIENT, **params)
        self.sched = self.desk.scheduler
        self.programs: dict[str, int] = {}  # name -> steps it sent
        self.over: set[str] = set()
        self.kinds = [
            self.open, self.open, self.resume, self.resume, self.finish, self.finish, self.finish, self.begin,
            self.timer, self.lose, self.back, self.drain, self.gone, self.fail, self.fork, self.hint,
        ]  # fmt: skip

    def strike(self, kind: int, number: int) -> None:
        self.kinds[kind % len(self.kinds)](number)

    # -- what there is

    def flying(self) -> list[Any]:
        return [s for s in self.sched.board.steps.values() if s.in_flight]

    def idle(self) -> list[str]:
        live = self.sched.board.programs
        return [p for p in self.programs if p not in self.over and (p not in live or live[p].idle)]

    # -- strikes

    def open(self, number: int) -> None:
        name = f"p{len(self.programs)}"
        parent = None if number % 3 or not self.idle() else self.idle()[number % len(self.idle())]
        self.programs[name] = 0
        self.send(name, number, parent=parent)

    def send(self, name: str, number: int, **extra: Any) -> None:
        index = self.programs[name]
        self.programs[name] += 1
        shared = (ev.Segment(number % 2 + 1, 500),)
        tenant = TENANTS[int(name[1:]) % 3]
        tokens = 600 + 1000 * index + number % 5000
        self.desk.arrive(name, index, tokens=tokens, tenant=tenant, prefix=shared, after=0.01, **extra)

    def resume(self, number: int) -> None:
        if idle := self.idle():
            self.desk.now += number % 7
            self.send(idle[number % len(idle)], number)

    def fork(self, number: int) -> None:
        """A second step of a program that has one open."""
        if flying := self.flying():
            name = flying[number % len(flying)].program.id
            if name not in self.over:
                self.send(name, number, relation="fork")

    def begin(self, number: int) -> None:
        if flying := self.flying():
            self.desk.tell(ev.StepStarted(step=flying[number % len(flying)].id), after=0.1)

    def finish(self, number: int) -> None:
        if not (flying := self.flying()):
            return
        step = flying[number % len(flying)]
        name = step.program.id
        final = self.programs[name] >= STEPS_MAX and len(step.program.open_steps) == 1
        if final:
            self.over.add(name)
        tool = ev.PendingTool(id=f"c{number}", name=("bash", "search")[number % 2])
        self.desk.tell(
            ev.StepFinished(
                step=step.id,
                prompt_tokens=step.prompt_tokens,
                output_tokens=number % 300,
                cached_tokens=min(step.expected_cached, number % 4000),
                tools=() if final else (tool,),
                final=final,
            ),
            after=0.5,
        )

    def timer(self, number: int) -> None:
        if self.sched.next_deadline() is not None and self.sched.next_deadline() < 1e8:
            self.desk.timer()

    def lose(self, number: int) -> None:
        name = f"e{number % 2}"
        self.desk.lose(name)
        for step in [s for s in self.flying() if s.engine == name]:
            assert step.state in (StepState.STARTED, StepState.DISPATCHED)
            self.desk.tell(ev.StepFailed(step=step.id, reason="lost"))

    def back(self, number: int) -> None:
        name = f"e{number % 2}"
        if not self.sched.board.fleet[name].up:
            self.desk.back(name)
        self.desk.report(name, kv_tokens=10_000, draining=False)

    def drain(self, number: int) -> None:
        self.desk.report(f"e{number % 2}", draining=True)

    def gone(self, number: int) -> None:
        steps = list(self.sched.board.steps)
        if steps:
            self.desk.tell(ev.ClientGone(step=steps[number % len(steps)]))

    def fail(self, number: int) -> None:
        if flying := self.flying():
            step = flying[number % len(flying)]
            self.desk.dispatched.pop(step.id, None)  # it may go once more
            self.desk.tell(ev.StepFailed(step=step.id, reason="busy", retryable=bool(number % 2)))

    def hint(self, number: int) -> None:
        if idle := self.idle():
            name = idle[number % len(idle)]
            self.desk.tell(ev.HintGiven(program=ProgramId(name), returns_in_s=float(number % 5)))

    # -- the end

    def settle(self) -> None:
        """Engines come back, nothing more goes wrong: every step must be dispatched and every program end."""
        self.back(0)
        self.back(1)
        for _ in range(5000):
            if not self.sched.board.steps and not self.idle():
                break
            if self.flying():
                self.finish(0)
            elif self.idle():
                self.resume(0)
            else:
                before = self.desk.now
                self.timer(0)
                assert self.desk.now - before < 10_000, "it waits for a timer that is nowhere near"
        assert not self.sched.board.steps, f"never dispatched: {list(self.sched.board.waiting)}"
        assert not self.idle()


@pytest.fixture
def chaos(desk: Any) -> Any:
    return lambda policy, **params: Chaos(desk, policy, **params)
