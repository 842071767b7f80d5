"""TensorRT-LLM's `trtllm-serve`: strict request fields, priorities in [0, 1], conversations, truncation.

Rule: most of its request models refuse a field they do not know, so whatever no version knows is stripped
before it is sent. Retention by priority and duration exists only in its Python API, not over HTTP: pins
are reserved. What it alone has over HTTP is an explicit release of a prefix' tail.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

from agentserve.errors import EngineError
from agentserve.ports import (
    Capabilities,
    EngineLoad,
    Hints,
    Json,
    KvChange,
    Outcome,
    Outgoing,
    ProgramPrefix,
    Receipt,
)
from agentserve_adapters.actions import Refused
from agentserve_adapters.detection import Recognised, Sight
from agentserve_adapters.kv_events import level_hash
from agentserve_adapters.kv_stream import CLEARED
from agentserve_adapters.readings import at, whole
from agentserve_adapters.served import ServedEngine, context_of, together

# What its chat and completion requests take; anything else is answered with 400.
CHAT_FIELDS = frozenset(
    {
        "messages", "model", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "max_tokens",
        "max_completion_tokens", "n", "presence_penalty", "response_format", "seed", "stop", "stream",
        "stream_options", "temperature", "top_p", "tools", "tool_choice", "user", "reasoning_effort",
        "best_of", "use_beam_search", "top_k", "top_p_min", "min_p", "repetition_penalty", "length_penalty",
        "early_stopping", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "min_tokens",
        "skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens", "lora_request",
        "echo", "add_generation_prompt", "add_special_tokens", "documents", "chat_template",
        "chat_template_kwargs", "disaggregated_params", "conversation_params", "cache_salt", "priority",
    }
)  # fmt: skip
COMPLETION_FIELDS = (
    CHAT_FIELDS
    - {"messages", "tools", "tool_choice", "documents", "chat_template", "chat_template_kwargs"}
    - {"max_completion_tokens", "add_generation_prompt", "reasoning_effort"}
) | {"prompt", "suffix", "detokenize"}
NEUTRAL = 0.5
POLL_S = 0.5
PROMPTS_MAX = 10_000
OWNER = "tensorrt_llm"


class TensorRTLLMAdapter(ServedEngine):
    """One `trtllm-serve`."""

    kind = "trtllm"
    protocols: ClassVar[frozenset[str]] = frozenset({"chat", "completions", "responses"})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._priority = self.options.extra.get("priority") is True
        self._last: Json = {}
        self._pinned: OrderedDict[str, ProgramPrefix] = OrderedDict()
        self._gone = asyncio.Event()

    @staticmethod
    async def recognise(sight: Sight) -> Recognised | None:
        if await sight.owner() == OWNER:
            version = str((await sight.table("/version")).get("version", ""))
            return Recognised(certainty=0.95, evidence=f"/v1/models is owned by {OWNER}", version=version)
        return None

    # -- probing

    async def probe(self) -> Capabilities:
        models, version, stats, info = await together(
            self.models(), self.ask_softly("/version"), self._newest_stats(), self.ask_softly("/server_info")
        )
        kv: Json = at(stats, "kvCacheStats") or {}
        size, blocks = whole(kv.get("tokensPerBlock")), whole(kv.get("maxNumBlocks"))
        capacity = size * blocks if size and blocks else None
        self.seen(marks={"version": version.get("version"), "capacity": capacity})
        events = await self._has_events()
        native = {"load": "native: /metrics (iteration statistics)", "unpin": "native where it is enabled"}
        if self._priority:
            native["priority"] = "native: priority in [0, 1], larger goes sooner"
        if capacity is not None:
            native["kv_capacity"] = "native: iteration statistics"
        if events:
            native["residency"] = "native: KV events by polling"
        return Capabilities(
            kind=self.kind,
            version=str(version.get("version", "")),
            models=self.names(models),
            protocols=self.protocols,
            kv_tokens=self.options.kv_tokens or capacity,
            block_tokens=size,
            seqs_max=whole(info.get("max_batch_size")),
            context_tokens_max=context_of(models),
            priority=self._priority,
            kv_events=events,
            reports_cached_tokens=True,
            unlocks=self._unlocks(events),
            refused=self.actions.refused,
            mechanisms=self.mechanisms(**native),
        )

    def _unlocks(self, events: bool) -> tuple[tuple[str, str], ...]:
        found = []
        if not self._priority:
            found.append(
                (
                    "scheduler_config.waiting_queue_policy: priority (in --extra_llm_api_options)",
                    "program order inside the engine; then set `extra = { priority = true }` here",
                )
            )
        if not events:
            found.append(
                (
                    "kv_cache_config.event_buffer_max_size: 16384 (in --extra_llm_api_options)",
                    "what the engine stores and evicts",
                )
            )
        return tuple(found)

    async def _newest_stats(self) -> Json:
        """/metrics is a list of iterations since the last call; with no iteration it is empty."""
        try:
            found = (await self.wire.get("/metrics")).json()
        except EngineError:
            return {}
        if isinstance(found, list) and found and isinstance(found[-1], dict):
            self._last = found[-1]
        return self._last

    async def load(self) -> EngineLoad:
        await self.wire.get("/health")
        stats = await self._newest_stats()
        kv: Json = stats.get("kvCacheStats") or {}
        used, blocks = whole(kv.get("usedNumBlocks")), whole(kv.get("maxNumBlocks"))
        boot = self.seen(
            marks={"blocks": blocks},
            counters={"iter": whole(stats.get("iter"))},
        )
        return EngineLoad(
            running=whole(stats.get("numActiveRequests")),
            waiting=whole(stats.get("numQueuedRequests")),
            kv_used_share=used / blocks if used is not None and blocks else None,
            boot=boot,
        )

    # -- on the request's path

    def prepare(self, outgoing: Outgoing, hints: Hints) -> None:
        super().prepare(outgoing, hints)
        outgoing.headers["x-session-id"] = hints.program
        if outgoing.protocol not in ("chat", "completions"):
            return
        self._strip(outgoing)
        body = outgoing.body
        if self._priority:
            body["priority"] = turned(hints.priority)
            outgoing.changed = True
        if hints.cache_salt is not None and body.get("cache_salt") is None:
            body["cache_salt"] = hints.cache_salt
            outgoing.changed = True

    def _strip(self, outgoing: Outgoing) -> None:
        known = CHAT_FIELDS if outgoing.protocol == "chat" else COMPLETION_FIELDS
        for field in [name for name in outgoing.body if name not in known]:
            del outgoing.body[field]
            outgoing.changed = True

    def dress_warm(self, program: str, body: Json, headers: dict[str, str]) -> None:
        headers["x-session-id"] = program
        known = CHAT_FIELDS if "messages" in body else COMPLETION_FIELDS
        for field in [name for name in body if name not in known]:
            del body[field]
        if self._priority:
            body["priority"] = 0.0

    # -- KV

    async def pin(self, program: str, prefix: ProgramPrefix | None, tokens: int, ttl_s: float) -> Receipt:
        if prefix is not None:
            self._pinned[program] = prefix
            self._pinned.move_to_end(program)
            if len(self._pinned) > PROMPTS_MAX:
                self._pinned.popitem(last=False)
        return await super().pin(program, prefix, tokens, ttl_s)

    async def unpin(self, program: str) -> Receipt:
        """Release what is the program's own, and leave its system prompt, which others may share."""
        prefix = self._pinned.pop(program, None)
        if prefix is None or prefix.protocol != "chat":
            return await super().unpin(program)
        return await self.actions.carry_out(
            "kv.release",
            {"program": program},
            lambda: self._truncate(prefix),
            instead="reserved",
            emulation="given back to admission",
        )

    async def _truncate(self, prefix: ProgramPrefix) -> Receipt:
        messages = prefix.body.get("messages", [])
        shared = []
        for message in messages:
            if message.get("role") not in ("system", "developer"):
                break
            shared.append(message)
        body: Json = {
            "model": prefix.body.get("model"),
            "messages": messages,
            "messages_to_retain": shared,
        }
        body.update({k: prefix.body[k] for k in ("tools", "chat_template_kwargs") if k in prefix.body})
        answer = await self.wire.post("/_control/kv_cache/truncate", body)
        if not answer.ok:
            raise Refused.by_status(answer.status, answer.complaint())
        return Receipt(outcome=Outcome.ACCEPTED, mode="native", detail="its blocks are truncated")

    # -- KV events

    async def _has_events(self) -> bool:
        """Reading drains the buffer, so only whether there is a buffer is asked, by the settings' word."""
        return self.options.extra.get("kv_events") is True

    def restarted(self) -> None:
        super().restarted()
        self._pinned.clear()
        self._last = {}
        self._gone.set()

    async def kv_events(self) -> AsyncGenerator[KvChange]:
        """Polled: each call drains the engine's buffer."""
        if not await self._has_events():
            async for change in super().kv_events():
                yield change
            return
        expected: int | None = None
        while True:
            if self._gone.is_set():
                self._gone.clear()
                expected = None
                yield CLEARED
            for event in await self._drain():
                number = whole(event.get("event_id"))
                if number is not None:
                    if expected is not None and number != expected:
                        yield CLEARED  # some were dropped, or the engine began anew
                    expected = number + 1
                for change in changes_of(event.get("data") or {}):
                    yield change
            await asyncio.sleep(POLL_S)

    async def _drain(self) -> list[Json]:
        try:
            found = (await self.wire.post("/kv_cache_events")).json()
        except EngineError:
            return []
        return [e for e in found if isinstance(e, dict)] if isinstance(found, list) else []


def turned(priority: int) -> float:
    """Ours (smaller sooner, 0 neutral) as theirs: in (0, 1), larger sooner, 0.5 neutral, order kept."""
    return round(NEUTRAL - math.atan(priority / 100) / math.pi, 6)


def changes_of(data: Json) -> list[KvChange]:
    """One event of theirs."""
    kind = data.get("type")
    if kind == "removed":
        hashes = tuple(level_hash(h) for h in data.get("block_hashes", ()) if isinstance(h, int))
        return [KvChange(kind="removed", hashes=hashes)]
    if kind != "stored":
        return []
    parent = data.get("parent_hash")
    found = []
    for block in data.get("blocks", ()):
        tokens = tuple(t["token_id"] for t in block.get("tokens", ()) if "token_id" in t)
        here = level_hash(block["block_hash"])
        found.append(
            KvChange(
                kind="stored",
                hashes=(here,),
                parent=None if parent is None else level_hash(parent),
                token_ids=tokens,
                block_tokens=len(tokens),
            )
        )
        parent = here
    return found
