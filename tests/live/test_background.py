"""Background responses over a crash, a stop and a second gateway: each is told of, none hangs, none comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError

from agentserve.live.background import LEASE_S, LOST, UNKEPT, Background
from agentserve.live.kept import Kept
from tests.live.conftest import Running, ScriptedEngine, Serve, answers, raw, until
from tests.live.test_responses import Shelf, compact, openai, response


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def crashed(running: Running, shelf: Shelf, *, whole: bool = False) -> Clock:
    """What a gateway knows that was started on the same store after another was killed."""
    clock = Clock()
    responses = running.gateway.responses
    responses.kept = Kept()
    responses.background = Background(clock=clock)
    responses.archived_in(shelf, whole=whole)
    return clock


async def test_one_whose_gateway_was_killed_is_told_to_have_failed_and_why(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    shelf = Shelf()
    running.gateway.responses.archived_in(shelf, whole=False)
    engine.script.append(raw(hang=True))
    async with openai(running) as client:
        begun = await client.responses.create(
            model="m", input="a secret", instructions="be discreet", metadata={"a": "b"}, background=True
        )
        assert not any(b"secret" in kept or b"discreet" in kept for kept in shelf.records.values())
        clock = crashed(running, shelf)
        assert (await client.responses.retrieve(begun.id)).status == "in_progress"
        with pytest.raises(BadRequestError, match="another gateway"):
            await client.responses.cancel(begun.id)
        clock.now += LEASE_S
        failed = await client.responses.retrieve(begun.id)
        assert (failed.status, failed.background, failed.model) == ("failed", True, "m")
        assert failed.error is not None
        assert failed.error.message == LOST
        crashed(running, shelf)
        assert (await client.responses.retrieve(begun.id)).status == "failed", "it was settled"
        await client.responses.delete(begun.id)
        with pytest.raises(NotFoundError):
            await client.responses.retrieve(begun.id)
        with pytest.raises(NotFoundError):
            await client.responses.retrieve("resp_nobody_began")
    await running.gateway.responses.stop()  # what still runs here, so that nobody waits for it


async def test_one_that_another_gateway_runs_is_in_progress_for_as_long_as_that_says_so() -> None:
    shelf, clock = Shelf(), Clock()
    here, there = Background(), Background(clock=clock)
    here.archive = there.archive = shelf
    here.began("t", {"id": "resp_1", "created_at": 1, "model": "m"})
    for _ in range(4):
        told: Any = await there.told("t", "resp_1")
        assert told["status"] == "in_progress"
        clock.now += LEASE_S * 0.9
        here.renew()
    assert await there.told("other", "resp_1") is None
    told = await there.told("t", "resp_1")
    clock.now += LEASE_S
    told = await there.told("t", "resp_1")
    assert told["status"] == "failed"


async def test_one_that_a_gateway_cuts_short_on_its_way_out_is_said_to_have_failed_at_once(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    shelf = Shelf()
    running.gateway.responses.archived_in(shelf, whole=True)
    engine.script.append(raw(hang=True))
    async with openai(running) as client:
        begun = await client.responses.create(model="m", input="one", background=True)
        await until(lambda: engine.asked)
        await running.gateway.responses.stop()
        crashed(running, shelf, whole=True)
        failed = await client.responses.retrieve(begun.id)
        assert failed.status == "failed"
        assert failed.error is not None
        assert "stopped before" in failed.error.message
        assert (await client.responses.input_items.list(begun.id)).data


async def test_one_that_was_finished_says_so_where_its_text_may_not_be_kept(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    shelf = Shelf()
    running.gateway.responses.archived_in(shelf, whole=False)
    engine.script.append(answers(200, compact(response(7, "later"))))
    async with openai(running) as client:
        begun = await client.responses.create(model="m", input="one", background=True)
        kept = running.gateway.responses.kept
        await until(lambda: kept.response("default", begun.id).body["status"] == "completed")
        assert not any(b"later" in record for record in shelf.records.values())
        crashed(running, shelf)
        told = await client.responses.retrieve(begun.id)
        assert told.error is not None
        assert told.error.message == UNKEPT


async def test_one_that_is_deleted_while_it_runs_is_stopped_and_does_not_come_back(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    shelf = Shelf()
    running.gateway.responses.archived_in(shelf, whole=True)
    engine.script.append(raw(hang=True))
    async with openai(running) as client:
        begun = await client.responses.create(model="m", input="one", background=True)
        await until(lambda: engine.asked)
        await client.responses.delete(begun.id)
        await until(lambda: engine.left)
        await running.quiet()
        with pytest.raises(NotFoundError):
            await client.responses.retrieve(begun.id)
    assert not shelf.records


async def test_what_says_that_one_runs_is_not_a_response_to_go_on_from(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    shelf = Shelf()
    running.gateway.responses.archived_in(shelf, whole=True)
    engine.script.append(raw(hang=True))
    async with openai(running) as client:
        begun = await client.responses.create(model="m", input="one", background=True)
        (name,) = (record for _, record in shelf.records)
        assert name != begun.id
        with pytest.raises(NotFoundError):
            await client.responses.create(model="m", input="two", previous_response_id=name)
        await client.responses.cancel(begun.id)
        await until(lambda: engine.left)
    await running.quiet()
    assert json.loads(shelf.records["default", begun.id])["body"]["status"] == "cancelled"
