"""KV events: encodings, sequence, replay, restarts, and what they say of each program."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from agentserve_adapters.kv_events import MalformedEvents, Sequence, Verdict, decode, level_hash
from agentserve_adapters.kv_stream import CLEARED, KvSource, KvStream, reachable
from agentserve_adapters.residency import Residency
from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.ports import KvChange, KvHolding

pack = msgspec.msgpack.encode


def stored(*hashes: int, parent: int | None = None, session: str | None = None, block: int = 16) -> KvChange:
    return KvChange(kind="stored", hashes=hashes, parent=parent, block_tokens=block, session=session)


def removed(*hashes: int) -> KvChange:
    return KvChange(kind="removed", hashes=hashes)


# -- decoding


def test_tagged_maps_and_positional_arrays_say_the_same() -> None:
    maps = [
        {
            "type": "BlockStored",
            "block_hashes": [1, 2],
            "parent_block_hash": 9,
            "token_ids": [7] * 32,
            "block_size": 16,
            "lora_id": None,
            "medium": "GPU",
        },
        {"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU"},
        {"type": "AllBlocksCleared"},
    ]
    arrays = [
        ["BlockStored", [1, 2], 9, [7] * 32, 16, None, "GPU"],
        ["BlockRemoved", [1], "GPU"],
        ["AllBlocksCleared"],
    ]
    new, old = decode(pack([1.5, maps, 0])), decode(pack([1.5, arrays]))
    assert new.changes == old.changes
    assert [c.kind for c in new.changes] == ["stored", "removed", "cleared"]
    assert new.changes[0].parent == 9
    assert new.changes[0].block_tokens == 16
    assert new.at == 1.5


def test_the_session_of_a_block_is_kept() -> None:
    event = {"type": "BlockStored", "block_hashes": [1], "parent_block_hash": None, "session_id": "p1"}
    assert decode(pack([0, [event]])).changes[0].session == "p1"


def test_signed_unsigned_and_digest_hashes_are_levelled() -> None:
    assert level_hash(-1) == level_hash(2**64 - 1) == level_hash(b"\x01" * 24 + b"\xff" * 8)


def test_layers_that_do_not_cover_the_whole_prefix_are_left_out() -> None:
    event = {"type": "BlockStored", "block_hashes": [1], "kv_cache_spec_kind": "sliding_window"}
    assert decode(pack([0, [event]])).changes == ()
    event["kv_cache_spec_kind"] = "full_attention"
    assert len(decode(pack([0, [event]])).changes) == 1


def test_kinds_of_later_versions_are_passed_over() -> None:
    assert decode(pack([0, [{"type": "BlockMoved", "block_hashes": [1]}]])).changes == ()


@given(st.binary(max_size=64))
@settings(max_examples=100, deadline=None)
def test_bytes_that_are_no_events_are_malformed_and_nothing_worse(payload: bytes) -> None:
    with contextlib.suppress(MalformedEvents):
        decode(payload)


# -- sequence


def test_a_sequence_tells_next_gap_seen_and_restart_apart() -> None:
    sequence = Sequence()
    assert sequence.judge(0, 1.0) is Verdict.NEXT
    sequence.accept(0, 1.0)
    assert sequence.judge(1, 2.0) is Verdict.NEXT
    assert sequence.judge(5, 2.0) is Verdict.GAP
    assert sequence.judge(0, 1.0) is Verdict.SEEN
    assert sequence.judge(0, 9.0) is Verdict.RESTART


def test_after_a_broken_connection_even_the_next_number_is_doubted() -> None:
    sequence = Sequence()
    sequence.accept(0, 1.0)
    sequence.doubt()
    assert sequence.judge(1, 2.0) is Verdict.GAP
    sequence.trust()
    assert sequence.judge(1, 2.0) is Verdict.NEXT


def test_wildcard_endpoints_are_reached_at_the_engines_host() -> None:
    assert reachable("tcp://*:5557", "http://10.1.2.3:8000") == "tcp://10.1.2.3:5557"
    assert reachable("tcp://0.0.0.0:5557", "http://engine:8000") == "tcp://engine:5557"
    assert reachable("tcp://[::]:5557", "http://[::1]:8000") == "tcp://[::1]:5557"
    assert reachable("tcp://10.9.9.9:5557", "http://engine:8000") == "tcp://10.9.9.9:5557"


# -- over sockets


class Publisher:
    """An engine's side: PUB and, if asked for, a replay ROUTER with a bounded buffer."""

    def __init__(
        self, ports: tuple[int, int] | None = None, *, buffer: int = 1000, replays: bool = True
    ) -> None:
        context = zmq.asyncio.Context.instance()
        self.pub, self.router = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
        for socket in (self.pub, self.router):
            socket.setsockopt(zmq.LINGER, 0)
        if ports is None:
            ports = (
                self.pub.bind_to_random_port("tcp://127.0.0.1"),
                self.router.bind_to_random_port("tcp://127.0.0.1"),
            )
        else:
            bind_again(self.pub, ports[0])
            bind_again(self.router, ports[1])
        self.ports = ports
        self.buffer: list[tuple[int, bytes]] = []
        self.limit = buffer
        self.number = 0
        self.replays = replays
        self.server = asyncio.create_task(self._serve())

    @property
    def source(self) -> KvSource:
        replay = f"tcp://127.0.0.1:{self.ports[1]}" if self.replays else None
        return KvSource(endpoint=f"tcp://127.0.0.1:{self.ports[0]}", replay_endpoint=replay)

    async def publish(self, *hashes: int, at: float = 1.0, lost: bool = False) -> None:
        payload = pack([at + self.number, [["BlockStored", list(hashes), None, [], 16, None, "GPU"]], 0])
        if not lost:
            await self.pub.send_multipart([b"", self.number.to_bytes(8, "big"), payload])
        self.buffer = [*self.buffer, (self.number, payload)][-self.limit :]
        self.number += 1

    async def close(self) -> None:
        self.server.cancel()
        await asyncio.gather(self.server, return_exceptions=True)
        self.pub.close(linger=0)
        self.router.close(linger=0)

    async def _serve(self) -> None:
        while True:
            client, _, start = await self.router.recv_multipart()
            for number, payload in self.buffer:
                if number >= int.from_bytes(start, "big"):
                    await self.router.send_multipart([client, b"", b"", number.to_bytes(8, "big"), payload])
            end = (-1).to_bytes(8, "big", signed=True)
            await self.router.send_multipart([client, b"", b"", end, b""])


