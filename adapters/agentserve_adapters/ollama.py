"""Ollama: the model's weights can be kept in memory, a prefix cannot.

Rule: `keep_alive` is about weights, so a pin by it is reported as clipped, never as a pin of KV.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from agentserve.ports import Capabilities, EngineLoad, Outcome, ProgramPrefix, Receipt
from agentserve_adapters.actions import Refused
from agentserve_adapters.detection import Recognised, Sight
from agentserve_adapters.readings import whole
from agentserve_adapters.served import RESERVED, ServedEngine, together


class OllamaAdapter(ServedEngine):
    """One Ollama server."""

    kind = "ollama"
    protocols: ClassVar[frozenset[str]] = frozenset({"chat", "completions", "responses", "embeddings"})

    @staticmethod
    async def recognise(sight: Sight) -> Recognised | None:
        version = (await sight.table("/api/version")).get("version")
        if version is not None and "models" in await sight.table("/api/tags"):
            return Recognised(
                certainty=0.9, evidence="/api/version and /api/tags answer", version=str(version)
            )
        return None

    async def probe(self) -> Capabilities:
        models, version, loaded = await together(
            self.models(), self.ask_softly("/api/version"), self._loaded()
        )
        contexts = [n for m in loaded if (n := whole(m.get("context_length"))) is not None]
        self.seen(marks={"version": version.get("version")})
        return Capabilities(
            kind=self.kind,
            version=str(version.get("version", "")),
            models=self.names(models),
            protocols=self.protocols,
            kv_tokens=self.options.kv_tokens,
            context_tokens_max=min(contexts) if contexts else None,
            unlocks=(
                ("OLLAMA_NUM_PARALLEL=4", "several requests of a model at once"),
                ("OLLAMA_CONTEXT_LENGTH=32768", "prompts as long as agents make them"),
            ),
            refused=self.actions.refused,
            mechanisms=self.mechanisms(
                pin=f"clipped: keep_alive keeps the weights; the prefix is {RESERVED}"
            ),
        )

    async def load(self) -> EngineLoad:
        await self.wire.get("/api/version")
        return EngineLoad(boot=self.incarnation.boot)

    async def _loaded(self) -> list[dict[str, Any]]:
        found = (await self.ask_softly("/api/ps")).get("models")
        return [m for m in found if isinstance(m, dict)] if isinstance(found, list) else []

    async def pin(self, program: str, prefix: ProgramPrefix | None, tokens: int, ttl_s: float) -> Receipt:
        model = prefix.body.get("model") if prefix is not None else None
        if not isinstance(model, str):
            return await super().pin(program, prefix, tokens, ttl_s)
        return await self.actions.carry_out(
            "kv.pin",
            {"program": program, "tokens": tokens, "ttl_s": round(ttl_s, 3)},
            lambda: self._keep(model, ttl_s),
            instead="reserved",
            emulation=RESERVED,
        )

    async def _keep(self, model: str, ttl_s: float) -> Receipt:
        answer = await self.wire.post(
            "/api/generate", {"model": model, "keep_alive": f"{math.ceil(ttl_s)}s", "stream": False}
        )
        if not answer.ok:
            raise Refused.by_status(answer.status, answer.complaint())
        detail = f"the weights stay for {math.ceil(ttl_s)} s; the prefix is {RESERVED}"
        return Receipt(outcome=Outcome.CLIPPED, mode="reserved", detail=detail)
