"""Virtual time: when a fluid server, shared by weight, would have finished each of its flows.

Rule: the clock is moved by service, not by a wall clock: whoever drives it says how much the server gave since. So
the same class is the clock of a fleet (service is real time) and of one tenant inside it (service is its share).

And what a program costs such a server: KV token-time, `p d + d^2 / 2` summed over its calls, as a share of what the
fleet can hold and turn over in a second.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from agentserve.core.fleet import Engine
from agentserve.core.foresight import Foresight
from agentserve.core.program import Step


class VirtualTime:
    """Generalised processor sharing: virtual time passes at `service / weights of the flows that are not yet done`."""

    __slots__ = ("_leaving", "_served", "_weight", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._served = 0.0
        self._weight = 0.0
        self._leaving: list[tuple[float, float]] = []  # virtual finish and weight of each flow

    def advance(self, served: float) -> float:
        """The server has given `served` in all, since the start; the virtual time now."""
        left = max(served - self._served, 0.0)
        self._served = max(served, self._served)
        while self._leaving:
            finish, weight = self._leaving[0]
            until = (finish - self.now) * self._weight
            if until > left:
                self.now += left / self._weight
                return self.now
            left -= max(until, 0.0)
            self.now = max(finish, self.now)
            heapq.heappop(self._leaving)
            self._weight = self._weight - weight if self._leaving else 0.0
        return self.now

    def join(self, cost: float, weight: float = 1.0) -> float:
        """A flow begins now; its virtual finish. Advance first."""
        finish = self.now + cost / weight
        heapq.heappush(self._leaving, (finish, weight))
        self._weight += weight
        return finish


class KvTime:
    """Foresees what a program costs: its calls grow by the mean growth of all."""

    __slots__ = ("growth_tokens",)

    def __init__(self) -> None:
        self.growth_tokens = 500.0

    def grew(self, tokens: int) -> None:
        """A program's next prompt was this much longer."""
        self.growth_tokens += 0.02 * (max(tokens, 0) - self.growth_tokens)

    def of_program(self, first: Step, foresight: Foresight) -> float:
        """Token-iterations from this step to its program's end."""
        n = max(foresight.steps_left(first.program), 1.0)
        p, d = float(first.prompt_tokens), float(first.output_tokens)
        return n * (p * d + d * d / 2) + self.growth_tokens * d * n * (n - 1) / 2


def turnover(engines: Iterable[Engine]) -> float:
    """Token-iterations that these engines give in a second."""
    return max(sum(e.kv_tokens * e.speed / e.decode_s_per_token for e in engines), 1.0)
