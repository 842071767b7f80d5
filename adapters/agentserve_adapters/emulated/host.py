"""The emulated engine on a real clock: requests wait here for their tokens.

Rule: one loop, one engine. Engine time is the loop's time since the start, times `time_scale`. A pump advances it
whenever something is due, and tells each request how far it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from agentserve.engine import (
    EmulatedEngine,
    EngineConfig,
    EngineRequest,
    KvRemoved,
    KvStored,
    Profile,
    RequestFinished,
    RequestRejected,
    RequestStarted,
)

TICK_S = 0.02  # how often streams are told of new tokens, in real seconds


class TooLong(Exception):
    """The request can never fit."""


class Progress:
    """How far one request is."""

    __slots__ = ("cached_tokens", "changed", "done", "finished", "lost", "rejected")

    def __init__(self) -> None:
        self.done = 0
        self.cached_tokens = 0
        self.finished = False
        self.rejected = ""
        self.lost = False
        self.changed = asyncio.Event()


class Host:
    """Owns the engine and its time."""

    def __init__(self, *, profile: Profile, config: EngineConfig, time_scale: float = 1.0) -> None:
        self.engine = EmulatedEngine(profile=profile, config=config)
        self.time_scale = time_scale
        self.finished: dict[str, int] = {"stop": 0, "length": 0, "abort": 0}
        self.queue_s: list[float] = []
        self.on_kv: Callable[[KvStored | KvRemoved], None] | None = None
        self._requests: dict[str, Progress] = {}
        self._started: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._streams = 0
        self._count = 0

    def now(self) -> float:
        """Engine time."""
        at = asyncio.get_running_loop().time()
        if self._started is None:
            self._started = at
        return (at - self._started) * self.time_scale

    def __len__(self) -> int:
        return len(self._requests)

    async def run(
        self,
        hashes: Sequence[int],
        *,
        prompt_tokens: int,
        output_tokens: int,
        priority: int = 0,
        stream: bool = False,
    ) -> AsyncIterator[Progress]:
        """Submit; yield whenever there are more tokens, at last when it is over. Closing the iterator aborts."""
        self._count += 1
        name = f"r{self._count}"
        progress = self._requests[name] = Progress()
        self._streams += stream
        self.engine.submit(
            EngineRequest(
                id=name,
                hashes=hashes,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                priority=priority,
            ),
            self.now(),
        )
        self._pump()
        try:
            # not a loop on `finished`: where the event loop was held up, the pump found the request over already,
            # and its end is told all the same
            over = False
            while not over:
                if stream:
                    self._tick_later()
                await progress.changed.wait()
                progress.changed.clear()
                if progress.rejected:
                    break
                over = progress.finished or progress.lost
                yield progress
            if progress.rejected:
                raise TooLong(progress.rejected)
        finally:
            self._streams -= stream
            if self._requests.pop(name, None) is not None and not (progress.finished or progress.lost):
                self.engine.abort(name, self.now())
                self.finished["abort"] += 1
                self._pump()

    def crash(self) -> None:
        """Lose everything, as a process that was killed would."""
        for name in self.engine.crash(self.now()):
            progress = self._requests.get(name)
            if progress is not None:
                progress.lost = True
                progress.changed.set()

    def _pump(self) -> None:
        """Advance to now, tell whom it concerns, and come back when something is due."""
        now = self.now()
        for event in self.engine.advance(now):
            if isinstance(event, (KvStored, KvRemoved)):
                if self.on_kv is not None:
                    self.on_kv(event)
                continue
            progress = self._requests.get(event.id)
            if progress is None:
                continue
            if isinstance(event, RequestStarted):
                progress.cached_tokens = event.cached_tokens
            elif isinstance(event, RequestFinished):
                progress.done = event.output_tokens
                progress.finished = True
                progress.changed.set()
            elif isinstance(event, RequestRejected):
                progress.rejected = event.reason
                progress.changed.set()
        due = self.engine.next_event()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            delay = max(due - now, 0.0) / self.time_scale
            self._timer = asyncio.get_running_loop().call_later(delay, self._pump)

    def _tick_later(self) -> None:
        if self._ticking is None and self._streams:
            self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        self._pump()
        now = self.now()
        for name, progress in self._requests.items():
            if progress.finished or progress.rejected or progress.lost:
                continue
            done = self.engine.tokens_done(name, now)
            if done > progress.done:
                progress.done = done
                progress.changed.set()
        self._tick_later()
