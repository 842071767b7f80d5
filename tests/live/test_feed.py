"""Watchers see what happens, lose what they do not keep up with, and are told so."""

from __future__ import annotations

import asyncio

import pytest

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId
from agentserve.live.feed import PROGRAMS_MAX, QUEUE_MAX, RECENT_MAX, STORY_MAX, Feed

S1, E = StepId("s1"), EngineId("e")


def arrived(program: str, step: str = "s") -> ev.StepArrived:
    tenant = TenantId(program.split("/")[0])
    return ev.StepArrived(step=StepId(step), program=ProgramId(program), tenant=tenant, prompt_tokens=1)


async def test_a_watcher_of_one_tenant_sees_nothing_of_another() -> None:
    feed = Feed(clock=lambda: 1.0)
    watching = feed.watch(tenant="a")
    first = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0)
    feed.heard(arrived("b/x"), 0.0, [])
    feed.heard(arrived("a/x"), 0.0, [])
    assert (await first)["program"] == "a/x"
    await watching.aclose()


async def test_a_watcher_that_does_not_keep_up_is_told_how_much_it_lost() -> None:
    feed = Feed(clock=lambda: 1.0)
    watching = feed.watch()
    first = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0)
    for i in range(QUEUE_MAX + 5):
        feed.heard(arrived("a/x", f"s{i}"), 0.0, [])
    assert (await first)["lost"] == 5
    assert "lost" not in await anext(watching)
    await watching.aclose()


async def test_closing_the_feed_ends_every_stream() -> None:
    feed = Feed(clock=lambda: 1.0)
    watching = feed.watch()
    first = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0)
    feed.close()
    with pytest.raises(StopAsyncIteration):
        await first


def test_a_story_holds_decisions_about_the_program_that_another_event_caused() -> None:
    feed = Feed(clock=lambda: 1.0)
    feed.heard(arrived("a/x", "s1"), 0.0, [do.Wait(step=S1, reason="seat")])
    feed.heard(arrived("a/y", "s2"), 0.0, [do.Dispatch(step=S1, engine=E, reason="seated")])
    reasons = [decision["reason"] for entry in feed.story("a/x") for decision in entry["decisions"]]
    assert reasons == ["seat", "seated"]


def test_stories_are_bounded_in_length_and_number() -> None:
    feed = Feed(clock=lambda: 1.0)
    for i in range(STORY_MAX + 10):
        feed.heard(arrived("a/x", f"s{i}"), 0.0, [])
    assert len(feed.story("a/x")) == STORY_MAX
    for i in range(PROGRAMS_MAX + 10):
        feed.heard(arrived(f"a/p{i}", f"t{i}"), 0.0, [])
    assert feed.story("a/x") == []
    assert feed.story(f"a/p{PROGRAMS_MAX + 9}")


async def test_who_comes_later_is_told_what_is_remembered_and_who_comes_back_only_what_it_missed() -> None:
    feed = Feed(clock=lambda: 1.0)
    for i in range(3):
        feed.heard(arrived("a/x", f"s{i}"), 0.0, [])
    feed.heard(arrived("b/y", "other"), 0.0, [])
    feed.heard(ev.EngineReported(engine=E), 0.0, [])
    watching = feed.watch(tenant="a", after=0)
    seen = [await anext(watching) for _ in range(3)]
    assert [entry["event"]["step"] for entry in seen] == ["s0", "s1", "s2"]
    await watching.aclose()
    back = feed.watch(after=seen[1]["serial"])
    assert (await anext(back))["event"]["step"] == "s2"
    assert (await anext(back))["event"]["step"] == "other"
    await back.aclose()


def test_numbers_grow_over_a_restart() -> None:
    before, after = Feed(clock=lambda: 1_000.0), Feed(clock=lambda: 1_000.5)
    for feed in (before, after):
        feed.heard(arrived("a/x"), 0.0, [])
    assert after.last > before.last


async def test_what_is_remembered_is_bounded() -> None:
    feed = Feed(clock=lambda: 1.0)
    for i in range(RECENT_MAX + 50):
        feed.heard(arrived("a/x", f"s{i}"), 0.0, [])
    watching = feed.watch(after=0)
    assert (await anext(watching))["event"]["step"] == "s50"
    await watching.aclose()


def test_a_step_is_remembered_until_it_is_over() -> None:
    feed = Feed(clock=lambda: 1.0)
    feed.heard(arrived("a/x", "s1"), 0.0, [])
    feed.heard(ev.StepFailed(step=S1, reason="lost", retryable=True), 0.0, [])
    assert feed.owner("s1") == "a/x"
    feed.heard(ev.StepFinished(step=S1, prompt_tokens=1, output_tokens=1), 0.0, [])
    assert feed.owner("s1") is None
    assert [entry["event"]["type"] for entry in feed.story("a/x")] == [
        "StepArrived",
        "StepFailed",
        "StepFinished",
    ]
