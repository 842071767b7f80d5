"""Whoever only looks at what the scheduler was told and decided, each told of what concerns it.

    audience.hear({ev.StepArrived: self._arrived, do.Pin: self._pinned})
    audience.listen(listener)                # everything
    audience.tell(event, now, decisions)     # every event, in order

Rule: nobody is called for what it does nothing with. Those that hear of some kinds come first, in the order in which
they began to, each event before its decisions; then those that listen to everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentserve.core import decisions as do
from agentserve.core import events as ev

Hears = Mapping[type[ev.Event] | type[do.Decision], Callable[[Any, float], None]]
Listener = Callable[[ev.AnyEvent, float, list[do.AnyDecision]], None]
_NOBODY: Sequence[Callable[[Any, float], None]] = ()


class Audience:
    """Who hears of what."""

    def __init__(self, *hears: Hears) -> None:
        self._hearing: dict[type, list[Callable[[Any, float], None]]] = {}
        self._listeners: list[Listener] = []
        for one in hears:
            self.hear(one)

    def hear(self, hears: Hears) -> None:
        """Tell of these kinds of events and decisions."""
        for kind, told in hears.items():
            self._hearing.setdefault(kind, []).append(told)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Tell of every event and what was decided; returns how to stop."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def tell(self, event: ev.AnyEvent, now: float, decisions: list[do.AnyDecision]) -> None:
        """An event, and what was decided on it."""
        hearing = self._hearing
        for told in hearing.get(type(event), _NOBODY):
            told(event, now)
        for decision in decisions:
            for told in hearing.get(type(decision), _NOBODY):
                told(decision, now)
        for listener in self._listeners:
            listener(event, now, decisions)
