"""NVIDIA Dynamo's frontend: hints in `nvext.agent_hints`, sessions by header, priorities larger-sooner.

Rule: Dynamo routes among workers of its own, so it is one engine to us, and its pins are reserved: the
calls that once pinned are gone from it. Sessions and their end are told by header and cost nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

from agentserve.ports import Capabilities, EngineLoad, Hints, Json, Outgoing
from agentserve_adapters.detection import Recognised, Sight
from agentserve_adapters.exposition import Exposition
from agentserve_adapters.readings import summed, whole
from agentserve_adapters.served import ServedEngine, context_of, together

WORST_PRIORITY = -(2**31)  # larger goes sooner


class DynamoAdapter(ServedEngine):
    """One Dynamo frontend and the workers behind it."""

    kind = "dynamo"
    protocols: ClassVar[frozenset[str]] = frozenset({"chat", "completions", "responses", "embeddings"})

    @staticmethod
    async def recognise(sight: Sight) -> Recognised | None:
        if "dynamo_" in await sight.text("/metrics"):
            return Recognised(certainty=0.96, evidence="/metrics has dynamo_ names")
        if await sight.owner() in ("nvidia", "dynamo"):
            return Recognised(certainty=0.5, evidence="/v1/models is owned by its maker")
        return None

    async def probe(self) -> Capabilities:
        models, page, health = await together(self.models(), self._page(), self.ask_softly("/health"))
        blocks = page.count("dynamo_frontend_model_total_kv_blocks")
        size = whole(page.mean("dynamo_frontend_model_kv_cache_block_size"))
        capacity = blocks * size if blocks and size else None
        native = {
            "priority": "native: nvext.agent_hints.priority (larger goes sooner; the adapter turns it)",
            "session": "native: x-dynamo-session-id, x-dynamo-session-final",
            "load": "native: /metrics of the frontend",
        }
        if capacity:
            native["kv_capacity"] = "native: the workers' model cards in /metrics"
        instances = health.get("instances")
        return Capabilities(
            kind=self.kind,
            version=str(health.get("version", "")),
            models=self.names(models),
            protocols=self.protocols,
            kv_tokens=self.options.kv_tokens or capacity,
            block_tokens=size,
            seqs_max=page.count("dynamo_frontend_model_max_num_seqs"),
            context_tokens_max=context_of(models) or whole(page.mean("dynamo_frontend_model_context_length")),
            priority=True,
            reports_cached_tokens=True,
            unlocks=(
                ("--router-mode kv", "requests go where their prefix is"),
                ("--router-session-affinity-ttl-secs 600", "a program's steps stay on one worker"),
            ),
            refused=self.actions.refused,
            mechanisms=self.mechanisms(**native, **self._workers(instances)),
        )

    def _workers(self, instances: Any) -> dict[str, str]:
        return {"workers": f"{len(instances)} instances"} if isinstance(instances, list) else {}

    async def load(self) -> EngineLoad:
        page = await self._page()
        queued = page.count("dynamo_frontend_queued_requests")
        inflight = page.count("dynamo_frontend_inflight_requests", "dynamo_frontend_inflight_requests_total")
        boot = self.seen(
            marks={"started": page.total("process_start_time_seconds")},
            counters={"requests": page.total("dynamo_frontend_requests_total")},
        )
        running = inflight if queued is None or inflight is None else max(inflight - queued, 0)
        return EngineLoad(running=running, waiting=summed([queued]), boot=boot)

    async def _page(self) -> Exposition:
        answer = await self.wire.get("/metrics")
        return Exposition(
            answer.text if answer.ok else "", prefixes=("dynamo_", "process_start_time_seconds")
        )

    def prepare(self, outgoing: Outgoing, hints: Hints) -> None:
        super().prepare(outgoing, hints)
        outgoing.headers["x-dynamo-session-id"] = hints.program
        if hints.program_final:
            outgoing.headers["x-dynamo-session-final"] = "true"
        agent: Json = {}
        if hints.priority:
            agent["priority"] = -hints.priority
        if hints.expected_output_tokens is not None:
            agent["osl"] = hints.expected_output_tokens
        if not agent and hints.cache_salt is None:
            return
        if outgoing.protocol in ("chat", "completions"):
            self._extend(outgoing.body, agent, hints.cache_salt)
            outgoing.changed = True

    def _extend(self, body: Json, agent: Json, salt: str | None) -> None:
        """What the client put there itself stands."""
        theirs = body.get("nvext") or {}
        nvext = {**theirs, "agent_hints": {**agent, **(theirs.get("agent_hints") or {})}}
        if salt is not None:
            nvext.setdefault("cache_salt", salt)
        body["nvext"] = nvext

    def dress_warm(self, program: str, body: Json, headers: dict[str, str]) -> None:
        headers["x-dynamo-session-id"] = program
        body.pop("nvext", None)
        if "messages" in body or "prompt" in body:
            body["nvext"] = {"agent_hints": {"priority": WORST_PRIORITY, "osl": 1}}
