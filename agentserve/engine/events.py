"""What an emulated engine takes and what it tells: plain values, with times in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Medium = Literal["GPU", "CPU"]  # where a block lies: on the accelerator or in host memory


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """A request. `hashes` are the chain hashes of every full block of prompt and future output."""

    id: str
    hashes: Sequence[int]
    prompt_tokens: int
    output_tokens: int
    priority: int = 0  # smaller goes sooner; only under priority scheduling


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestStarted:
    """It left the queue for the first time."""

    id: str
    at: float
    cached_tokens: int
    cached_host_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """Its prefill is done."""

    id: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFinished:
    """Its last token is out."""

    id: str
    at: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    queue_s: float
    preemptions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRejected:
    """It can never fit."""

    id: str
    at: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAborted:
    """Its client was gone, and now it is."""

    id: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Preempted:
    """It lost its blocks and waits to be computed again."""

    id: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KvStored:
    """These blocks can be hit from now on; `parent` is the hash before them."""

    hashes: tuple[int, ...]
    parent: int | None
    at: float
    medium: Medium = "GPU"
    request: str = ""  # whose they are, where a request brought them
    first: int = 0  # the place of the first of them among that request's blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class KvRemoved:
    """These blocks are gone, in the order of eviction."""

    hashes: tuple[int, ...]
    at: float
    medium: Medium = "GPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCleared:
    """All blocks are gone, on every medium."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Iterated:
    """`count` iterations in a row ended at `at`, each with so many tokens. For a server's histograms."""

    at: float
    count: int
    tokens: int
    gaps_s: tuple[float, ...]  # from the token before, of each request that has one, in the first of them
    gap_s: float  # the same in those that follow: as long as one of them lasts


KvEvent = KvStored | KvRemoved | KvCleared
EngineEvent = (
    RequestStarted
    | FirstToken
    | RequestFinished
    | RequestRejected
    | RequestAborted
    | Preempted
    | Iterated
    | KvEvent
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvUse:
    """Tokens of KV by what they are for."""

    running_tokens: int
    idle_tokens: int
    blank_tokens: int
    pinned_tokens: int = 0


@dataclass(slots=True, kw_only=True)
class EngineStats:
    """Counters since the start."""

    busy_s: float = 0.0
    iterations: int = 0
    query_tokens: int = 0
    hit_tokens: int = 0
    host_hit_tokens: int = 0
    decoded_tokens: int = 0
    preemptions: int = 0
    evicted_tokens: int = 0
    finished: int = 0
    aborted: int = 0
    running_token_s: float = 0.0  # KV held by running requests, over time
    idle_token_s: float = 0.0  # KV of finished ones that can still be hit, over time
