"""Anthropic's hosted API: a pin is a cache lifetime asked for with the program's next request.

Rule: what the client says about caching stands; only a request that says nothing gets the nearest native
lifetime, at its top level, where it advances by itself. Keeping and re-creating are compared in price.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar

from agentserve.ports import (
    Capabilities,
    EngineLoad,
    Hints,
    Json,
    Outcome,
    Outgoing,
    ProgramPrefix,
    Receipt,
    opened,
)
from agentserve_adapters.detection import Recognised, Sight
from agentserve_adapters.readings import whole
from agentserve_adapters.retention import Tier, nearest
from agentserve_adapters.served import ServedEngine

HOST = "api.anthropic.com"
API_VERSION = "2023-06-01"
TIERS = (
    Tier(name="5m", keeps_s=300.0, write=1.25, read=0.1),
    Tier(name="1h", keeps_s=3600.0, write=2.0, read=0.1),
)
LIFETIMES_MAX = 10_000


class AnthropicAdapter(ServedEngine):
    """The hosted API, or a server that copies it."""

    kind = "anthropic"
    protocols: ClassVar[frozenset[str]] = frozenset({"messages"})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lifetimes: OrderedDict[str, Tier] = OrderedDict()

    @staticmethod
    async def recognise(sight: Sight) -> Recognised | None:
        if sight.host == HOST:
            return Recognised(certainty=1.0, evidence="its host name")
        return None

    def credentials(self, api_key: str | None) -> dict[str, str]:
        headers = {"anthropic-version": API_VERSION}
        if api_key:
            headers["x-api-key"] = api_key
        return headers

    async def probe(self) -> Capabilities:
        models = await self.models()
        native = {
            "pin": "native: cache_control with the nearest lifetime (5m, 1h), from the next request on",
            "unpin": "native: the lifetime is asked for no more",
            "warm": "native: one token of output refreshes the lifetime at the price of a read",
            "residency": "estimated: from cache_read_input_tokens",
            "tokenise": "native: /v1/messages/count_tokens",
        }
        return Capabilities(
            kind=self.kind,
            version=API_VERSION,
            models=self.names(models),
            protocols=self.protocols,
            kv_tokens=self.options.kv_tokens,
            pin="native",
            reports_cached_tokens=True,
            tokenises=True,
            refused=self.actions.refused,
            mechanisms=self.mechanisms(**native),
        )

    async def load(self) -> EngineLoad:
        """It has no gauges and bills its callers: nothing is asked."""
        return EngineLoad()

    def prepare(self, outgoing: Outgoing, hints: Hints) -> None:
        super().prepare(outgoing, hints)
        outgoing.headers.setdefault("anthropic-version", API_VERSION)
        tier = self._lifetimes.get(hints.program)
        if tier is None or outgoing.protocol != "messages" or says_cache(outgoing.body):
            return
        outgoing.body["cache_control"] = {"type": "ephemeral", "ttl": tier.name}
        outgoing.changed = True

    def dress_warm(self, program: str, body: Json, headers: dict[str, str]) -> None:
        tier = self._lifetimes.get(program)
        if tier is not None and not says_cache(body):
            body["cache_control"] = {"type": "ephemeral", "ttl": tier.name}

    async def count_tokens(self, protocol: str, body: Json) -> int | None:
        if protocol != "messages":
            return None
        fields = ("model", "messages", "system", "tools", "tool_choice", "thinking")
        asked = {k: body[k] for k in fields if k in body}
        return whole((await self.wire.post("/v1/messages/count_tokens", asked)).table().get("input_tokens"))

    async def pin(self, program: str, prefix: ProgramPrefix | None, tokens: int, ttl_s: float) -> Receipt:
        payload = {"program": program, "tokens": tokens, "ttl_s": round(ttl_s, 3)}
        choice = nearest(TIERS, tokens=tokens, ttl_s=ttl_s, cached=program in self._lifetimes)
        if not choice.pays:
            detail = f"keeping costs {choice.keep:.0f} tokens' price, making it anew {choice.recreate:.0f}"
            return self.actions.note("kv.pin", payload, Receipt(outcome=Outcome.REFUSED, detail=detail))
        self._lifetimes[program] = choice.tier
        self._lifetimes.move_to_end(program)
        if len(self._lifetimes) > LIFETIMES_MAX:
            self._lifetimes.popitem(last=False)
        outcome = Outcome.CLIPPED if choice.clipped else Outcome.ACCEPTED
        detail = (
            f"lifetime {choice.tier.name} from the next request on; keeping costs {choice.keep:.0f} tokens' "
            f"price, making it anew {choice.recreate:.0f}"
        )
        return self.actions.note("kv.pin", payload, Receipt(outcome=outcome, mode="native", detail=detail))

    async def unpin(self, program: str) -> Receipt:
        self._lifetimes.pop(program, None)
        receipt = Receipt(outcome=Outcome.ACCEPTED, mode="native", detail="it ends with its last lifetime")
        return self.actions.note("kv.release", {"program": program}, receipt)


def says_cache(body: Json) -> bool:
    """Does the client steer the cache itself?"""
    if "cache_control" in body:
        return True
    blocks = [*_blocks(body.get("system")), *(body.get("tools") or ())]
    for message in opened(body.get("messages", ())):
        blocks += _blocks(message.get("content"))
    return any(isinstance(block, dict) and "cache_control" in block for block in blocks)


def _blocks(content: Any) -> list[Any]:
    return content if isinstance(content, list) else []
