"""What happened in a simulated world: plain values, from which reports are made. Times in seconds of virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class StepTrace:
    """What happened to one step."""

    program: int
    index: int
    sent_at: float
    dispatched_at: float = 0.0
    started_at: float = 0.0  # when the engine took it out of its own queue
    first_at: float = 0.0
    ended_at: float = 0.0
    engine: int = -1
    prompt: int = 0
    output: int = 0
    cached: int = 0
    fresh: int = 0  # prompt tokens that this program never sent before
    ok: bool = True


@dataclass(slots=True, kw_only=True)
class ProgramTrace:
    """What happened to one program."""

    index: int
    started_at: float
    ended_at: float


@dataclass(slots=True, kw_only=True)
class Result:
    """Everything a report is made from."""

    steps: list[StepTrace] = field(default_factory=list)
    programs: list[ProgramTrace] = field(default_factory=list)
    decisions: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    failed: int = 0
    unservable: int = 0  # programs whose prompt outgrew every engine
    warms: int = 0
    warm_hits: int = 0
    warm_restored_tokens: int = 0  # prefilled by warms
    warm_refreshed_tokens: int = 0  # still there, and now the last to be evicted
    ended_at: float = 0.0
    kv_running_token_s: float = 0.0
    kv_idle_token_s: float = 0.0
    kv_capacity_token_s: float = 0.0
    samples: list[tuple[float, list[tuple[int, int, int]]]] = field(default_factory=list)
