"""Usage is asked for and hidden without touching another byte."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentserve.live.splice import UsageFilter, ask_for_usage, wants_asking
from tests.live.conftest import USAGE_CHUNK, delta

EVENTS = st.sampled_from(
    [
        b"data: " + json.dumps(delta("a")).encode() + b"\n\n",
        b"data: " + json.dumps(delta("\u00e9\U0001f600"), ensure_ascii=False).encode() + b"\n\n",
        b": keep-alive\n\n",
        b'event: x\r\ndata: {"choices":[]}\r\n\r\n',
        b'data: {"choices": [], "usage": null}\n\n',
        b'data: {"choices":[{"delta":{"content":"\\"choices\\":[] \\"usage\\""}}]}\n\n',
        b"\n\n",
        b"data: [DONE]\n\n",
    ]
)
USAGE = st.sampled_from(
    [
        b"data: " + json.dumps(USAGE_CHUNK).encode() + b"\n\n",
        b"data: " + json.dumps(USAGE_CHUNK, separators=(",", ":")).encode() + b"\r\n\r\n",
    ]
)


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({c % (len(stream) + 1) for c in cuts} | {0, len(stream)})
    return [stream[a:b] for a, b in itertools.pairwise(at)]


def through(pieces: list[bytes]) -> bytes:
    usage = UsageFilter()
    return b"".join([usage.feed(piece) for piece in pieces]) + usage.finish()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(EVENTS, max_size=6),
    st.lists(EVENTS, max_size=3),
    st.lists(st.integers(0, 5000), max_size=12),
    USAGE,
)
@example([b"\n\n", b"\n\n"], [], [3], b"data: " + json.dumps(USAGE_CHUNK).encode() + b"\n\n")
def test_only_the_usage_event_is_left_out_wherever_the_stream_is_cut(
    before: list[bytes], after: list[bytes], cuts: list[int], usage: bytes
) -> None:
    stream = b"".join(before) + usage + b"".join(after)
    assert through(cut(stream, cuts)) == b"".join(before) + b"".join(after)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=12))
def test_bytes_that_are_no_events_pass_as_they_are(stream: bytes, cuts: list[int]) -> None:
    assert through(cut(stream, cuts)) == stream


def test_an_event_of_any_size_passes() -> None:
    huge = b'data: {"choices":[],"x":"' + b"y" * 300_000 + b'"}\n\n'
    assert through(cut(huge + b"data: 1\n\n", list(range(0, 300_000, 4096)))) == huge + b"data: 1\n\n"


BODIES = st.dictionaries(
    st.text(max_size=8),
    st.none() | st.integers() | st.text() | st.lists(st.integers(), max_size=3),
    max_size=5,
)


@settings(max_examples=100, deadline=None)
@given(BODIES, st.none() | st.dictionaries(st.sampled_from(["include_usage", "x"]), st.booleans()))
def test_asking_adds_one_field_and_changes_no_other(
    fields: dict[str, Any], options: dict[str, bool] | None
) -> None:
    body = {**fields, "model": "m", "stream": True}
    body.pop("stream_options", None)
    if options is not None:
        body["stream_options"] = options
    raw = b" \n" + json.dumps(body).encode()
    if not wants_asking("chat", body):
        assert options is not None
        assert options.get("include_usage") is True
        return
    sent = ask_for_usage(body, raw)
    got = body if sent is None else json.loads(sent)
    assert got["stream_options"] == {**(options or {}), "include_usage": True}
    assert {k: v for k, v in got.items() if k != "stream_options"} == {
        k: v for k, v in json.loads(raw).items() if k != "stream_options"
    }
