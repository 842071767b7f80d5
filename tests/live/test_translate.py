"""Messages and responses by chat completions, read back by the real clients."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from anthropic import BadRequestError as AnthropicBadRequest
from anthropic.types import TextBlock, ThinkingBlock, ToolUseBlock
from openai import AsyncOpenAI, BadRequestError

from agentserve.core import events as ev
from agentserve.errors import BadRequest
from agentserve.live.translate import translation
from tests.live.conftest import ScriptedEngine, Serve, answers, chat_reply, delta, sse, streams

CHAT_ONLY = {"protocols": ["chat"]}
USAGE = {
    "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [],
    "usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25,
              "prompt_tokens_details": {"cached_tokens": 16}},
}  # fmt: skip
TOOL_STREAM = sse(
    delta("", reasoning="let me "),
    delta("", reasoning="see"),
    delta("I will "),
    delta("look."),
    delta(
        "",
        tool_calls=[
            {"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}}
        ],
    ),
    delta("", tool_calls=[{"index": 0, "function": {"arguments": '{"at"'}}]),
    delta("", tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}]),
    delta(
        "",
        tool_calls=[
            {"index": 1, "id": "c2", "type": "function", "function": {"name": "wait", "arguments": "{}"}}
        ],
    ),
    delta("", "tool_calls"),
    USAGE,
)
TOOL_REPLY = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {
        "role": "assistant", "content": "I will look.", "reasoning": "let me see", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}},
            {"id": "c2", "type": "function", "function": {"name": "wait", "arguments": "{}"}}]}}],
    "usage": USAGE["usage"],
}  # fmt: skip
ANTHROPIC_TOOL: Any = {"name": "look", "description": "looks", "input_schema": {"type": "object"}}


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_anthropic_client_reads_a_translated_message(
    streamed: bool, engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, extra=CHAT_ONLY)
    engine.script.append(
        streams(TOOL_STREAM[:333], TOOL_STREAM[333:]) if streamed else answers(200, TOOL_REPLY)
    )
    asked: Any = {
        "model": "m", "max_tokens": 50, "system": "be brief", "tools": [ANTHROPIC_TOOL],
        "messages": [{"role": "user", "content": "go"}], "tool_choice": {"type": "any"},
    }  # fmt: skip
    async with AsyncAnthropic(base_url=running.url, api_key="any", max_retries=0) as client:
        if streamed:
            async with client.messages.stream(**asked) as stream:
                message = await stream.get_final_message()
        else:
            message = await client.messages.create(**asked)
    kinds = [block.type for block in message.content]
    assert kinds == ["thinking", "text", "tool_use", "tool_use"]
    thought, text, look, _ = message.content
    assert isinstance(thought, ThinkingBlock)
    assert thought.thinking == "let me see"
    assert isinstance(text, TextBlock)
    assert text.text == "I will look."
    assert isinstance(look, ToolUseBlock)
    assert (look.id, look.name, look.input) == ("c1", "look", {"at": 1})
    assert message.stop_reason == "tool_use"
    assert (
        message.usage.input_tokens,
        message.usage.cache_read_input_tokens,
        message.usage.output_tokens,
    ) == (4, 16, 5)
    sent = engine.asked[-1].json
    assert sent["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "go"}]
    assert (sent["tool_choice"], sent["max_tokens"]) == ("required", 50)
    await running.quiet()
    finished = running.books.events[-1]
    assert isinstance(finished, ev.StepFinished)
    assert [tool.name for tool in finished.tools] == ["look", "wait"]
    assert running.books.steps[-1]["cached_tokens"] == 16


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_openai_client_reads_a_translated_response(
    streamed: bool, engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, extra=CHAT_ONLY)
    engine.script.append(
        streams(TOOL_STREAM[:333], TOOL_STREAM[333:]) if streamed else answers(200, TOOL_REPLY)
    )
    asked: Any = {
        "model": "m", "instructions": "be brief", "input": "go", "max_output_tokens": 50,
        "tools": [{"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}],
    }  # fmt: skip
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as client:
        if streamed:
            async with client.responses.stream(**asked) as stream:
                made = await stream.get_final_response()
        else:
            made = await client.responses.create(**asked)
        assert made.output_text == "I will look."
        assert [item.type for item in made.output] == [
            "reasoning",
            "message",
            "function_call",
            "function_call",
        ]
        call: Any = made.output[2]
        assert (call.call_id, call.name, call.arguments) == ("c1", "look", '{"at":1}')
        assert made.usage is not None
        assert made.usage.input_tokens_details.cached_tokens == 16
        engine.script.append(answers(200, chat_reply("done")))
        after = await client.responses.create(
            model="m",
            previous_response_id=made.id,
            input=[{"type": "function_call_output", "call_id": "c1", "output": "nothing"}],
        )
    assert after.output_text == "done"
    roles = [message["role"] for message in engine.asked[-1].json["messages"]]
    assert roles == ["user", "assistant", "tool"]
    await running.quiet()
    assert len({row["program"] for row in running.books.steps}) == 1


async def test_an_engines_error_is_translated_too(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine, extra=CHAT_ONLY)
    engine.script.append(
        answers(400, {"error": {"message": "too long", "type": "BadRequestError", "code": 400}})
    )
    async with AsyncAnthropic(base_url=running.url, api_key="any", max_retries=0) as client:
        with pytest.raises(AnthropicBadRequest, match="too long"):
            await client.messages.create(
                model="m", max_tokens=5, messages=[{"role": "user", "content": "hi"}]
            )


async def test_what_chat_cannot_say_is_refused_by_name(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine, extra=CHAT_ONLY)
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as client:
        with pytest.raises(BadRequestError, match="web_search") as refused:
            await client.responses.create(model="m", input="x", tools=[{"type": "web_search"}])
        assert refused.value.param == "tools[0]"
        with pytest.raises(BadRequestError, match="does not serve"):
            await client.embeddings.create(model="m", input="x")
    await running.quiet()
    assert not engine.asked


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ({"type": "document", "source": {}}, "messages[0].content[0]"),
        ({"type": "image", "source": {"type": "file"}}, "messages[0].content[0]"),
        (
            {"type": "tool_result", "tool_use_id": "x", "content": [{"type": "image"}]},
            "messages[0].content[0]",
        ),
    ],
)
def test_a_block_without_counterpart_is_refused_by_its_place(block: Any, field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        translation("messages", {"model": "m", "messages": [{"role": "user", "content": [block]}]})
    assert refused.value.field == field


def test_a_conversation_of_messages_becomes_the_same_in_chat() -> None:
    made = translation(
        "messages",
        {
            "model": "m",
            "system": [{"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": "b"}],
            "stop_sequences": ["X"],
            "top_k": 5,
            "metadata": {"user_id": "u"},
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}]},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "text", "text": "x"},
                    {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "out"}]},
                    {"type": "text", "text": "go on"}]},
                {"role": "system", "content": "and be brief"},
            ],
        },
    )  # fmt: skip
    assert made is not None
    assert made.body["messages"] == [
        {"role": "system", "content": "a\nb"},
        {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}]},
        {"role": "assistant", "content": "x", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "out"},
        {"role": "user", "content": "go on"},
        {"role": "system", "content": "and be brief"},
    ]  # fmt: skip
    assert (made.body["stop"], made.body["top_k"], made.body["user"]) == (["X"], 5, "u")


def test_a_matched_stop_sequence_is_told_apart_from_an_end_of_turn() -> None:
    made = translation("messages", {"model": "m", "messages": [], "stop_sequences": ["END"]})
    assert made is not None
    tap = made.tap(streamed=False)
    tap.feed(json.dumps(chat_reply("x", stop_reason="END")).encode())
    reply = json.loads(tap.finish())
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("stop_sequence", "END")


def test_structured_output_and_named_tools_are_carried_over() -> None:
    made = translation(
        "responses",
        {
            "model": "m", "input": [{"role": "developer", "content": "d"}, {"role": "user", "content": [
                {"type": "input_text", "text": "q"}, {"type": "input_image", "image_url": "data:x", "detail": "low"}]}],
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
            "tools": [{"type": "function", "name": "f", "parameters": {}}],
            "tool_choice": {"type": "function", "name": "f"}, "reasoning": {"effort": "low"},
        },
    )  # fmt: skip
    assert made is not None
    body = made.body
    assert body["response_format"]["json_schema"] == {
        "name": "n",
        "schema": {"type": "object"},
        "strict": True,
    }
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert body["messages"][0] == {"role": "system", "content": "d"}
    assert body["messages"][1]["content"][1]["image_url"] == {"url": "data:x", "detail": "low"}
    assert body["reasoning_effort"] == "low"


@pytest.mark.parametrize(
    ("asked", "effort"), [("low", "low"), ("high", "high"), ("xhigh", "high"), ("max", "high")]
)
def test_how_hard_the_model_is_to_think_travels_on_in_chats_word(asked: str, effort: str) -> None:
    said = {"role": "user", "content": "q"}
    made = translation("messages", {"model": "m", "messages": [said], "output_config": {"effort": asked}})
    assert made is not None
    assert made.body["reasoning_effort"] == effort
    assert "output_config" not in made.body
    plain = translation("messages", {"model": "m", "messages": [said]})
    assert plain is not None
    assert "reasoning_effort" not in plain.body
