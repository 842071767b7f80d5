"""LMDeploy: gauges, cached tokens in its usage, abort by session number.

Rule: it has no priority, pin or events; those stay ours.
"""

from __future__ import annotations

from typing import ClassVar

from agentserve.ports import Capabilities, EngineLoad, Json, Outcome, Receipt
from agentserve_adapters.actions import Refused
from agentserve_adapters.detection import Recognised, Sight
from agentserve_adapters.exposition import Exposition
from agentserve_adapters.readings import whole
from agentserve_adapters.served import CLOSED, ServedEngine, context_of, together


class LMDeployAdapter(ServedEngine):
    """One `lmdeploy serve api_server`."""

    kind = "lmdeploy"
    protocols: ClassVar[frozenset[str]] = frozenset({"chat", "completions", "responses", "messages"})

    @staticmethod
    async def recognise(sight: Sight) -> Recognised | None:
        if await sight.owner() == "lmdeploy":
            return Recognised(certainty=0.95, evidence="/v1/models is owned by lmdeploy")
        if "lmdeploy:" in await sight.text("/metrics"):
            return Recognised(certainty=0.9, evidence="/metrics has lmdeploy: names")
        return None

    async def probe(self) -> Capabilities:
        models, page, info = await together(
            self.models(), self._page(), self.ask_softly("/distserve/engine_info")
        )
        size, blocks = whole(info.get("block_size")), whole(info.get("num_gpu_blocks"))
        capacity = size * blocks if size and blocks else None
        native = {"load": "native: /metrics"} if page else {}
        if capacity:
            native["kv_capacity"] = "native: /distserve/engine_info"
        return Capabilities(
            kind=self.kind,
            models=self.names(models),
            protocols=self.protocols,
            kv_tokens=self.options.kv_tokens or capacity,
            block_tokens=size,
            context_tokens_max=context_of(models),
            reports_cached_tokens=bool(page),
            unlocks=(
                ("--enable-prefix-caching", "what a program sent is reused at its next step"),
                ("--enable-abort-handling", "requests can be aborted by their session"),
                *(() if page else (("--enable-metrics", "its gauges"),)),
            ),
            refused=self.actions.refused,
            mechanisms=self.mechanisms(**native),
        )

    async def load(self) -> EngineLoad:
        page = await self._page()
        if not page:
            return await super().load()
        prompts = page.total("lmdeploy:prompt_tokens_total")
        boot = self.seen(
            marks={"started": page.total("process_start_time_seconds")}, counters={"prompts": prompts}
        )
        return EngineLoad(
            running=page.count("lmdeploy:num_requests_running"),
            waiting=page.count("lmdeploy:num_requests_waiting"),
            kv_used_share=page.mean("lmdeploy:gpu_cache_usage_perc"),
            prefix_queries_tokens=None if prompts is None else round(prompts),
            prefix_hits_tokens=page.count("lmdeploy:cached_tokens_total"),
            boot=boot,
        )

    async def _page(self) -> Exposition:
        answer = await self.wire.get("/metrics/")  # its metrics are mounted: without the slash it redirects
        return Exposition(
            answer.text if answer.ok else "", prefixes=("lmdeploy:", "process_start_time_seconds")
        )

    async def abort(self, request_id: str) -> Receipt:
        """By its session number; any other name is ended by closing its connection."""
        session = whole(request_id)
        if session is None:
            return await super().abort(request_id)
        return await self.actions.carry_out(
            "request.abort",
            {"request_id": request_id},
            lambda: self._abort({"session_id": session}),
            instead="none",
            emulation=CLOSED,
        )

    async def _abort(self, body: Json) -> Receipt:
        answer = await self.wire.post("/abort_request", body)
        if not answer.ok:
            raise Refused.by_status(answer.status, answer.complaint())
        return Receipt(outcome=Outcome.ACCEPTED, detail="aborted by its session")
