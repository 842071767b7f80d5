"""Background responses as they are known at rest: that they run, so that whoever asks after a crash is told of it.

    background.began(tenant, body); background.over(tenant, response, "completed")       # never wait
    await background.told(tenant, response)            # of what no memory here holds: what is to be said, or None

Rule: what is written is an id, a model and times, nothing that a client wrote, so it needs no leave. A running one is
written anew every few seconds; it is taken for lost when nothing new came for `LEASE_S` while somebody watched. No
clock is compared with another machine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from agentserve.ports import RUNNING, Archive

RENEW_S = 5.0
LEASE_S = 20.0
WATCHED_MAX = 10_000

Json = dict[str, Any]
Key = tuple[str, str]  # tenant, response
End = Literal["completed", "failed", "cancelled"]

LOST = "the gateway that ran this response ended before it was finished; send the request again"
FAILED = "the response failed; what the engine said went with the gateway that ran it"
UNKEPT = (
    "the response was finished, and its text was only in the memory of a gateway that has ended; "
    "gateways keep responses where store.responses_days says so"
)
_SHOWN = ("id", "created_at", "model", "previous_response_id")


class Background:
    """Those that run here, and what other gateways left behind."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.archive: Archive | None = None
        self._clock = clock
        self._mine: dict[Key, Json] = {}
        self._beats = 0
        self._watched: OrderedDict[Key, tuple[int, float]] = (
            OrderedDict()
        )  # others': the last beat, since when
        self._task: asyncio.Task[None] | None = None

    # -- what runs here

    def began(self, tenant: str, body: Mapping[str, Any]) -> None:
        """It runs from now on."""
        key = (tenant, str(body["id"]))
        self._mine[key] = {name: body.get(name) for name in _SHOWN}
        self._write(key, self._mine[key], "in_progress")

    def over(self, tenant: str, response: str, end: End) -> None:
        """It does not any more."""
        shown = self._mine.pop((tenant, response), None)
        if shown is not None:
            self._write((tenant, response), shown, end)

    def forget(self, tenant: str, response: str) -> None:
        """Its client does not want it kept."""
        self._mine.pop((tenant, response), None)
        if self.archive is not None:
            self.archive.forget(tenant, RUNNING + response)

    def renew(self) -> None:
        """Say of all of them that they still run."""
        self._beats += 1
        for key, shown in self._mine.items():
            self._write(key, shown, "in_progress")

    def _write(self, key: Key, shown: Json, status: str) -> None:
        if self.archive is not None:
            tenant, response = key
            record = {"shown": shown, "status": status, "beat": self._beats}
            self.archive.keep(tenant, RUNNING + response, msgspec.json.encode(record))

    # -- what no memory here holds

    async def told(self, tenant: str, response: str) -> Json | None:
        """What its client is to be told; None when nobody ever said that it ran."""
        if self.archive is None:
            return None
        found = await self.archive.load(tenant, RUNNING + response)
        if found is None:
            return None
        record = msgspec.json.decode(found)
        shown, status, key = record["shown"], record["status"], (tenant, response)
        if status == "in_progress" and key not in self._mine and self._lapsed(key, record["beat"]):
            status = "lost"
            self._write(key, shown, status)
        if status == "in_progress" or status == "cancelled":
            return response_body(shown, status)
        why = {"lost": LOST, "completed": UNKEPT}.get(status, FAILED)
        return response_body(shown, "failed", {"code": "server_error", "message": why})

    def _lapsed(self, key: Key, beat: int) -> bool:
        """Has its gateway been silent for too long, as far as was seen from here?"""
        now = self._clock()
        last, since = self._watched.get(key, (None, now))
        if last != beat:
            since = now
        self._watched[key] = (beat, since)
        self._watched.move_to_end(key)
        if len(self._watched) > WATCHED_MAX:
            self._watched.popitem(last=False)
        if now - since < LEASE_S:
            return False
        del self._watched[key]
        return True

    # -- its life

    def start(self) -> None:
        """Renew from now on."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._renew_on())

    async def stop(self) -> None:
        """No more renewing."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _renew_on(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            self.renew()


def response_body(known: Mapping[str, Any], status: str, error: Json | None = None) -> Json:
    """A response of which no more is known than this, with every field that clients read."""
    return {
        "object": "response",
        "background": True,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": None,
        **known,
        "status": status,
        "error": error,
    }
