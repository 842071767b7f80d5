"""SGLang: priorities of the other polarity, sessions as soft and hard pins, loads, KV events, HiCache.

Rule: a session in the radix cache is a soft pin (evicted last, released by name), a streaming session a
hard one (its lock holds until it is closed or idle for its time). Which of them, if any, is there is read
from the server's own arguments. Facts checked against SGLang 0.5's source.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar

from agentserve.errors import EngineError
from agentserve.ports import Capabilities, EngineLoad, Hints, Json, Outcome, Outgoing, ProgramPrefix, Receipt
from agentserve_adapters.actions import Refused
from agentserve_adapters.detection import Recognised, Sight
from agentserve_adapters.exposition import Exposition
from agentserve_adapters.kv_stream import KvSource, reachable
from agentserve_adapters.readings import at, real, summed, whole
from agentserve_adapters.served import CLOSED, RESERVED, ServedEngine, context_of, together
from agentserve_adapters.wire import GENERATE_TIMEOUT_S

PRIORITY_SPAN = 2**31 - 1
SESSIONS_MAX = 10_000
HOLD_SUFFIX = "~hold"  # a hard hold's session must not collide with the program's own


class SGLangAdapter(ServedEngine):
    """One SGLang server."""

    kind = "sglang"
    protocols: ClassVar[frozenset[str]] = frozenset(
        {"chat", "completions", "responses", "messages", "embeddings"}
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._info: Json = {}
        self._held: OrderedDict[str, str] = OrderedDict()  # program -> its hard session

    @staticmethod
    async def recognise(sight: Sight) -> Recognised | None:
        if await sight.owner() == "sglang":
            info = await sight.table("/server_info")
            return Recognised(
                certainty=0.95,
                evidence="/v1/models is owned by sglang",
                version=str(info.get("version", "")),
            )
        for path in ("/server_info", "/get_server_info"):
            info = await sight.table(path)
            if "max_total_num_tokens" in info or "radix_eviction_policy" in info:
                version = str(info.get("version", ""))
                return Recognised(certainty=0.9, evidence=f"{path} has its arguments", version=version)
        return None

    # -- probing

    async def probe(self) -> Capabilities:
        models, info = await together(self.models(), self._server_info())
        self._info = info
        capacity = self._capacity()
        self.seen(marks={"started": info.get("startup_time"), "version": info.get("version")})
        native = {"load": "native: /v1/loads", "tokenise": "native: /tokenize", "pin": self._pin_words()}
        if self._priority:
            native["priority"] = "native: priority (larger goes sooner; the adapter turns it)"
        if self._kv_config():
            native["residency"] = "native: KV events over ZeroMQ"
        if capacity is not None:
            native["kv_capacity"] = "native: /server_info"
        if self._soft:
            native["unpin"] = "native: /close_session"
        if info.get("enable_hierarchical_cache"):
            native["offload"] = "native: HiCache; a queued request brings its prefix back from storage"
        return Capabilities(
            kind=self.kind,
            version=str(info.get("version", "")),
            models=self.names(models),
            protocols=self.protocols,
            kv_tokens=self.options.kv_tokens or capacity,
            block_tokens=whole(info.get("page_size")),
            seqs_max=whole(info.get("max_running_requests")),
            context_tokens_max=whole(info.get("context_length")) or context_of(models),
            priority=self._priority,
            pin="native" if self._soft or self._hard else "reserved",
            kv_events=bool(self._kv_config()),
            reports_cached_tokens=bool(info.get("enable_cache_report")),
            tokenises=True,
            unlocks=self._unlocks(),
            refused=self.actions.refused,
            mechanisms=self.mechanisms(**native),
        )

    @property
    def _priority(self) -> bool:
        return bool(self._info.get("enable_priority_scheduling"))

    @property
    def _soft(self) -> bool:
        return bool(self._info.get("enable_session_radix_cache"))

    @property
    def _hard(self) -> bool:
        return bool(self._info.get("enable_streaming_session"))

    def _pin_words(self) -> str:
        if self._hard:
            return "native, hard: a streaming session holds the prefix until closed or idle"
        if self._soft:
            return "native, soft: the program's session is evicted last"
        return f"reserved: {RESERVED}"

    def _capacity(self) -> int | None:
        told = whole(self._info.get("max_total_num_tokens"))
        if told is not None:
            return told * (whole(self._info.get("dp_size")) or 1)
        states = self._info.get("internal_states")
        if not isinstance(states, list):
            return None
        return summed([whole(at(state, "memory_usage", "token_capacity")) for state in states])

    def _kv_config(self) -> Json:
        found = self._info.get("kv_events")
        return found if isinstance(found, dict) and found.get("publisher") == "zmq" else {}

    def _unlocks(self) -> tuple[tuple[str, str], ...]:
        info, found = self._info, []
        if not info.get("enable_cache_report"):
            found.append(("--enable-cache-report", "replies say how many prompt tokens were cached"))
        if not self._priority:
            found.append(("--enable-priority-scheduling", "program order inside the engine"))
        if not self._soft:
            found.append(
                ("--enable-session-radix-cache", "native soft pins: a program's KV is evicted last, by name")
            )
        if not self._hard:
            found.append(("--enable-streaming-session", "native hard pins with an idle time"))
        if not self._kv_config():
            flag = """--kv-events-config '{"publisher":"zmq","endpoint":"tcp://*:5557","topic":""}'"""
            found.append((flag, "exact knowledge of what the engine holds of each program"))
        if not info.get("enable_hierarchical_cache"):
            found.append(("--enable-hierarchical-cache", "evicted KV comes back from CPU memory"))
        if info.get("disable_radix_cache"):
            found.append(("(remove) --disable-radix-cache", "without it nothing a program sent is reused"))
        return tuple(found)

    async def _server_info(self) -> Json:
        answer = await self.first_answer("/server_info", "/get_server_info")
        return answer.table() if answer is not None else {}

    # -- gauges

    async def load(self) -> EngineLoad:
        answer = await self.wire.get("/v1/loads?include=core,queues,memory")
        loads = answer.table().get("loads")
        if not isinstance(loads, list) or not loads:
            return await self._load_from_metrics()
        totals = [whole(entry.get("max_total_num_tokens")) for entry in loads]
        used, total = summed([whole(e.get("num_used_tokens")) for e in loads]), summed(totals)
        share = used / total if used is not None and total else real(loads[0].get("token_usage"))
        boot = self.seen(marks={"capacity": total, "version": answer.table().get("version")})
        return EngineLoad(
            running=summed([whole(e.get("num_running_reqs")) for e in loads]),
            waiting=summed([whole(e.get("num_waiting_reqs")) for e in loads]),
            kv_used_share=share,
            boot=boot,
        )

    async def _load_from_metrics(self) -> EngineLoad:
        """Servers before /v1/loads; needs --enable-metrics."""
        answer = await self.wire.get("/metrics")
        page = Exposition(answer.text if answer.ok else "", prefixes=("sglang:", "sglang_", "process_start"))
        hits = page.count("sglang:cached_tokens_total", "sglang_cached_tokens_total")
        queries = page.count("sglang:prompt_tokens_total", "sglang_prompt_tokens_total")
        boot = self.seen(
            marks={"process": page.total("process_start_time_seconds")}, counters={"prompts": queries}
        )
        return EngineLoad(
            running=page.count("sglang:num_running_reqs", "sglang_num_running_reqs"),
            waiting=page.count("sglang:num_queue_reqs", "sglang_num_queue_reqs"),
            kv_used_share=page.mean("sglang:token_usage", "sglang_token_usage"),
            prefix_queries_tokens=queries,
            prefix_hits_tokens=hits,
            boot=boot,
        )

    def restarted(self) -> None:
        super().restarted()
        self._held.clear()

    # -- on the request's path

    def prepare(self, outgoing: Outgoing, hints: Hints) -> None:
        super().prepare(outgoing, hints)
        body = outgoing.body
        if outgoing.protocol in ("chat", "completions", "responses"):
            if self._soft and body.get("session_id") is None:
                body["session_id"] = hints.program
                outgoing.changed = True
            if self._priority:
                body["priority"] = self._turned(hints.priority)
                outgoing.changed = True
            if hints.cache_salt is not None and body.get("cache_salt") is None:
                body["cache_salt"] = hints.cache_salt
                outgoing.changed = True
            if self.options.extra.get("cached_details") is True and outgoing.protocol == "chat":
                body["return_cached_tokens_details"] = True
                outgoing.changed = True
        outgoing.headers["x-smg-routing-key"] = hints.program

    def _turned(self, priority: int) -> int:
        """Ours is smaller-sooner; SGLang's larger-sooner unless started the other way round."""
        return priority if self._info.get("schedule_low_priority_values_first") else -priority

    def dress_warm(self, program: str, body: Json, headers: dict[str, str]) -> None:
        headers["x-smg-routing-key"] = program
        if self._soft:
            body["session_id"] = program
        if self._priority:
            body["priority"] = self._turned(PRIORITY_SPAN)

    async def count_tokens(self, protocol: str, body: Json) -> int | None:
        if protocol == "messages":
            answer = await self.wire.post("/v1/messages/count_tokens", body)
            return whole(answer.table().get("input_tokens"))
        tokens = await self.prompt_tokens(protocol, body)
        return None if tokens is None else len(tokens)

    async def prompt_tokens(self, protocol: str, body: Json) -> list[int] | None:
        fields = {
            "chat": ("model", "messages", "tools", "tool_choice", "chat_template_kwargs", "reasoning_effort"),
            "completions": ("model", "prompt"),
        }.get(protocol)
        if fields is None:
            return None
        answer = await self.wire.post("/tokenize", {k: body[k] for k in fields if k in body})
        tokens = answer.table().get("tokens")
        return tokens if isinstance(tokens, list) and all(isinstance(t, int) for t in tokens) else None

    # -- KV

    async def pin(self, program: str, prefix: ProgramPrefix | None, tokens: int, ttl_s: float) -> Receipt:
        if not (self._soft or self._hard):
            return await super().pin(program, prefix, tokens, ttl_s)
        return await self.actions.carry_out(
            "kv.pin",
            {"program": program, "tokens": tokens, "ttl_s": round(ttl_s, 3)},
            lambda: self._hold(program, prefix, ttl_s),
            instead="reserved",
            emulation=RESERVED,
        )

    async def _hold(self, program: str, prefix: ProgramPrefix | None, ttl_s: float) -> Receipt:
        if not self._hard or prefix is None:
            if not self._soft:
                raise Refused("a streaming session needs the program's prompt", lasting=False)
            return Receipt(
                outcome=Outcome.ACCEPTED, mode="native", detail="its session is evicted last until released"
            )
        tokens = await self.prompt_tokens(prefix.protocol, prefix.body)
        if not tokens:
            raise Refused("its prompt could not be tokenised", lasting=False)
        session = program + HOLD_SUFFIX
        await self._release(program)
        opened = await self.wire.post(
            "/open_session",
            {"capacity_of_str_len": 1, "session_id": session, "streaming": True, "timeout": ttl_s},
        )
        if not opened.ok:
            raise Refused.by_status(opened.status, opened.complaint())
        self._held[program] = session
        if len(self._held) > SESSIONS_MAX:
            self._held.popitem(last=False)  # its own idle time ends it
        body = {
            "input_ids": tokens,
            "session_params": {"id": session},
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        }
        taken = await self.wire.post("/generate", body, timeout_s=GENERATE_TIMEOUT_S)
        if not taken.ok:
            await self._release(program)
            raise Refused.by_status(taken.status, taken.complaint())
        return Receipt(
            outcome=Outcome.ACCEPTED,
            mode="native",
            detail=f"held by a streaming session for {ttl_s:g} s of idleness",
            cached_tokens=whole(at(taken.table(), "meta_info", "cached_tokens")),
        )

    async def unpin(self, program: str) -> Receipt:
        if not (self._soft or program in self._held):
            return await super().unpin(program)
        return await self.actions.carry_out(
            "kv.release",
            {"program": program},
            lambda: self._close(program),
            instead="reserved",
            emulation="given back to admission",
        )

    async def _close(self, program: str) -> Receipt:
        await self._release(program)
        if self._soft:
            answer = await self.wire.post("/close_session", {"session_id": program})
            if not answer.ok:
                raise Refused.by_status(answer.status, answer.complaint())
        return Receipt(outcome=Outcome.ACCEPTED, mode="native", detail="its session is closed")

    async def _release(self, program: str) -> None:
        session = self._held.pop(program, None)
        if session is not None:
            try:
                await self.wire.post("/close_session", {"session_id": session})
            except EngineError:
                return  # it ends by its own idle time, or has ended with the engine

    async def abort(self, request_id: str) -> Receipt:
        return await self.actions.carry_out(
            "request.abort",
            {"request_id": request_id},
            lambda: self._abort_by_name(request_id),
            instead="none",
            emulation=CLOSED,
        )

    async def _abort_by_name(self, request_id: str) -> Receipt:
        answer = await self.wire.post("/abort_request", {"rid": request_id})
        if not answer.ok:
            raise Refused.by_status(answer.status, answer.complaint())
        return Receipt(outcome=Outcome.ACCEPTED, detail="aborted by name")

    # -- KV events

    async def kv_sources(self) -> tuple[KvSource, ...]:
        """One publisher per rank, on consecutive ports."""
        if not self._info:
            self._info = await self._server_info()
        config = self._kv_config()
        if not config:
            return ()
        host, base = str(config.get("endpoint_host", "*")), whole(config.get("endpoint_port_base"))
        if base is None:
            return ()
        replay = config.get("replay_endpoint")
        topic = str(config.get("topic") or "")
        return tuple(
            KvSource(
                endpoint=reachable(f"tcp://{host}:{base + rank}", self.url),
                replay_endpoint=_rank_of(reachable(str(replay), self.url), rank) if replay else None,
                topic=topic,
            )
            for rank in range(whole(config.get("dp_size")) or 1)
        )


def _rank_of(endpoint: str, rank: int) -> str:
    host, _, port = endpoint.rpartition(":")
    return f"{host}:{int(port) + rank}" if port.isdigit() else endpoint
