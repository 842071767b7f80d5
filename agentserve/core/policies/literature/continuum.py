"""Continuum: program-FCFS, and a time to live for the KV of programs in a tool call.

Intent: a program that comes back soon should find its KV and should not queue again.
Reads: how long each tool took (next arrival less previous finish), how long returning steps without a pin waited,
context lengths and prefill speed.

TTL: `argmax over tau in {0} and the observed durations of F(tau) * (T * eta + reload) - tau`, F the tool's empirical
distribution, T the mean queue wait of returns that found no pin (0 at first), eta = -corr(k, N - k) over the turns of
programs that ended (1 until known; may be negative), reload the time to prefill the context. With 100 samples or fewer
in all, F is exponential with a mean of a second, so that tau is the logarithm of the bracket; with 100 or fewer of
this tool, F is pooled over all tools.
Order: preempted before pinned before unpinned, in each class by the program's arrival. Deadlock: the latest program is
unpinned. A pin does not run out while its program's return is queued.

Loses: with long gaps its pins hold memory that nobody uses yet; T and eta are sums over all programs, so mixed
workloads blur them. Program-FCFS lets one long program hold up many short ones.

Departs: pins are reservations, the engine's LRU may still evict. Preemption happens inside the engine and is not seen;
the first class holds steps that come back from a lost engine. Tools are told apart by the names of the calls, not by
the first word of a shell block. Reload is linear in the context (the engine's own prefill speed), not a fitted
quadratic. The window of T and of durations is not published: the last `window` and the last 512 a tool. T may be fixed
by `wait_s`. The paper is followed, not the public code, which pins for two seconds where a tool's mean is at most that
or not known, and else not at all.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from cachetools import LRUCache

from agentserve.core.fleet import Engine
from agentserve.core.ids import StepId
from agentserve.core.policies.literature.lines import Key
from agentserve.core.policies.literature.queueing import Queueing, QueueingParams
from agentserve.core.program import Program, Step

DURATIONS_MAX = 512  # remembered of a tool
TOOLS_MAX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuumParams(QueueingParams):
    """The paper's constants where it gives them."""

    wait_s: float | None = None  # T; None: measured
    window: int = 100  # waits that T is the mean of
    samples_min: int = 100  # beyond so many a distribution is trusted
    prior_mean_s: float = 1.0


class Durations:
    """The latest durations, in order of size, and how many there ever were."""

    __slots__ = ("_latest", "ordered", "seen")

    def __init__(self) -> None:
        self.seen = 0
        self._latest: deque[float] = deque()
        self.ordered: list[float] = []

    def add(self, seconds: float) -> None:
        self.seen += 1
        if len(self._latest) == DURATIONS_MAX:
            oldest = self._latest.popleft()
            del self.ordered[bisect_right(self.ordered, oldest) - 1]
        self._latest.append(seconds)
        insort(self.ordered, seconds)


class Turns:
    """-corr(k, N - k) over the turns k of programs of N steps, from running sums."""

    __slots__ = ("_left", "_left2", "_n", "_product", "_turn", "_turn2")

    def __init__(self) -> None:
        self._n = self._turn = self._left = self._turn2 = self._left2 = self._product = 0.0

    def add(self, steps: int) -> None:
        """A program ended after so many."""
        n = float(steps)
        squares = n * (n + 1) * (2 * n + 1) / 6
        self._n += n
        self._turn += n * (n + 1) / 2
        self._left += n * (n - 1) / 2
        self._turn2 += squares
        self._left2 += squares - n * n
        self._product += n * n * (n + 1) / 2 - squares

    def eta(self, samples_min: int) -> float:
        if self._n <= samples_min:
            return 1.0
        spread_turn = self._n * self._turn2 - self._turn**2
        spread_left = self._n * self._left2 - self._left**2
        if spread_turn <= 0 or spread_left <= 0:
            return 1.0
        return -(self._n * self._product - self._turn * self._left) / math.sqrt(spread_turn * spread_left)


def best_ttl(durations: Sequence[float], worth_s: float) -> float:
    """argmax of `F(tau) * worth_s - tau` over 0 and the durations, given in order of size; the smallest of equals."""
    best = best_at = 0.0
    n = len(durations)
    for index, tau in enumerate(durations):
        if tau >= worth_s:
            break
        gain = (index + 1) / n * worth_s - tau
        if gain > best:
            best, best_at = gain, tau
    return best_at


class Continuum(Queueing):
    """Pins with a time to live, program-FCFS."""

    name = "continuum"
    reason = "program_fcfs"
    Params = ContinuumParams
    params: ContinuumParams

    def setup(self) -> None:
        super().setup()
        self._of_tool: LRUCache[str, Durations] = LRUCache(TOOLS_MAX)
        self._pooled = Durations()
        self._waits: deque[float] = deque(maxlen=self.params.window)
        self._turns = Turns()
        self._back: set[StepId] = set()  # steps in line that ended a gap

    def key(self, step: Step, now: float) -> Key:
        rank = 0 if step.retries else 1 if self.own(step.program).kept is not None else 2
        return (rank, step.program.created_at)

    def keep_s(self, program: Program, engine: Engine, now: float) -> float:
        worth_s = self.wait_s() * self._turns.eta(self.params.samples_min)
        worth_s += engine.prefill_s(program.context_tokens)
        if self._pooled.seen <= self.params.samples_min:
            worth_s = self.wait_s() + engine.prefill_s(program.context_tokens)
            mean_s = self.params.prior_mean_s
            return mean_s * math.log(worth_s / mean_s) if worth_s > mean_s else 0.0
        own = self._of_tool.get(self.own(program).tool)
        known = own if own is not None and own.seen > self.params.samples_min else self._pooled
        return best_ttl(known.ordered, worth_s)

    def wait_s(self) -> float:
        """T."""
        if self.params.wait_s is not None:
            return self.params.wait_s
        return sum(self._waits) / len(self._waits) if self._waits else 0.0

    def returned(self, step: Step, now: float) -> None:
        own = self.own(step.program)
        if own.gap_since is None or step.relation == "auxiliary":
            return
        self._back.add(step.id)
        durations = self._of_tool.get(own.tool)
        if durations is None:
            durations = self._of_tool[own.tool] = Durations()
        for known in (durations, self._pooled):
            known.add(now - own.gap_since)

    def going(self, step: Step, engine: Engine, now: float) -> None:
        if step.id in self._back and self.own(step.program).kept is None:
            self._waits.append(now - step.arrived_at)
        self._back.discard(step.id)

    def over(self, step: Step, now: float, *, finished: bool, engine: Engine | None) -> None:
        self._back.discard(step.id)

    def left(self, program: Program, now: float) -> None:
        if program.steps_done:
            self._turns.add(program.steps_done)

    def figures(self) -> dict[str, float]:
        return {
            **super().figures(),
            "wait_s": self.wait_s(),
            "eta": self._turns.eta(self.params.samples_min),
        }
