"""How a translated reply ends: refused, filtered, cut off; and what of a request is carried over or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic import APIStatusError, AsyncAnthropic
from openai import AsyncOpenAI
from pydantic import BaseModel

from agentserve.errors import BadRequest
from agentserve.live.translate import Translation, translation
from agentserve.live.translate.frame import CUT
from tests.live.conftest import ScriptedEngine, Serve, answers, chat_reply, delta, sse, streams
from tests.live.test_translate import CHAT_ONLY

WONT = "I will not do that."
REFUSED = chat_reply("", message={"role": "assistant", "content": None, "refusal": WONT})


def made(protocol: str, **body: Any) -> Translation:
    """A request said in chat."""
    known = translation(protocol, {"model": "m", **body})
    assert known is not None
    return known


def whole(protocol: str, **choice: Any) -> Any:
    """A chat reply said back."""
    tap = made(protocol, messages=[], input="x").tap(streamed=False)
    tap.feed(json.dumps(chat_reply("x", **choice)).encode())
    return json.loads(tap.finish())


@pytest.mark.parametrize("streamed", [False, True])
async def test_what_the_model_will_not_do_reaches_both_clients_as_their_refusal(
    streamed: bool, engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, extra=CHAT_ONLY)
    pieces = [delta("", refusal=word) for word in ("I will ", "not do that.")]
    engine.otherwise = streams(sse(*pieces, delta("", "stop"))) if streamed else answers(200, REFUSED)
    asked: Any = {"model": "m", "input": "go"}
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as client:
        if streamed:
            async with client.responses.stream(**asked) as stream:
                kinds = [event.type async for event in stream]
                response: Any = await stream.get_final_response()
            assert kinds.count("response.refusal.delta") == 2
        else:
            response = await client.responses.create(**asked)
    [part] = response.output[0].content
    assert (part.type, part.refusal) == ("refusal", WONT)
    said: Any = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "go"}]}
    async with AsyncAnthropic(base_url=running.url, api_key="any", max_retries=0) as claude:
        if streamed:
            async with claude.messages.stream(**said) as events:
                message: Any = await events.get_final_message()
        else:
            message = await claude.messages.create(**said)
    assert (message.stop_reason, message.content[0].text) == ("refusal", WONT)


def test_a_response_that_a_filter_cut_says_so() -> None:
    response = whole("responses", finish_reason="content_filter")
    assert (response["status"], response["incomplete_details"]) == (
        "incomplete",
        {"reason": "content_filter"},
    )


@pytest.mark.parametrize(("reason", "last"), [("length", "incomplete"), ("stop", "completed")])
def test_a_stream_says_why_it_ended_though_done_is_missing(reason: str, last: str) -> None:
    tap = made("responses", input="x").tap(streamed=True)
    said = tap.feed(sse(delta("a word"), delta("", reason), done=False)) + tap.finish()
    assert b"event: response." + last.encode() in said


async def test_a_stream_that_stops_without_a_word_is_an_error_and_no_answer(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, extra=CHAT_ONLY)
    engine.otherwise = streams(sse(delta("half of a"), done=False))
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as client:
        events = await client.responses.create(model="m", input="go", stream=True)
        kinds = [(event.type, getattr(event, "message", "")) async for event in events]
        assert kinds[-1] == ("error", CUT)
        assert "response.completed" not in dict(kinds)
    async with (
        AsyncAnthropic(base_url=running.url, api_key="any", max_retries=0) as claude,
        claude.messages.stream(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "go"}]
        ) as stream,
    ):
        with pytest.raises(APIStatusError, match=CUT) as broken:
            await stream.get_final_message()
    assert broken.value.type == "api_error"  # not the client's fault


async def test_anthropics_structured_output_is_asked_of_the_engine(
    engine: ScriptedEngine, serve: Serve
) -> None:
    class Known(BaseModel):
        ok: bool

    running = await serve(engine, extra=CHAT_ONLY)
    engine.script.append(answers(200, chat_reply('{"ok": true}')))
    async with AsyncAnthropic(base_url=running.url, api_key="any", max_retries=0) as claude:
        message = await claude.messages.parse(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "go"}], output_format=Known
        )
    assert message.parsed_output == Known(ok=True)
    shape = engine.asked[-1].json["response_format"]
    assert shape["type"] == "json_schema"
    assert shape["json_schema"]["schema"]["properties"]["ok"]["type"] == "boolean"


def test_what_the_model_wrote_in_one_turn_is_one_message() -> None:
    call = {"type": "function_call", "name": "f", "arguments": "{}"}
    body = made(
        "responses",
        input=[
            {"role": "user", "content": "go"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look"}]},
            {**call, "call_id": "c1"},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {**call, "call_id": "c2"},
            {"type": "function_call_output", "call_id": "c1", "output": "one"},
            {"type": "function_call_output", "call_id": "c2", "output": "two"},
            {"role": "assistant", "content": "done"},
        ],
    ).body
    messages = body["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert messages[1]["content"] == "I look"
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["c1", "c2"]


def test_what_codex_tells_the_model_first_is_one_message_of_the_system() -> None:
    told = [{"type": "input_text", "text": "skills"}, {"type": "input_text", "text": "plugins"}]
    items = [{"role": "developer", "content": "be safe"}, {"role": "developer", "content": told}]
    later = [{"role": "user", "content": "go"}, {"role": "developer", "content": "mind the time"}]
    assert made("responses", instructions="be brief", input=[*items, *later]).body["messages"] == [
        {"role": "system", "content": "be brief\n\nbe safe\n\nskills\n\nplugins"},
        {"role": "user", "content": "go"},
        {"role": "system", "content": "mind the time"},
    ]


def test_an_image_that_a_tool_gave_is_shown_to_the_model() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "see"}, image]}
    [message] = made("messages", messages=[{"role": "user", "content": [result]}]).body["messages"]
    assert message["content"] == [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
    ]


def test_how_strict_a_tool_and_how_wordy_an_answer_is_travels_on() -> None:
    tool = {"name": "f", "input_schema": {}, "strict": True}
    assert made("messages", messages=[], tools=[tool]).body["tools"][0]["function"]["strict"] is True
    assert made("responses", input="x", text={"verbosity": "low"}).body["verbosity"] == "low"


@pytest.mark.parametrize(
    ("protocol", "asked", "field"),
    [
        ("responses", {"include": ["message.output_text.logprobs"]}, "include"),
        ("messages", {"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        (
            "messages",
            {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
            "context_management",
        ),
    ],
)
def test_what_chat_cannot_say_of_an_answer_is_refused(protocol: str, asked: Any, field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        made(protocol, messages=[], input="x", **asked)
    assert refused.value.field == field


def test_what_claude_code_asks_of_earlier_thinking_is_so_anyway() -> None:
    edits = [{"type": "clear_thinking_20251015", "keep": "all"}]
    body = made(
        "messages", messages=[], context_management={"edits": edits}, thinking={"type": "adaptive"}
    ).body
    assert "context_management" not in body


SPACE: Any = {
    "type": "namespace", "name": "agents", "description": "Other agents.",
    "tools": [{"type": "function", "name": name, "description": name, "parameters": {}} for name in ("spawn", "wait")],
}  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_tool_in_a_namespace_is_called_by_its_own_name_and_answered_in_chat(
    streamed: bool, engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, extra=CHAT_ONLY)
    function = {"name": "agents__wait", "arguments": "{}"}
    calls = [{"index": 0, "id": "c1", "type": "function", "function": function}]
    said = {"message": {"role": "assistant", "content": None, "tool_calls": calls}}
    engine.script.append(
        streams(sse(delta("", tool_calls=calls), delta("", "tool_calls")))
        if streamed
        else answers(200, chat_reply("", **said))
    )
    asked: Any = {"model": "m", "tools": [SPACE], "extra_body": {"client_metadata": {"a": "b"}}}
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as client:
        if streamed:
            async with client.responses.stream(input="go", **asked) as stream:
                reply = await stream.get_final_response()
        else:
            reply = await client.responses.create(input="go", **asked)
        offered = [tool["function"] for tool in engine.asked[-1].json["tools"]]
        assert [tool["name"] for tool in offered] == ["agents__spawn", "agents__wait"]
        assert [tool["description"] for tool in offered] == ["Other agents.\n\nspawn", "wait"]
        assert "client_metadata" not in engine.asked[-1].json
        call: Any = reply.output[0]
        assert (call.namespace, call.name, call.call_id) == ("agents", "wait", "c1")
        done: Any = {"type": "function_call_output", "call_id": "c1", "output": "over"}
        await client.responses.create(
            input=[{"role": "user", "content": "go"}, call.model_dump(), done], **asked
        )
    [back] = engine.asked[-1].json["messages"][1]["tool_calls"]
    assert back["function"] == function
