"""A long body read by what is new in it says what it says when it is read whole."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentserve.live.wire import CallReader, Canon
from agentserve.live.wire.history import History

KEY = "whose"
SYSTEM = {"role": "system", "content": "be brief"}
TOOLS = [{"type": "function", "function": {"name": "bash", "parameters": {"messages": ["]", "}"]}}}]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def body_of(messages: list[Any], **fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": messages, **fields}).encode()


class Reading:
    """A history, and the reader that reads whole."""

    def __init__(self, *, bytes_max: int = 1 << 20) -> None:
        self.reader = CallReader(Canon())
        self.history = History(self.reader.canon, bytes_max=bytes_max)

    def whole(self, raw: bytes, key: str = KEY) -> None:
        """Read a body as one of which nothing is known."""
        body = msgspec.json.decode(raw)
        self.history.keep(key, raw, body.get("messages"), self.reader.conversation("chat", body).systems)

    def again(self, raw: bytes, key: str = KEY) -> bool:
        """Read a body by what is known; whether it could be. It must say what it says when it is read whole."""
        found = self.history.read(key, "chat", raw)
        if found is None:
            return False
        body, known = found
        messages = body.pop("messages")
        plain = msgspec.json.decode(raw)
        fresh = CallReader(Canon()).conversation("chat", plain)
        assert msgspec.json.decode(messages) == plain.pop("messages")
        assert msgspec.json.decode(msgspec.json.encode({"messages": messages}))
        assert body == plain
        assert list(known.items) == list(fresh.items)
        assert list(known.systems) == list(fresh.systems)
        assert known.prints() == fresh.prints()
        assert known.told() == fresh.told()
        return True


def test_a_request_that_goes_on_is_read_by_what_it_adds() -> None:
    reading = Reading()
    messages: list[Any] = [SYSTEM, user("begin")]
    reading.whole(body_of(messages, tools=TOOLS))
    canon = reading.reader.canon
    for turn in range(5):
        known = canon.canonicalised
        messages += [said(f"answer {turn}"), user(f"question {turn}")]
        assert reading.again(body_of(messages, tools=TOOLS, temperature=turn))
        assert canon.canonicalised == known + 2


def test_the_fields_may_stand_before_or_behind_and_be_spaced_as_one_likes() -> None:
    reading = Reading()
    first = b'{ "tools" : [{"name":"x"}], "messages" : [ {"role":"user","content":"a]b"} , {"role":"user"}\n] ,"n":1}'
    reading.whole(first)
    assert reading.again(first[:-9] + b' , {"role" : "assistant", "content":"c"} ]}')
    assert reading.again(
        first[:-9] + b' , {"role" : "assistant", "content":"c"} ,1, null,"x"], "stream" :true }'
    )


def test_a_request_that_was_cut_down_or_branched_is_read_by_what_is_left() -> None:
    reading = Reading()
    messages = [SYSTEM, *[user(f"message {n}") for n in range(40)]]
    reading.whole(body_of(messages))
    assert reading.again(body_of([*messages[:17], said("elsewhere")]))
    assert reading.again(body_of([*messages[:17], user("message 16"), said("not quite")]))
    assert not reading.again(body_of([SYSTEM, user("anew")])), "nothing but the system text is known"
    assert not reading.again(body_of([user("message 0")]))


def test_a_message_that_only_begins_like_a_known_one_is_a_new_one() -> None:
    reading = Reading()
    reading.whole(body_of([user("x"), 1]))
    assert not reading.again(body_of([user("x"), 12, user("y")])), "it has to be read whole"


@pytest.mark.parametrize(
    "tail",
    [
        b",]}",
        b", ]}",
        b"}",
        b"",
        b']}"',
        b"]} x",
        b', {"role":"user"]}',
        b'], "n": 1',
        b"\xff]}",
        b'],"n":NaN}',
    ],
)
def test_what_is_not_json_is_left_to_whoever_reads_it_whole(tail: bytes) -> None:
    reading = Reading()
    first = body_of([user("x")])
    reading.whole(first)
    with pytest.raises((msgspec.DecodeError, UnicodeError)):
        msgspec.json.decode(first.removesuffix(b"]}") + tail)
    assert not reading.again(first.removesuffix(b"]}") + tail)


def test_other_lists_called_messages_are_not_taken_for_the_requests_own() -> None:
    mine = [user("mine"), user("too")]
    for metadata in ({"messages": [user("theirs")]}, {"messages": mine}, '"messages":[', {'"messages"': 1}):
        reading = Reading()
        raw = json.dumps({"metadata": metadata, "messages": mine, "n": 1}).encode()
        reading.whole(raw)
        reading.again(raw)  # which says so if it reads anything else


def test_a_field_that_stands_twice_counts_as_it_does_to_others() -> None:
    reading = Reading()
    first = b'{"messages":[{"role":"user","content":"a"}],"n":1}'
    reading.whole(first)
    assert not reading.again(first[:-1] + b',"messages":[{"role":"user","content":"b"}]}')
    twice = b'{"messages":[{"role":"user","content":"a"}],"messages":[{"role":"user","content":"b"}]}'
    reading.whole(twice)
    reading.again(twice)


def test_what_is_remembered_is_bounded_and_anothers_is_not_used() -> None:
    reading = Reading(bytes_max=10_000)
    raws = [body_of([user(f"{n}" * 3_000)]) for n in range(5)]
    for n, raw in enumerate(raws):
        reading.whole(raw, key=f"program {n}")
    assert not reading.again(raws[0], key="program 0"), "the oldest went first"
    assert reading.again(raws[4], key="program 4")
    assert not reading.again(raws[4], key="program 3")
    assert reading.history._bytes == sum(known.size for known in reading.history._known.values()) <= 10_000


_LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text('ab"]}[{\\:,é', max_size=6))
_TEXTS = st.text('ab"]}[{\\,', max_size=8)
_PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": _TEXTS}), max_size=2)
_ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
_MESSAGES = st.one_of(
    st.fixed_dictionaries({"role": _ROLES, "content": st.one_of(_TEXTS, _PARTS)}),
    _LEAVES,
    st.dictionaries(st.text(max_size=3), _LEAVES, max_size=3),
)
_FIELDS = st.dictionaries(
    st.sampled_from(["tools", "metadata", "n", "messages "]),
    st.one_of(_LEAVES, st.dictionaries(st.just("messages"), st.lists(_MESSAGES, max_size=2), max_size=1)),
    max_size=2,
)


@given(
    st.lists(_MESSAGES, max_size=6),
    st.lists(_MESSAGES, max_size=3),
    st.integers(0, 6),
    _FIELDS,
    _FIELDS,
    st.booleans(),
)
def test_whatever_a_request_adds_or_leaves_out_it_is_read_as_if_whole(
    first: list[Any], more: list[Any], kept: int, before: dict[str, Any], after: dict[str, Any], spaced: bool
) -> None:
    reading = Reading()
    separators = (", ", " : ") if spaced else (",", ":")

    def raw(messages: list[Any]) -> bytes:
        return json.dumps({**before, "messages": messages, **after}, separators=separators).encode()

    reading.whole(raw(first))
    next_one = raw([*first[:kept], *more])
    if reading.again(next_one):
        assert reading.again(raw([*first[:kept], *more, *more])), "what was read so is itself remembered"
