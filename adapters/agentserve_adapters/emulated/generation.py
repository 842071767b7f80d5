"""From a prompt to a reply: what is said, the engine's pace of saying it, and the reply whole or as a stream.

Rule: the engine is told what the reply will be before it begins, and the client gets it no sooner than the engine
would have it. A client that leaves takes its request off the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

import msgspec

from agentserve_adapters.emulated import wire
from agentserve_adapters.emulated.asked import Gone, Json, Receive, Refused, named
from agentserve_adapters.emulated.host import Host, Progress, TooLong
from agentserve_adapters.emulated.options import EmulatedOptions
from agentserve_adapters.emulated.record import Submission
from agentserve_adapters.emulated.speech import Speech, speak
from agentserve_adapters.emulated.tokens import block_hashes, calls_text, encode

Send = Callable[[Any], Awaitable[None]]

COPIES_MAX = 128


class Generation:
    """Generates for one server."""

    def __init__(self, host: Host, options: EmulatedOptions, *, context_max: int) -> None:
        self.host = host
        self.options = options
        self.context_max = context_max

    async def reply(
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
        named(self.options.model, body)
        limit = self._check_limits(body, tokens, limit)
        copies = number(body, "n", 1, least=1, most=COPIES_MAX)
        self._check_queue(copies)
        speeches = [self._speech(body, tokens, limit, i, messages) for i in range(copies)]
        runs = [self.host.run(s) for s in self._submissions(body, tokens, limit, speeches)]
        if body.get("stream"):
            await self._stream(body, tokens, speeches, runs, shape, receive, send)
        else:
            await self._whole(tokens, speeches, runs, shape, receive, send)

    def _submissions(
        self, body: Json, tokens: list[int], limit: int, speeches: list[Speech]
    ) -> list[Submission]:
        """What the engine is given: one request for each of `n` copies."""
        salt = str(body.get("cache_salt") or "")
        longest = max(speech.tokens for speech in speeches)
        out = []
        for index, speech in enumerate(speeches):
            said = encode(speech.text) if not speech.calls else encode(calls_text(speech.calls))
            out.append(
                Submission(
                    hashes=block_hashes(tokens + said, self.options.block_tokens, salt),
                    tokens=tokens + said,
                    prompt_tokens=len(tokens),
                    output_tokens=speech.tokens,
                    priority=number(body, "priority", 0),
                    stream=bool(body.get("stream")),
                    session=body.get("session_id"),
                    salt=salt,
                    finish_reason="length" if speech.finish_reason == "length" else "stop",
                    copies=0 if index else len(speeches),
                    longest=longest,
                    output_tokens_max=limit,
                )
            )
        return out

    async def _whole(
        self,
        tokens: list[int],
        speeches: list[Speech],
        runs: list[AsyncGenerator[Progress]],
        shape: wire.ChatShape,
        receive: Receive,
        send: Send,
    ) -> None:
        async def finish(run: AsyncGenerator[Progress]) -> int:
            cached = 0
            async with contextlib.aclosing(run) as steps:
                async for progress in steps:
                    cached = progress.cached_tokens
                    if progress.lost:
                        raise Refused(500, "EngineCore encountered an issue", "InternalServerError")
            return cached

        work = asyncio.ensure_future(asyncio.gather(*(finish(run) for run in runs)))
        cached = await self._unless_gone(work, receive)
        counts = wire.usage(len(tokens), sum(s.tokens for s in speeches), max(cached))
        await write_json(send, 200, shape.whole(speeches, counts))

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
        runs: list[AsyncGenerator[Progress]],
        shape: wire.ChatShape,
        receive: Receive,
        send: Send,
    ) -> None:
        lines: asyncio.Queue[bytes | None] = asyncio.Queue(64)
        cached = [0]

        async def one(index: int, speech: Speech, run: AsyncGenerator[Progress]) -> None:
            before = 0
            async with contextlib.aclosing(run) as steps:
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
        finally:
            for task in (making, work):
                task.cancel()
            await asyncio.gather(making, work, return_exceptions=True)

    def _speech(
        self, body: Json, tokens: list[int], limit: int | None, index: int, messages: list[Any] | None
    ) -> Speech:
        seed = hashlib.blake2b(repr((tokens[-2048:], len(tokens), index, body.get("seed"))).encode()).digest()
        stop = body.get("stop") or []
        fmt = body.get("response_format") or {}
        named_schema = fmt.get("json_schema")
        schema = named_schema.get("schema") if isinstance(named_schema, dict) else None
        schema = schema if fmt.get("type") == "json_schema" else None
        if schema is None and fmt.get("type") == "json_object":
            schema = {"type": "object"}
        try:
            return self._speak(body, seed, limit, messages, stop, schema)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise Refused(400, f"the tools or the response format cannot be followed: {error}") from error

    @staticmethod
    def _speak(
        body: Json, seed: bytes, limit: int | None, messages: list[Any] | None, stop: Any, schema: Any
    ) -> Speech:
        return speak(
            seed,
            messages=messages or (),
            tools=body.get("tools") if body.get("tool_choice") != "none" else None,
            tool_choice=body.get("tool_choice"),
            tokens_max=limit,
            tokens_min=number(body, "min_tokens", 0, least=0),
            ignore_eos=bool(body.get("ignore_eos")),
            stop=[stop] if isinstance(stop, str) else list(stop),
            stop_included=bool(body.get("include_stop_str_in_output")),
            schema=schema,
        )

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
            self.host.record.refused["max_num_queued_reqs"] += 1
            raise Refused(503, "The server is overloaded: too many requests wait.", "ServiceUnavailableError")


def number(body: Json, name: str, default: int, *, least: float = -math.inf, most: float = math.inf) -> int:
    """A whole number in its range."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Refused(400, f"{name} is {value!r}, not a whole number in its range", param=name)
    return value


async def _both(first: asyncio.Future[None], second: asyncio.Future[None]) -> None:
    await asyncio.gather(first, second)


async def disconnected(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def write_json(
    send: Send, status: int, body: Any, headers: Mapping[bytes, bytes] | None = None
) -> None:
    """A whole JSON reply."""
    await write(send, status, b"" if body is None else msgspec.json.encode(body), b"application/json")


async def write(send: Send, status: int, body: bytes, kind: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
