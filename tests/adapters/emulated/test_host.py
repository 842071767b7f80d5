"""The emulated engine on a clock that jumps, as the clock of a machine that is busy elsewhere does."""

from __future__ import annotations

import contextlib

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
    async with contextlib.aclosing(run) as steps:  # type: ignore[type-var]
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


async def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    with pytest.raises(TooLong):
        await told(late_host(), tokens=10_000)
