"""What an adapter must keep with a real engine behind it.

Rule: each check is a sentence; it raises AssertionError, or `Skip` where the engine does not claim the matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
from agentserve_adapters.detect import detect
from agentserve_adapters.residency import Residency

from agentserve.ports import Capabilities, EngineLoad, Hints, Outcome, Outgoing, ProgramPrefix

ANSWER_S = 120.0
RESIDENCY_REQUESTS = 1_000
RESIDENCY_PROGRAMS = 12
EVENTS_COME_S = 0.01
EVENTS_LATE_S = 10.0


class Skip(Exception):
    """The engine does not claim this."""


@dataclass(slots=True)
class Bench:
    """One engine under test."""

    url: str
    kind: str
    adapter: Any
    model: str = ""
    caps: Capabilities | None = None

    def chat(self, program: str, words: int, *, tokens: int = 4) -> dict[str, Any]:
        text = f"{program} " + " ".join(f"word{i} of {program}" for i in range(words))
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": tokens,
            "temperature": 0,
        }

    async def ask(self, program: str, body: dict[str, Any], *, priority: int = 0) -> dict[str, Any]:
        """As the gateway sends it: prepared, then posted."""
        outgoing = Outgoing(protocol="chat", path="/v1/chat/completions", body=body)
        self.adapter.prepare(outgoing, Hints(program=program, tenant="t", step="s", priority=priority))
        async with httpx.AsyncClient(timeout=ANSWER_S, trust_env=False) as client:
            answer = await client.post(self.url + outgoing.path, json=body, headers=dict(outgoing.headers))
        assert answer.status_code == 200, answer.text[:300]
        return dict(answer.json())


async def its_kind_is_recognised(bench: Bench) -> str:
    found = await detect(bench.url)
    assert found.kind == bench.kind, f"taken for {found.kind} ({found.recognised.evidence})"
    return found.recognised.evidence


async def a_probe_tells_what_it_is(bench: Bench) -> str:
    bench.caps = await bench.adapter.probe()
    assert bench.caps.models
    bench.model = bench.caps.models[0]
    return f"{bench.caps.version or 'no version'}, KV {bench.caps.kv_tokens or 'unknown'}"


async def a_prepared_step_is_answered(bench: Bench) -> str:
    reply = await bench.ask("p0", bench.chat("p0", 20))
    usage = reply["usage"]
    assert usage["completion_tokens"] >= 1
    return f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens"


async def its_count_of_tokens_is_what_it_then_bills(bench: Bench) -> str:
    body = bench.chat("p0", 20)
    count = await bench.adapter.count_tokens("chat", body)
    if count is None:
        raise Skip("it does not count")
    usage = (await bench.ask("p0", body))["usage"]
    assert count == usage["prompt_tokens"], f"counted {count}, billed {usage['prompt_tokens']}"
    return f"{count} tokens"


async def a_warmed_prompt_is_found_cached(bench: Bench) -> str:
    body = bench.chat("pw", 60)
    receipt = await bench.adapter.warm("pw", ProgramPrefix(protocol="chat", body=dict(body)))
    assert receipt.outcome is Outcome.ACCEPTED, receipt
    assert bench.caps is not None
    details = (await bench.ask("pw", body))["usage"].get("prompt_tokens_details") or {}
    if not bench.caps.reports_cached_tokens:
        raise Skip("it does not say what was cached")
    assert details.get("cached_tokens"), details
    return f"{details['cached_tokens']} cached"


async def pins_and_releases_are_answered(bench: Bench) -> str:
    prefix = ProgramPrefix(protocol="chat", body=bench.chat("pp", 40))
    await bench.ask("pp", dict(prefix.body))
    pinned = await bench.adapter.pin("pp", prefix, 200, 10.0)
    released = await bench.adapter.unpin("pp")
    assert pinned.outcome in (Outcome.ACCEPTED, Outcome.CLIPPED), pinned
    assert released.outcome is Outcome.ACCEPTED, released
    return f"{pinned.mode}: {pinned.detail}"


async def a_closed_connection_ends_the_step(bench: Bench) -> str:
    load: EngineLoad = await bench.adapter.load()
    if load.running is None:
        raise Skip("it does not say what runs")
    body = {**bench.chat("pa", 20, tokens=1500), "stream": True, "ignore_eos": True}
    async with (
        httpx.AsyncClient(timeout=ANSWER_S, trust_env=False) as client,
        client.stream("POST", bench.url + "/v1/chat/completions", json=body) as reply,
    ):
        async for _ in reply.aiter_bytes():
            break
        during = (await bench.adapter.load()).running
    for _ in range(50):
        await asyncio.sleep(0.1)
        if (await bench.adapter.load()).running == 0:
            return f"{during} running, then none"
    raise AssertionError("it runs on after its client left")


async def its_kv_events_tell_what_is_cached(bench: Bench) -> str:
    """Before each of a thousand requests, foretell its cached tokens from the events; the engine's word decides."""
    assert bench.caps is not None
    if not (bench.caps.kv_events and bench.caps.reports_cached_tokens):
        raise Skip("it publishes no events")
    mirror = Mirror(bench)
    rng = random.Random(7)
    told = foretold = off = 0
    lengths = {f"r{i}": 20 for i in range(RESIDENCY_PROGRAMS)}
    listening = asyncio.create_task(mirror.listen())
    try:
        await asyncio.sleep(1.0)
        for _ in range(RESIDENCY_REQUESTS):
            program = rng.choice(sorted(lengths))
            lengths[program] = lengths[program] + 8 if lengths[program] < 140 else 20
            body = bench.chat(program, lengths[program], tokens=1)
            prompt = await bench.adapter.prompt_tokens("chat", body)
            known = mirror.cached(prompt)
            cached = (await bench.ask(program, body))["usage"]["prompt_tokens_details"]["cached_tokens"]
            told, foretold, off = told + cached, foretold + known, off + abs(known - cached)
            await mirror.hears_of(prompt)
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    share = off / max(told, 1)
    assert share < 0.02, f"off by {share:.1%}: told {told}, foretold {foretold}"
    return (
        f"{RESIDENCY_REQUESTS} requests: {told} cached tokens told, {foretold} foretold, off by {share:.2%}"
    )


