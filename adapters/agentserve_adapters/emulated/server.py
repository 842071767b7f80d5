"""An emulated engine as a vLLM server: its routes, shapes, errors and metrics, so that any router takes it for one.

Rule: what a client or router can see is vLLM's; what the engine does is `agentserve.engine`'s. No GPU, no weights.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from agentserve.engine import EngineConfig, profile
from agentserve_adapters.emulated import dialects, gauges, responses, wire
from agentserve_adapters.emulated.host import Host, TooLong
from agentserve_adapters.emulated.kv_publisher import KvPublisher
from agentserve_adapters.emulated.speech import Speech, speak
from agentserve_adapters.emulated.tokens import block_hashes, decode, encode, template

VERSION = "0.33.0"
BODY_BYTES_MAX = 64 * 1024 * 1024
EMBEDDING_SIZE = 64

Json = dict[str, Any]
Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedOptions:
    """The flags of an emulated server."""

    profile: str = "llama-3.1-8b-h100"
    model: str = "emulated"
    time_scale: float = 1.0
    kv_tokens: int | None = None
    block_tokens: int = 16
    max_num_seqs: int = 256
    max_num_queued_reqs: int | None = None
    scheduling_policy: str = "fcfs"
    old_metric_names: bool = False
    dev_mode: bool = False
    kv_events_port: int | None = None  # PUB; replay on the next one
    kv_events_legacy: bool = False
    api_key: str | None = None


class Refused(Exception):
    """An error reply."""

    def __init__(
        self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = wire.error(message, status, kind, param)


class Gone(Exception):
    """The client closed its connection."""


class EmulatedServer:
    """The ASGI application."""

    def __init__(self, options: EmulatedOptions | None = None) -> None:
        self.options = options or EmulatedOptions()
        self.shape = profile(self.options.profile)
        config = EngineConfig(
            block_size=self.options.block_tokens,
            kv_tokens=self.options.kv_tokens,
            max_num_seqs=self.options.max_num_seqs,
            policy="priority" if self.options.scheduling_policy == "priority" else "fcfs",
            kv_events=self.options.kv_events_port is not None,
        )
        self.host = Host(profile=self.shape, config=config, time_scale=self.options.time_scale)
        self.publisher: KvPublisher | None = None
        self.created = int(time.time())
        self.context_max = min(self.shape.model.context_max, self.host.engine.kv_tokens)
        self.handling = 0
        self._tokens: dict[int, int] = {}
        self._routes: dict[tuple[str, str], Callable[..., Awaitable[None]]] = {
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
            ("GET", "/version"): self._version,
            ("GET", "/load"): self._load,
            ("GET", "/v1/models"): self._models,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/kv_event_sources"): self._kv_sources,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completions,
            ("POST", "/v1/responses"): self._responses,
            ("POST", "/v1/messages"): self._messages,
            ("POST", "/v1/messages/count_tokens"): self._count_messages,
            ("POST", "/v1/embeddings"): self._embeddings,
        }
        if self.options.dev_mode:
            self._routes["POST", "/reset_prefix_cache"] = self._reset
            self._routes["GET", "/server_info"] = self._server_info
            self._routes["GET", "/is_sleeping"] = self._is_sleeping

    async def start(self) -> None:
        """Open the KV event sockets, if any."""
        if self.options.kv_events_port is not None and self.publisher is None:
            self.publisher = KvPublisher(self.options.kv_events_port, legacy=self.options.kv_events_legacy)
            self.host.on_kv = lambda event: self._publish(event)

    async def stop(self) -> None:
        """Close them."""
        if self.publisher is not None:
            self.publisher.close()
            self.publisher = None

    def _publish(self, event: Any) -> None:
        if self.publisher is not None:
            self.publisher.publish(event, self.options.block_tokens)

    # -- ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        handler = self._routes.get((scope["method"], scope["path"]))
        try:
            self._authorise(scope)
            if handler is None:
                known = {path for _, path in self._routes}
                if scope["path"] in known:
                    raise Refused(405, "Method Not Allowed", "MethodNotAllowedError")
                raise Refused(404, "Not Found", "NotFoundError")
            self.handling += 1
            try:
                await handler(scope, receive, send)
            finally:
                self.handling -= 1
        except Refused as refusal:
            await reply(send, refusal.status, refusal.body)
        except Gone:
            return

    def _authorise(self, scope: Scope) -> None:
        if self.options.api_key is None or not scope["path"].startswith("/v1"):
            return
        headers = dict(scope["headers"])
        if headers.get(b"authorization", b"").decode() != f"Bearer {self.options.api_key}":
            raise Refused(401, "Unauthorized", "AuthenticationError")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    # -- small routes

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, 200, None)

    async def _version(self, scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, 200, {"version": VERSION})

    async def _load(self, scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, 200, {"server_load": len(self.host)})

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        permission = {
            "id": f"modelperm-{self.options.model}",
            "object": "model_permission",
            "created": self.created,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        card = {
            "id": self.options.model,
            "object": "model",
            "created": self.created,
            "owned_by": "vllm",
            "root": self.options.model,
            "parent": None,
            "max_model_len": self.context_max,
            "permission": [permission],
        }
        await reply(send, 200, {"object": "list", "data": [card]})

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = gauges.page(self.host, self.options.model, old_names=self.options.old_metric_names)
        await reply_raw(send, 200, text.encode(), b"text/plain; version=0.0.4; charset=utf-8")

    async def _kv_sources(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.publisher is None:
            await reply(send, 200, {})
            return
        await reply(send, 200, {"0": self.publisher.describe()})

    async def _server_info(self, scope: Scope, receive: Receive, send: Send) -> None:
        await reply(
            send, 200, {"vllm_config": {"scheduler_config": {"policy": self.options.scheduling_policy}}}
        )

    async def _is_sleeping(self, scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, 200, {"is_sleeping": False})

    async def _reset(self, scope: Scope, receive: Receive, send: Send) -> None:
        done = self.host.engine.running() == 0
        if done:
            self.host.crash()
        await reply(send, 200, {"success": done})

    async def _tokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_json(receive)
        if "messages" in body:
            tokens = template(
                body["messages"], body.get("tools"), generate=body.get("add_generation_prompt", True)
            )
        else:
            tokens = encode(str(body.get("prompt", "")))
        counted = {
            "count": len(tokens),
            "max_model_len": self.context_max,
            "tokens": tokens,
            "token_strs": None,
        }
        await reply(send, 200, counted)

    async def _detokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_json(receive)
        await reply(send, 200, {"prompt": decode(body.get("tokens") or [])})

    async def _embeddings(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_json(receive)
        self._check_model(body)
        given = body.get("input")
        texts = (
            [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given or [])
        )
        if not texts:
            raise Refused(400, "input is empty", param="input")
        data = []
        count = 0
        for i, text in enumerate(texts):
            tokens = encode(text) if isinstance(text, str) else list(text)
            count += len(tokens)
            data.append({"index": i, "object": "embedding", "embedding": embedding(tokens)})
        counts = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0}
        name = f"embd-{uuid.uuid4().hex}"
        await reply(
            send,
            200,
            {
                "id": name,
                "object": "list",
                "created": int(time.time()),
                "model": self.options.model,
                "data": data,
            }
            | {"usage": counts},
        )

    # -- generation

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_json(receive)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise Refused(400, "messages must be a non-empty list of objects", param="messages")
        tokens = template(messages, body.get("tools"))
        shape = wire.ChatShape(request_name(scope, body), self.options.model, int(time.time()))
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        await self._generate(body, tokens, limit, shape, receive, send, messages=messages)

    async def _responses(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = responses.chat_from_responses(await read_json(receive))
        if not body["messages"]:
            raise Refused(400, "input is empty", param="input")
        tokens = template(body["messages"], body.get("tools"))
        shape = responses.ResponsesShape(request_name(scope, body), self.options.model, int(time.time()))
        limit = body.get("max_output_tokens")
        await self._generate(body, tokens, limit, shape, receive, send, messages=body["messages"])

    async def _messages(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = dialects.chat_from_messages(await read_json(receive))
        try:
            if not body.get("max_tokens"):
                raise Refused(400, "max_tokens is required", param="max_tokens")
            tokens = template(body["messages"], body.get("tools"))
            shape = dialects.MessagesShape(request_name(scope, body), self.options.model, len(tokens))
            limit = body["max_tokens"]
            await self._generate(body, tokens, limit, shape, receive, send, messages=body["messages"])
        except Refused as refusal:
            said = refusal.body["error"]
            error = {"type": said["type"], "message": said["message"]}
            await reply(send, refusal.status, {"type": "error", "error": error})

    async def _count_messages(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = dialects.chat_from_messages(await read_json(receive))
        count = len(template(body["messages"], body.get("tools")))
        await reply(send, 200, {"input_tokens": count})

    async def _completions(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_json(receive)
        prompt = body.get("prompt")
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            tokens = list(prompt)
        elif isinstance(prompt, str):
            tokens = encode(prompt)
        elif isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
            tokens = encode(prompt[0])
        else:
            raise Refused(400, "prompt must be a text or a list of token ids", param="prompt")
        shape = wire.TextShape(request_name(scope, body), self.options.model, int(time.time()))
        await self._generate(body, tokens or encode(" "), body.get("max_tokens", 16), shape, receive, send)

    async def _generate(
        self,
        body: Json,
        tokens: list[int],
        limit: Any,
        shape: wire.ChatShape,
        receive: Receive,
        send: Send,
        *,
        messages: list[Any] | None = None,
    ) -> None:
        self._check_model(body)
        limit = self._check_limits(body, tokens, limit)
        copies = self._number(body, "n", 1, least=1, most=128)
        self._check_queue(copies)
        speeches = [self._speech(body, tokens, limit, i, messages) for i in range(copies)]
        salt = str(body.get("cache_salt") or "")
        runs = []
        for speech in speeches:
            said = encode(speech.text) if not speech.calls else encode(wire_calls(speech))
            hashes = block_hashes(tokens + said, self.options.block_tokens, salt)
            runs.append(
                self.host.run(
                    hashes,
                    prompt_tokens=len(tokens),
                    output_tokens=speech.tokens,
                    priority=self._number(body, "priority", 0),
                    stream=bool(body.get("stream")),
                )
            )
        if body.get("stream"):
            await self._stream(body, tokens, speeches, runs, shape, receive, send)
        else:
            await self._whole(tokens, speeches, runs, shape, receive, send)

    async def _whole(
        self,
        tokens: list[int],
        speeches: list[Speech],
        runs: list[AsyncIterator[Any]],
        shape: wire.ChatShape,
        receive: Receive,
        send: Send,
    ) -> None:
        async def finish(run: AsyncIterator[Any]) -> int:
            cached = 0
            async with contextlib.aclosing(run) as steps:  # type: ignore[type-var]
                async for progress in steps:
                    cached = progress.cached_tokens
                    if progress.lost:
                        raise Refused(500, "EngineCore encountered an issue", "InternalServerError")
            return cached

        work = asyncio.ensure_future(asyncio.gather(*(finish(run) for run in runs)))
        cached = await self._unless_gone(work, receive)
        counts = wire.usage(len(tokens), sum(s.tokens for s in speeches), max(cached))
        self._count(speeches)
        await reply(send, 200, shape.whole(speeches, counts))

    async def _unless_gone(self, work: asyncio.Future[Any], receive: Receive) -> Any:
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Gone
            return work.result()
        except TooLong as error:
            raise Refused(400, f"the request cannot fit: {error}") from error
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _stream(
        self,
        body: Json,
        tokens: list[int],
        speeches: list[Speech],
        runs: list[AsyncIterator[Any]],
        shape: wire.ChatShape,
        receive: Receive,
        send: Send,
    ) -> None:
        lines: asyncio.Queue[bytes | None] = asyncio.Queue(64)
        cached = [0]

        async def one(index: int, speech: Speech, run: AsyncIterator[Any]) -> None:
            before = 0
            async with contextlib.aclosing(run) as steps:  # type: ignore[type-var]
                async for progress in steps:
                    if progress.lost:
                        failed = wire.error("EngineCore encountered an issue", 500, "InternalServerError")
                        await lines.put(wire.event(failed))
                        return
                    if progress.rejected:
                        return
                    cached[0] = max(cached[0], progress.cached_tokens)
                    if before == 0:
                        await lines.put(shape.opening(index))
                    piece = shape.piece(index, speech, before, progress.done)
                    if piece:
                        await lines.put(piece)
                    before = progress.done
            await lines.put(shape.closing(index, speech))

        async def all_of_them() -> None:
            await asyncio.gather(*(one(i, s, r) for i, (s, r) in enumerate(zip(speeches, runs, strict=True))))
            options = body.get("stream_options") or {}
            if options.get("include_usage") or shape.always_counted:
                counts = wire.usage(len(tokens), sum(s.tokens for s in speeches), cached[0])
                await lines.put(shape.counted(counts))
            if shape.done:
                await lines.put(shape.done)
            await lines.put(None)

        async def write() -> None:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while (line := await lines.get()) is not None:
                await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        making = asyncio.ensure_future(all_of_them())
        work = asyncio.ensure_future(write())
        try:
            await self._unless_gone(asyncio.ensure_future(_both(making, work)), receive)
            self._count(speeches)
        finally:
            for task in (making, work):
                task.cancel()
            await asyncio.gather(making, work, return_exceptions=True)

    def _count(self, speeches: list[Speech]) -> None:
        for speech in speeches:
            self.host.finished["length" if speech.finish_reason == "length" else "stop"] += 1

    def _speech(
        self, body: Json, tokens: list[int], limit: int | None, index: int, messages: list[Any] | None
    ) -> Speech:
        seed = hashlib.blake2b(repr((tokens[-2048:], len(tokens), index, body.get("seed"))).encode()).digest()
        stop = body.get("stop") or []
        fmt = body.get("response_format") or {}
        schema = (fmt.get("json_schema") or {}).get("schema") if fmt.get("type") == "json_schema" else None
        if schema is None and fmt.get("type") == "json_object":
            schema = {"type": "object"}
        return speak(
            seed,
            messages=messages or (),
            tools=body.get("tools") if body.get("tool_choice") != "none" else None,
            tool_choice=body.get("tool_choice"),
            tokens_max=limit,
            tokens_min=self._number(body, "min_tokens", 0, least=0),
            ignore_eos=bool(body.get("ignore_eos")),
            stop=[stop] if isinstance(stop, str) else list(stop),
            schema=schema,
        )

    def _check_model(self, body: Json) -> None:
        model = body.get("model")
        if model and model != self.options.model:
            raise Refused(404, f"The model `{model}` does not exist.", "NotFoundError", "model")

    def _check_limits(self, body: Json, tokens: list[int], limit: Any) -> int:
        room = self.context_max - len(tokens)
        if room < 1:
            raise Refused(
                400,
                f"This model's maximum context length is {self.context_max} tokens. However, your request has "
                f"{len(tokens)} input tokens. Please reduce the length of the input messages.",
                param="input_tokens",
            )
        if limit is None:
            return room
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise Refused(400, f"max_tokens must be at least 1, got {limit}.", param="max_tokens")
        if limit > room:
            raise Refused(
                400,
                f"'max_tokens' or 'max_completion_tokens' is too large: {limit}. This model's maximum context "
                f"length is {self.context_max} tokens and your request has {len(tokens)} input tokens.",
                param="max_tokens",
            )
        return limit

    def _check_queue(self, copies: int) -> None:
        most = self.options.max_num_queued_reqs
        if most is not None and self.host.engine.waiting() + copies > most:
            raise Refused(503, "The server is overloaded: too many requests wait.", "ServiceUnavailableError")

    def _number(
        self, body: Json, name: str, default: int, *, least: float = -math.inf, most: float = math.inf
    ) -> int:
        value = body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise Refused(400, f"{name} is {value!r}, not a whole number in its range", param=name)
        return value


def wire_calls(speech: Speech) -> str:
    """A reply's tool calls as they stand in the next prompt."""
    from agentserve_adapters.emulated.tokens import calls_text

    return calls_text(speech.calls)


