"""The crowd against an emulated engine in this process, and against servers that misbehave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from agentserve_adapters.emulated import EmulatedOptions, EmulatedServer

from agentserve.cli.crowd import RETRIES_MAX, Crowd, Door, Post, gather_calls
from agentserve.errors import AgentServeError
from agentserve.live.upstream.inprocess import InProcessUpstream
from agentserve.ports import Asgi
from agentserve.sim.programs import OWN_KEYS, ProgramPlan, Run, StepPlan, ToolPlan, Workload

SCALE = 200.0
TOOL = ToolPlan(name="bash", argument_class="ls", seconds=2.0)


def workload(programs: int = 3, steps: int = 3) -> Workload:
    plans = [
        ProgramPlan(
            id=f"p{i}",
            steps=tuple(StepPlan(new_tokens=80, output_tokens=24, tools=(TOOL,)) for _ in range(steps)),
            shared=(Run(1, 160),),
            own=OWN_KEYS + i,
        )
        for i in range(programs)
    ]
    return Workload(name="small", programs=plans)


def family() -> Workload:
    child = StepPlan(new_tokens=60, output_tokens=16)
    lead = (StepPlan(new_tokens=60, output_tokens=16, children=(1, 2)), child)
    plans = [ProgramPlan(id="lead", steps=lead, own=OWN_KEYS)]
    plans += [ProgramPlan(id=f"c{i}", steps=(child,), own=OWN_KEYS + i, parent=0) for i in (1, 2)]
    return Workload(name="family", programs=plans)


def engine() -> Asgi:
    return EmulatedServer(EmulatedOptions(time_scale=SCALE, kv_tokens=20_000))


def crowd(work: Workload, door: Door | None = None, app: Asgi | None = None) -> Crowd:
    way = InProcessUpstream(app or engine())
    return Crowd(
        work, door or Door(["http://engine"]), model="emulated", scale=SCALE, connect=lambda url: way
    )


class Noting(Door):
    """A door that notes what it was asked."""

    def __init__(self) -> None:
        super().__init__(["http://a", "http://b"])
        self.ends: list[str] = []
        self.parents: dict[str, str | None] = {}

    def headers(self, plan: ProgramPlan, k: int, parent: ProgramPlan | None) -> dict[str, str]:
        self.parents[plan.id] = parent.id if parent else None
        return {"x-program": plan.id}

    async def ended(self, post: Post, plan: ProgramPlan) -> None:
        self.ends.append(plan.id)


async def test_every_step_of_every_program_is_run_and_measured() -> None:
    result = await crowd(workload()).run(2)
    assert len(result.programs) == 3
    assert sorted((s.program, s.index) for s in result.steps) == [(p, k) for p in range(3) for k in range(3)]
    for step in result.steps:
        assert step.sent_at <= step.first_at <= step.ended_at
        assert step.prompt > step.fresh > 0 or step.index == 0
        assert step.output >= 16


async def test_later_steps_find_the_earlier_ones_in_the_cache() -> None:
    result = await crowd(workload(programs=1)).run(1)
    first, second, third = sorted(result.steps, key=lambda s: s.index)
    assert first.cached == 0
    assert second.cached >= first.prompt - 32
    assert third.cached >= second.prompt - 32


async def test_gaps_are_lived_through_in_the_engines_time() -> None:
    result = await crowd(workload(programs=1, steps=2)).run(1)
    before, after = sorted(result.steps, key=lambda s: s.index)
    assert after.sent_at - before.ended_at >= TOOL.seconds


async def test_a_lead_waits_for_its_sub_agents_and_they_know_their_parent() -> None:
    door = Noting()
    result = await crowd(family(), door).run(1)
    ended = {t.index: t.ended_at for t in result.programs}
    last = max((s for s in result.steps if s.program == 0), key=lambda s: s.index)
    assert last.sent_at >= max(ended[1], ended[2])
    assert door.parents == {"lead": None, "c1": "lead", "c2": "lead"}
    assert sorted(door.ends) == ["c1", "c2", "lead"]


def answering(replies: Callable[[int], tuple[int, bytes]]) -> Asgi:
    """A server whose nth answer is given."""
    seen: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(1)
        status, body = replies(len(seen))
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return app


def spoken(finish: str | None = "stop", **more: Any) -> tuple[int, bytes]:
    chunk = {"choices": [{"index": 0, "delta": {"content": "words"}, "finish_reason": finish}], **more}
    return 200, b"data: " + msgspec.json.encode(chunk) + b"\n\ndata: [DONE]\n\n"


async def test_a_step_that_fails_is_sent_again_and_counted() -> None:
    app = answering(lambda n: (503, b"busy") if n == 1 else spoken())
    result = await crowd(workload(programs=1, steps=1), app=app).run(1)
    assert (result.failed, len(result.steps)) == (1, 1)


@pytest.mark.parametrize("reply", [lambda: spoken(finish=None), lambda: spoken(error={"message": "lost"})])
async def test_a_stream_that_breaks_off_is_a_failure_not_a_short_reply(
    reply: Callable[[], tuple[int, bytes]],
) -> None:
    app = answering(lambda n: reply() if n == 1 else spoken())
    result = await crowd(workload(programs=1, steps=1), app=app).run(1)
    assert result.failed == 1


async def test_a_server_that_never_answers_well_ends_the_run_with_its_words() -> None:
    app = answering(lambda n: (500, b"no such model"))
    alone = crowd(workload(programs=1, steps=1), app=app)
    with pytest.raises(AgentServeError, match="no such model"):
        await alone.run(1)
    assert alone.result.failed == RETRIES_MAX + 1


def test_pieces_of_tool_calls_are_put_together_by_their_index() -> None:
    calls: dict[int, dict[str, Any]] = {}
    gather_calls(calls, [{"index": 1, "id": "b", "function": {"name": "read", "arguments": "{"}}])
    gather_calls(calls, [{"index": 0, "id": "a", "function": {"name": "bash"}}])
    gather_calls(calls, [{"index": 1, "function": {"arguments": "}"}}])
    assert calls[1]["function"] == {"name": "read", "arguments": "{}"}
    assert calls[0]["id"] == "a"
