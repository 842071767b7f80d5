"""Responses that refer to each other: put back, kept, listed, deleted, run in the background."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError
from openai.types.responses import ResponseCompletedEvent, ResponseCreatedEvent

from agentserve.config import LimitSettings
from agentserve.errors import NotFound, TooLarge
from agentserve.live.auth import Caller, ListedKeys
from agentserve.live.keeptap import HELD_BYTES_MAX
from agentserve.live.kept import CONVERSATION_BYTES_MAX, UNWANTED_MAX, Kept
from agentserve.live.thread import Thread
from tests.live.conftest import Running, ScriptedEngine, Serve, answers, raw, streams, until


def response(number: int, text: str = "hello", **more: Any) -> dict[str, Any]:
    return {
        "id": f"resp_{number}", "object": "response", "created_at": 1, "status": "completed", "model": "m",
        "previous_response_id": None, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        "output": [
            {"id": f"msg_{number}", "type": "message", "role": "assistant", "status": "completed",
             "content": [{"type": "output_text", "text": text, "annotations": []}]}
        ],
        "usage": {"input_tokens": 10, "output_tokens": 3, "total_tokens": 13,
                  "input_tokens_details": {"cached_tokens": 8}, "output_tokens_details": {"reasoning_tokens": 0}},
        **more,
    }  # fmt: skip


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def openai(running: Running, key: str = "any") -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)


async def test_a_previous_response_is_put_back_before_the_engine_sees_the_request(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    for i in (1, 2, 3):
        engine.script.append(answers(200, compact(response(i, f"answer {i}"))))
    async with openai(running) as client:
        first = await client.responses.create(model="m", input="one")
        second = await client.responses.create(model="m", input="two", previous_response_id=first.id)
        third = await client.responses.create(model="m", input="three", previous_response_id=second.id)
    assert (second.previous_response_id, third.previous_response_id) == ("resp_1", "resp_2")
    asked = engine.asked[-1].json
    assert "previous_response_id" not in asked
    said = [
        item["content"] if isinstance(item["content"], str) else item["content"][0]["text"]
        for item in asked["input"]
    ]
    assert said == ["one", "answer 1", "two", "answer 2", "three"]
    programs = {row["program"] for row in running.books.steps}
    assert len(programs) == 1


async def test_a_request_that_refers_to_nothing_passes_untouched(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    body = b'{"model":"m",  "input":"one"}'
    reply = compact(response(1))
    engine.script.append(answers(200, reply))
    got = await running.client.post("/v1/responses", content=body)
    assert engine.asked[-1].body == body
    assert got.content == reply


async def test_a_streamed_response_is_kept_and_says_what_it_follows(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)

    def events(number: int) -> list[bytes]:
        whole = response(number)
        made = b"".join(
            b"event: %b\ndata: %b\n\n"
            % (kind.encode(), compact({"type": kind, "response": whole, "sequence_number": 0}))
            for kind in ("response.created", "response.completed")
        )
        return [made[:70], made[70:200], made[200:]]

    engine.script += [streams(*events(1)), streams(*events(2), pause_s=0.005)]
    async with openai(running) as client:
        async for event in await client.responses.create(model="m", input="one", stream=True):
            assert event.type.startswith("response.")
        seen = [e async for e in await client.responses.create(
            model="m", input="two", stream=True, previous_response_id="resp_1")]  # fmt: skip
        opened, completed = seen
        assert isinstance(opened, ResponseCreatedEvent)
        assert isinstance(completed, ResponseCompletedEvent)
        assert [e.response.previous_response_id for e in (opened, completed)] == ["resp_1", "resp_1"]
        kept = await client.responses.retrieve("resp_2")
        assert kept.output_text == "hello"
        listed = await client.responses.input_items.list("resp_2", order="asc")
    assert len(listed.data) == 3


async def test_responses_are_retrieved_and_deleted_by_their_owner_only(
    engine: ScriptedEngine, serve: Serve
) -> None:
    keys = ListedKeys.of({"as-a": Caller(tenant="a"), "as-b": Caller(tenant="b")})
    running = await serve(engine, keys=keys)
    engine.script.append(answers(200, compact(response(1))))
    async with openai(running, "as-a") as mine, openai(running, "as-b") as theirs:
        await mine.responses.create(model="m", input="one")
        with pytest.raises(NotFoundError):
            await theirs.responses.retrieve("resp_1")
        with pytest.raises(NotFoundError):
            await theirs.responses.create(model="m", input="x", previous_response_id="resp_1")
        assert (await mine.responses.retrieve("resp_1")).id == "resp_1"
        await mine.responses.delete("resp_1")
        with pytest.raises(NotFoundError):
            await mine.responses.retrieve("resp_1")


async def test_a_response_that_was_deleted_while_it_streamed_is_not_kept(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    made = [
        b"event: %b\ndata: %b\n\n" % (kind, compact({"type": kind.decode(), "response": response(1)}))
        for kind in (b"response.created", b"response.completed")
    ]
    engine.script += [streams(*made, pause_s=0.2), answers(200, compact(response(1)))]
    async with openai(running) as client:
        async for event in await client.responses.create(model="m", input="one", stream=True):
            if event.type == "response.created":
                with pytest.raises(NotFoundError):
                    await client.responses.delete("resp_1")
        with pytest.raises(NotFoundError):
            await client.responses.retrieve("resp_1")
        await client.responses.create(model="m", input="another of that id")
        assert (await client.responses.retrieve("resp_1")).id == "resp_1", "it was asked once"


def test_deletions_of_what_never_comes_are_bounded() -> None:
    kept = Kept()
    for i in range(UNWANTED_MAX + 1):
        kept.unwanted("a", f"resp_{i}")
    assert not kept.is_unwanted("a", "resp_0")
    assert not kept.is_unwanted("b", "resp_1")
    assert kept.is_unwanted("a", "resp_1")


async def test_what_is_not_to_be_stored_is_not_stored(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    engine.script.append(answers(200, compact(response(1))))
    async with openai(running) as client:
        await client.responses.create(model="m", input="one", store=False)
        with pytest.raises(NotFoundError):
            await client.responses.retrieve("resp_1")
    assert running.gateway.responses.kept.bytes == 0


async def test_the_store_is_bounded(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine, limits=LimitSettings(stored_responses_max=2))
    async with openai(running) as client:
        for i in (1, 2, 3):
            engine.script.append(answers(200, compact(response(i))))
            await client.responses.create(model="m", input="one")
        with pytest.raises(NotFoundError):
            await client.responses.retrieve("resp_1")
        assert (await client.responses.retrieve("resp_3")).id == "resp_3"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_reply_too_long_to_be_held_passes_as_it_is(streamed: bool) -> None:
    kept = Kept()
    kept.keep("a", {"id": "resp_1"}, [], new_at=0, size=1)
    thread = Thread(kept, "a", {"input": "x", "previous_response_id": "resp_1"})
    tap = thread.tap(streamed=streamed)
    assert tap is not None
    piece = b"x" * (HELD_BYTES_MAX // 4)
    passed = b"".join([tap.feed(piece) for _ in range(6)]) + tap.finish()
    assert passed == piece * 6


def test_conversations_are_bounded_in_bytes_as_responses_are() -> None:
    kept = Kept(bytes_max=10_000)
    kept.keep("a", {"id": "resp_1"}, [], new_at=0, size=4_000)
    text = {"role": "user", "content": "x" * 4_000}
    first, second = (kept.begin("a", items=[text], metadata={}, created_at=1) for _ in range(2))
    with pytest.raises(NotFound):
        kept.response("a", "resp_1")
    kept.extend(second, [text])
    with pytest.raises(NotFound):
        kept.conversation("a", first.id)
    kept.extend(second, [text, text])  # what is in use stays, whatever its size
    assert kept.conversation("a", second.id).size == kept.bytes > 10_000
    with pytest.raises(TooLarge):
        kept.extend(second, [{"role": "user", "content": "x" * CONVERSATION_BYTES_MAX}])
    kept.end("a", second.id)
    kept.extend(second, [text])  # the model was still writing
    assert kept.bytes == 0
    with pytest.raises(NotFound):
        kept.conversation("a", second.id)


def test_a_tenant_that_floods_the_store_pushes_out_its_own_and_nobody_else_s() -> None:
    kept = Kept(responses_max=10, bytes_max=10_000)
    kept.keep("quiet", {"id": "resp_q"}, [], new_at=0, size=1_000)
    talk = kept.begin("quiet", items=[], metadata={}, created_at=1)
    for number in range(50):
        kept.keep("loud", {"id": f"resp_{number}"}, [], new_at=0, size=1)
        kept.begin("loud", items=[], metadata={}, created_at=1)
    assert kept.response("quiet", "resp_q").size == 1_000
    assert kept.conversation("quiet", talk.id) is talk
    assert kept.response("loud", "resp_49")
    with pytest.raises(NotFound):
        kept.response("loud", "resp_40")
    for number in range(50):
        kept.keep("loud", {"id": f"resp_{number}"}, [], new_at=0, size=3_000)
    assert kept.response("quiet", "resp_q").size == 1_000
    assert kept.bytes <= 10_000
    for number in range(20):  # and it may keep as much itself, as soon as it needs it
        kept.keep("quiet", {"id": f"resp_{number}"}, [], new_at=0, size=1_500)
    assert kept.response("quiet", "resp_19")
    assert kept.response("loud", "resp_49")
    assert kept.bytes <= 10_000


def test_what_is_taken_out_of_a_conversation_makes_room_in_it() -> None:
    kept = Kept()
    conversation = kept.begin("t", items=[], metadata={}, created_at=1)
    for _ in range(50):
        [item] = kept.extend(conversation, [{"role": "user", "content": "x" * 1_000_000}])
        assert kept.take_out(conversation, item["id"])
    assert not kept.take_out(conversation, "msg_none")
    assert conversation.items == []
    assert kept.bytes < 1_000


async def test_items_whose_client_left_their_ids_open_are_paged_too(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    engine.script.append(answers(200, compact(response(1))))
    async with openai(running) as client:
        items: Any = [{"role": "user", "content": str(i), "id": None} for i in range(5)]
        made = await client.responses.create(model="m", input=items)
        listed: list[Any] = [item async for item in client.responses.input_items.list(made.id, limit=2)]
    assert [item.content[0].text for item in listed] == ["4", "3", "2", "1", "0"]


async def test_what_is_not_served_of_responses_is_named(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    async with openai(running) as client:
        with pytest.raises(APIStatusError, match="POST is not served at /v1/responses/compact"):
            await client.responses.compact(model="m", input="x")


async def test_a_conversation_collects_what_is_said_in_it(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    async with openai(running) as client:
        conversation = await client.conversations.create(
            items=[{"type": "message", "role": "user", "content": "zero"}], metadata={"topic": "x"}
        )
        engine.script += [answers(200, compact(response(1))), answers(200, compact(response(2)))]
        await client.responses.create(model="m", input="one", conversation=conversation.id)
        await client.responses.create(model="m", input="two", conversation={"id": conversation.id})
        assert len(engine.asked[-1].json["input"]) == 4
        items = await client.conversations.items.list(conversation.id, order="asc", limit=100)
        assert len(items.data) == 5
        first = items.data[0].id
        assert first is not None
        await client.conversations.items.delete(first, conversation_id=conversation.id)
        assert (await client.conversations.update(conversation.id, metadata={"topic": "y"})).metadata == {
            "topic": "y"
        }
        page = await client.conversations.items.list(conversation.id, limit=2)
        assert page.has_more
        await client.conversations.delete(conversation.id)
        with pytest.raises(NotFoundError):
            await client.conversations.retrieve(conversation.id)


async def test_a_background_response_is_polled_until_it_is_done(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    engine.script.append(answers(200, compact(response(7, "later"))))
    async with openai(running) as client:
        begun = await client.responses.create(
            model="m", input="one", background=True, metadata={"of": "ours"}
        )
        assert begun.status == "queued"
        await until(
            lambda: running.gateway.responses.kept.response("default", begun.id).body["status"] == "completed"
        )
        done = await client.responses.retrieve(begun.id)
        assert (done.output_text, done.background) == ("later", True)
        assert (done.created_at, done.metadata) == (begun.created_at, {"of": "ours"})
        with pytest.raises(BadRequestError, match="poll it"):  # not an iterator over nothing
            await client.responses.retrieve(begun.id, stream=True)
    assert "background" not in engine.asked[-1].json


async def test_a_background_response_is_cancelled_upstream(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    engine.script.append(raw(hang=True))
    async with openai(running) as client:
        begun = await client.responses.create(model="m", input="one", background=True)
        await until(lambda: engine.asked)
        assert (await client.responses.cancel(begun.id)).status == "cancelled"
        await until(lambda: engine.left)
        engine.script.append(answers(200, compact(response(1))))
        await client.responses.create(model="m", input="one")
        with pytest.raises(BadRequestError):
            await client.responses.cancel("resp_1")
    await running.quiet()


class Shelf:
    """An archive in memory, which counts what it is asked for."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], bytes] = {}
        self.asked = 0

    def keep(self, tenant: str, record: str, body: bytes) -> None:
        self.records[tenant, record] = body

    def forget(self, tenant: str, record: str) -> None:
        self.records.pop((tenant, record), None)

    async def load(self, tenant: str, record: str) -> bytes | None:
        self.asked += 1
        return self.records.get((tenant, record))


