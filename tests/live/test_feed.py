"""Watchers see what happens, lose what they do not keep up with, and are told so."""

from __future__ import annotations

import asyncio

import pytest

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.live.feed import PROGRAMS_MAX, QUEUE_MAX, STORY_MAX, Feed


def arrived(program: str, step: str = "s") -> ev.StepArrived:
    return ev.StepArrived(step=step, program=program, tenant=program.split("/")[0], prompt_tokens=1)  # type: ignore[arg-type]


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
    feed.heard(arrived("a/x", "s1"), 0.0, [do.Wait(step="s1", reason="seat")])  # type: ignore[arg-type]
    feed.heard(
        arrived("a/y", "s2"),
        0.0,
        [do.Dispatch(step="s1", engine="e", reason="seated")],  # type: ignore[arg-type]
    )
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
