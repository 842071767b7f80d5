"""The flags of an emulated server: what its operator chooses, beside the profile of its model and accelerator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The flags of a server."""

    block_size: int = 16
    kv_tokens: int | None = None  # None: what the profile's memory leaves
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    policy: Literal["fcfs", "priority"] = "fcfs"
    kv_events: bool = False
    iteration_events: bool = False
    host_kv_tokens: int = 0  # second tier in host memory
    host_bandwidth: float = 50e9  # bytes a second, host to device
    pin_share_max: float = 0.8  # of the pool, for native pins
    fast_forward: bool = True
