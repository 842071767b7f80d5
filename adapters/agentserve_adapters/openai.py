"""OpenAI's hosted API: a cache key keeps a program's requests together, a retention is its pin.

Rule: what the client says about caching stands. Cached tokens are cheaper to read and cost nothing to
write, so keeping always pays there; the only question is whether the retention outlasts the wish.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any, ClassVar

from agentserve.ports import Capabilities, EngineLoad, Hints, Json, Outcome, Outgoing, ProgramPrefix, Receipt
from agentserve_adapters.detection import Recognised, Sight
from agentserve_adapters.retention import Tier, nearest
from agentserve_adapters.served import ServedEngine

HOST = "api.openai.com"
TIERS = (
    Tier(name="in_memory", keeps_s=300.0, write=1.0, read=0.25),
    Tier(name="24h", keeps_s=86_400.0, write=1.0, read=0.25),
)
RETENTIONS_MAX = 10_000
KEY_CHARS_MAX = 64


class OpenAIAdapter(ServedEngine):
    """The hosted API."""

    kind = "openai"
    protocols: ClassVar[frozenset[str]] = frozenset({"chat", "completions", "responses", "embeddings"})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._retentions: OrderedDict[str, Tier] = OrderedDict()

    @staticmethod
    async def recognise(sight: Sight) -> Recognised | None:
        if sight.host == HOST:
            return Recognised(certainty=1.0, evidence="its host name")
        return None

    async def probe(self) -> Capabilities:
        models = await self.models()
        native = {
            "pin": "native: prompt_cache_retention, from the next request on",
            "unpin": "native: the retention is asked for no more",
            "session": "native: prompt_cache_key keeps a program's requests together",
            "residency": "estimated: from cached_tokens",
        }
        return Capabilities(
            kind=self.kind,
            models=self.names(models),
            protocols=self.protocols,
            kv_tokens=self.options.kv_tokens,
            pin="native",
            reports_cached_tokens=True,
            refused=self.actions.refused,
            mechanisms=self.mechanisms(**native),
        )

    async def load(self) -> EngineLoad:
        """It has no gauges: nothing is asked."""
        return EngineLoad()

    def prepare(self, outgoing: Outgoing, hints: Hints) -> None:
        super().prepare(outgoing, hints)
        if outgoing.protocol in ("chat", "responses"):
            self._dress(hints.program, outgoing.body)
            outgoing.changed = True

    def dress_warm(self, program: str, body: Json, headers: dict[str, str]) -> None:
        if "messages" in body or "input" in body:
            self._dress(program, body)

    def _dress(self, program: str, body: Json) -> None:
        body.setdefault("prompt_cache_key", cache_key(program))
        tier = self._retentions.get(program)
        if tier is not None and tier.name != "in_memory" and "prompt_cache_options" not in body:
            body.setdefault("prompt_cache_retention", tier.name)

    async def pin(self, program: str, prefix: ProgramPrefix | None, tokens: int, ttl_s: float) -> Receipt:
        choice = nearest(TIERS, tokens=tokens, ttl_s=ttl_s)
        self._retentions[program] = choice.tier
        self._retentions.move_to_end(program)
        if len(self._retentions) > RETENTIONS_MAX:
            self._retentions.popitem(last=False)
        receipt = Receipt(
            outcome=Outcome.CLIPPED if choice.clipped else Outcome.ACCEPTED,
            mode="native",
            detail=f"retention {choice.tier.name} from the next request on",
        )
        payload = {"program": program, "tokens": tokens, "ttl_s": round(ttl_s, 3)}
        return self.actions.note("kv.pin", payload, receipt)

    async def unpin(self, program: str) -> Receipt:
        self._retentions.pop(program, None)
        receipt = Receipt(outcome=Outcome.ACCEPTED, mode="native", detail="it ends with its retention")
        return self.actions.note("kv.release", {"program": program}, receipt)


def cache_key(program: str) -> str:
    """A key that says nothing about the program and has a length the API takes."""
    return "agentserve-" + hashlib.sha256(program.encode()).hexdigest()[: KEY_CHARS_MAX - 32]