def request_name(scope: Scope, body: Json) -> str:
    """The id that a client asked for, or a fresh one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return str(value.decode("latin-1"))
    return str(body.get("request_id") or uuid.uuid4().hex)


def embedding(tokens: list[int]) -> list[float]:
    """A unit vector that is a function of the tokens."""
    digest = hashlib.blake2b(repr(tokens).encode(), digest_size=EMBEDDING_SIZE).digest()
    raw = [b - 127.5 for b in digest]
    norm = math.sqrt(sum(v * v for v in raw))
    return [v / norm for v in raw]


async def _both(first: asyncio.Future[None], second: asyncio.Future[None]) -> None:
    await asyncio.gather(first, second)


async def disconnected(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_json(receive: Receive) -> Json:
    """The whole body as an object."""
    parts = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_BYTES_MAX:
            raise Refused(413, "Request Entity Too Large", "BadRequestError")
        if not message.get("more_body"):
            break
    try:
        body = msgspec.json.decode(b"".join(parts))
    except msgspec.DecodeError as error:
        raise Refused(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refused(400, "the body is not a JSON object")
    return body


async def reply(send: Send, status: int, body: Any, headers: Mapping[bytes, bytes] | None = None) -> None:
    """A whole JSON reply."""
    await reply_raw(send, status, b"" if body is None else msgspec.json.encode(body), b"application/json")


async def reply_raw(send: Send, status: int, body: bytes, kind: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
