"""The flags of an emulated server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedOptions:
    """The flags of an emulated server."""

    profile: str = "llama-3.1-8b-h100"
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
    api_key: str | None = None
