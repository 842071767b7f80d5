"""What a decision costs with many programs alive, and what a program costs in memory.

`python tests/bench/decision.py` prints microseconds by programs alive; `--policy NAME` asks another policy.

The crowd is the hard case: eight engines with room for some 30 programs each, half of all programs waiting for a seat,
the others in tool gaps, most of them without one. Steps finish, programs come back, now and then one ends and another
begins, so that as many live at the end as at the beginning. Beside it stands the easy one: the same programs on engines
that hold them all, so that nobody waits.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator

from agentserve.core import events as ev
from agentserve.core.board import Board, Limits
from agentserve.core.decisions import AnyDecision, Dispatch
from agentserve.core.foresight import Foresight, Naive
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId, WorkflowId
from agentserve.core.learned import Learned
from agentserve.core.policies import make_policy
from agentserve.core.scheduler import Scheduler
from agentserve.live.interpreter import GC_THRESHOLDS

ENGINES = 8
KV_TOKENS = 400_000
ROOMY = 1 << 33  # tokens of engines on which nobody waits
TENANTS = 10
TOOLS = ("read", "edit", "bash", "search")
SHARED = (ev.Segment(1, 6_000),)
AT_HOME = 20  # programs that came into their gap last, of which most returns are
PATIENT = Limits(
    queue_timeout_s=1e9, program_idle_s=1e9, waiting_steps_max=1 << 30, live_programs_max=1 << 30
)


class Crowd:
    """A scheduler with so many live programs, and the events that follow."""

    def __init__(
        self,
        programs: int,
        *,
        policy: str = "agentserve",
        learned: bool = True,
        engines: int = ENGINES,
        kv_tokens: int = KV_TOKENS,
        seed: int = 1,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        foresight: Foresight = Learned() if learned else Naive()
        board = Board(foresight=foresight, limits=PATIENT)
        self.scheduler = Scheduler(board, make_policy(policy, board))
        self.running: list[tuple[str, int, int]] = []  # program, step, prompt tokens
        self.idle: deque[tuple[str, int, int]] = deque()
        self.sent: dict[str, tuple[str, int, int]] = {}
        self.made = 0
        for i in range(engines):
            engine = EngineId(f"e{i}")
            self.tell(ev.EngineBack(engine=engine))
            self.tell(ev.EngineReported(engine=engine, kv_tokens=kv_tokens, prefill_tokens_per_s=20_000.0))
        for _ in range(programs):
            self.tell(self.opened())
        while len(self.idle) < programs // 2 and self.running:
            self.tell(self.finished())

    def tell(self, event: ev.AnyEvent) -> list[AnyDecision]:
        decided = self.scheduler.handle(event, self.now)
        self.scheduler.settle()
        self.scheduler.next_deadline()
        self.note(decided)
        return decided

    def note(self, decided: list[AnyDecision]) -> None:
        for decision in decided:
            if type(decision) is Dispatch:
                self.running.append(self.sent.pop(decision.step))

    def opened(self) -> ev.AnyEvent:
        self.made += 1
        return self._arrived(f"p{self.made}", 0, 9_000 + self.rng.randrange(9_000))

    def finished(self, *, final: bool = False) -> ev.AnyEvent:
        at = self.rng.randrange(len(self.running))
        self.running[at], self.running[-1] = self.running[-1], self.running[at]
        program, step, tokens = self.running.pop()
        output = 20 + self.rng.randrange(400)
        self.now += 0.05
        tool = ev.PendingTool(id=f"c{step}", name=self.rng.choice(TOOLS), argument_class=".py")
        if not final:
            self.idle.append((program, step, tokens + output))
        return ev.StepFinished(
            step=StepId(f"{program}/{step}"),
            prompt_tokens=tokens,
            output_tokens=output,
            cached_tokens=tokens // 2 if step else 0,
            tools=() if final else (tool,),
            final=final,
        )

    def back(self) -> ev.AnyEvent:
        """A program in a gap comes back: most often one that has just gone into it."""
        late = self.rng.random() < 0.3 or len(self.idle) <= AT_HOME
        at = 0 if late else -1 - self.rng.randrange(AT_HOME)
        program, step, tokens = self.idle[at]
        del self.idle[at]
        return self._arrived(program, step + 1, min(tokens + 500, 60_000))

    def _arrived(self, program: str, step: int, tokens: int) -> ev.AnyEvent:
        name = StepId(f"{program}/{step}")
        self.sent[name] = (program, step, tokens)
        return ev.StepArrived(
            step=name,
            program=ProgramId(program),
            tenant=TenantId(f"t{int(program[1:]) % TENANTS}"),
            workflow=WorkflowId("swe"),
            prompt_tokens=tokens,
            prefix=SHARED,
            returned=(f"c{step - 1}",) if step else (),
        )

    def events(self, count: int) -> Iterator[ev.AnyEvent]:
        """What happens next; what is decided must be given to `note` before the next is asked for."""
        for number in range(count):
            due = self.scheduler.next_deadline()
            if due is not None and due <= self.now:
                yield ev.TimerFired()
            while not self.running:  # every seat is in a gap
                self.now += 0.5
                yield ev.TimerFired() if not self.idle else self.back()
            if number % 30 == 29:
                yield self.finished(final=True)
                yield self.opened()
            else:
                yield self.finished()
                yield self.back()


def measured(
    crowd: Crowd, events: int, cost: Callable[[Callable[[], object]], float]
) -> list[tuple[float, float]]:
    """What each event cost, by kind of the caller's measure: to decide, and to learn from it afterwards."""
    costs = []
    for event in crowd.events(events):
        decided: list[AnyDecision] = []

        def decide(event: ev.AnyEvent = event, decided: list[AnyDecision] = decided) -> None:
            decided += crowd.scheduler.handle(event, crowd.now)
            crowd.scheduler.next_deadline()

        costs.append((cost(decide), cost(crowd.scheduler.settle)))
        crowd.note(decided)
    return costs


