"""An emulated engine as a vLLM server: its routes, shapes, errors and metrics, so that any router takes it for one.

Rule: what a client or router can see is vLLM's; what the engine does is `agentserve.engine`'s. No GPU, no weights.
"""

from __future__ import annotations

import hashlib
import math
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from agentserve.engine import profile
from agentserve_adapters.emulated import asked, dialects, gauges, pins, responses, wire
from agentserve_adapters.emulated.asked import Gone, Refused, attributed, named, read_json, request_name
from agentserve_adapters.emulated.generation import Generation, write, write_json
from agentserve_adapters.emulated.host import Host
from agentserve_adapters.emulated.kv_publisher import KvPublisher, News
from agentserve_adapters.emulated.options import EmulatedOptions
from agentserve_adapters.emulated.tokens import decode, encode, template

VERSION = "0.33.0"
EMBEDDING_SIZE = 64

Json = dict[str, Any]
Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class EmulatedServer:
    """The ASGI application."""

    def __init__(self, options: EmulatedOptions | None = None) -> None:
        self.options = options or EmulatedOptions()
        self.shape = profile(self.options.profile)
        config = self.options.engine_config()
        self.host = Host(profile=self.shape, config=config, time_scale=self.options.time_scale)
        self.publisher: KvPublisher | None = None
        self.started_at = time.time()
        self.created = int(self.started_at)
        self.context_max = min(self.shape.model.context_max, self.host.engine.kv_tokens)
        self.handling = 0
        self.generation = Generation(self.host, self.options, context_max=self.context_max)
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
        if self.options.native_pins:
            self._routes["POST", "/kv_hints"] = self._kv_hints
        if self.options.dev_mode:
            self._routes["POST", "/reset_prefix_cache"] = self._reset
            self._routes["GET", "/server_info"] = self._server_info
            self._routes["GET", "/is_sleeping"] = self._is_sleeping

    async def start(self) -> None:
        """Open the KV event sockets, if any."""
        if self.options.kv_events_port is not None and self.publisher is None:
            self.publisher = KvPublisher(self.options.kv_events_port, legacy=self.options.kv_events_legacy)
            self.host.on_kv = self._publish

    async def stop(self) -> None:
        """Close them."""
        if self.publisher is not None:
            self.publisher.close()
            self.publisher = None

    def _publish(self, news: News) -> None:
        if self.publisher is not None:
            self.publisher.publish(news, self.options.block_tokens)

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
            await write_json(send, refusal.status, refusal.body)
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
        await write_json(send, 200, None)

    async def _version(self, scope: Scope, receive: Receive, send: Send) -> None:
        await write_json(send, 200, {"version": VERSION})

    async def _load(self, scope: Scope, receive: Receive, send: Send) -> None:
        await write_json(send, 200, {"server_load": len(self.host)})

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
        await write_json(send, 200, {"object": "list", "data": [card]})

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = gauges.page(
            self.host,
            self.options.model,
            old_names=self.options.old_metric_names,
            started_at=self.started_at,
        )
        await write(send, 200, text.encode(), b"text/plain; version=0.0.4; charset=utf-8")

    async def _kv_sources(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.publisher is None:
            await write_json(send, 200, {})
            return
        await write_json(send, 200, {"0": self.publisher.describe()})

    async def _server_info(self, scope: Scope, receive: Receive, send: Send) -> None:
        await write_json(
            send, 200, {"vllm_config": {"scheduler_config": {"policy": self.options.scheduling_policy}}}
        )

    async def _is_sleeping(self, scope: Scope, receive: Receive, send: Send) -> None:
        await write_json(send, 200, {"is_sleeping": False})

    async def _kv_hints(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The KV-hint envelope, of which this engine knows two actions: hold a session's prefix, and let it go."""
        body = await read_json(receive, asked.Hints)
        results = []
        for action in body["actions"]:
            held = pins.carry_out(self.host, action["action_type"], action.get("payload") or {})
            results.append({"action_id": action.get("action_id", ""), **held})
        await write_json(send, 200, {"results": results})

    async def _reset(self, scope: Scope, receive: Receive, send: Send) -> None:
        done = len(self.host) == 0
        if done:
            self.host.crash()
        await write_json(send, 200, {"success": done})

    async def _tokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_json(receive, asked.Tokenize)
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
        await write_json(send, 200, counted)

    async def _detokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_json(receive, asked.Detokenize)
        await write_json(send, 200, {"prompt": decode(body.get("tokens") or [])})

    async def _embeddings(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_json(receive, asked.Embedding)
        named(self.options.model, body)
        given = body.get("input")
        alone = isinstance(given, str) or (given and all(isinstance(token, int) for token in given))
        texts: list[Any] = [given] if alone else list(given or [])
        if not texts or any(isinstance(text, int) for text in texts):
            raise Refused(400, "input must be texts or lists of token ids", param="input")
        data = []
        count = 0
        for i, text in enumerate(texts):
            tokens = encode(text) if isinstance(text, str) else list(text)
            count += len(tokens)
            data.append({"index": i, "object": "embedding", "embedding": embedding(tokens)})
        counts = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0}
        name = f"embd-{uuid.uuid4().hex}"
        await write_json(
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
        body = attributed(scope, await read_json(receive, asked.Chat))
        messages = body.get("messages")
        if not messages:
            raise Refused(400, "messages must be a non-empty list of objects", param="messages")
        tokens = template(messages, body.get("tools"))
        shape = wire.ChatShape(request_name(scope, body), self.options.model, int(time.time()))
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        await self.generation.reply(body, tokens, limit, shape, receive, send, messages=messages)

    async def _responses(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = attributed(scope, responses.chat_from_responses(await read_json(receive, asked.Response)))
        if not body["messages"]:
            raise Refused(400, "input is empty", param="input")
        tokens = template(body["messages"], body.get("tools"))
        shape = responses.ResponsesShape(request_name(scope, body), self.options.model, int(time.time()))
        limit = body.get("max_output_tokens")
        await self.generation.reply(body, tokens, limit, shape, receive, send, messages=body["messages"])

    async def _messages(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = attributed(scope, dialects.chat_from_messages(await read_json(receive, asked.Messages)))
        try:
            if not body.get("max_tokens"):
                raise Refused(400, "max_tokens is required", param="max_tokens")
            tokens = template(body["messages"], body.get("tools"))
            shape = dialects.MessagesShape(request_name(scope, body), self.options.model, len(tokens))
            limit = body["max_tokens"]
            await self.generation.reply(body, tokens, limit, shape, receive, send, messages=body["messages"])
        except Refused as refusal:
            said = refusal.body["error"]
            error = {"type": said["type"], "message": said["message"]}
            await write_json(send, refusal.status, {"type": "error", "error": error})

    async def _count_messages(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = dialects.chat_from_messages(await read_json(receive, asked.Messages))
        count = len(template(body["messages"], body.get("tools")))
        await write_json(send, 200, {"input_tokens": count})

    async def _completions(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = attributed(scope, await read_json(receive, asked.Completion))
        prompt = body.get("prompt")
        if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
            tokens = list(prompt)
        elif isinstance(prompt, str):
            tokens = encode(prompt)
        elif isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
            tokens = encode(prompt[0])
        else:
            raise Refused(400, "prompt must be a text or a list of token ids", param="prompt")
        shape = wire.TextShape(request_name(scope, body), self.options.model, int(time.time()))
        await self.generation.reply(
            body, tokens or encode(" "), body.get("max_tokens", 16), shape, receive, send
        )


def embedding(tokens: list[int]) -> list[float]:
    """A unit vector that is a function of the tokens."""
    digest = hashlib.blake2b(repr(tokens).encode(), digest_size=EMBEDDING_SIZE).digest()
    raw = [b - 127.5 for b in digest]
    norm = math.sqrt(sum(v * v for v in raw))
    return [v / norm for v in raw]
