"""What an emulated server publishes of its KV blocks, as a router that indexes prefixes reads it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
import zmq
import zmq.asyncio
from agentserve_adapters.emulated import EmulatedOptions
from agentserve_adapters.kv_events import decode

from agentserve.errors import UsageError


def free_pair() -> int:
    with zmq.Context() as probe, probe.socket(zmq.PUB) as socket:
        return socket.bind_to_random_port("tcp://127.0.0.1", min_port=20_000, max_port=40_000)


@contextlib.asynccontextmanager
async def publishing(serve: Any, **options: Any) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    async with (
        serve(kv_events_port=free_pair(), dev_mode=True, **options) as (url, _),
        httpx.AsyncClient(base_url=url) as h,
    ):
        yield h, (await h.get("/kv_event_sources")).json()["0"]["replay_endpoint"]


async def replayed(endpoint: str, start: int = 0) -> list[tuple[int, bytes]]:
    """Everything from a sequence number on, to the end that the publisher marks."""
    out: list[tuple[int, bytes]] = []
    context = zmq.asyncio.Context()
    try:
        with context.socket(zmq.DEALER) as dealer:
            dealer.connect(endpoint)
            await dealer.send_multipart((b"", start.to_bytes(8, "big")))
            while True:
                frames = await asyncio.wait_for(dealer.recv_multipart(), 30)
                number = int.from_bytes(frames[2], "big", signed=True)
                if number < 0:
                    return out
                out.append((number, frames[3]))
    finally:
        context.term()


async def events(endpoint: str) -> list[Any]:
    return [e for _, payload in await replayed(endpoint) for e in msgspec.msgpack.decode(payload)[1]]


async def complete(h: httpx.AsyncClient, prompt: str, **more: Any) -> None:
    body = {"prompt": prompt, "max_tokens": 16, "ignore_eos": True, **more}
    (await h.post("/v1/completions", json=body)).raise_for_status()


@pytest.mark.parametrize("legacy", [False, True])
async def test_a_router_learns_the_tokens_of_every_block(serve: Any, legacy: bool) -> None:
    async with publishing(serve, kv_events_legacy=legacy) as (h, endpoint):
        await complete(h, "abcdefgh" * 40)
        asked = (await h.post("/tokenize", json={"prompt": "abcdefgh" * 40})).json()["tokens"]
        payloads = await replayed(endpoint)
    stored = [c for _, payload in payloads for c in decode(payload).changes if c.kind == "stored"]
    tokens = [t for change in stored for t in change.token_ids]
    blocks = [b for change in stored for b in change.hashes]
    assert tokens[: len(asked)] == asked
    assert len(tokens) == 16 * len(blocks)
    assert stored[0].parent is None
    for before, after in itertools.pairwise(stored):
        assert after.parent == before.hashes[-1], "the chain has no hole"


async def test_the_session_is_told_wherever_the_client_said_it(serve: Any) -> None:
    async with publishing(serve) as (h, endpoint):
        await complete(h, "a" * 400, session_id="body")
        await complete(h, "b" * 400, vllm_xargs={"session_id": "xargs"})
        await h.post(
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "c" * 400}], "max_tokens": 1},
            headers={"X-Session-ID": "header"},
        )
        await h.post(
            "/v1/completions",
            json={"prompt": "d" * 400, "max_tokens": 1, "session_id": "body"},
            headers={"X-Session-ID": "header"},
        )
        await complete(h, "e" * 400)
        said = [e.get("session_id") for e in await events(endpoint)]
    # in order of the five requests: the body goes before the header
    assert [who for who, _ in itertools.groupby(said)] == ["body", "xargs", "header", "body", None]


async def test_a_salt_is_told_with_the_first_block(serve: Any) -> None:
    async with publishing(serve) as (h, endpoint):
        await complete(h, "a" * 400, cache_salt="tenant")
        await complete(h, "b" * 400)
        told = await events(endpoint)
    assert told[0]["extra_keys"] == [["tenant"], *[None] * (len(told[0]["block_hashes"]) - 1)]
    assert not any("extra_keys" in event for event in told[1:])


async def test_a_reset_clears_all_blocks_and_is_told(serve: Any) -> None:
    async with publishing(serve) as (h, endpoint):
        await complete(h, "a" * 400)
        assert (await h.post("/reset_prefix_cache")).json() == {"success": True}
        assert (await events(endpoint))[-1] == {"type": "AllBlocksCleared"}
        again = await h.post("/v1/completions", json={"prompt": "a" * 400, "max_tokens": 1})
    assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_a_reader_that_missed_some_gets_them_and_nothing_else(serve: Any) -> None:
    async with publishing(serve) as (h, endpoint):
        for c in "abcd":
            await complete(h, c * 400)
        whole = await replayed(endpoint)
        numbers = [number for number, _ in whole]
        assert numbers == list(range(len(whole)))
        assert await replayed(endpoint, 2) == whole[2:]
        assert await replayed(endpoint, len(whole) + 5) == []


async def test_nonsense_on_the_replay_socket_is_passed_over(serve: Any) -> None:
    async with publishing(serve) as (h, endpoint):
        await complete(h, "a" * 400)
        context = zmq.asyncio.Context()
        with context.socket(zmq.DEALER) as dealer:
            dealer.connect(endpoint)
            for nonsense in ((b"x",), (b"", b"no number at all"), (b"", b"", b"", b"")):
                await dealer.send_multipart(nonsense)
            await dealer.send_multipart((b"", (0).to_bytes(8, "big")))
            frames = await asyncio.wait_for(dealer.recv_multipart(), 30)
            assert int.from_bytes(frames[2], "big") == 0
            dealer.close(linger=0)
        context.term()
        assert await replayed(endpoint)


async def test_blocks_that_leave_for_host_memory_are_told_of_both_media(serve: Any) -> None:
    async with publishing(serve, kv_tokens=640, host_kv_tokens=640) as (h, endpoint):
        for c in "abc":
            await complete(h, c * 2000)
        told = await events(endpoint)
    away = [e for e in told if e["type"] == "BlockRemoved" and e["medium"] == "GPU"]
    kept = [e for e in told if e["type"] == "BlockStored" and e["medium"] == "CPU"]
    assert [e["block_hashes"] for e in away] == [e["block_hashes"] for e in kept]
    assert all(e["token_ids"] == [] for e in kept)
    assert any(e["type"] == "BlockRemoved" and e["medium"] == "CPU" for e in told)


@pytest.mark.parametrize(
    "absurd",
    [
        {"time_scale": 0.0},
        {"time_scale": float("nan")},
        {"host_gb_per_s": -1.0},
        {"kv_events_port": 65_535},
        {"scheduling_policy": "lifo"},
        {"max_num_queued_reqs": -1},
    ],
)
def test_absurd_options_are_refused_by_name(absurd: dict[str, Any]) -> None:
    (name,) = absurd
    with pytest.raises(UsageError, match=name):
        EmulatedOptions(**absurd)
