"""KV events on ZeroMQ as vLLM publishes them: PUB with topic, sequence and payload, and a ROUTER that replays.

Rule: both encodings, tagged maps (vLLM 0.24 and newer) and positional arrays (older), from the same events.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import msgspec
import zmq

from agentserve.engine import KvRemoved, KvStored

BUFFER_STEPS = 10_000
POLL_MS = 100


class KvPublisher:
    """Two sockets on loopback: `port` publishes, `port + 1` replays."""

    def __init__(
        self, port: int, *, legacy: bool = False, topic: str = "kv", host: str = "127.0.0.1"
    ) -> None:
        self.legacy = legacy
        self.topic = topic
        self.endpoint = f"tcp://{host}:{port}"
        self.replay_endpoint = f"tcp://{host}:{port + 1}"
        self._sequence = 0
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=BUFFER_STEPS)
        self._context = zmq.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._pub.bind(self.endpoint)
        self._router = self._context.socket(zmq.ROUTER)
        self._router.bind(self.replay_endpoint)
        self._open = True
        self._thread = threading.Thread(target=self._replay, name="kv-replay", daemon=True)
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

    def publish(self, event: KvStored | KvRemoved, block: int) -> None:
        """One batch with one event."""
        payload = msgspec.msgpack.encode([time.time(), [self._event(event, block)], 0])
        self._buffer.append((self._sequence, payload))
        frames = (self.topic.encode(), self._sequence.to_bytes(8, "big"), payload)
        self._pub.send_multipart(frames)
        self._sequence += 1

    def _event(self, event: KvStored | KvRemoved, block: int) -> Any:
        if isinstance(event, KvStored):
            if self.legacy:
                return ["BlockStored", list(event.hashes), event.parent, [], block, None, "GPU", None]
            return {
                "type": "BlockStored",
                "block_hashes": list(event.hashes),
                "parent_block_hash": event.parent,
                "token_ids": [],
                "block_size": block,
                "lora_id": None,
                "medium": "GPU",
                "lora_name": None,
                "group_idx": 0,
            }
        if self.legacy:
            return ["BlockRemoved", list(event.hashes), "GPU"]
        return {"type": "BlockRemoved", "block_hashes": list(event.hashes), "medium": "GPU", "group_idx": 0}

    def _replay(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        while self._open:
            if not poller.poll(POLL_MS):
                continue
            frames = self._router.recv_multipart()
            if len(frames) < 3:
                continue
            client, start = frames[0], int.from_bytes(frames[-1], "big")
            for sequence, payload in list(self._buffer):
                if sequence >= start:
                    number = sequence.to_bytes(8, "big")
                    self._router.send_multipart((client, b"", self.topic.encode(), number, payload))
            end = (-1).to_bytes(8, "big", signed=True)
            self._router.send_multipart((client, b"", b"", end, b""))

    def close(self) -> None:
        """Stop both."""
        self._open = False
        self._thread.join(timeout=2.0)
        self._pub.close(linger=0)
        self._router.close(linger=0)
        self._context.term()