def microseconds(what: Callable[[], object]) -> float:
    begun = time.perf_counter_ns()
    what()
    return (time.perf_counter_ns() - begun) / 1e3


def bytes_per_program(programs: int, *, policy: str = "agentserve", learned: bool = True) -> float:
    """What the records of one more idle program take: all that is kept for twice as many, less what for these.

    The first crowd is not counted: what a process makes once and keeps would be taken for something of the smaller one,
    and so off the larger one's programs, in a process that had not made it before.
    """
    sizes = []
    for count in (2 * programs, programs, 2 * programs):
        tracemalloc.start()
        crowd = Crowd(count, policy=policy, learned=learned)
        while crowd.sent or crowd.running:  # until every program had its first step
            if not crowd.running:
                crowd.now += 1.0
            crowd.tell(crowd.finished() if crowd.running else ev.TimerFired())
        crowd.idle.clear()
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    return (sizes[2] - sizes[1]) / programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--policy", default="agentserve")
    parser.add_argument("--programs", type=int, action="append")
    parser.add_argument("--events", type=int, default=5_000)
    parser.add_argument("--naive", action="store_true", help="means instead of learned forecasts")
    args = parser.parse_args()
    gc.set_threshold(*GC_THRESHOLDS)  # as in the gateway
    print("                        to decide, us            afterwards, us")
    print("programs alive      median      mean       p99    median      mean   waiting    idle")
    for kv_tokens in (ROOMY, KV_TOKENS):
        for programs in args.programs or (1_000, 10_000, 100_000):
            crowd = Crowd(programs, policy=args.policy, learned=not args.naive, kv_tokens=kv_tokens)
            deciding, learning = map(sorted, zip(*measured(crowd, args.events, microseconds), strict=True))
            print(
                f"{programs:14,}   {statistics.median(deciding):9.1f} {statistics.fmean(deciding):9.1f} "
                f"{deciding[int(0.99 * len(deciding))]:9.1f} {statistics.median(learning):9.1f} "
                f"{statistics.fmean(learning):9.1f} {len(crowd.sent):9,} {len(crowd.idle):7,}"
            )
    print(
        f"memory: {bytes_per_program(2_000, policy=args.policy, learned=not args.naive):,.0f} bytes a program in a gap"
    )


if __name__ == "__main__":
    main()