def restarted(running: Running, shelf: Shelf) -> None:
    """Nothing is in memory any more, as after a restart."""
    running.gateway.responses.kept = Kept()
    running.gateway.responses.kept.archive = shelf


async def test_after_a_restart_a_conversation_goes_on_and_a_deletion_reaches_what_is_at_rest(
    engine: ScriptedEngine, serve: Serve
) -> None:
    for number in (1, 2, 3):
        engine.script.append(answers(200, response(number)))
    running = await serve(engine)
    shelf = Shelf()
    restarted(running, shelf)
    async with openai(running) as client:
        await a_conversation_over_restarts(client, running, shelf, engine)
    assert sorted(record for _, record in shelf.records) == ["resp_1", "resp_2"]


async def a_conversation_over_restarts(
    client: AsyncOpenAI, running: Running, shelf: Shelf, engine: ScriptedEngine
) -> None:
    """One that is broken off three times, and deleted at the end."""
    await client.responses.create(model="m", input="one")
    await client.responses.create(model="m", input="two", previous_response_id="resp_1")
    assert shelf.asked == 0, "the database is asked only for what memory lacks"
    restarted(running, shelf)
    await client.responses.create(model="m", input="three", previous_response_id="resp_2")
    asked = json.loads(engine.asked[-1].body)
    assert [item.get("content") for item in asked["input"] if item.get("role") == "user"] == [
        "one",
        "two",
        "three",
    ]
    restarted(running, shelf)
    assert (await client.responses.retrieve("resp_3")).id == "resp_3"
    conversation = await client.conversations.create(
        items=[{"type": "message", "role": "user", "content": "x"}]
    )
    await client.conversations.update(conversation.id, metadata={"a": "b"})
    restarted(running, shelf)
    assert (await client.conversations.retrieve(conversation.id)).metadata == {"a": "b"}
    await client.responses.delete("resp_3")
    await client.conversations.delete(conversation.id)
    restarted(running, shelf)
    with pytest.raises(NotFoundError):
        await client.responses.retrieve("resp_3")
