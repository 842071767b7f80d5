"""A worker fetches one reply from an engine and relays it to its client.

Rule: it reports the first byte, and then exactly one ending, unless it was cancelled: then nobody waits for one. What
it does with the bytes is what the scheduler's process itself would do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from agentserve.errors import AgentServeError
from agentserve.live.asgi import Send
from agentserve.live.pouring import BUSY_STATUSES, Pouring, check_answer
from agentserve.live.taps import Taps
from agentserve.live.upstream import Upstream, UpstreamReply
from agentserve.live.wire import Reply
from agentserve.live.workers import frames as fr

log = logging.getLogger("agentserve.http")


class Carrying:
    """One attempt."""

    __slots__ = ("_body", "_order", "_request", "_send", "_tell", "_turn", "ended", "started")

    def __init__(self, frame: fr.Carry, body: bytes, send: Send, tell: Callable[[fr.Frame], None]) -> None:
        self._request = frame.request
        self._turn = frame.turn
        self._order = frame.order
        self._body = body
        self._send = send
        self._tell = tell
        self.started = False  # the client has a byte
        self.ended = False  # and the last one

    async def run(self, upstream: Upstream) -> bool:
        """Fetch it, relay it, report; is the client's answer ended?"""
        order = self._order
        try:
            reply = await upstream.send(
                "POST",
                order.path,
                order.headers,
                self._body if order.payload is None else order.payload,
                deadlines=order.deadlines,
            )
            try:
                self._tell(await self._relay(reply))
            finally:
                reply.close()
        except AgentServeError as error:
            self._tell(
                fr.Broke(
                    request=self._request,
                    turn=self._turn,
                    kind=type(error).__name__,
                    message=error.message,
                    remedy=error.remedy,
                    ended=self.ended,
                )
            )
        return self.ended

    async def _relay(self, reply: UpstreamReply) -> fr.Carried:
        order = self._order
        if reply.status in BUSY_STATUSES and order.may_give_way:
            return fr.Carried(request=self._request, turn=self._turn, status=reply.status, gave_way=True)
        check_answer(reply)
        taps = Taps()
        taps.filters_usage = order.filters_usage
        pouring = Pouring(reply, taps, order.protocol)
        await pouring.first()
        self._tell(fr.Began(request=self._request, turn=self._turn))
        self.started = True
        headers = pouring.headers + order.answer_headers
        await self._send({"type": "http.response.start", "status": reply.status, "headers": headers})
        last = await pouring.rest(self._write)
        await self._write(last, more=False)
        await asyncio.sleep(0)  # the client has its last byte before we read what the reply means
        return fr.Carried(
            request=self._request, turn=self._turn, status=reply.status, reply=read(pouring, reply.status)
        )

    async def _write(self, data: bytes, *, more: bool) -> None:
        self.ended = not more
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def read(pouring: Pouring, status: int) -> Reply | None:
    """What the reply said; None when it says nothing that counts, or we fail to read it."""
    if status >= 400:
        return None
    try:
        return pouring.reader.finish()
    except Exception:
        log.exception("the end of a step could not be read")
        return None