@pytest.fixture
async def publisher() -> AsyncIterator[Publisher]:
    made = Publisher()
    yield made
    await made.close()


def bind_again(socket: Any, port: int) -> None:
    """ZeroMQ gives a port back a moment after its socket was closed."""
    for _ in range(250):
        with contextlib.suppress(zmq.ZMQError):
            socket.bind(f"tcp://127.0.0.1:{port}")
            return
        time.sleep(0.02)
    raise OSError(f"port {port} stays in use")


class Listener:
    """Collects a stream's changes."""

    def __init__(self, *sources: KvSource) -> None:
        self.stream = KvStream(sources, engine="e1")
        self.seen: list[KvChange] = []
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with contextlib.aclosing(self.stream.changes()) as changes:
            async for change in changes:
                self.seen.append(change)

    async def until(self, done: Any) -> None:
        async with asyncio.timeout(10):
            while not done(self.seen):
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def hashes(seen: list[KvChange]) -> list[int]:
    return [h for change in seen for h in change.hashes]


async def test_what_was_published_before_we_listened_is_replayed(publisher: Publisher) -> None:
    await publisher.publish(1, lost=True)
    await publisher.publish(2, lost=True)
    listener = Listener(publisher.source)
    await listener.until(lambda seen: hashes(seen) == [1, 2])
    await publisher.publish(3)
    await listener.until(lambda seen: hashes(seen) == [1, 2, 3])
    await listener.close()


async def test_a_gap_is_refilled_in_order_and_nothing_comes_twice(publisher: Publisher) -> None:
    listener = Listener(publisher.source)
    await publisher.publish(1)
    await listener.until(lambda seen: hashes(seen) == [1])
    await publisher.publish(2, lost=True)
    await publisher.publish(3, lost=True)
    await publisher.publish(4)
    await listener.until(lambda seen: len(hashes(seen)) >= 4)
    assert hashes(listener.seen) == [1, 2, 3, 4]
    assert CLEARED not in listener.seen
    await listener.close()


async def test_a_gap_that_cannot_be_refilled_clears_what_was_known() -> None:
    publisher = Publisher(replays=False)
    listener = Listener(publisher.source)
    await asyncio.sleep(0.2)  # without replay, what is sent before the subscription is lost
    await publisher.publish(1)
    await listener.until(lambda seen: 1 in hashes(seen))
    await publisher.publish(2, lost=True)
    await publisher.publish(3)
    await listener.until(lambda seen: 3 in hashes(seen))
    assert CLEARED in listener.seen
    assert hashes(listener.seen[listener.seen.index(CLEARED) :]) == [3]
    await listener.close()
    await publisher.close()


async def test_an_engine_that_begins_anew_clears_what_was_known_before_its_news() -> None:
    first = Publisher()
    listener = Listener(first.source)
    for h in (1, 2, 3):
        await first.publish(h)
    await listener.until(lambda seen: hashes(seen) == [1, 2, 3])
    await first.close()
    second = Publisher(first.ports)
    await second.publish(11, at=100.0)
    await second.publish(12, at=100.0)
    await listener.until(lambda seen: 12 in hashes(seen))
    after = listener.seen[listener.seen.index(CLEARED) :]
    assert hashes(after) == [11, 12]
    assert hashes(listener.seen[: listener.seen.index(CLEARED)]) == [1, 2, 3]
    assert listener.stream.restarts == 1
    await listener.close()
    await second.close()


