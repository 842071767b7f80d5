"""Replies of each protocol, streamed and whole, broken and hostile."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.live.wire import CallReader, Protocol, Reply, ReplyTool, Usage, read_reply, reader_of

Json = dict[str, Any]


def sse(*events: Json | str) -> bytes:
    return b"".join(
        b"data: " + (event if isinstance(event, str) else json.dumps(event)).encode() + b"\n\n"
        for event in events
    )


def stream(protocol: Protocol, data: bytes, size: int = 11) -> Reply:
    reader = reader_of(protocol, streamed=True)
    for at in range(0, len(data), size):
        reader.feed(data[at : at + size])
    return reader.finish()


def delta(finish: str | None = None, **fields: Any) -> Json:
    return {"id": "c1", "model": "m", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def piece(index: int, arguments: str, **head: Any) -> Json:
    function = {"arguments": arguments, **({"name": head.pop("name")} if "name" in head else {})}
    return {"index": index, **head, "function": function}


CHAT_STREAM = sse(
    delta(role="assistant", content=""),
    delta(reasoning="Let me think"),
    delta(content="Häl"),
    delta(content="lo 🐟"),
    delta(tool_calls=[piece(0, "", id="call_a", name="read", type="function")]),
    delta(tool_calls=[piece(0, '{"path": ')]),
    delta(tool_calls=[piece(1, '{"q":1}', id="call_b", name="find")]),
    delta(tool_calls=[piece(0, '"x.py"}')]),
    delta("tool_calls"),
    {"id": "c1", "choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": 9, "total_tokens": 59,
                                         "prompt_tokens_details": {"cached_tokens": 48}}},
    "[DONE]",
)  # fmt: skip
CHAT_WHOLE: Json = {
    "id": "c1", "model": "m",
    "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {
        "role": "assistant", "content": "Hällo 🐟", "reasoning": "Let me think", "tool_calls": [
            {"id": "call_a", "type": "function", "function": {"name": "read", "arguments": '{"path": "x.py"}'}},
            {"id": "call_b", "type": "function", "function": {"name": "find", "arguments": '{"q":1}'}}]}}],
    "usage": {"prompt_tokens": 50, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 48}},
}  # fmt: skip

TOOLS = (
    ReplyTool(id="call_a", name="read", arguments='{"path": "x.py"}'),
    ReplyTool(id="call_b", name="find", arguments='{"q":1}'),
)


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_a_chat_stream_says_what_the_whole_reply_says(size: int) -> None:
    streamed, whole = stream("chat", CHAT_STREAM, size), read_reply("chat", json.dumps(CHAT_WHOLE).encode())
    assert streamed == whole
    assert streamed.tools == TOOLS
    assert streamed.usage == Usage(prompt_tokens=50, output_tokens=9, cached_tokens=48)
    assert (streamed.finish, streamed.whole, streamed.turn_done) == ("tool_calls", True, False)


def test_what_the_client_sends_back_has_the_replys_digest() -> None:
    echo = CHAT_WHOLE["choices"][0]["message"]
    call = CallReader().read("/v1/chat/completions", {}, {"messages": [echo]})
    assert call is not None
    assert tuple(call.evidence.items) == stream("chat", CHAT_STREAM).items


PIECES = st.text(max_size=6) | st.sampled_from(['"', "\\", '\\"', '"},"', "\\n", "🐟"])
OTHERS = (delta(tool_calls=[piece(0, "x")]), delta("stop"), delta(reasoning="r"), "{", "{}")


@settings(max_examples=60)
@given(
    st.lists(PIECES, min_size=40, max_size=60),
    st.lists(st.sampled_from(OTHERS), max_size=3),
    st.sampled_from([(",", ":"), (", ", ": ")]),
    st.integers(1, 5000),
)
def test_events_that_are_read_together_say_what_each_says(
    texts: list[str], others: list[Any], separators: tuple[str, str], size: int
) -> None:
    events: list[Any] = [delta(role="assistant", content="")] + [delta(content=text) for text in texts] * 3
    for at, other in enumerate(others):
        events.insert(35 + 25 * at, other)
    lines = [
        e if isinstance(e, str) else json.dumps(e, separators=separators, ensure_ascii=False) for e in events
    ]
    lines.append("[DONE]")
    together = "".join([f"data: {line}\n\n" for line in lines]).encode()
    each = "".join(
        [f"data: {line}\r\n\r\n" for line in lines]
    ).encode()  # no run of events is known by these ends
    assert stream("chat", together, size) == stream("chat", each, 200)


def test_two_texts_that_hold_one_anothers_quotes_are_not_read_as_text() -> None:
    plain, odd = (
        delta(content="a"),
        b'{"id":"c1","model":"m","choices":[{"index":0,"delta":{"content":"a","x":"b"},',
    )
    odd += b'"finish_reason":null}]}'
    data = sse(*[json.dumps(plain, separators=(",", ":"))] * 30) + b"data: " + odd + b"\n\n"
    data += sse(json.dumps(plain, separators=(",", ":")))
    assert stream("chat", data, 700).text == "a" * 32


def test_a_stream_without_done_or_that_breaks_off_is_told_apart() -> None:
    assert stream("chat", sse(delta(content="x"), delta("stop"))).whole
    broken = stream("chat", sse(delta(content="x")))
    assert not broken.whole
    assert not broken.turn_done
    assert not broken.evidence().whole


def test_of_several_samples_the_first_is_read() -> None:
    second = {"choices": [{"index": 1, "delta": {"content": "other"}, "finish_reason": None}]}
    assert stream("chat", sse(delta(content="one"), second, delta("stop"))).output_chars == 3


def test_whole_calls_without_an_index_and_decoded_arguments_are_read() -> None:
    calls = [{"id": "a", "function": {"name": "f", "arguments": {"x": 1}}},
             {"id": "b", "function": {"name": "g", "arguments": "{}"}}]  # fmt: skip
    reply = stream("chat", sse(delta(tool_calls=calls), delta("tool_calls")))
    assert [(tool.id, tool.arguments) for tool in reply.tools] == [("a", '{"x":1}'), ("b", "{}")]


def test_an_error_in_the_stream_is_an_error() -> None:
    reply = stream("chat", sse(delta(content="x"), {"error": {"message": "out of memory", "code": 500}}))
    assert (reply.error, reply.finish) == ("out of memory", "error")
    assert not reply.evidence().whole


MESSAGES_STREAM = sse(
    {"type": "message_start", "message": {"id": "msg_1", "model": "m", "usage": {
        "input_tokens": 10, "cache_read_input_tokens": 80, "cache_creation_input_tokens": 5, "output_tokens": 1}}},
    {"type": "ping"},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "On it."}},
    {"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "id": "tu_1", "name": "Bash",
                                                                  "input": {}}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"command":'}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": ' "ls"}'}},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 33}},
    {"type": "message_stop"},
)  # fmt: skip
MESSAGES_WHOLE: Json = {
    "id": "msg_1", "model": "m", "type": "message", "role": "assistant", "stop_reason": "tool_use",
    "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "On it."},
                {"type": "tool_use", "id": "tu_1", "name": "Bash", "input": {"command": "ls"}}],
    "usage": {"input_tokens": 10, "cache_read_input_tokens": 80, "cache_creation_input_tokens": 5, "output_tokens": 33},
}  # fmt: skip


def test_a_messages_stream_says_what_the_whole_reply_says() -> None:
    streamed, whole = (
        stream("messages", MESSAGES_STREAM),
        read_reply("messages", json.dumps(MESSAGES_WHOLE).encode()),
    )
    assert streamed.usage == whole.usage == Usage(prompt_tokens=95, output_tokens=33, cached_tokens=80)
    assert streamed.items == whole.items
    assert [json.loads(tool.arguments) for tool in streamed.tools] == [{"command": "ls"}]
    assert (streamed.finish, streamed.whole) == (whole.finish, whole.whole) == ("tool_calls", True)


OUTPUT: list[Json] = [
    {"type": "reasoning", "id": "rs_1", "summary": []},
    {"type": "message", "id": "m_1", "role": "assistant", "status": "completed",
     "content": [{"type": "output_text", "text": "On it.", "annotations": []}]},
    {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "ls", "arguments": "{}",
     "status": "completed"},
]  # fmt: skip
RESPONSE: Json = {
    "id": "resp_1", "model": "m", "status": "completed", "output": OUTPUT,
    "usage": {"input_tokens": 20, "input_tokens_details": {"cached_tokens": 16}, "output_tokens": 7,
              "output_tokens_details": {"reasoning_tokens": 3}},
}  # fmt: skip


def test_a_responses_stream_says_what_the_whole_reply_says() -> None:
    events = [
        {"type": "response.output_item.done", "output_index": at, "item": item}
        for at, item in enumerate(OUTPUT)
    ]
    deltas = {"type": "response.output_text.delta", "delta": "On"}
    created = {"type": "response.created", "response": {"id": "resp_1", "model": "m"}}
    whole = read_reply("responses", json.dumps(RESPONSE).encode())
    streamed = stream(
        "responses", sse(created, deltas, *events, {"type": "response.completed", "response": RESPONSE})
    )
    assert streamed == whole
    assert whole.usage == Usage(prompt_tokens=20, output_tokens=7, cached_tokens=16, reasoning_tokens=3)
    assert (whole.finish, whole.response_id, [tool.id for tool in whole.tools]) == (
        "tool_calls",
        "resp_1",
        ["call_1"],
    )
    cut_short = stream("responses", sse(created, *events))
    assert not cut_short.whole
    assert cut_short.items == whole.items
    slim = {**RESPONSE, "output": []}
    assert (
        stream("responses", sse(*events, {"type": "response.completed", "response": slim})).items
        == whole.items
    )


def test_an_incomplete_response_ended_by_length() -> None:
    body = {**RESPONSE, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    assert read_reply("responses", json.dumps(body).encode()).finish == "length"


def test_completions_give_usage_and_finish_without_reading_the_text() -> None:
    quiet = {"choices": [{"text": "x", "finish_reason": None}], "usage": None}
    events = [quiet] * 5 + [{"choices": [{"text": "", "finish_reason": "length"}], "usage": None},
                            {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 6}}]  # fmt: skip
    compact = b"".join(b"data: " + json.dumps(e, separators=(",", ":")).encode() + b"\n\n" for e in events)
    reply = stream("completions", compact + b"data: [DONE]\n\n")
    assert (reply.finish, reply.usage) == ("length", Usage(prompt_tokens=4, output_tokens=6))
    assert reply.items == ()


def test_embeddings_give_usage() -> None:
    body = {"data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 8, "total_tokens": 8}}
    assert read_reply("embeddings", json.dumps(body).encode()).usage == Usage(
        prompt_tokens=8, output_tokens=0
    )


def test_a_reply_that_is_no_json_broke() -> None:
    for body in (b"", b"<html>bad gateway</html>", b"[1]", b"\xff\xfe"):
        reply = read_reply("chat", body)
        assert (reply.whole, reply.error) == (False, "the reply is not a JSON object")


def test_a_reply_too_long_to_hash_has_no_echo() -> None:
    many = sse(delta(content="x" * 300_000)) * 15
    reply = stream("chat", many + sse(delta("stop")), 1 << 16)
    assert reply.items == ()
    assert reply.output_chars == 4_500_000


PROTOCOLS: list[Protocol] = ["chat", "completions", "responses", "messages", "embeddings"]
WORDS = st.sampled_from(["message_start", "content_block_delta", "response.completed", "tool_use", "text"])
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8), WORDS
)
KEYS = st.sampled_from(
    ["choices", "delta", "message", "content", "tool_calls", "function", "arguments", "index", "usage", "type", "id",
     "prompt_tokens", "finish_reason", "error", "content_block", "response", "output", "item", "call_id", "input",
     "name", "status", "incomplete_details", "prompt_tokens_details", "role", "system", "tools", "messages"]
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=15,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PROTOCOLS), st.lists(TREES, max_size=5), st.integers(1, 50))
def test_no_event_however_odd_makes_a_reader_fail(protocol: Protocol, events: list[Any], size: int) -> None:
    data = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    stream(protocol, data, size).evidence()
    for event in events:
        read_reply(protocol, json.dumps(event).encode()).evidence()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PROTOCOLS), st.lists(st.binary(max_size=80), max_size=10), st.booleans())
def test_no_bytes_make_a_reader_fail(protocol: Protocol, chunks: list[bytes], streamed: bool) -> None:
    reader = reader_of(protocol, streamed=streamed)
    for chunk in chunks:
        reader.feed(chunk)
    reader.finish().evidence()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["chat/completions", "completions", "responses", "messages", "embeddings"]),
    st.dictionaries(KEYS | st.sampled_from(["input", "prompt", "metadata", "nvext", "conversation", "stream_options"]),
                    TREES, max_size=6),
)  # fmt: skip
def test_no_body_however_odd_makes_the_call_reader_fail(path: str, body: Json) -> None:
    call = CallReader().read(f"/v1/{path}", {}, body)
    assert call is not None
    assert call.prompt_chars >= 0
    call.evidence.prints()
