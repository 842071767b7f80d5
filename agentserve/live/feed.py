"""Live events for whoever watches: what the scheduler was told and decided, and the steps that ended.

Rule: a watcher that does not keep up loses events and is told how many; nobody waits for it. What happened lately is
remembered, bounded, so that whoever comes later, or comes back, sees it too; it becomes plain values only when it is
asked for.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.identity import unscoped

WATCHERS_MAX = 64
QUEUE_MAX = 2_000
PROGRAMS_MAX = 500  # the latest; of older ones the store knows
STEPS_MAX = 20_000  # open ones whose program is known
STORY_MAX = 24  # entries a program
RECENT_MAX = 1_000  # entries that a watcher who comes later is told
TOOLS_MAX = 200  # the tools asked for lately
_LAST = (ev.StepFinished, ev.ClientGone)  # of a step

Entry = dict[str, Any]


class Feed:
    """All watchers, and each program's recent story."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._watchers: set[Watcher] = set()
        self._stories: OrderedDict[str, deque[Heard]] = OrderedDict()
        self._of_step: OrderedDict[str, str] = OrderedDict()
        self._tools: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._recent: deque[Heard] = deque(maxlen=RECENT_MAX)
        # grows over restarts too, so that a watcher who comes back to a new gateway is told everything
        self._serial = int(clock() * 1e6)

    def heard(self, event: ev.AnyEvent, now: float, decisions: list[do.AnyDecision]) -> None:
        """The driver's listener."""
        step: str | None = getattr(event, "step", None)
        program = self._program_of(event, step)
        self._serial += 1
        heard = Heard(self._serial, self._clock(), now, program, event, decisions)
        if program is not None:
            self._remember(program, heard)
            if isinstance(event, ev.StepFinished) and event.tools:
                self._count_tools(program, event)
        for decision in decisions:
            of = getattr(decision, "step", None)
            if of is not None and of == step:
                continue  # as nearly always: of the step that the event is about
            other = getattr(decision, "program", None) or self._of_step.get(of or "")
            if other is not None and other != program:
                self._remember(other, msgspec.structs.replace(heard, decisions=[decision]))
        if program is not None or decisions:  # the engines' figures come every second and would fill it
            self._recent.append(heard)
        if self._watchers:
            entry = heard.entry()
            for watcher in self._watchers:
                watcher.put(entry)

    def story(self, program: str) -> list[Entry]:
        """How the program came to be where it is: what happened and what was decided, oldest first."""
        entries = [heard.entry() for heard in self._stories.get(program, ())]
        for entry in entries:
            del entry["serial"]
        return entries

    def owner(self, step: str) -> str | None:
        """Whose step it is while it is open; whoever listens to its end asks before the feed hears of it."""
        return self._of_step.get(step)

    def tools(self) -> list[tuple[tuple[str, str], int]]:
        """The tools that were asked for lately, by tenant and name, with how often; the newest last."""
        return list(self._tools.items())

    async def watch(
        self, *, tenant: str | None = None, after: int | None = None
    ) -> AsyncGenerator[Entry, None]:
        """Events from now on, and before them those remembered of later than `after`; of one tenant where given."""
        watcher = Watcher(tenant)
        self._watchers.add(watcher)
        if after is not None:
            for heard in self._recent:
                if heard.serial > after:
                    watcher.put(heard.entry())
        try:
            while (entry := await watcher.next()) is not None:
                yield entry
        finally:
            self._watchers.discard(watcher)

    def close(self) -> None:
        """End every stream."""
        for watcher in self._watchers:
            watcher.close()

    @property
    def last(self) -> int:
        """The number of the latest event."""
        return self._serial

    @property
    def full(self) -> bool:
        """Are there as many watchers as may be?"""
        return len(self._watchers) >= WATCHERS_MAX

    def _program_of(self, event: ev.AnyEvent, step: str | None) -> str | None:
        program: str | None = getattr(event, "program", None)
        if program is not None:
            if step is not None:
                self._of_step[step] = program
                if len(self._of_step) > STEPS_MAX:
                    self._of_step.popitem(last=False)
            return program
        if step is None:
            return None
        if isinstance(event, _LAST) or (isinstance(event, ev.StepFailed) and not event.retryable):
            return self._of_step.pop(step, None)
        return self._of_step.get(step)

    def _count_tools(self, program: str, event: ev.StepFinished) -> None:
        tenant = unscoped(program)[0]
        for call in event.tools:
            self._tools[tenant, call.name] = self._tools.pop((tenant, call.name), 0) + 1
        while len(self._tools) > TOOLS_MAX:
            self._tools.popitem(last=False)

    def _remember(self, program: str, entry: Heard) -> None:
        story = self._stories.get(program)
        if story is None:
            story = self._stories[program] = deque(maxlen=STORY_MAX)
            if len(self._stories) > PROGRAMS_MAX:
                self._stories.popitem(last=False)
        story.append(entry)


class Heard(msgspec.Struct, frozen=True):
    """One event as it was heard: its number, when (as a date and on the scheduler's clock), and what was decided."""

    serial: int
    at: float
    now: float
    program: str | None
    event: ev.AnyEvent
    decisions: list[do.AnyDecision]

    def entry(self) -> Entry:
        """As watchers see it."""
        return {
            "serial": self.serial,
            "at": self.at,
            "now": self.now,
            "program": self.program,
            "event": told(self.event),
            "decisions": [told(d) for d in self.decisions],
        }


class Watcher:
    """One open stream."""

    def __init__(self, tenant: str | None) -> None:
        self._prefix = None if tenant is None else f"{tenant}/"
        self._queue: deque[Entry] = deque()
        self._lost = 0
        self._came = asyncio.Event()
        self._closed = False

    def close(self) -> None:
        """No more."""
        self._closed = True
        self._came.set()

    def put(self, entry: Entry) -> None:
        """Something happened."""
        if self._prefix is not None and not (entry["program"] or "").startswith(self._prefix):
            return
        if len(self._queue) >= QUEUE_MAX:
            self._lost += 1
            return
        self._queue.append(entry)
        self._came.set()

    async def next(self) -> Entry | None:
        """The next entry, with how many were lost before it; None at the end."""
        while not self._queue:
            if self._closed:
                return None
            self._came.clear()
            await self._came.wait()
        entry = self._queue.popleft()
        if self._lost:
            entry = {**entry, "lost": self._lost}
            self._lost = 0
        return entry


def told(value: ev.AnyEvent | do.AnyDecision) -> Any:
    """An event or a decision as plain JSON values."""
    return msgspec.to_builtins(value)
