"""vLLM: priorities, sessions and salts by field or header, KV events, gauges, capacity, tokeniser.

Rule: what vLLM lacks is not pretended. It has no pin, no time to live and no prefetch: pins are reserved by
admission or touched, warms are one-token requests at the worst priority. Facts checked against vLLM 0.32's
source and a running server; older names and encodings are read too.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, ClassVar

from agentserve.errors import EngineError
from agentserve.ports import Capabilities, EngineLoad, Hints, Json, Outcome, Outgoing, Receipt
from agentserve_adapters.actions import Refused
from agentserve_adapters.detection import Recognised, Sight
from agentserve_adapters.exposition import Exposition
from agentserve_adapters.kv_stream import KvSource, reachable
from agentserve_adapters.prompts import PATHS
from agentserve_adapters.readings import at, summed, version_tuple, whole
from agentserve_adapters.served import CLOSED, RESERVED, ServedEngine, context_of, together

WORST_PRIORITY = 2**31 - 1  # smaller goes sooner in vLLM, as in our hints
TRIAL_TIMEOUT_S = 1.5
SALT_CHARS_MAX = 128
SALT_FORBIDDEN = re.compile(r"[@/\\\x00]")
# From this version on, session and priority travel as headers and the client's bytes stay untouched.
HEADERS_SINCE = (0, 32)
SESSION_SINCE = (0, 32)

KV_EVENTS_FLAG = (
    """--kv-events-config '{"enable_kv_cache_events":true,"publisher":"zmq","""
    """"endpoint":"tcp://*:5557","replay_endpoint":"tcp://*:5558"}'"""
)


