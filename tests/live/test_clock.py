"""The clock of the machine is set while the gateway serves."""

from __future__ import annotations

import itertools

from tests.live.conftest import ScriptedEngine, Serve, answers, chat_reply, until

BACK_S = 600.0


async def test_a_step_lasts_as_long_as_it_does_whatever_the_clock_is_set_to(
    engine: ScriptedEngine, serve: Serve
) -> None:
    engine.otherwise = answers(200, chat_reply("here"))
    clock = itertools.count(2e9, -BACK_S)  # put back each time that anybody looks
    running = await serve(engine, clock=lambda: next(clock))
    reply = await running.chat()
    assert 0.0 <= float(reply.headers["x-agentserve-overhead-ms"]) < BACK_S * 1e3
    await until(lambda: bool(running.books.steps))
    (step,) = running.books.steps
    times = [step[name] for name in ("arrived_at", "dispatched_at", "first_byte_at", "ended_at")]
    assert times == sorted(times)
    assert times[-1] - times[0] < BACK_S
