"""Keeping what lives in memory: open programs' identities, forecasts, graphs and accounts, as they change.

Rule: it runs on the gateway's loop, because what it reads belongs there, and in slices of `SLICE_S`, so that no request
notices. A program is written within `chain_s` of its last step, and so are forecasts while they are small enough to
be written down for `FORECAST_SHARE` of the loop's time; the rest now and then and at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping

from agentserve.core.ids import ProgramId
from agentserve.ports import Journal

log = logging.getLogger("agentserve.store")

SLICE_S = 0.002
DIRTY_MAX = 200_000
CHAIN_S = 0.4
STATE_S = 15.0
FORECAST_SHARE = 1 / 500  # a few tools take 0.1 ms to write down, a thousand 8 ms: then it is every 4 s


class Snapshots:
    """Tell it of programs that moved; it asks for their bytes and hands them to the journal."""

    def __init__(
        self,
        journal: Journal,
        *,
        chain_of: Callable[[ProgramId], bytes | None] | None = None,
        forecasts: Mapping[str, Callable[[], bytes]] | None = None,
        accounts: Callable[[], Mapping[str, float]] | None = None,
        graphs: Callable[[], Mapping[tuple[str, str], bytes]] | None = None,
        chain_s: float = CHAIN_S,
        state_s: float = STATE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`chain_of` is `Resolver.record`; `forecasts` name and dump; `graphs` are learned ones by (tenant, name)."""
        self._journal = journal
        self._chain_of = chain_of
        self._forecasts = dict(forecasts or {})
        self._accounts = accounts
        self._graphs = graphs
        self._chain_s = chain_s
        self._state_s = state_s
        self._clock = clock
        self._dirty: dict[str, None] = {}
        self._written: dict[str, bytes] = {}  # digests of the forecasts that were written last
        self._task: asyncio.Task[None] | None = None

    def moved(self, program: str) -> None:
        """A step of this program ended; its identity is to be written soon."""
        if len(self._dirty) < DIRTY_MAX:
            self._dirty[program] = None

    def start(self) -> None:
        """Begin, on the running loop."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        """Write everything a last time."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self.chains()
        self.states()

    async def _keep(self) -> None:
        states_at = time.monotonic() + self._state_s
        forecasts_at = 0.0
        while True:
            await asyncio.sleep(self._chain_s)
            await self.chains()
            if time.monotonic() >= states_at:
                self.states()
                states_at = time.monotonic() + self._state_s
            elif time.monotonic() >= forecasts_at:
                began = time.thread_time()  # what it costs, not how long others kept the processor meanwhile
                self.forecasts()
                cost_s = time.thread_time() - began
                forecasts_at = time.monotonic() + min(cost_s / FORECAST_SHARE, self._state_s)

    async def chains(self) -> int:
        """The identities of the programs that moved; how many."""
        if self._chain_of is None:
            return 0
        dirty, self._dirty = self._dirty, {}
        written = 0
        began = time.perf_counter()
        for program in dirty:
            try:
                body = self._chain_of(ProgramId(program))
            except Exception:
                log.exception("the identity of a program could not be written down")
                continue
            if body is not None:
                self._journal.fact("chain", {"program": program, "body": body, "at": self._clock()})
                written += 1
            if time.perf_counter() - began > SLICE_S:
                await asyncio.sleep(0)
                began = time.perf_counter()
        return written

    def forecasts(self) -> None:
        """Those forecasts that learned something since they were written last, whole."""
        for name, dump in self._forecasts.items():
            with self._kept(f"forecast {name}"):
                body = dump()
                digest = hashlib.blake2b(body, digest_size=16).digest()
                if self._written.get(name) != digest:
                    self._journal.fact("forecast", {"name": name, "body": body, "at": self._clock()})
                    self._written[name] = digest

    def states(self) -> None:
        """Forecasts, graphs and accounts, whole."""
        self.forecasts()
        at = self._clock()
        if self._graphs is not None:
            with self._kept("graphs"):
                for (tenant, name), body in self._graphs().items():
                    self._journal.fact(
                        "graph", {"tenant": tenant, "name": name, "graph": "learned", "body": body, "at": at}
                    )
        if self._accounts is not None:
            with self._kept("accounts"):
                for tenant, service in self._accounts().items():
                    self._journal.fact("account", {"tenant": tenant, "service": service, "at": at})

    @contextlib.contextmanager
    def _kept(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception:
            log.exception("%s could not be written down", what)
