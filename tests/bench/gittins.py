"""How much order alone could gain if the distribution of lengths were known, but no program's own length.

`PYTHONPATH=. agentserve simulate --policy tests.bench.gittins.Gittins`, on `coding` or `slowtools`.

Ours in all but the order, which is the Gittins index of a program's steps done and context: the best chance of ending
per KV held until then, over all horizons. Where jobs are served one at a time and nothing but the distribution of their
sizes is known, no order has a lower mean. Here many are served at once and a seat taken back costs a prefill, so it is
no proof; it shows what a better use of the learned lengths can still be hoped to give. Lengths are drawn independently
of all else there, so none but an oracle knows more than this.

`gain`: an idle seat is taken for one that waits where that makes the index so much higher; 0 takes none.

Rule: it is told how long programs of these workloads are, so its figures are a bound and no policy's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

from agentserve.core.policies.order import Order
from agentserve.core.policies.params import WorkingSetParams
from agentserve.core.policies.seats import Book
from agentserve.core.policies.working_set import WorkingSet
from agentserve.core.program import Program
from agentserve.sim.workloads.coding import autonomous, steps_of
from agentserve.sim.workloads.draws import Draws

LENGTHS = 50_000  # of which the distribution is made
PROGRAMS = 200  # of which the growth is
CONTEXT_STEP = 1_000  # tokens told apart


@dataclass(frozen=True, slots=True, kw_only=True)
class GittinsParams(WorkingSetParams):
    """Ours, and when to take a seat for its better use."""

    gain: float = 0.0


@cache
def shape() -> tuple[list[float], float]:
    """The share of programs that are longer than so many steps, and the tokens by which one grows in a step."""
    lengths = Counter(steps_of(Draws("lengths", index)) for index in range(LENGTHS))
    longer = [1.0]
    for steps in range(1, max(lengths) + 1):
        longer.append(longer[-1] - lengths[steps] / LENGTHS)
    plans = [autonomous(index, 0, name="growth") for index in range(PROGRAMS)]
    grown = [step.new_tokens + step.output_tokens for plan in plans for step in plan.steps[1:]]
    return longer, sum(grown) / len(grown)


@cache
def cost_of_an_end(steps_done: int, context: int) -> float:
    """The inverse of the index: the least KV, in thousands of tokens times steps, that one end is expected to take."""
    longer, growth = shape()
    done = min(steps_done, len(longer) - 2)
    alive, held, least = longer[done], 0.0, float("inf")
    for more in range(1, len(longer) - done):
        held += longer[done + more - 1] / alive * (context + growth * (more - 1))
        ended = 1.0 - longer[done + more] / alive
        if ended > 0.0:
            least = min(least, held / ended)
    return least / 1_000


class ByIndex(Order):
    """Smallest cost of an end first."""

    def key(self, program: Program) -> float:
        own = max(program.footprint(0), program.context_tokens) - program.shared_tokens
        return cost_of_an_end(program.steps_done, max(own, 0) // CONTEXT_STEP * CONTEXT_STEP)


class Gittins(WorkingSet):
    """Smallest cost of an end first, whoever came first."""

    name = "gittins"
    Params = GittinsParams
    params: GittinsParams

    def setup(self) -> None:
        super().setup()
        self._order = ByIndex(self.board, self.params, self._anew)

    def _sweep(self, book: Book, wanting: Program | None, now: float) -> bool:
        if super()._sweep(book, wanting, now):
            return True
        if wanting is None or not self.params.gain:
            return False
        idle = [p for p in book.seated.values() if p.idle]
        worst = max(idle, key=lambda p: (self._order.seat_key(p), p.id), default=None)
        if worst is not None and self._order.seat_key(worst) > (1.0 + self.params.gain) * self._order.key(
            wanting
        ):
            self._let_go(worst, book, now, "outranked")
        return self._rooms.fits(wanting, book)
