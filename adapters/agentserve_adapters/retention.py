"""What keeping a prompt in a hosted provider's cache costs against making it anew.

Rule: prices are multiples of a plain input token, so that no currency and no model's price is needed. The
nearest native value is the shortest that outlasts the wish; a wish longer than all of them is clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One retention that a provider sells."""

    name: str
    keeps_s: float
    write: float  # price of putting a token in
    read: float  # price of a token found there


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The nearest tier to a wish, and what it costs."""

    tier: Tier
    clipped: bool  # the wish outlasts every tier
    keep: float  # price of writing now and reading at the return, in plain input tokens
    recreate: float  # price of sending it uncached now and at the return

    @property
    def pays(self) -> bool:
        """Is keeping cheaper, given that the program returns in time?"""
        return self.keep < self.recreate


def nearest(tiers: Sequence[Tier], *, tokens: int, ttl_s: float, cached: bool = False) -> Choice:
    """The tier for a wish. `cached`: the prefix is in the cache already, so writing it costs nothing more."""
    ordered = sorted(tiers, key=lambda t: t.keeps_s)
    tier = next((t for t in ordered if t.keeps_s >= ttl_s), ordered[-1])
    write = tier.read if cached else tier.write
    return Choice(
        tier=tier,
        clipped=tier.keeps_s < ttl_s,
        keep=tokens * (write + tier.read),
        recreate=tokens * 2.0,
    )
