"""KV events on ZeroMQ as vLLM publishes them: PUB with topic, sequence and payload, and a ROUTER that replays.

Rule: both encodings, tagged maps (vLLM 0.24 and newer) and positional arrays (older), from the same events. What
happened at one moment is one message.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq

from agentserve.engine import KvCleared, KvEvent, KvStored
from agentserve_adapters.emulated.record import Submission

BUFFER_STEPS = 10_000
POLL_MS = 100
END = (-1).to_bytes(8, "big", signed=True)  # what ends a replay

News = Sequence[tuple[KvEvent, Submission | None]]


class KvPublisher:
    """Two sockets: `port` publishes, `port + 1` replays."""

    def __init__(
        self, port: int, *, legacy: bool = False, topic: str = "kv", host: str = "127.0.0.1"
    ) -> None:
        self.legacy = legacy
        self.topic = topic
        self.endpoint = f"tcp://{host}:{port}"
        self.replay_endpoint = f"tcp://{host}:{port + 1}"
        self._sequence = 0
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=BUFFER_STEPS)
        self._lock = threading.Lock()  # the replaying thread reads what the loop appends
        self._context = zmq.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._router = self._context.socket(zmq.ROUTER)
        try:
            self._pub.bind(self.endpoint)
            self._router.bind(self.replay_endpoint)
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise
        self._open = True
        self._thread = threading.Thread(target=self._serve_replays, name="kv-replay", daemon=True)
        self._thread.start()

    def describe(self) -> dict[str, Any]:
        """As `/kv_event_sources` says it."""
        return {
            "publisher": "zmq",
            "endpoint": self.endpoint,
            "replay_endpoint": self.replay_endpoint,
            "topic": self.topic,
            "buffer_steps": BUFFER_STEPS,
        }

    def publish(self, news: News, block: int) -> None:
        """One message."""
        write = legacy_event if self.legacy else tagged_event
        events = [write(event, submission, block) for event, submission in news]
        payload = msgspec.msgpack.encode([time.time(), events, 0])
        with self._lock:
            self._buffer.append((self._sequence, payload))
        self._pub.send_multipart((self.topic.encode(), self._sequence.to_bytes(8, "big"), payload))
        self._sequence += 1

    def _serve_replays(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        while self._open:
            if not poller.poll(POLL_MS):
                continue
            frames = self._router.recv_multipart()
            if len(frames) == 3 and len(frames[2]) == 8:
                self._replay(frames[0], int.from_bytes(frames[2], "big"))

    def _replay(self, client: bytes, start: int) -> None:
        with self._lock:
            kept = [(number, payload) for number, payload in self._buffer if number >= start]
        for number, payload in kept:
            frames = (client, b"", self.topic.encode(), number.to_bytes(8, "big"), payload)
            self._router.send_multipart(frames)
        self._router.send_multipart((client, b"", b"", END, b""))

    def close(self) -> None:
        """Stop both."""
        self._open = False
        self._thread.join(timeout=2.0)
        self._pub.close(linger=0)
        self._router.close(linger=0)
        self._context.term()


def tagged_event(event: KvEvent, submission: Submission | None, block: int) -> dict[str, Any]:
    """As vLLM 0.24 and newer write it; what has its default is left out."""
    if isinstance(event, KvCleared):
        return {"type": "AllBlocksCleared"}
    hashes = list(event.hashes)
    if not isinstance(event, KvStored):
        return {"type": "BlockRemoved", "block_hashes": hashes, "medium": event.medium, "group_idx": 0}
    out: dict[str, Any] = {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": event.parent,
        "token_ids": _tokens(event, submission, block),
        "block_size": block,
        "lora_id": None,
        "medium": event.medium,
        "lora_name": None,
    }
    if submission is not None and submission.salt and event.first == 0:
        out["extra_keys"] = [[submission.salt], *[None] * (len(hashes) - 1)]
    out["group_idx"] = 0
    if submission is not None and submission.session:
        out["session_id"] = submission.session
    return out


def legacy_event(event: KvEvent, submission: Submission | None, block: int) -> list[Any]:
    """As vLLM 0.23 and older write it."""
    if isinstance(event, KvCleared):
        return ["AllBlocksCleared"]
    hashes = list(event.hashes)
    if not isinstance(event, KvStored):
        return ["BlockRemoved", hashes, event.medium]
    tokens = _tokens(event, submission, block)
    return ["BlockStored", hashes, event.parent, tokens, block, None, event.medium, None]


def _tokens(event: KvStored, submission: Submission | None, block: int) -> list[int]:
    """The tokens in its blocks; of what went to host memory an engine says hashes only."""
    if submission is None or event.medium != "GPU":
        return []
    return list(submission.tokens[event.first * block : (event.first + len(event.hashes)) * block])
