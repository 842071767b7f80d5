"""The emulated engine on a clock that jumps, as the clock of a machine that is busy elsewhere does."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from agentserve_adapters.emulated.host import Host, Progress, TooLong
from agentserve_adapters.emulated.record import Submission

from agentserve.engine import EngineConfig, profile

BLOCKS = list(range(1, 11))


class LateHost(Host):
    """Whenever it looks at the clock, an hour has passed."""

    hours = 0

    def now(self) -> float:
        self.hours += 1
        return self.hours * 3600.0


def late_host() -> LateHost:
    return LateHost(profile=profile("llama-3.1-8b-h100"), config=EngineConfig(kv_tokens=1_600))


async def told(host: Host, *, tokens: int = 160, stream: bool = False) -> list[Progress]:
    run = host.run(Submission(hashes=BLOCKS, prompt_tokens=tokens, output_tokens=4, stream=stream))
    async with contextlib.aclosing(run) as steps:
        return [progress async for progress in steps]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_was_over_before_anyone_looked_is_told_of_its_end(stream: bool) -> None:
    seen = await told(late_host(), stream=stream)
    assert len(seen) == 1
    assert (seen[0].finished, seen[0].done) == (True, 4)


async def test_what_was_cached_is_told_also_then() -> None:
    host = late_host()
    assert (await told(host))[-1].cached_tokens == 0
    assert (await told(host))[-1].cached_tokens == 144


class SteppingHost(Host):
    """Whenever it looks at the clock, most of a short reply's time has passed."""

    looks = 0

    def now(self) -> float:
        self.looks += 1
        return self.looks * 0.3


async def test_a_stream_may_end_between_two_looks_at_the_clock() -> None:
    loop = asyncio.get_running_loop()
    broken: list[Any] = []
    loop.set_exception_handler(lambda _, context: broken.append(context))
    host = SteppingHost(profile=profile("llama-3.1-8b-h100"), config=EngineConfig(kv_tokens=16_000))
    for output in range(20, 120, 7):
        run = host.run(Submission(hashes=(), prompt_tokens=16, output_tokens=output, stream=True))
        async with contextlib.aclosing(run) as steps, asyncio.timeout(30):
            assert [p.done async for p in steps][-1] == output
    assert not broken


class JumpingHost(Host):
    """Time goes from one thing that is due to the next."""

    at = 0.0

    def now(self) -> float:
        self.at = max(self.at, self.engine.next_event() or 0.0)
        return self.at


async def test_a_first_token_is_told_when_it_is_made_not_at_the_next_look() -> None:
    host = JumpingHost(profile=profile("llama-3.1-8b-h100"), config=EngineConfig(kv_tokens=1_600))
    run = host.run(Submission(hashes=BLOCKS, prompt_tokens=160, output_tokens=4, stream=False))
    async with contextlib.aclosing(run) as steps:
        assert [progress.done async for progress in steps] == [1, 4]


async def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    with pytest.raises(TooLong):
        await told(late_host(), tokens=10_000)
