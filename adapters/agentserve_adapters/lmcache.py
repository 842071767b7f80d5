"""LMCache beside an engine: pin and prefetch in the cache tier below the GPU.

Rule: the engine is an adapter of its own, found by its kind (vllm unless the settings say otherwise); this
one adds only what LMCache offers and says where it acts: in host memory or below, never in the GPU. A pin
there is real but cannot be released early or given a time in controller mode, and has no time at all at the
coordinator, where the proxy's own timer releases it.

    [[engines]]
    url = "http://127.0.0.1:8000"
    kind = "lmcache"
    extra = { controller = "http://127.0.0.1:9000", instance_id = "i0" }
    # or the coordinator of the multi-process mode:
    # extra = { coordinator = "http://127.0.0.1:9300", instance_id = "i0", world_size = 1 }
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

import httpx

from agentserve.errors import ConfigError, EngineError
from agentserve.ports import (
    Asgi,
    Capabilities,
    EngineAdapter,
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
    ReportsHoldings,
)
from agentserve_adapters.actions import ActionLog, Refused
from agentserve_adapters.readings import whole
from agentserve_adapters.served import RESERVED
from agentserve_adapters.wire import Answer, EngineWire

GROUP = "agentserve.adapters"
CONTROLLER_PIN_S = 300.0  # its one time for all pins, unless started with another
PINNED_MAX = 10_000
LOCATION = "LocalCPUBackend"


class LMCacheAdapter:
    """An engine with LMCache below it."""

    kind = "lmcache"

    def __init__(
        self,
        options: EngineOptions,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        engine: EngineAdapter | None = None,
    ) -> None:
        extra = options.extra
        self.options = options
        self.actions = ActionLog(options.id)
        self._engine = engine if engine is not None else _engine(options, transport)
        self.url = self._engine.url
        self._mode = "coordinator" if "coordinator" in extra else "controller"
        if self._mode not in extra:
            raise ConfigError(
                f"engine {options.id} of kind lmcache does not say where LMCache is",
                remedy='set extra = { controller = "http://host:9000" } or { coordinator = "http://host:9300" }',
            )
        self._cache = EngineWire(str(extra[self._mode]), engine=f"{options.id}/lmcache", transport=transport)
        self._instance = str(extra.get("instance_id", "lmcache_default_instance"))
        self._world_size = whole(extra.get("world_size")) or 1
        self._pinned: OrderedDict[str, Json] = OrderedDict()  # program -> what releases its pin

    @property
    def app(self) -> Asgi | None:
        return self._engine.app

    async def start(self) -> None:
        await self._engine.start()

    async def stop(self) -> None:
        await self._engine.stop()
        await self._cache.close()

    async def probe(self) -> Capabilities:
        own = await self._engine.probe()
        try:
            reachable = (
                await self._cache.get("/health" if self._mode == "coordinator" else "/")
            ).status < 500
        except EngineError as exc:
            refused = (*own.refused, f"lmcache: {exc.message}")
            return replace(own, kind=self.kind, refused=refused)
        native = dict(own.mechanisms)
        if reachable:
            time = "until released" if self._mode == "coordinator" else f"for {CONTROLLER_PIN_S:g} s"
            native["pin"] = f"native in host memory ({self._mode}, {time}); in the GPU {RESERVED}"
            if self._mode == "coordinator":
                native["warm"] = "native: storage to host by /cache/prefetches, then the next prompt"
        return replace(
            own,
            kind=self.kind,
            pin="native" if reachable else own.pin,
            refused=(*own.refused, *self.actions.refused),
            mechanisms=tuple(native.items()),
        )

    async def load(self) -> EngineLoad:
        return await self._engine.load()

    def prepare(self, outgoing: Outgoing, hints: Hints) -> None:
        self._engine.prepare(outgoing, hints)

    async def count_tokens(self, protocol: str, body: Json) -> int | None:
        return await self._engine.count_tokens(protocol, body)

    async def abort(self, request_id: str) -> Receipt:
        return await self._engine.abort(request_id)

    def kv_events(self) -> AsyncIterator[KvChange]:
        return self._engine.kv_events()

    async def kv_holdings(self) -> AsyncIterator[KvHolding]:
        if isinstance(self._engine, ReportsHoldings):
            async for holding in self._engine.kv_holdings():
                yield holding

    # -- what LMCache adds

    async def pin(self, program: str, prefix: ProgramPrefix | None, tokens: int, ttl_s: float) -> Receipt:
        if prefix is None:
            return await self._engine.pin(program, prefix, tokens, ttl_s)
        return await self.actions.carry_out(
            "kv.pin",
            {"program": program, "tokens": tokens, "ttl_s": round(ttl_s, 3)},
            lambda: self._pin(program, prefix, ttl_s),
            instead="reserved",
            emulation=RESERVED,
        )

    async def _pin(self, program: str, prefix: ProgramPrefix, ttl_s: float) -> Receipt:
        ids = await self._tokens(prefix)
        if self._mode == "coordinator":
            body = self._named(prefix, ids)
            answer = await self._ask("/cache/pins", body)
            count = whole(answer.table().get("affected")) or 0
            self._pinned[program] = body
            if len(self._pinned) > PINNED_MAX:
                self._pinned.popitem(last=False)
            if not count:
                raise Refused("LMCache has none of it", lasting=False)
            return Receipt(outcome=Outcome.ACCEPTED, mode="native", detail=f"{count} chunks kept in storage")
        body = {"instance_id": self._instance, "location": LOCATION, "tokens": ids}
        count = whole((await self._ask("/pin", body)).table().get("num_tokens")) or 0
        if not count:
            raise Refused("LMCache has none of it", lasting=False)
        whole_time = ttl_s <= CONTROLLER_PIN_S and count >= len(ids) - 256
        return Receipt(
            outcome=Outcome.ACCEPTED if whole_time else Outcome.CLIPPED,
            mode="native",
            detail=f"{count} of {len(ids)} tokens kept in host memory for {CONTROLLER_PIN_S:g} s",
        )

    async def unpin(self, program: str) -> Receipt:
        body = self._pinned.pop(program, None)
        if body is None:
            return await self._engine.unpin(program)
        return await self.actions.carry_out(
            "kv.release",
            {"program": program},
            lambda: self._unpin(body),
            instead="reserved",
            emulation="given back to admission",
        )

    async def _unpin(self, body: Json) -> Receipt:
        answer = await self._cache.delete("/cache/pins", body)
        if not answer.ok:
            raise Refused.by_status(answer.status, answer.complaint())
        return Receipt(outcome=Outcome.ACCEPTED, mode="native", detail="released in storage")

    async def warm(self, program: str, prefix: ProgramPrefix) -> Receipt:
        """From storage into host memory first, so that the engine's own prefill finds it there."""
        if self._mode == "coordinator":
            await self.actions.carry_out(
                "kv.prefetch",
                {"program": program, "to": "host"},
                lambda: self._prefetch(prefix),
                instead="none",
                emulation="the engine prefills it",
            )
        return await self._engine.warm(program, prefix)

    async def _prefetch(self, prefix: ProgramPrefix) -> Receipt:
        body = {"instance_id": self._instance, **self._named(prefix, await self._tokens(prefix))}
        answer = await self._ask("/cache/prefetches", body)
        chunks = whole(answer.table().get("chunks")) or 0
        return Receipt(
            outcome=Outcome.ACCEPTED, mode="native", detail=f"{chunks} chunks on their way to host"
        )

    def _named(self, prefix: ProgramPrefix, tokens: list[int]) -> Json:
        return {
            "model_name": str(self.options.extra.get("model_name", prefix.body.get("model", ""))),
            "world_size": self._world_size,
            "token_ids": tokens,
            "cache_salt": str(prefix.body.get("cache_salt") or ""),
        }

    async def _ask(self, path: str, body: Json) -> Answer:
        answer = await self._cache.post(path, body)
        if not answer.ok:
            raise Refused.by_status(answer.status, answer.complaint())
        return answer

    async def _tokens(self, prefix: ProgramPrefix) -> list[int]:
        """The engine's own tokens of the prompt: LMCache knows prompts by nothing else."""
        read = getattr(self._engine, "prompt_tokens", None)
        tokens = await read(prefix.protocol, prefix.body) if read is not None else None
        if not tokens:
            raise Refused("the engine does not tell the prompt's tokens", lasting=False)
        found: list[int] = tokens
        return found


def _engine(options: EngineOptions, transport: Any) -> EngineAdapter:
    """The adapter of the engine itself, found as the middleware finds it."""
    kind = str(options.extra.get("engine_kind", "vllm"))
    for point in entry_points(group=GROUP):
        if point.name == kind and kind != LMCacheAdapter.kind:
            made: EngineAdapter = point.load()(replace(options, kind=kind), transport=transport)
            return made
    raise ConfigError(
        f"there is no adapter for engines of kind `{kind}`", remedy="set engine_kind in its extra"
    )
