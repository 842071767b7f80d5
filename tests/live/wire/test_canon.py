"""Canonical items: what counts in a message, what does not, and what is not looked at twice."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.live.wire import CallReader, Canon
from agentserve.live.wire.canon import Remembered

Json = dict[str, Any]


def digest(message: Json) -> int | None:
    item = Canon().item(message)
    return None if item is None else item.digest


def call(arguments: Any, name: str = "f", call_id: str = "c1") -> Json:
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }


SAME: list[tuple[Json, Json]] = [
    (call('{"a": 1, "b": [1, 2]}'), call('{"b":[1,2],"a":1}')),
    (call(""), call("{}")),
    (call("{}", call_id="c1"), call("{}", call_id="another")),
    (call('{"é": "ü"}'), call('{"\\u00e9": "\\u00fc"}')),
    ({"role": "user", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "x"}]}),
    (
        {"role": "user", "content": "x"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
    ),
    (
        {"role": "tool", "tool_call_id": "a", "content": "r"},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "r"}]},
    ),
    (
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "r"}]},
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": [{"type": "text", "text": "r"}],
                    "cache_control": {"type": "ephemeral"},
                }
            ],
        },
    ),
    (
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "y"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm"},
                {"type": "text", "text": "y"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
            ],
        },
    ),
    (
        {
            "type": "function_call",
            "call_id": "c",
            "name": "f",
            "arguments": '{"a":1}',
            "id": "fc_1",
            "status": "completed",
        },
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'},
    ),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
        {
            "role": "user",
            "content": [{"image_url": {"url": "data:x"}, "type": "image_url", "cache_control": {}}],
        },
    ),
]

DIFFERENT: list[tuple[Json, Json]] = [
    (call('{"a": 1}'), call('{"a": 2}')),
    (call("{}", name="f"), call("{}", name="g")),
    ({"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}),
    ({"role": "user", "content": "a b"}, {"role": "user", "content": "a  b"}),
    ({"role": "tool", "content": "r"}, {"role": "user", "content": "r"}),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:y"}}]},
    ),
    (
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "r"}]},
        {"role": "user", "content": [{"type": "text", "text": "r"}]},
    ),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_two_renderings_of_one_message_have_one_digest(one: Json, other: Json) -> None:
    assert digest(one) == digest(other) is not None


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_messages_that_differ_have_digests_that_differ(one: Json, other: Json) -> None:
    assert digest(one) != digest(other)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "system", "content": "x"},
        {"role": "developer", "content": "x"},
        {"type": "reasoning", "id": "rs", "summary": []},
        {"role": "user", "content": "<total_tokens>12 left</total_tokens>"},
        {"role": "user", "content": ""},
        "not a message",
        None,
    ],
)
def test_what_is_no_part_of_the_conversation_is_left_out(message: Any) -> None:
    assert Canon().item(message) is None


def test_a_known_message_is_not_canonicalised_again() -> None:
    reader = CallReader()
    history: list[Json] = [{"role": "user", "content": "go"}]
    for step in range(20):
        history += [
            call(json.dumps({"n": step}), call_id=f"c{step}"),
            {"role": "tool", "tool_call_id": f"c{step}", "content": str(step)},
        ]
        reader.read("/v1/chat/completions", {}, copy.deepcopy({"messages": history}))
        assert reader.canon.canonicalised == len(history)


def test_a_message_that_nobody_sent_for_a_generation_is_forgotten_and_one_that_was_is_not() -> None:
    canon = Canon()
    sent, silent = {"role": "user", "content": "go on"}, {"role": "user", "content": "stop"}
    canon.items([sent, silent])
    for _ in range(3):
        canon.age()
        canon.item(sent)
    assert canon.canonicalised == 2
    canon.items([sent, silent])
    assert canon.canonicalised == 3


def test_what_is_remembered_is_bounded_and_what_is_used_stays() -> None:
    known: Remembered[int] = Remembered(100)
    known.put("kept", 1)
    for at in range(1_000):
        known.put(at, at)
        assert known.get("kept") == 1
        assert len(known) <= 101
    assert known.get(5) is None


def test_the_role_survives_dates_folders_and_numbers_but_not_another_text() -> None:
    canon = Canon()
    text = "You are a coder. Today is Monday, 3 Nov 2026. Folder: /home/ann/src/app. Commit 4be1d20c, 17 files. {}"
    other = "You are a coder. Today is Friday, 20 Feb 2027. Folder: /srv/ben/x. Commit 99e01aa1f, 8 files. {}"
    assert canon.role(text.format("Be brief.")) == canon.role(other.format("Be brief."))
    assert canon.role(text.format("Be brief.")) != canon.role(text.format("Be thorough."))
    billing = "x-anthropic-billing-header: v=1; cch=a81;\n"
    assert canon.role(billing + "You are a coder.") == canon.role("You are a coder.")


def test_a_picture_counts_as_no_more_than_its_share_of_a_prompt() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 2_000_000}}
    item = Canon().item({"role": "user", "content": [{"type": "text", "text": "what is this?"}, picture]})
    assert item is not None
    assert item.size < 5_000


def test_a_message_that_is_too_deep_to_be_written_is_read_all_the_same() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    canon = Canon()
    item = canon.item(
        {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "odd", "odd": deep}]}
    )
    assert item is not None
    assert canon.raw(deep) == canon.raw([deep])


KEYS = st.sampled_from(
    ["role", "content", "type", "text", "tool_calls", "function", "name", "id", "arguments", "input", "tool_use_id",
     "output", "call_id"]
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.just(float("inf")),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
        max_leaves=20,
    )
)
def test_any_message_is_read_the_same_twice(message: Any) -> None:
    canon = Canon()
    first, again = canon.item(message), canon.item(copy.deepcopy(message))
    assert first == again == Canon().item(message)
