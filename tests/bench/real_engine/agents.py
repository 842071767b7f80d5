"""Agents as plain OpenAI clients: each sends its conversation again, longer by what its tool returned.

Rule: what an agent says and how long its tools take is a function of the seed alone, whatever stands in front of the
engine. The text of a run carries the run's own mark, so that nothing is cached from an earlier one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai

from tests.bench.peers import doors

OUTPUT_TOKENS = 48
OPENING_WORDS = (250, 300)
RESULT_WORDS = (25, 50)
STEPS = (6, 7)
SHORT_GAP_S, LONG_GAP_S, LONG_SHARE = (0.1, 0.5), (3.0, 6.0), 0.25
STARTS_WITHIN_S = 1.0
ANSWER_TIMEOUT_S = 600.0
KEY = doors.KEY  # LiteLLM wants one
SYLLABLES = tuple(c + v for c in "bcdfghklmnprstvz" for v in ("a", "e", "i", "o", "u"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """What one agent does: its opening, and for each later step a tool's time and what the tool returned."""

    name: str
    starts_s: float
    opening: str
    gaps: tuple[tuple[float, str], ...]


@dataclass(slots=True, kw_only=True)
class Told:
    """One step as its client saw it."""

    agent: str
    took_s: float
    first_s: float
    prompt_tokens: int
    cached_tokens: int


@dataclass(slots=True, kw_only=True)
class Run:
    """All agents of one run."""

    wall_s: float = 0.0
    completions_s: list[float] = field(default_factory=list)
    steps: list[Told] = field(default_factory=list)

    @property
    def mean_completion_s(self) -> float:
        return sum(self.completions_s) / len(self.completions_s)

    @property
    def cached_share(self) -> float:
        return sum(s.cached_tokens for s in self.steps) / max(sum(s.prompt_tokens for s in self.steps), 1)

    def step_quantile(self, q: float) -> float:
        times = sorted(s.took_s for s in self.steps)
        return times[min(int(q * len(times)), len(times) - 1)]


def agents(count: int, seed: int, mark: str) -> list[Agent]:
    """The agents of a seed; `mark` makes their words this run's own and changes nothing else."""
    rng = random.Random(seed)
    return [_agent(rng, f"{mark}-{seed}-{i}") for i in range(count)]


def opening(words: int) -> Agent:
    """An agent of one step, whose prompt nobody has sent before."""
    rng = random.Random()
    return Agent(name="pace", starts_s=0.0, opening=_words(rng, words), gaps=())


def _agent(rng: random.Random, name: str) -> Agent:
    gaps = []
    for _ in range(rng.randint(*STEPS) - 1):
        low, high = LONG_GAP_S if rng.random() < LONG_SHARE else SHORT_GAP_S
        gaps.append((rng.uniform(low, high), _words(rng, rng.randint(*RESULT_WORDS))))
    return Agent(
        name=name,
        starts_s=rng.uniform(0.0, STARTS_WITHIN_S),
        opening=f"run {name}: {_words(rng, rng.randint(*OPENING_WORDS))}",
        gaps=tuple(gaps),
    )


def _words(rng: random.Random, count: int) -> str:
    return " ".join("".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(count))


Ended = Callable[[str], Awaitable[None]]
Tells = Callable[[str, int, bool], dict[str, Any]]  # of which program a step is, its index, is it the last


def nothing(program: str, step: int, last: bool) -> dict[str, Any]:
    """What most clients tell a router of their programs."""
    return {}


async def run(
    url: str, model: str, whom: Sequence[Agent], *, tells: Tells = nothing, ended: Ended | None = None
) -> Run:
    """Let all agents run to their end against one base URL; `tells` adds fields to each request."""
    result = Run()
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=ANSWER_TIMEOUT_S
    ) as client:
        began = time.monotonic()
        await asyncio.gather(*(_live(client, model, a, result, tells, ended) for a in whom))
        result.wall_s = time.monotonic() - began
    return result


async def _live(
    client: openai.AsyncOpenAI, model: str, agent: Agent, result: Run, tells: Tells, ended: Ended | None
) -> None:
    await asyncio.sleep(agent.starts_s)
    began = time.monotonic()
    messages: list[Any] = [{"role": "user", "content": agent.opening}]
    for k, (gap_s, returned) in enumerate((*agent.gaps, (0.0, ""))):
        last = k == len(agent.gaps)
        said = await _step(client, model, agent.name, messages, result, tells(agent.name, k, last))
        if not last:
            await asyncio.sleep(gap_s)
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": returned}]
    result.completions_s.append(time.monotonic() - began)
    if ended is not None:
        await ended(agent.name)


async def _step(
    client: openai.AsyncOpenAI, model: str, name: str, messages: list[Any], result: Run, told: dict[str, Any]
) -> str:
    extra: dict[str, Any] = {"ignore_eos": True, **told}
    began = time.monotonic()
    first: float | None = None
    said = ""
    usage: Any = None
    stream = await client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=OUTPUT_TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=extra,
    )
    async for chunk in stream:
        first = first or time.monotonic()
        if chunk.choices:
            said += chunk.choices[0].delta.content or ""
        usage = chunk.usage or usage
    details = usage.prompt_tokens_details
    result.steps.append(
        Told(
            agent=name,
            took_s=time.monotonic() - began,
            first_s=(first or time.monotonic()) - began,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=(details.cached_tokens or 0) if details is not None else 0,
        )
    )
    return said