class Mirror:
    """What the events say is there, looked up by a prompt's tokens."""

    def __init__(self, bench: Bench) -> None:
        assert bench.caps is not None
        self.residency = Residency(counts_copies=bench.adapter.counts_copies)
        self._adapter = bench.adapter
        self._block = bench.caps.block_tokens or 1
        self._by_content: dict[tuple[int | None, tuple[int, ...]], int] = {}

    async def listen(self) -> None:
        async with contextlib.aclosing(self._adapter.kv_events()) as changes:
            async for change in changes:
                self.residency.apply(change)
                parent = change.parent
                for i, block in enumerate(change.hashes if change.kind == "stored" else ()):
                    tokens = change.token_ids[i * self._block : (i + 1) * self._block]
                    self._by_content[parent, tokens] = block
                    parent = block

    async def hears_of(self, prompt: list[int]) -> None:
        """Until the events of this prompt's own blocks are here: on a busy machine they come after the reply."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EVENTS_LATE_S):
                while self.cached(prompt) < (len(prompt) - 1) // self._block * self._block:
                    await asyncio.sleep(EVENTS_COME_S)

    def cached(self, prompt: list[int]) -> int:
        """Tokens of the prompt that lead and are there; the last token is always computed."""
        parent: int | None = None
        for start in range(0, (len(prompt) - 1) // self._block * self._block, self._block):
            found = self._by_content.get((parent, tuple(prompt[start : start + self._block])))
            if found is None or not self.residency.holds(found):
                return start
            parent = found
        return (len(prompt) - 1) // self._block * self._block


CHECKS: tuple[Callable[[Bench], Awaitable[str]], ...] = (
    its_kind_is_recognised,
    a_probe_tells_what_it_is,
    a_prepared_step_is_answered,
    its_count_of_tokens_is_what_it_then_bills,
    a_warmed_prompt_is_found_cached,
    pins_and_releases_are_answered,
    a_closed_connection_ends_the_step,
    its_kv_events_tell_what_is_cached,
)
