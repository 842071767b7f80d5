"""Timing the iterations of a real engine from outside, through the API that every engine has.

Rule: one shape at a time on an engine that nobody else uses, each several times, and the quickest counts: what delays
a request beyond the engine's own work only ever adds. Prompts are unlike each other, so that nothing is cached that is
not meant to be.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec

from agentserve.cli.address import base_url, bearer
from agentserve.engine import Sample
from agentserve.errors import AgentServeError
from agentserve.live.upstream.hosted import THIS_MACHINE

PREFILLS = (256, 512, 1024, 2048, 4096, 8000)  # tokens, each in one chunk of the usual 8,192
CONTEXTS = (8_000, 24_000)  # tokens before a chunk
CHUNK = 2048
BATCHES = (1, 4, 16, 64)  # sequences that decode together
DECODE_CONTEXTS = (200, 4000)
OUTPUT_TOKENS = 128
ROUNDS = 3
ROUND_TRIPS = 20
TIMEOUT_S = 300.0
KEPT_S = 1.0


@dataclass(slots=True, kw_only=True)
class Reply:
    """One streamed completion."""

    first_s: float  # after it was sent
    last_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


class Stopwatch:
    """Asks one engine for completions and times them."""

    def __init__(self, client: httpx.AsyncClient, model: str, *, context_max: int) -> None:
        self.client = client
        self.model = model
        self.context_max = context_max
        self._unlike = itertools.count(time.time_ns() % 1_000_000_007)
        self._tokens_per_word = 1.0
        self._round_trip_s = 0.0  # of a request that asks nothing of the engine

    async def calibrate(self) -> None:
        """How many tokens a word of our prompts is, and what the way there and back takes."""
        for _ in range(ROUND_TRIPS):
            sent = time.perf_counter()
            await self.client.get("/v1/models")
            took = time.perf_counter() - sent
            self._round_trip_s = min(self._round_trip_s or took, took)
        reply = await self.complete(self.prompt(400), 1)
        self._tokens_per_word = reply.prompt_tokens / 400

    def prompt(self, words: int) -> str:
        """Words that no other prompt of ours begins with."""
        return " ".join(f"{next(self._unlike) % 1_000_003:06d}" for _ in range(max(words, 1)))

    def prompt_of(self, tokens: int) -> str:
        return self.prompt(round(tokens / self._tokens_per_word))

    async def complete(self, prompt: str, tokens: int) -> Reply:
        """One completion of exactly so many tokens."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sent = time.perf_counter()
        first = last = 0.0
        usage: dict[str, Any] = {}
        async with self.client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                said = (await answer.aread()).decode(errors="replace")[:300]
                raise AgentServeError(f"the engine answered {answer.status_code}: {said}")
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = msgspec.json.decode(line[6:])
                usage = chunk.get("usage") or usage
                if chunk.get("choices"):
                    last = time.perf_counter() - sent
                    first = first or last
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Reply(
            first_s=first,
            last_s=last,
            prompt_tokens=int(usage.get("prompt_tokens", 0)),
            output_tokens=int(usage.get("completion_tokens", 0)),
            cached_tokens=int(cached),
        )

    async def prefill(self, tokens: int, before: str = "") -> Sample:
        """A chunk, alone or behind a prompt that the engine has cached."""
        replies = [await self.complete(before + self.prompt_of(tokens), 1) for _ in range(ROUNDS)]
        quickest = min(replies, key=lambda r: r.first_s)
        return Sample(
            prefill_tokens=quickest.prompt_tokens - quickest.cached_tokens,
            prefill_context=quickest.cached_tokens,
            seconds=max(quickest.first_s - self._round_trip_s, 1e-6),
        )

    async def decode(self, batch: int, context: int) -> Sample:
        """Sequences that decode together, from the last one's first token to the end."""
        best: Sample | None = None
        for _ in range(ROUNDS):
            prompts = [self.prompt_of(context) for _ in range(batch)]
            replies = await asyncio.gather(*(self.complete(p, OUTPUT_TOKENS) for p in prompts))
            # the last to begin has all the others beside it from its first token on
            last = max(replies, key=lambda r: r.first_s)
            seconds = (last.last_s - last.first_s) / max(last.output_tokens - 1, 1)
            held = sum(r.prompt_tokens + r.output_tokens // 2 for r in replies)
            if seconds > 0 and (best is None or seconds < best.seconds):
                best = Sample(decodes=batch, decode_context=held, seconds=seconds)
        if best is None:
            raise AgentServeError("the engine streams nothing that could be timed")
        return best


async def measure(
    url: str, *, model: str | None = None, api_key: str | None = None, tell: Callable[[str], None]
) -> list[Sample]:
    """Time an engine at `url` over shapes that tell its factors apart."""
    url, headers = base_url(url, "--measure"), bearer(api_key, "the engine's key")
    # connections are let go before a server would close them, which could be while we send
    limits = httpx.Limits(max_connections=None, keepalive_expiry=KEPT_S)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=TIMEOUT_S, limits=limits, mounts=THIS_MACHINE
    ) as client:
        try:
            cards = (await client.get("/v1/models")).raise_for_status().json()["data"]
            card = next(c for c in cards if model is None or c["id"] == model)
            watch = Stopwatch(client, card["id"], context_max=int(card.get("max_model_len") or 32_768))
            await watch.calibrate()
            return [
                *await _prefills(watch, PREFILLS, tell),
                *await _behind(watch, CONTEXTS, tell),
                *await _decodes(watch, tell),
            ]
        except (httpx.HTTPError, LookupError, ValueError, StopIteration, RecursionError) as error:
            raise AgentServeError(
                f"{url} cannot be timed: {type(error).__name__} {error}".rstrip(),
                remedy="give the base URL of an OpenAI-compatible engine",
            ) from error


async def _prefills(watch: Stopwatch, sizes: Sequence[int], tell: Callable[[str], None]) -> list[Sample]:
    out = []
    for tokens in sizes:
        if tokens < watch.context_max:
            tell(f"prefill of {tokens} tokens")
            out.append(await watch.prefill(tokens))
    return out


async def _behind(watch: Stopwatch, contexts: Sequence[int], tell: Callable[[str], None]) -> list[Sample]:
    """Chunks behind a cached prompt: what attention costs. Empty where the engine does not say what was cached."""
    out = []
    for context in contexts:
        if context + 2 * CHUNK > watch.context_max:
            continue
        tell(f"prefill of {CHUNK} tokens behind {context}")
        before = watch.prompt_of(context) + " "
        await watch.complete(before, 1)
        sample = await watch.prefill(CHUNK, before)
        if sample.prefill_context:
            out.append(sample)
    return out


async def _decodes(watch: Stopwatch, tell: Callable[[str], None]) -> list[Sample]:
    out = []
    for context, batch in itertools.product(DECODE_CONTEXTS, BATCHES):
        if context + OUTPUT_TOKENS < watch.context_max:
            tell(f"{batch} sequences decode behind {context} tokens")
            out.append(await watch.decode(batch, context))
    return out
