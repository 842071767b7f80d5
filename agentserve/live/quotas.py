"""What each tenant may use: requests and tokens per minute, programs at once, and the length of one program.

Rule: counting costs the same whatever the number of programs, and every record here is bounded. Time is an argument.
A refusal says which limit it was and when to come back. Priority ceilings and shares are the scheduler's business.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from agentserve.config import TenantSettings
from agentserve.errors import NotAuthorised, Overloaded

PROGRAMS_COUNTED_MAX = 200_000
MINUTE_S = 60.0


class Bucket:
    """A limit per minute that refills evenly. It may be overdrawn by what was not known beforehand."""

    __slots__ = ("at", "level", "per_minute")

    def __init__(self, per_minute: float, now: float) -> None:
        self.per_minute = per_minute
        self.level = per_minute
        self.at = now

    def take(self, amount: float, now: float) -> None:
        """Use some of it, whether it is there or not."""
        self._refill(now)
        self.level -= amount

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until so much is there; 0 when it is. More than the whole limit is never asked for."""
        self._refill(now)
        lacking = min(amount, self.per_minute) - self.level
        return max(lacking, 0.0) * MINUTE_S / self.per_minute

    def _refill(self, now: float) -> None:
        if now > self.at:
            self.level = min(self.level + (now - self.at) * self.per_minute / MINUTE_S, self.per_minute)
            self.at = now


class _Usage:
    """One program's count."""

    __slots__ = ("running", "seen_at", "steps", "tokens")

    def __init__(self, now: float) -> None:
        self.steps = 0
        self.tokens = 0
        self.running = 0
        self.seen_at = now


class _Account:
    """One tenant's counts."""

    __slots__ = ("programs", "requests", "settings", "tokens")

    def __init__(self, settings: TenantSettings, now: float) -> None:
        self.settings = settings
        self.programs: OrderedDict[str, _Usage] = OrderedDict()  # least recently seen first
        limit = settings.requests_per_minute
        self.requests = None if limit is None else Bucket(limit, now)
        limit = settings.tokens_per_minute
        self.tokens = None if limit is None else Bucket(limit, now)

    @property
    def limited(self) -> bool:
        s = self.settings
        return any(
            limit is not None
            for limit in (
                s.requests_per_minute,
                s.tokens_per_minute,
                s.programs_max,
                s.program_steps_max,
                s.program_tokens_max,
            )
        )


class Quotas:
    """All tenants' counts."""

    def __init__(self, tenants: Iterable[TenantSettings] = (), *, program_idle_s: float = 1800.0) -> None:
        self._settings = {tenant.id: tenant for tenant in tenants}
        self._accounts: dict[str, _Account] = {}  # of tenants with limits of their own alone
        self._program_idle_s = program_idle_s

    def settings_of(self, tenant: str) -> TenantSettings:
        """The limits of a tenant; one that has no entry has none."""
        found = self._settings.get(tenant)
        return found if found is not None else TenantSettings(id=tenant)

    def salts(self, tenant: str) -> bool:
        """Are this tenant's prompts to be kept apart from others' in the engines' caches?"""
        found = self._settings.get(tenant)
        return found is not None and found.cache_salt

    def set(self, settings: TenantSettings) -> None:
        """Replace a tenant's limits; its counts begin anew."""
        self._settings[settings.id] = settings
        self._accounts.pop(settings.id, None)

    def tenants(self) -> list[TenantSettings]:
        """Those with limits of their own."""
        return sorted(self._settings.values(), key=lambda t: t.id)

    def request(self, tenant: str, now: float) -> None:
        """One request arrived. Raises `Overloaded` when it is one too many."""
        if tenant not in self._settings:
            return
        account = self._account(tenant, now)
        bucket = account.requests
        if bucket is not None:
            if wait_s := bucket.wait_s(1.0, now):
                raise Overloaded(
                    f"the limit of {bucket.per_minute:g} requests per minute is reached",
                    remedy="slow down, or ask the operator for more",
                    retry_after_s=wait_s,
                )
            bucket.take(1.0, now)

    def step(self, tenant: str, program: str, prompt_tokens: int, now: float) -> None:
        """A step of the program is about to be scheduled. Raises when a limit forbids it."""
        if tenant not in self._settings:
            return
        account = self._account(tenant, now)
        if not account.limited:
            return
        settings = account.settings
        if account.tokens is not None and (wait_s := account.tokens.wait_s(prompt_tokens, now)):
            raise Overloaded(
                f"the limit of {account.tokens.per_minute:g} tokens per minute is reached",
                remedy="slow down, or ask the operator for more",
                retry_after_s=wait_s,
            )
        usage = account.programs.get(program)
        if usage is None:
            self._make_room(account, now)
            usage = account.programs[program] = _Usage(now)
        self._check_length(settings, usage)
        usage.steps += 1
        usage.running += 1
        usage.seen_at = now
        account.programs.move_to_end(program)

    def step_over(self, tenant: str, program: str, tokens: int, now: float) -> None:
        """A step that `step` let in has ended, having used so many tokens."""
        if tenant not in self._settings:
            return
        account = self._account(tenant, now)
        if account.tokens is not None:
            account.tokens.take(tokens, now)
        usage = account.programs.get(program)
        if usage is not None:
            usage.running = max(usage.running - 1, 0)
            usage.tokens += tokens
            usage.seen_at = now

    def program_over(self, tenant: str, program: str) -> None:
        """The program ended: its place is free, and another of the same name begins at zero."""
        account = self._accounts.get(tenant)
        if account is not None:
            account.programs.pop(program, None)

    def _account(self, tenant: str, now: float) -> _Account:
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = _Account(self._settings[tenant], now)
        return account

    def _make_room(self, account: _Account, now: float) -> None:
        programs = account.programs
        while programs:
            oldest = next(iter(programs))
            usage = programs[oldest]
            if usage.running or (
                usage.seen_at + self._program_idle_s > now and len(programs) < PROGRAMS_COUNTED_MAX
            ):
                break
            del programs[oldest]
        limit = account.settings.programs_max
        if limit is not None and len(programs) >= limit:
            oldest_at = next(iter(programs.values())).seen_at
            raise Overloaded(
                f"the limit of {limit} programs at once is reached",
                remedy="end programs when they are done (DELETE /v1/programs/{id}), or ask the operator for more",
                retry_after_s=min(max(oldest_at + self._program_idle_s - now, 1.0), MINUTE_S),
            )

    @staticmethod
    def _check_length(settings: TenantSettings, usage: _Usage) -> None:
        for used, limit, what in (
            (usage.steps, settings.program_steps_max, "steps"),
            (usage.tokens, settings.program_tokens_max, "tokens"),
        ):
            if limit is not None and used >= limit:
                raise NotAuthorised(
                    f"this program has used its {limit} {what}",
                    remedy="begin a new program, or ask the operator for a longer one",
                    status=403,
                )
