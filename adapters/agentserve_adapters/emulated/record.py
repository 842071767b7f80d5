"""What an emulated server counts of its requests: the counters and histograms behind `/metrics`.

Rule: everything is computed from the engine's events, in engine time; what is kept is in seconds as clients see them,
engine time over the time scale. Nothing here knows HTTP or the exposition format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentserve.engine import (
    EngineEvent,
    FirstToken,
    Iterated,
    RequestAborted,
    RequestFinished,
    RequestStarted,
)
from agentserve_adapters.emulated import histograms as h
from agentserve_adapters.emulated.histograms import Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A request as the server gives it to its engine."""

    hashes: Sequence[int]
    prompt_tokens: int
    output_tokens: int
    tokens: Sequence[int] = ()  # of prompt and reply, for KV events
    priority: int = 0
    stream: bool = False
    session: str | None = None
    salt: str = ""
    finish_reason: str = "stop"
    copies: int = 0  # n, on the first of n copies only
    longest: int = 0  # output tokens of the longest copy
    output_tokens_max: int = 0  # as the client asked


@dataclass(slots=True, kw_only=True)
class Course:
    """One request so far, in engine time."""

    submission: Submission
    submitted_at: float
    started_at: float = 0.0
    first_at: float = 0.0
    cached_tokens: int = 0
    cached_host_tokens: int = 0


class Record:
    """Counters since the start."""

    def __init__(self, *, time_scale: float, context_max: int) -> None:
        self.scale = time_scale
        self.open: dict[str, Course] = {}
        self.finished = {"stop": 0, "length": 0, "abort": 0, "error": 0, "repetition": 0}
        self.refused = {"max_num_queued_reqs": 0, "max_num_queued_tokens": 0}
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.cached_host_tokens = 0
        tokens = h.token_bounds(context_max)
        self.first_token_s = Histogram(h.FIRST_TOKEN_S)
        self.inter_token_s = Histogram(h.INTER_TOKEN_S)
        self.per_output_token_s = Histogram(h.INTER_TOKEN_S)
        self.whole_s = Histogram(h.LATENCY_S)
        self.queue_s = Histogram(h.LATENCY_S)
        self.inference_s = Histogram(h.LATENCY_S)
        self.prefill_s = Histogram(h.LATENCY_S)
        self.decode_s = Histogram(h.LATENCY_S)
        self.iteration_tokens = Histogram(h.ITERATION_TOKENS)
        self.request_prompt_tokens = Histogram(tokens)
        self.request_output_tokens = Histogram(tokens)
        self.request_prefill_tokens = Histogram(tokens)
        self.longest_output_tokens = Histogram(tokens)
        self.output_tokens_max = Histogram(tokens)
        self.copies = Histogram(h.COPIES)
        self.preemptions = Histogram(h.PREEMPTIONS)

    def submitted(self, name: str, submission: Submission, now: float) -> None:
        """A request is on its way into the engine."""
        self.open[name] = Course(submission=submission, submitted_at=now)

    def lost(self, name: str) -> None:
        """The engine broke with it inside."""
        if self.open.pop(name, None) is not None:
            self.finished["error"] += 1

    def rejected(self, name: str) -> None:
        """It never got in."""
        self.open.pop(name, None)

    def note(self, event: EngineEvent) -> None:
        """Take one event of the engine in."""
        if isinstance(event, Iterated):
            self.iteration_tokens.observe(event.tokens, event.count)
            for gap_s in event.gaps_s:
                self.inter_token_s.observe(gap_s / self.scale)
            self.inter_token_s.observe(event.gap_s / self.scale, len(event.gaps_s) * (event.count - 1))
        elif isinstance(event, RequestStarted):
            course = self.open[event.id]
            course.started_at = event.at
            course.cached_tokens = event.cached_tokens
            course.cached_host_tokens = event.cached_host_tokens
        elif isinstance(event, FirstToken):
            course = self.open[event.id]
            course.first_at = event.at
            self.first_token_s.observe((event.at - course.submitted_at) / self.scale)
            self.prompt_tokens += course.submission.prompt_tokens
            self.cached_tokens += course.cached_tokens
            self.cached_host_tokens += course.cached_host_tokens
        elif isinstance(event, RequestFinished):
            self._ended(event)
        elif isinstance(event, RequestAborted):
            self.open.pop(event.id, None)
            self.finished["abort"] += 1

    def _ended(self, event: RequestFinished) -> None:
        course = self.open.pop(event.id)
        asked = course.submission
        self.finished[asked.finish_reason] += 1
        decode_s = (event.at - course.first_at) / self.scale
        self.whole_s.observe((event.at - course.submitted_at) / self.scale)
        self.queue_s.observe(event.queue_s / self.scale)
        self.inference_s.observe((event.at - course.started_at) / self.scale)
        self.prefill_s.observe((course.first_at - course.started_at) / self.scale)
        self.decode_s.observe(decode_s)
        self.per_output_token_s.observe(decode_s / max(event.output_tokens - 1, 1))
        self.request_prompt_tokens.observe(event.prompt_tokens)
        self.request_output_tokens.observe(event.output_tokens)
        self.request_prefill_tokens.observe(event.prompt_tokens - event.cached_tokens)
        self.preemptions.observe(event.preemptions)
        if asked.output_tokens_max:
            self.output_tokens_max.observe(asked.output_tokens_max)
        if asked.copies:
            self.copies.observe(asked.copies)
            self.longest_output_tokens.observe(asked.longest)
