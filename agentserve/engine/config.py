"""The flags of an emulated server: what its operator chooses, beside the profile of its model and accelerator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from agentserve.errors import UsageError


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

    def __post_init__(self) -> None:
        for name, least in (
            ("block_size", 1),
            ("max_num_batched_tokens", 1),
            ("max_num_seqs", 1),
            ("host_kv_tokens", 0),
        ):
            if getattr(self, name) < least:
                raise UsageError(
                    f"an engine's {name} is {getattr(self, name)}", remedy=f"it must be at least {least}"
                )
        if self.kv_tokens is not None and self.kv_tokens < self.block_size:
            raise UsageError(
                f"{self.kv_tokens} KV tokens are no block of {self.block_size}", remedy="give the engine more"
            )
        if not 0 < self.host_bandwidth < math.inf:
            raise UsageError(
                f"the bandwidth of host memory is {self.host_bandwidth:g}", remedy="it must be positive"
            )
        if not 0 <= self.pin_share_max <= 1:
            raise UsageError(
                f"{self.pin_share_max:g} is no share of the KV for pins", remedy="give one from 0 to 1"
            )
