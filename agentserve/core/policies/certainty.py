"""Which kinds of gaps end when they are foretold to, so that others need not be asked about each time.

Rule: it remembers outcomes, not forecasts. A kind of gap whose end could not be foretold several times in a row is
asked about once in a while only; the first that could be makes it a kind to be asked about again.
"""

from __future__ import annotations

from cachetools import LRUCache

from agentserve.core.ids import TenantId
from agentserve.core.program import Program

KINDS_MAX = 4_096
TRIES = 4  # uncertain in a row, before any is passed over
PASSED_MAX = 16  # in a row

Kind = tuple[TenantId, tuple[tuple[str, str], ...]]


class Certainty:
    """`worth_asking` when a gap's end is wanted, `found` once it was asked for."""

    __slots__ = ("_kinds",)

    def __init__(self) -> None:
        self._kinds: LRUCache[Kind, list[int]] = LRUCache(KINDS_MAX)  # uncertain in a row, still to pass over

    def worth_asking(self, program: Program) -> bool:
        """May the end of its gap be known?"""
        known = self._kinds.get(_kind(program))
        if known is None or not known[1]:
            return True
        known[1] -= 1
        return False

    def found(self, program: Program, *, certain: bool) -> None:
        """Its end was asked for, and was nearly sure or not."""
        kind = _kind(program)
        if certain:
            self._kinds.pop(kind, None)
            return
        known = self._kinds.setdefault(kind, [0, 0])
        known[0] += 1
        known[1] = min(max(known[0] - TRIES, 0), PASSED_MAX)


def _kind(program: Program) -> Kind:
    calls = program.calls.values() if program.calls else ()
    return program.tenant, tuple((call.name, call.argument_class) for call in calls)