class VLLMAdapter(ServedEngine):
    """One vLLM server."""

    kind = "vllm"
    protocols: ClassVar[frozenset[str]] = frozenset(
        {"chat", "completions", "responses", "messages", "embeddings"}
    )

    counts_copies: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._version: tuple[int, ...] = ()
        self._priority = False
        self._offloads = False
        self._aborts_by_name = True
        self._cached: bool | None = None  # whether replies say what was cached; None until it was seen

    @staticmethod
    async def recognise(sight: Sight) -> Recognised | None:
        owner = await sight.owner()
        version = str((await sight.table("/version")).get("version", ""))
        if owner == "vllm":
            return Recognised(certainty=0.95, evidence="/v1/models is owned by vllm", version=version)
        if "vllm:" in await sight.text("/metrics"):
            return Recognised(certainty=0.9, evidence="/metrics has vllm: names", version=version)
        return None

    # -- probing

    async def probe(self) -> Capabilities:
        models = await self.models()
        version_answer, page, sources, config, protocols = await together(
            self.ask_softly("/version"),
            self._page(),
            self.kv_sources(),
            self._config(),
            self._served_protocols(),
        )
        version = str(version_answer.get("version", ""))
        self._version = version_tuple(version)
        ranks = page.labels("vllm:cache_config_info")
        cache = ranks[0] if ranks else {}
        kv_tokens = self.options.kv_tokens or kv_capacity(ranks)
        self.seen(marks={"version": version or None, "kv_tokens": kv_capacity(ranks)})
        self._priority = self._schedules_by_priority(config)
        self._offloads = cache.get("kv_offloading_size", "None") != "None" or any(
            name.startswith("vllm:kv_offload") for name in page.names()
        )
        cached = await self._reports_cached(config, models)
        return Capabilities(
            kind=self.kind,
            version=version,
            models=self.names(models),
            protocols=protocols,
            kv_tokens=kv_tokens,
            block_tokens=whole(cache.get("block_size")),
            seqs_max=whole(at(config, "scheduler_config", "max_num_seqs")),
            context_tokens_max=context_of(models),
            priority=self._priority,
            pin="reserved",
            kv_events=bool(sources),
            reports_cached_tokens=cached,
            tokenises=True,
            unlocks=self._unlocks(cache, sources, cached),
            refused=self.actions.refused,
            mechanisms=self._how(bool(page), bool(sources), kv_tokens, cached),
        )

    def _how(
        self, gauges: bool, events: bool, kv_tokens: int | None, cached: bool
    ) -> tuple[tuple[str, str], ...]:
        native = {
            "tokenise": "native: /tokenize",
            "pin": f"reserved: {RESERVED}; touched: refreshed by one-token requests",
        }
        if gauges:
            native["load"] = "native: /metrics"
        if self._priority:
            native["priority"] = "native: priority (smaller goes sooner)"
        if events:
            native["residency"] = "native: KV events over ZeroMQ"
        elif cached:
            native["residency"] = "estimated: from prompts, corrected by cached_tokens"
        if kv_tokens is not None and not self.options.kv_tokens:
            native["kv_capacity"] = "native: vllm:cache_config_info"
        if self._version >= SESSION_SINCE:
            native["session"] = "native: X-Session-ID, echoed in KV events"
        if self._offloads:
            native["offload"] = "native: a program's last step is kept out of the CPU tier"
        return self.mechanisms(**native)

    def _unlocks(self, cache: Any, sources: Any, cached: bool) -> tuple[tuple[str, str], ...]:
        found = []
        if not cached:
            found.append(("--enable-prompt-tokens-details", "replies say how many prompt tokens were cached"))
        if not self._priority:
            found.append(
                (
                    "--scheduling-policy priority",
                    "program order inside the engine; vLLM shows its policy only with "
                    "VLLM_SERVER_DEV_MODE=1, else also set `extra = { priority = true }` for this engine",
                )
            )
        if not sources:
            found.append((KV_EVENTS_FLAG, "exact knowledge of what the engine holds of each program"))
        if cache.get("enable_prefix_caching") == "False":
            found.append(("--enable-prefix-caching", "without it nothing a program sent is ever reused"))
        if not self._offloads:
            found.append(("--kv-offloading-size GIB", "evicted KV comes back from CPU memory"))
        return tuple(found)

    def _schedules_by_priority(self, config: Json) -> bool:
        """Its own word (shown in development mode only), else the operator's; never a guess.

        Under its default policy vLLM takes a priority and ignores it, and its older versions fail on one.
        """
        policy = at(config, "scheduler_config", "policy")
        if policy is not None:
            return str(policy) == "priority"
        return self.options.extra.get("priority") is True

    async def _config(self) -> Json:
        """Its configuration, where development mode shows it."""
        found = (await self.ask_softly("/server_info?config_format=json")).get("vllm_config")
        return found if isinstance(found, dict) else {}

    async def _served_protocols(self) -> frozenset[str]:
        """By its own list of routes; without one, what every version serves and what is there but refuses GET."""
        paths = (await self.ask_softly("/openapi.json")).get("paths")
        if isinstance(paths, dict):
            return frozenset(protocol for protocol, path in PATHS.items() if path in paths)
        newer = [p for p in PATHS if p not in ("chat", "completions")]
        answers = await together(*(self.wire.get(PATHS[p]) for p in newer))
        there = {p for p, answer in zip(newer, answers, strict=True) if answer.status == 405}
        return frozenset({"chat", "completions"} | there)

    async def _reports_cached(self, config: Json, models: list[Json]) -> bool:
        """Ask for one token and see whether the reply's usage has the detail: once a run, and not for long.

        A full engine answers too late; then it is asked again at the next probe.
        """
        names = self.names(models)
        if self._cached is not None:
            return self._cached
        if not names or self.options.extra.get("probe") == "passive":
            return False
        body = {"model": names[0], "prompt": [1, 1], "max_tokens": 1, "temperature": 0}
        try:
            answer = await self.wire.post("/v1/completions", body, timeout_s=TRIAL_TIMEOUT_S)
        except EngineError:
            return False
        usage = answer.table().get("usage")
        if isinstance(usage, dict):
            self._cached = isinstance(usage.get("prompt_tokens_details"), dict)
        return self._cached is True

    def restarted(self) -> None:
        super().restarted()
        self._cached = None
        self._aborts_by_name = True

    # -- gauges

    async def load(self) -> EngineLoad:
        page = await self._page()
        queries = page.count("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
        hits = page.count("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")
        preemptions = page.count("vllm:num_preemptions_total")
        boot = self.seen(
            marks={
                "started": page.total("process_start_time_seconds"),
                "kv_tokens": kv_capacity(page.labels("vllm:cache_config_info")),
            },
            counters={
                "queries": queries,
                "prompts": page.total("vllm:prompt_tokens_total"),
                "generated": page.total("vllm:generation_tokens_total"),
            },
        )
        return EngineLoad(
            running=page.count("vllm:num_requests_running"),
            waiting=page.count("vllm:num_requests_waiting"),
            kv_used_share=page.mean("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
            preemptions=preemptions,
            prefix_queries_tokens=queries,
            prefix_hits_tokens=hits,
            boot=boot,
        )

    async def _page(self) -> Exposition:
        answer = await self.wire.get("/metrics")
        return Exposition(answer.text if answer.ok else "", prefixes=("vllm:", "process_start_time_seconds"))

    # -- on the request's path

    def prepare(self, outgoing: Outgoing, hints: Hints) -> None:
        super().prepare(outgoing, hints)
        body, headers = outgoing.body, outgoing.headers
        if self._version >= HEADERS_SINCE:
            headers["x-session-id"] = hints.program
            if self._priority:
                headers["x-vllm-priority"] = str(hints.priority)
        elif self._priority and outgoing.protocol in ("chat", "completions", "responses"):
            body["priority"] = hints.priority
            outgoing.changed = True
        if hints.cache_salt is not None and body.get("cache_salt") is None:
            body["cache_salt"] = plain_salt(hints.cache_salt)
            outgoing.changed = True
        if hints.program_final and self._offloads and "kv_transfer_params" not in body:
            body["kv_transfer_params"] = {"max_offload_tokens": 0}
            outgoing.changed = True

    def dress_warm(self, program: str, body: Json, headers: dict[str, str]) -> None:
        if self._version >= HEADERS_SINCE:
            headers["x-session-id"] = program
        if self._priority:
            if self._version >= HEADERS_SINCE:
                headers["x-vllm-priority"] = str(WORST_PRIORITY)
            else:
                body["priority"] = WORST_PRIORITY
        if body.get("cache_salt") is not None:
            body["cache_salt"] = plain_salt(str(body["cache_salt"]))

    # -- tokens

    async def count_tokens(self, protocol: str, body: Json) -> int | None:
        if protocol == "messages":
            answer = await self.wire.post("/v1/messages/count_tokens", body)
            count = answer.table().get("input_tokens")
        else:
            count = (await self._tokenized(protocol, body)).get("count")
        return count if isinstance(count, int) else None

    async def prompt_tokens(self, protocol: str, body: Json) -> list[int] | None:
        """The prompt as the engine's own tokens, for what knows prompts by nothing else."""
        tokens = (await self._tokenized(protocol, body)).get("tokens")
        return tokens if isinstance(tokens, list) else None

    async def _tokenized(self, protocol: str, body: Json) -> Json:
        if protocol == "chat":
            asked = {k: body[k] for k in TOKENIZE_FIELDS if k in body}
        elif protocol == "completions" and isinstance(body.get("prompt"), str):
            asked = {k: body[k] for k in ("model", "prompt") if k in body}
        else:
            return {}
        return (await self.wire.post("/tokenize", asked)).table()

    # -- requests in flight

    async def abort(self, request_id: str) -> Receipt:
        """By name where the server was started with --enable-scale-out; else its closed connection did it."""
        return await self.actions.carry_out(
            "request.abort",
            {"request_id": request_id},
            lambda: self._abort_by_name(request_id),
            instead="none",
            emulation=CLOSED,
        )

    async def _abort_by_name(self, request_id: str) -> Receipt:
        if not self._aborts_by_name:
            return Receipt(outcome=Outcome.ACCEPTED, detail=CLOSED)
        answer = await self.wire.post("/inference/v1/abort_requests", {"request_ids": [request_id]})
        if answer.status in (403, 404, 405):  # 403: the server was started without --enable-scale-out
            self._aborts_by_name = False
            return Receipt(outcome=Outcome.ACCEPTED, detail=CLOSED)
        if not answer.ok:
            raise Refused.by_status(answer.status, answer.complaint())
        return Receipt(outcome=Outcome.ACCEPTED, detail="aborted by name")

    # -- KV events

    async def kv_sources(self) -> tuple[KvSource, ...]:
        """Its own word on where it publishes, rank by rank; else the settings' `kv_events` endpoints."""
        told = self.options.extra.get("kv_events")
        if isinstance(told, str):
            replay = self.options.extra.get("kv_replay")
            return (KvSource(endpoint=told, replay_endpoint=replay if isinstance(replay, str) else None),)
        sources = await self.ask_softly("/kv_event_sources")
        found = []
        for rank in sorted(sources, key=lambda r: (len(r), r)):
            source = sources[rank]
            if not isinstance(source, dict) or source.get("publisher") != "zmq":
                continue
            replay = source.get("replay_endpoint")
            found.append(
                KvSource(
                    endpoint=reachable(str(source.get("endpoint", "")), self.url),
                    replay_endpoint=reachable(str(replay), self.url) if replay else None,
                    topic=str(source.get("topic") or ""),
                )
            )
        return tuple(found)


TOKENIZE_FIELDS = (
    "model",
    "messages",
    "tools",
    "chat_template",
    "chat_template_kwargs",
    "add_generation_prompt",
)


def kv_capacity(ranks: list[Any]) -> int | None:
    """Tokens of KV over all ranks, from `vllm:cache_config_info`.

    The engine's own sum is right for hybrid models too; blocks times size is not. One block of each
    rank's pool is a placeholder that never holds anything.
    """
    sizes = []
    for cache in ranks:
        size, blocks = whole(cache.get("block_size")), whole(cache.get("num_gpu_blocks"))
        own = whole(cache.get("kv_cache_size_tokens"))
        total = own or (size * blocks if size and blocks else None)
        sizes.append(total - (size or 0) if total else None)
    return summed(sizes)


def plain_salt(salt: str) -> str:
    """`salt` as vLLM takes it: a long one, or one with forbidden signs, is replaced by its digest."""
    if len(salt) <= SALT_CHARS_MAX and not SALT_FORBIDDEN.search(salt):
        return salt
    return hashlib.sha256(salt.encode()).hexdigest()
