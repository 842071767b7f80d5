"""Pins: how long a program's KV is worth keeping through a gap, and whether keeping it has paid.

Rule: a pin is a bet on a program's return, and every bet is settled: what it held, at what price, and what it spared.
It knows nothing of seats or queues; whoever keeps the KV says when the bet was made and how it ended.

A second of keeping is worth `rate of return x prefill spared`; it costs `price x share of the engine's KV held`, in
seconds of the engine's time. Both are proportional to the tokens, so the size cancels: keep while

    return_rate(elapsed) x (time to fill the whole KV anew) >= price

but for attention: the KV is filled more slowly by few long contexts than by many short ones, so long ones are kept
longer. Held for the time to fill the KV over the price, a pin has cost what its program's return spares: beside that
break-even its forecast says where keeping is worth most (`Survival.keeping`), and there the pin ends. The price is zero
while nobody waits, so an end is asked for only then.
"""

from __future__ import annotations

from dataclasses import dataclass

from cachetools import LRUCache

from agentserve.core.ids import TenantId, WorkflowId

WORKFLOWS_MAX = 1000
GAIN_WEIGHT = 0.05  # of the newest bet in a workflow's mean gain
SETTLED_MIN = 30  # bets before a workflow is judged
# of a workflow switched off, each so manieth gap is kept all the same, to learn if that changed
PROBE_EVERY = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Bet:
    """KV kept at a price. `made_at` is when someone began to wait for the memory."""

    made_at: float
    tokens: int
    price: float  # seconds of engine time for each second that the whole KV is held
    capacity: float
    expected_s: float = 0.0  # the gain that was forecast

    def cost_s(self, until: float) -> float:
        return max(until - self.made_at, 0.0) * self.price * self.tokens / self.capacity


@dataclass(slots=True, eq=False)
class Balance:
    """What the pins of one workflow gave."""

    settled: int = 0
    mean_gain_s: float = 0.0
    asked_while_off: int = 0

    def settle(self, gain_s: float) -> None:
        self.settled += 1
        # a plain mean at first, then one that forgets
        weight = max(GAIN_WEIGHT, 1.0 / self.settled)
        self.mean_gain_s += weight * (gain_s - self.mean_gain_s)

    @property
    def pays(self) -> bool:
        return self.settled < SETTLED_MIN or self.mean_gain_s > 0.0


class PinAccounts:
    """The balance of all bets, and of each workflow; a workflow whose pins do not pay is switched off."""

    def __init__(self) -> None:
        self._balances: LRUCache[tuple[TenantId, WorkflowId | None], Balance] = LRUCache(WORKFLOWS_MAX)
        self.settled = 0
        self.expected_s = 0.0
        self.saved_s = 0.0
        self.cost_s = 0.0
        self.lost_s = 0.0  # cost of the bets that gained nothing: their regret

    def settle(
        self, tenant: TenantId, workflow: WorkflowId | None, bet: Bet, *, until: float, saved_s: float
    ) -> None:
        """The bet is over: it held its memory until then and spared so many seconds of prefill."""
        cost = bet.cost_s(until)
        self.settled += 1
        self.expected_s += bet.expected_s
        self.saved_s += saved_s
        self.cost_s += cost
        self.lost_s += max(cost - saved_s, 0.0)
        self._balance(tenant, workflow).settle(saved_s - cost)

    def allowed(self, tenant: TenantId, workflow: WorkflowId | None) -> bool:
        """Whether to keep the workflow's KV at a price; one that is switched off gets a probe now and then."""
        balance = self._balance(tenant, workflow)
        if balance.pays:
            return True
        balance.asked_while_off += 1
        return balance.asked_while_off % PROBE_EVERY == 0

    def _balance(self, tenant: TenantId, workflow: WorkflowId | None) -> Balance:
        found = self._balances.get((tenant, workflow))
        if found is None:
            found = self._balances[tenant, workflow] = Balance()
        return found

    @property
    def switched_off(self) -> int:
        """Workflows whose pins did not pay lately."""
        return sum(not b.pays for b in self._balances.values())

    def figures(self) -> dict[str, float]:
        return {
            "pins_settled": float(self.settled),
            "pins_expected_s": self.expected_s,
            "pins_saved_s": self.saved_s,
            "pins_cost_s": self.cost_s,
            "pins_lost_s": self.lost_s,
            "pins_switched_off": float(self.switched_off),
        }
