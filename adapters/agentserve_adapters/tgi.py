"""Text Generation Inference: its size, its queue, its tokeniser. It has no control over its cache.

Rule: what /info says of the batch is its KV capacity; the rest stays ours.
"""

from __future__ import annotations

from typing import ClassVar

from agentserve.ports import Capabilities, EngineLoad, Json
from agentserve_adapters.detection import Recognised, Sight
from agentserve_adapters.exposition import Exposition
from agentserve_adapters.readings import whole
from agentserve_adapters.served import ServedEngine, together


class TGIAdapter(ServedEngine):
    """One text-generation-inference server."""

    kind = "tgi"
    protocols: ClassVar[frozenset[str]] = frozenset({"chat", "completions"})

    @staticmethod
    async def recognise(sight: Sight) -> Recognised | None:
        info = await sight.table("/info")
        if "max_concurrent_requests" in info and "model_id" in info:
            return Recognised(
                certainty=0.95, evidence="/info has its limits", version=str(info.get("version", ""))
            )
        return None

    async def probe(self) -> Capabilities:
        info, page = await together(self._info(), self._page())
        capacity = whole(info.get("max_batch_total_tokens")) or page.count("tgi_batch_max_total_tokens")
        models = self.options.models or ((str(info["model_id"]),) if "model_id" in info else ())
        self.seen(marks={"version": info.get("version"), "capacity": capacity})
        native = {"tokenise": "native: /chat_tokenize, /tokenize", "load": "native: /metrics"}
        if capacity:
            native["kv_capacity"] = "native: /info (max_batch_total_tokens)"
        return Capabilities(
            kind=self.kind,
            version=str(info.get("version", "")),
            models=models,
            protocols=self.protocols,
            kv_tokens=self.options.kv_tokens or capacity,
            seqs_max=whole(info.get("max_concurrent_requests")),
            context_tokens_max=whole(info.get("max_total_tokens")),
            tokenises=True,
            unlocks=(("PREFIX_CACHING=1", "what a program sent is reused at its next step"),),
            refused=self.actions.refused,
            mechanisms=self.mechanisms(**native),
        )

    async def _info(self) -> Json:
        return (await self.wire.get("/info")).table()

    async def load(self) -> EngineLoad:
        page = await self._page()
        used, most = page.total("tgi_batch_current_max_tokens"), page.total("tgi_batch_max_total_tokens")
        boot = self.seen(
            marks={"started": page.total("process_start_time_seconds")},
            counters={"requests": page.total("tgi_request_count")},
        )
        return EngineLoad(
            running=page.count("tgi_batch_current_size"),
            waiting=page.count("tgi_queue_size"),
            kv_used_share=used / most if used is not None and most else None,
            boot=boot,
        )

    async def _page(self) -> Exposition:
        answer = await self.wire.get("/metrics")
        return Exposition(answer.text if answer.ok else "", prefixes=("tgi_", "process_start_time_seconds"))

    async def count_tokens(self, protocol: str, body: Json) -> int | None:
        if protocol == "chat":
            found = (await self.wire.post("/chat_tokenize", body)).table().get("tokenize_response")
            return len(found) if isinstance(found, list) else None
        if protocol == "completions" and isinstance(body.get("prompt"), str):
            found = (await self.wire.post("/tokenize", {"inputs": body["prompt"]})).json()
            return len(found) if isinstance(found, list) else None
        return None
