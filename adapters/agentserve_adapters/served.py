"""What adapters of engines behind an OpenAI-shaped HTTP API have in common.

Rule: this knows no engine's own paths or flags; each adapter adds those. What an engine lacks is done at
the proxy and said so: a pin is *reserved* by admission or *touched* by resending its prefix, a warm is the
next prompt with one token of output, an abort is a closed connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping
from typing import Any, ClassVar

import httpx

from agentserve.errors import EngineBroke, EngineError
from agentserve.ports import (
    Asgi,
    Capabilities,
    EngineLoad,
    EngineOptions,
    Hints,
    Json,
    KvChange,
    KvHolding,
    Outcome,
    Outgoing,
    ProgramPrefix,
    Receipt,
)
from agentserve_adapters.actions import ActionLog, Refused
from agentserve_adapters.incarnation import Incarnation
from agentserve_adapters.kv_stream import KvSource, KvStream
from agentserve_adapters.prompts import counted, warm_request
from agentserve_adapters.residency import Residency
from agentserve_adapters.wire import GENERATE_TIMEOUT_S, Answer, EngineWire

log = logging.getLogger("agentserve.engines")

RESERVED = "held by admission at the proxy"
TOUCHED = "brought in by the next prompt with one token of output"
CLOSED = "ended by closing its connection"
MODELS_MAX = 1_000
SOURCES_AGAIN_S = 15.0
NOT_NOW = (502, 503, 504)  # what it, or a proxy in front of it, says while it cannot serve


class ServedEngine:
    """An engine at a URL. Subclasses say what it natively speaks; by default it speaks nothing of its own."""

    kind: str = "openai_http"
    protocols: ClassVar[frozenset[str]] = frozenset({"chat", "completions"})
    counts_copies: ClassVar[bool] = False  # its KV events report each copy of a block

    def __init__(self, options: EngineOptions, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.options = options
        self.wire = EngineWire(
            options.url,
            engine=options.id,
            headers=self.credentials(options.api_key),
            transport=transport,
            proxy=options.extra.get("proxy"),
        )
        self.url = self.wire.url
        self.actions = ActionLog(options.id)
        self.incarnation = Incarnation()
        self._stream: KvStream | None = None

    @property
    def app(self) -> Asgi | None:
        return None

    def credentials(self, api_key: str | None) -> dict[str, str]:
        return {"authorization": f"Bearer {api_key}"} if api_key else {}

    async def start(self) -> None:
        """Nothing to do: connections open on first use."""

    async def stop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()
        await self.wire.close()

    # -- what it can do, and how it is

    async def probe(self) -> Capabilities:
        models = await self.models()
        return Capabilities(
            kind=self.kind,
            models=self.names(models),
            protocols=self.protocols,
            kv_tokens=self.options.kv_tokens,
            context_tokens_max=context_of(models),
            refused=self.actions.refused,
            mechanisms=self.mechanisms(),
        )

    async def load(self) -> EngineLoad:
        """Nothing is known but whether it answers."""
        await self.models()
        return EngineLoad(boot=self.incarnation.boot)

    async def models(self) -> list[Json]:
        """The engine's model list; raises `EngineError` where there is no engine."""
        answer = await self.wire.get("/v1/models")
        if answer.status in NOT_NOW:
            raise EngineBroke(
                f"{self.url}/v1/models answers {answer.complaint()}",
                remedy="is it still loading its model, or what it stands in front of away?",
                engine=self.options.id,
            )
        data = answer.table().get("data")
        return [m for m in data[:MODELS_MAX] if isinstance(m, dict)] if isinstance(data, list) else []

    def names(self, models: list[Json]) -> tuple[str, ...]:
        """The models to serve: those the operator named, else those the engine lists."""
        return self.options.models or tuple(m["id"] for m in models if isinstance(m.get("id"), str))

    def mechanisms(self, **native: str) -> tuple[tuple[str, str], ...]:
        """How each thing is done, for the operator: ours unless `native` says otherwise."""
        ours = {
            "priority": "emulated: program order is kept in the proxy's queue",
            "pin": f"reserved: {RESERVED}",
            "unpin": "reserved: the tokens are given back to admission",
            "warm": f"emulated: {TOUCHED}",
            "residency": "estimated: from prompts and the cached tokens of replies",
            "load": "estimated: from the requests in flight",
            "kv_capacity": "named in the settings" if self.options.kv_tokens else "unknown: set kv_tokens",
            "tokenise": "estimated: from the length of the text",
            "abort": f"native: {CLOSED}",
        }
        return tuple({**ours, **native}.items())

    def seen(
        self,
        *,
        marks: Mapping[str, object | None] | None = None,
        counters: Mapping[str, float | None] | None = None,
    ) -> str:
        """Take a reading in, notice a restart; the name of this run."""
        if self.incarnation.observe(marks=marks, counters=counters):
            log.warning("engine %s was restarted: its KV is forgotten", self.options.id)
            self.restarted()
        return self.incarnation.boot

    def restarted(self) -> None:
        """Forget what was believed of the last run."""
        self.actions.forget()
        if self._stream is not None:
            self._stream.start_over()

    # -- on the request's path

    def prepare(self, outgoing: Outgoing, hints: Hints) -> None:
        """Nothing to add for an engine that would not understand it."""
        if hints.traceparent is not None:
            outgoing.headers.setdefault("traceparent", hints.traceparent)

    # -- tokens

    async def count_tokens(self, protocol: str, body: Json) -> int | None:
        return None

    # -- KV

    async def pin(self, program: str, prefix: ProgramPrefix | None, tokens: int, ttl_s: float) -> Receipt:
        receipt = Receipt(outcome=Outcome.ACCEPTED, mode="reserved", detail=RESERVED)
        return self.actions.note(
            "kv.pin", {"program": program, "tokens": tokens, "ttl_s": round(ttl_s, 3)}, receipt
        )

    async def unpin(self, program: str) -> Receipt:
        receipt = Receipt(outcome=Outcome.ACCEPTED, mode="reserved", detail="given back to admission")
        return self.actions.note("kv.release", {"program": program}, receipt)

    async def warm(self, program: str, prefix: ProgramPrefix) -> Receipt:
        return await self.actions.carry_out(
            "kv.prefetch",
            {"program": program, "protocol": prefix.protocol},
            lambda: self.prefill(program, prefix),
            instead="none",
            emulation="the prefix is prefilled when the program returns",
        )

    async def prefill(self, program: str, prefix: ProgramPrefix) -> Receipt:
        """Send the program's next prompt for one token: it is in the cache after that."""
        request = warm_request(prefix)
        if request is None:
            raise Refused(f"{prefix.protocol} requests keep no KV", lasting=False)
        path, body = request
        headers: dict[str, str] = {}
        self.dress_warm(program, body, headers)
        answer = await self.wire.post(path, body, timeout_s=GENERATE_TIMEOUT_S, headers=headers)
        if not answer.ok:
            # a prompt that this program made too long says nothing about the next one's
            raise Refused.by_status(404 if answer.status in (404, 405) else 0, answer.complaint())
        prompt, cached = counted(prefix.protocol, answer.table())
        return Receipt(
            outcome=Outcome.ACCEPTED,
            mode="touched",
            detail=TOUCHED,
            prompt_tokens=prompt,
            cached_tokens=cached,
        )

    def dress_warm(self, program: str, body: Json, headers: dict[str, str]) -> None:
        """Give a warm the engine's own fields: worst priority, the program's session and salt."""

    # -- requests in flight

    async def abort(self, request_id: str) -> Receipt:
        receipt = Receipt(outcome=Outcome.ACCEPTED, detail=CLOSED)
        return self.actions.note("request.abort", {"request_id": request_id}, receipt)

    # -- KV events

    async def kv_sources(self) -> tuple[KvSource, ...]:
        """Where the engine publishes its KV events; none by default."""
        return ()

    async def kv_events(self) -> AsyncGenerator[KvChange]:
        """The engine's own events, and a "cleared" whenever it is seen to have been restarted.

        An engine that publishes nothing yet is asked again: it may have been away, or come back with events.
        """
        while True:
            sources = await self.kv_sources()
            self._stream = stream = KvStream(sources, engine=self.options.id)
            again = None if sources else SOURCES_AGAIN_S
            async with contextlib.aclosing(stream.changes(until_s=again)) as changes:
                async for change in changes:
                    yield change

    async def kv_holdings(self) -> AsyncGenerator[KvHolding]:
        """The same, folded into how much of each program is there."""
        residency = Residency(counts_copies=self.counts_copies)
        async with contextlib.aclosing(self.kv_events()) as changes:
            async for change in changes:
                for holding in residency.apply(change):
                    yield holding

    # -- shared by subclasses

    async def first_answer(self, *paths: str) -> Answer | None:
        """The first of these paths that the engine serves, asked in order."""
        for path in paths:
            answer = await self.wire.get(path)
            if answer.ok:
                return answer
        return None

    async def ask_softly(self, path: str) -> dict[str, Any]:
        """A JSON object that may not be there; an engine that breaks on it counts as not having it."""
        try:
            return (await self.wire.get(path)).table()
        except EngineError:
            return {}


def context_of(models: list[Json]) -> int | None:
    """The longest prompt and reply that every listed model takes."""
    found = [m["max_model_len"] for m in models if isinstance(m.get("max_model_len"), int)]
    return min(found) if found else None


async def together(*reads: Any) -> list[Any]:
    """Several reads at once; the first failure is raised when all have ended."""
    results = await asyncio.gather(*reads, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return list(results)
