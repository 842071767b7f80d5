"""The flags of an emulated server."""

from __future__ import annotations

import math
from dataclasses import dataclass

from agentserve.engine import EngineConfig, Profile
from agentserve.errors import ConfigError

PORT_MAX = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedOptions:
    """The flags of an emulated server."""

    profile: str | Profile = "llama-3.1-8b-h100"
    model: str = "emulated"
    time_scale: float = 1.0
    kv_tokens: int | None = None
    block_tokens: int = 16
    max_num_seqs: int = 256
    max_num_queued_reqs: int | None = None
    scheduling_policy: str = "fcfs"
    old_metric_names: bool = False
    dev_mode: bool = False
    kv_events_port: int | None = None  # PUB; replay on the next one
    kv_events_legacy: bool = False
    host_kv_tokens: int = 0  # a second tier in host memory
    host_gb_per_s: float = 50.0  # from there to the accelerator
    native_pins: bool = False  # hold a session's prefix when told to, on a route that stock engines lack
    pin_share_max: float = 0.8  # of the KV
    api_key: str | None = None

    def __post_init__(self) -> None:
        for name, fits, rule in (
            ("time_scale", 0 < self.time_scale < math.inf, "positive"),
            ("host_gb_per_s", 0 < self.host_gb_per_s < math.inf, "positive"),
            ("scheduling_policy", self.scheduling_policy in ("fcfs", "priority"), "fcfs or priority"),
            ("max_num_queued_reqs", (self.max_num_queued_reqs or 0) >= 0, "at least 0"),
            ("kv_events_port", 0 < (self.kv_events_port or 1) < PORT_MAX, "a port that has a next one"),
        ):
            if not fits:
                raise ConfigError(
                    f"the emulated engine's {name} is {getattr(self, name)}", remedy=f"it must be {rule}"
                )

    def engine_config(self) -> EngineConfig:
        """What the engine itself has to know."""
        return EngineConfig(
            block_size=self.block_tokens,
            kv_tokens=self.kv_tokens,
            max_num_seqs=self.max_num_seqs,
            policy="priority" if self.scheduling_policy == "priority" else "fcfs",
            kv_events=self.kv_events_port is not None,
            iteration_events=True,
            host_kv_tokens=self.host_kv_tokens,
            host_bandwidth=self.host_gb_per_s * 1e9,
            pin_share_max=self.pin_share_max,
        )