async def test_a_restart_is_noticed_even_when_the_count_has_caught_up() -> None:
    first = Publisher()
    listener = Listener(first.source)
    await first.publish(1)
    await listener.until(lambda seen: hashes(seen) == [1])
    await first.close()
    second = Publisher(first.ports)
    for h in (11, 12, 13):  # past the number that was seen last
        await second.publish(h, at=100.0, lost=True)
    await listener.until(lambda seen: 13 in hashes(seen))
    assert hashes(listener.seen[listener.seen.index(CLEARED) :]) == [11, 12, 13]
    await listener.close()
    await second.close()


async def test_a_restart_seen_in_the_gauges_keeps_what_the_new_run_has_published(
    publisher: Publisher,
) -> None:
    listener = Listener(publisher.source)
    await publisher.publish(1)
    await listener.until(lambda seen: hashes(seen) == [1])
    listener.stream.start_over()
    await listener.until(lambda seen: CLEARED in seen and hashes(seen[seen.index(CLEARED) :]) == [1])
    await listener.close()


async def test_ranks_are_joined_into_one_stream() -> None:
    publishers = [Publisher(), Publisher()]
    listener = Listener(*(p.source for p in publishers))
    await publishers[0].publish(1)
    await publishers[1].publish(2)
    await listener.until(lambda seen: sorted(hashes(seen)) == [1, 2])
    await listener.close()
    for publisher in publishers:
        await publisher.close()


# -- residency


def test_a_program_holds_the_leading_run_of_its_chain() -> None:
    residency = Residency()
    assert residency.apply(stored(1, 2, 3, session="p1")) == [
        KvHolding(program="p1", tokens=48, tokens_known=48)
    ]
    assert residency.apply(removed(3)) == [KvHolding(program="p1", tokens=32, tokens_known=48)]
    assert residency.apply(removed(1)) == [KvHolding(program="p1", tokens=0, tokens_known=48)]
    assert residency.apply(stored(1)) == [KvHolding(program="p1", tokens=32, tokens_known=48)]


def test_shared_prefixes_count_once_and_tell_every_program() -> None:
    residency = Residency()
    residency.apply(stored(1, 2, session="p1"))
    residency.apply(stored(3, parent=2, session="p1"))
    residency.apply(stored(4, parent=2, session="p2"))
    assert residency.resident_tokens == 64
    assert {h.program: h.tokens for h in residency.apply(removed(2))} == {"p1": 16, "p2": 16}


def test_of_a_block_held_twice_one_copy_may_go() -> None:
    residency = Residency(counts_copies=True)
    residency.apply(stored(1, session="p1"))
    residency.apply(stored(1, session="p2"))
    assert residency.resident_tokens == 16
    assert residency.apply(removed(1)) == []
    assert {h.tokens for h in residency.apply(removed(1))} == {0}


def test_a_cleared_engine_holds_nothing_of_anyone() -> None:
    residency = Residency()
    residency.apply(stored(1, session="p1"))
    assert residency.apply(CLEARED) == [KvHolding(program="p1", tokens=0, tokens_known=0)]
    assert residency.resident_tokens == 0
    assert residency.holding("p1") is None


def test_of_a_chain_whose_beginning_was_never_heard_of_nothing_is_said() -> None:
    residency = Residency()
    assert residency.apply(stored(8, parent=7, session="p1")) == []
    assert residency.apply(removed(8)) == []
    assert residency.holding("p1") is None


def test_other_tiers_are_not_the_gpu() -> None:
    residency = Residency()
    residency.apply(KvChange(kind="stored", hashes=(1,), block_tokens=16, medium="CPU", session="p1"))
    assert residency.resident_tokens == 0


chains = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.booleans()), max_size=30)


@given(chains, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_residency_agrees_with_keeping_everything(steps: list[tuple[int, int, bool]], rng: Any) -> None:
    """Against a plain model: each program's chain as a list, and a set of what is resident."""
    residency, resident, chain_of = Residency(), set[int](), dict[str, list[int]]()
    for number, length, evict in steps:
        program = f"p{number}"
        # two programs share their beginnings
        chain = [hash((number // 2 if i < 2 else number, i)) & 0xFFFF for i in range(length)]
        fresh = [h for h in chain if h not in resident]
        if fresh and chain[-1] in fresh:
            start = chain.index(fresh[0])
            new = [*chain[start:]]
            residency.apply(stored(*new, parent=chain[start - 1] if start else None, session=program))
            resident.update(chain)
            chain_of[program] = chain
        if evict and resident:
            gone = rng.choice(sorted(resident))
            residency.apply(removed(gone))
            resident.discard(gone)
        for name, known in chain_of.items():
            leading = 0
            while leading < len(known) and known[leading] in resident:
                leading += 1
            found = residency.holding(name)
            assert found is not None
            assert found.tokens == 16 * leading
        assert residency.resident_tokens == 16 * len(resident)
