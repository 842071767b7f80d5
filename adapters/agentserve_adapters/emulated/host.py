"""The emulated engine on a real clock: requests wait here for their tokens.

Rule: one loop, one engine. Engine time is the loop's time since the start, times `time_scale`. A pump advances it
whenever something is due, and tells each request how far it is.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence

from agentserve.engine import (
    EmulatedEngine,
    EngineConfig,
    EngineEvent,
    EngineRequest,
    FirstToken,
    KvCleared,
    KvEvent,
    KvRemoved,
    KvStored,
    Profile,
    RequestFinished,
    RequestRejected,
    RequestStarted,
)
from agentserve_adapters.emulated.record import Record, Submission

TICK_S = 0.02  # how often streams are told of new tokens, in real seconds
SESSIONS_MAX = 4096  # whose latest prompt is known, to be pinned


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
        self.record = Record(time_scale=time_scale, context_max=profile.model.context_max)
        # news of KV blocks, with the request that each event names
        self.on_kv: Callable[[Sequence[tuple[KvEvent, Submission | None]]], None] | None = None
        self._requests: dict[str, Progress] = {}
        self._sessions: OrderedDict[str, Sequence[int]] = OrderedDict()
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

    async def run(self, submission: Submission) -> AsyncGenerator[Progress]:
        """Submit; yield whenever there are more tokens, at last when it is over. Closing the iterator aborts."""
        self._count += 1
        name = f"r{self._count}"
        progress = self._requests[name] = Progress()
        self._streams += submission.stream
        self._submit(name, submission)
        try:
            # not a loop on `finished`: where the event loop was held up, the pump found the request over already,
            # and its end is told all the same
            over = False
            while not over:
                if submission.stream:
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
            self._streams -= submission.stream
            if self._requests.pop(name, None) is not None and not (progress.finished or progress.lost):
                self.engine.abort(name, self.now())
                self._pump()

    def _submit(self, name: str, submission: Submission) -> None:
        now = self.now()
        if submission.session is not None:
            self._sessions[submission.session] = submission.hashes
            self._sessions.move_to_end(submission.session)
            if len(self._sessions) > SESSIONS_MAX:
                self._sessions.popitem(last=False)
        self.record.submitted(name, submission, now)
        request = EngineRequest(
            id=name,
            hashes=submission.hashes,
            prompt_tokens=submission.prompt_tokens,
            output_tokens=submission.output_tokens,
            priority=submission.priority,
        )
        self.engine.submit(request, now)
        self._pump()

    def pin(self, session: str, ttl_s: float) -> int:
        """Hold what is cached of the session's latest prompt and reply; the tokens held."""
        hashes = self._sessions.get(session)
        if hashes is None:
            return 0
        now = self.now()
        held = self.engine.pin(session, hashes, now + ttl_s * self.time_scale, now)
        self._pump()
        return held

    def unpin(self, session: str) -> None:
        """Let it go."""
        self.engine.unpin(session, self.now())
        self._pump()

    def crash(self) -> None:
        """Lose everything, as a process that was killed would."""
        for name in self.engine.crash(self.now()):
            self.record.lost(name)
            progress = self._requests.get(name)
            if progress is not None:
                progress.lost = True
                progress.changed.set()
        self._pump()

    def _pump(self) -> float:
        """Advance to now, tell whom it concerns, and come back when something is due; the now that it was."""
        now = self.now()
        news: list[tuple[KvEvent, Submission | None]] = []
        for event in self.engine.advance(now):
            if isinstance(event, (KvStored, KvRemoved, KvCleared)):
                if self.on_kv is not None:
                    course = self.record.open.get(event.request) if isinstance(event, KvStored) else None
                    news.append((event, None if course is None else course.submission))
                continue
            self.record.note(event)
            self._tell(event)
        if news and self.on_kv is not None:
            self.on_kv(news)
        due = self.engine.next_event()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            delay = max(due - now, 0.0) / self.time_scale
            self._timer = asyncio.get_running_loop().call_later(delay, self._pump)
        return now

    def _tell(self, event: EngineEvent) -> None:
        if not isinstance(event, (RequestStarted, FirstToken, RequestFinished, RequestRejected)):
            return
        if isinstance(event, RequestRejected):
            self.record.rejected(event.id)
        progress = self._requests.get(event.id)
        if progress is None:
            return
        if isinstance(event, RequestStarted):
            progress.cached_tokens = event.cached_tokens
        elif isinstance(event, FirstToken):  # at once: the others may wait for the next look
            progress.done = max(progress.done, 1)
            progress.changed.set()
        elif isinstance(event, RequestFinished):
            progress.done = event.output_tokens
            progress.finished = True
            progress.changed.set()
        else:
            progress.rejected = event.reason
            progress.changed.set()

    def _tick_later(self) -> None:
        if self._ticking is None and self._streams:
            self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        # at one moment, since a request that ends between two looks is no longer there to be asked
        now = self._pump()
        for name, progress in self._requests.items():
            if progress.finished or progress.rejected or progress.lost:
                continue
            done = self.engine.tokens_done(name, now)
            if done > progress.done:
                progress.done = done
                progress.changed.set()
        self._tick_later()
