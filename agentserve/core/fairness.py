"""Who is owed what: one account per tenant, in KV token-seconds over weight.

Rule: the account with the least service goes next, and service accrues while a tenant holds memory, working or
idle: a kept KV costs its owner. A tenant that was away is lifted to the least of those that waited, so that
absence earns no credit; splitting a program into many gains nothing, since the account is the tenant's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agentserve.core.ids import TenantId
from agentserve.errors import InvariantBroken


@dataclass(slots=True)
class Account:
    """Service up to `at`, growing by `holding / weight` a second since."""

    weight: float
    service: float = 0.0
    holding: int = 0  # KV tokens held now
    at: float = 0.0

    def now(self, now: float) -> float:
        return self.service + self.holding * (now - self.at) / self.weight


class Accounts:
    """All tenants' accounts."""

    def __init__(self, weight_of: Callable[[TenantId], float]) -> None:
        self._weight_of = weight_of
        self._accounts: dict[TenantId, Account] = {}
        self.gap_max = 0.0

    def account(self, tenant: TenantId, now: float) -> Account:
        found = self._accounts.get(tenant)
        if found is None:
            found = self._accounts[tenant] = Account(self._weight_of(tenant), at=now)
        return found

    def reweigh(self, tenant: TenantId, now: float) -> None:
        """The tenant's weight is another one from now on; the service it had stays what it was."""
        account = self._accounts.get(tenant)
        if account is not None:
            account.service, account.at = account.now(now), now
            account.weight = self._weight_of(tenant)

    def hold(self, tenant: TenantId, tokens: int, now: float) -> None:
        """The tenant holds this many tokens more (or fewer) from now on."""
        account = self._accounts.get(tenant) or self.account(tenant, now)
        account.service += (
            account.holding * (now - account.at) / account.weight
        )  # `account.now(now)`, written out
        account.at = now
        account.holding += tokens

    def rejoin(self, tenant: TenantId, waiting: Iterable[TenantId], now: float) -> None:
        """The tenant has work again after having none: it starts level with the least of those that waited."""
        account = self.account(tenant, now)
        if account.holding:
            return
        others = [self.account(t, now).now(now) for t in waiting if t != tenant]
        others += [a.now(now) for t, a in self._accounts.items() if a.holding]
        if others:
            lifted = min(others)
            if lifted > account.now(now):
                account.service += lifted - account.now(now)

    def note_gap(self, gap: float) -> None:
        """So far apart is the service of tenants that wait at the same time: keep the largest that was ever seen."""
        self.gap_max = max(self.gap_max, gap)

    def services(self, now: float) -> dict[TenantId, float]:
        return {t: a.now(now) for t, a in self._accounts.items()}

    def restore(self, services: dict[TenantId, float], now: float) -> None:
        for tenant, service in services.items():
            self.account(tenant, now).service = service

    def check(self) -> None:
        for tenant, account in self._accounts.items():
            if account.holding < 0:
                raise InvariantBroken(f"tenant {tenant} holds {account.holding} tokens")
