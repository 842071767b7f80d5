"""The journal: what happened, written behind the requests by a thread of its own.

    journal = WriteBehind(settings.store)
    journal.start()
    journal.event(event, now, decisions); journal.step(record); journal.fact("account", row)   # never wait or raise
    await journal.stop()

Rule: the request's path appends to a bounded queue and does nothing else; folding rows, talking to the database and
waiting for it happen in the thread. When the queue is full the oldest event goes first, then the oldest record, and
each is counted. Order is that of the queue, for every program. What was taken from the queue is kept until the
database has it, so that nothing that was not counted as lost is missing. The thread shares the interpreter with the
requests: what has piled up is written in batches with rests between them, so that catching up slows nobody; but what
waits takes memory, so it rests only while it catches up all the same.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from agentserve.config import StoreSettings
from agentserve.core.decisions import AnyDecision
from agentserve.core.events import AnyEvent
from agentserve.core.facts import AnyFact
from agentserve.errors import StoreError
from agentserve.ports import StepRecord
from agentserve.store import migrations
from agentserve.store.database import Database, blames_rows, store_error
from agentserve.store.folded import Folded
from agentserve.store.folding import Fold, Kept, Record, Told, kind_of
from agentserve.store.retention import Sweeper
from agentserve.store.writing import Writer

log = logging.getLogger("agentserve.store")

LATEST_MAX = 250_000  # facts of which only the newest counts
RETRY_S_MAX = 5.0
STOP_TIMEOUT_S = 10.0
REFUSED_BEFORE_APART = 3
REST = 3.0  # times what a batch took, while there is room for what comes meanwhile
REST_S_MAX = 1.0
HASTE_MAX = 64.0
CALMS = 0.9  # of its haste is left after a batch that left fewer rows waiting
# Facts that replace what was said before, and the fields that name what they are about.
LATEST: dict[str, tuple[str, ...]] = {
    "chain": ("program",),
    "account": ("tenant",),
    "forecast": ("name",),
    "graph": ("tenant", "name", "graph"),
}
DETAIL = "event"


class Pace:
    """How long the writer leaves the interpreter to the requests between two batches of a backlog.

    Were the rest only shorter the less room there is, a load that outpaces it would settle where the queue is nearly
    full, and stay there. So it halves each time that more waits than before, and grows again slowly.
    """

    def __init__(self, rows_max: int) -> None:
        self._rows_max = rows_max
        self._waited = 0
        self._haste = 1.0

    def rest_s(self, took_s: float, waiting: int) -> float:
        """After a batch that took so long, while so many rows wait."""
        self._haste = (
            min(2.0 * self._haste, HASTE_MAX) if waiting > self._waited else max(CALMS * self._haste, 1.0)
        )
        self._waited = waiting
        room = max(0.0, 1.0 - waiting / self._rows_max)
        return min(took_s * REST, REST_S_MAX) * room / self._haste


class WriteBehind:
    """Implements `ports.Journal`."""

    def __init__(
        self,
        settings: StoreSettings,
        *,
        clock: Callable[[], float] = time.time,
        clock_offset_s: float = 0.0,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        """`clock_offset_s` is what must be added to the scheduler's times to get epoch seconds."""
        self.settings = settings
        self.writer = f"{int(clock()):x}-{secrets.token_hex(6)}"
        self.lost: Counter[tuple[str, str]] = Counter()  # (kind, why) -> rows
        self.written: Counter[str] = Counter()
        self.up = False
        self.failure = ""  # what the database said last
        self.size_bytes = 0  # of the database, when it was last looked at
        self._clock = clock
        self._fold = Fold(
            clock_offset_s=clock_offset_s,
            keep_prompts=settings.keep_prompts,
            prompt_bytes_max=settings.prompt_bytes_max,
            redact=redact,
        )
        self._detail: deque[Told] = deque()
        self._records: deque[Kept] = deque()
        self._latest: dict[tuple[str, ...], Record] = {}
        self._lock = threading.Lock()  # guards `_latest`
        self._rows_max = settings.queue_rows_max
        self._pace = Pace(self._rows_max)
        self._taken = 0  # rows in the batch that is being written
        self._facts_taken = 0  # the facts in it of which only the newest counts: they never filled the queue
        self._dropped = 0  # events lost since the last batch
        self._clear_at = time.monotonic()
        self._listeners: list[Callable[[str], None]] = []
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._stopping_at: float | None = None

    # -- on the requests' path

    def event(self, event: AnyEvent, now: float, decisions: list[AnyDecision]) -> None:
        """The scheduler was told `event` at `now` and decided this."""
        self._detail.append((event, now, decisions))
        if (
            len(self._detail) + len(self._records) + self._taken > self._rows_max
        ):  # as `queued`, without a call
            self._overflow()

    def step(self, record: StepRecord) -> None:
        """A step ended; its record is not changed any more."""
        self._records.append(record)
        for listener in self._listeners:
            listener(record.program)
        if len(self._detail) + len(self._records) + self._taken > self._rows_max:
            self._overflow()

    def known(self, fact: AnyFact) -> None:
        """What the story tells: a program began or is over, a tool call, a pin."""
        self._records.append(fact)
        if self.queued > self._rows_max:
            self._overflow()

    def fact(self, kind: str, row: Mapping[str, Any]) -> None:
        """Anything else that is kept."""
        names = LATEST.get(kind)
        if names is None:
            self._records.append(Record(kind, row))
            if self.queued > self._rows_max:
                self._overflow()
            return
        key = (kind, *[str(row[field]) for field in names])
        with self._lock:
            if len(self._latest) < LATEST_MAX or key in self._latest:
                self._latest[key] = Record(kind, row)
            else:
                self.lost[kind, "overflow"] += 1

    def on_step(self, listener: Callable[[str], None]) -> None:
        """Be told of the program of each step that ends; the listener must only take a note."""
        self._listeners.append(listener)

    def _overflow(self) -> None:
        """Too much waits: the oldest detail goes, then the oldest record."""
        try:
            self._detail.popleft()
            self.lost[DETAIL, "overflow"] += 1
            self._dropped += 1
        except IndexError:
            try:
                record = self._records.popleft()
                self.lost[kind_of(record), "overflow"] += 1
            except IndexError:
                return  # the writer was faster

    # -- how it is doing

    @property
    def queued(self) -> int:
        """Rows that wait, those in the batch under way included."""
        return len(self._detail) + len(self._records) + self._taken

    @property
    def _facts(self) -> int:
        """Facts of which only the newest counts that wait, likewise."""
        return len(self._latest) + self._facts_taken

    @property
    def lag_s(self) -> float:
        """How old the oldest row that is not written yet can be at most."""
        return time.monotonic() - self._clear_at if self.queued or self._facts else 0.0

    async def flushed(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Wait until what was said up to now is written; False when it takes longer."""
        said_at = time.monotonic()
        until = said_at + timeout_s
        while self._clear_at < said_at and time.monotonic() < until:
            self._ring()
            await asyncio.sleep(0.005)
        return self._clear_at >= said_at

    # -- its life

    def start(self) -> None:
        """Start the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="agentserve-journal", daemon=True)
            self._thread.start()

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Write what is left, for at most so long, and end the thread."""
        if self._thread is None:
            return
        self._stopping_at = time.monotonic() + timeout_s
        self._ring()
        await asyncio.to_thread(self._thread.join, timeout_s + 1.0)
        self._thread = None
        left = self.queued + self._facts
        if left:
            self.lost["row", "stopped"] += left
            log.error("%d rows could not be written before the end: %s", left, self.failure or "no time left")

    def _ring(self) -> None:
        loop, wake = self._loop, self._wake
        if loop is not None and wake is not None:
            try:
                loop.call_soon_threadsafe(wake.set)
            except RuntimeError:
                return  # it ended meanwhile

    def _run(self) -> None:
        try:
            asyncio.run(self._write_on())
        except Exception as error:
            self.up = False
            self.failure = repr(error)
            log.exception("the journal's thread ended; nothing is kept from now on")

    async def _write_on(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        database = Database(self.settings.url)
        sweeper = Sweeper(database, self.settings, clock=self._clock)
        writer = Writer(database, self.writer)
        number = 0
        try:
            if not await self._connected(database):
                return
            while True:
                began_at = time.monotonic()
                told, records = self._take()
                all_taken = not (self._detail or self._records)
                if told or records:
                    number += 1
                    dropped, self._dropped = self._dropped, 0
                    folded = self._fold.fold(told, records)
                    if folded.malformed:
                        for kind, rows in folded.malformed.items():
                            self.lost[kind, "malformed"] += rows
                        log.error("%d rows made no sense: %s", folded.malformed.total(), folded.complaint)
                    if not await self._persist(database, writer, folded, number, dropped):
                        return
                    self.written[DETAIL] += len(told)
                    for record in records:
                        self.written[kind_of(record)] += 1
                    self._taken = self._facts_taken = 0
                if (
                    all_taken
                ):  # what has come meanwhile is younger, and there is no end of it while agents work
                    self._clear_at = began_at
                    if self._stopping_at is not None and not (self._detail or self._records or self._latest):
                        return
                    await sweeper.tick()
                    self.size_bytes = sweeper.size_bytes
                if max(len(self._detail), len(self._records)) < self.settings.batch_rows_max:
                    await self._pause(self.settings.flush_interval_s)
                else:
                    await self._pause(self._pace.rest_s(time.monotonic() - began_at, self.queued))
        finally:
            await database.close()

    def _take(self) -> tuple[list[Told], list[Kept]]:
        """The next batch, in order."""
        limit = self.settings.batch_rows_max
        told = [self._detail.popleft() for _ in range(min(limit, len(self._detail)))]
        records = [self._records.popleft() for _ in range(min(limit, len(self._records)))]
        self._taken = len(told) + len(records)
        if self._latest:
            with self._lock:
                latest, self._latest = self._latest, {}
                self._facts_taken = len(latest)
            records += latest.values()
        return told, records

    async def _connected(self, database: Database) -> bool:
        """Wait until the database is there and has our tables; False when the end came first."""
        wait_s = 0.1
        while True:
            try:
                await migrations.ready(database)
            except StoreError as error:
                self._away(str(error))
            else:
                self._back()
                return True
            if self._over():
                return False
            await self._pause(wait_s)
            wait_s = min(wait_s * 2, RETRY_S_MAX)

    async def _persist(
        self, database: Database, writer: Writer, folded: Folded, number: int, dropped: int
    ) -> bool:
        """Write the batch, however long it takes; False when the end came first."""
        wait_s = 0.1
        refused = 0  # times in a row that it said no to the rows, rather than being away, full or locked
        while True:
            try:
                if refused >= REFUSED_BEFORE_APART:
                    self._refused(await writer.write_apart(folded, number, dropped, self._clock()))
                else:
                    await writer.write(folded, number, dropped, self._clock())
            except Exception as error:  # whatever it is, to end the thread would lose all that comes after
                refused = refused + 1 if blames_rows(error) else 0
                self._away(str(store_error(error, database.name)))
            else:
                self._back()
                return True
            if self._over():
                return False
            await self._pause(wait_s)
            wait_s = min(wait_s * 2, RETRY_S_MAX)

    def _refused(self, refused: Mapping[str, list[str]]) -> None:
        for table, errors in refused.items():
            self.lost[table, "refused"] += len(errors)
            log.error("%d rows of %s were refused: %s", len(errors), table, errors[0])

    def _away(self, why: str) -> None:
        if self.up or self.failure != why:
            log.error("the journal waits: %s", why)
        self.up = False
        self.failure = why

    def _back(self) -> None:
        if not self.up and self.failure:
            log.warning("the database is back; %d rows wait to be written", self.queued)
        self.up = True
        self.failure = ""

    def _over(self) -> bool:
        return self._stopping_at is not None and time.monotonic() >= self._stopping_at

    async def _pause(self, seconds: float) -> None:
        assert self._wake is not None
        if self._stopping_at is not None:
            seconds = min(seconds, 0.1)
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()
