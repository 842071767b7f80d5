"""Events out of bytes that are cut anywhere."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.live.wire import SseSplitter

PLAIN = (
    b': keep alive\n\nevent: x\ndata: {"a":"\xc3\xa9\xf0\x9f\x90\x9f"}\n\n'
    b"id: 3\ndata:two\ndata: lines\n\ndata: [DONE]\n\n"
)
EVENTS = [b'{"a":"\xc3\xa9\xf0\x9f\x90\x9f"}', b"two\nlines", b"[DONE]"]


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    at = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(at)]


def read(chunks: list[bytes]) -> list[bytes]:
    splitter = SseSplitter()
    found = [data for chunk in chunks for data in splitter.feed(chunk)]
    return found + splitter.finish()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 500), max_size=40), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_the_events_do_not_depend_on_where_the_bytes_are_cut(places: list[int], ending: bytes) -> None:
    stream = PLAIN.replace(b"\n", ending)
    assert read(cut(stream, places)) == EVENTS


def test_a_last_event_without_its_blank_line_is_read_at_the_end() -> None:
    assert read([b"data: one\n\ndata: tw", b"o"]) == [b"one", b"two"]
    assert read([b"data: one\n"]) == [b"one"]
    assert read([]) == []


def test_an_event_beyond_its_bound_is_dropped_and_the_next_is_read() -> None:
    splitter = SseSplitter(event_bytes_max=1000)
    found = [data for _ in range(100) for data in splitter.feed(b"x" * 50)]
    assert found == []
    assert splitter.dropped > 0
    assert splitter.feed(b"\n\ndata: fine\n\n")[-1] == b"fine"


def test_many_data_lines_of_one_event_are_bounded_too() -> None:
    splitter = SseSplitter(event_bytes_max=1000)
    for _ in range(500):
        splitter.feed(b"data: " + b"y" * 50 + b"\n")
    assert splitter.dropped > 0
    assert all(len(data) <= 1100 for data in splitter.feed(b"\n"))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=30))
def test_garbage_is_no_reason_to_fail(chunks: list[bytes]) -> None:
    read(chunks)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(["data: a", "data: bc", "data:d", "data: ", ": keep-alive", "event: x", ""]),
        max_size=12,
    )
)
def test_events_that_come_at_once_are_those_that_come_byte_by_byte(lines: list[str]) -> None:
    stream = "\n".join(lines).encode()
    at_once, slowly = SseSplitter(), SseSplitter()
    found = at_once.feed(stream) + at_once.finish()
    one_by_one = [data for k in range(len(stream)) for data in slowly.feed(stream[k : k + 1])]
    assert found == one_by_one + slowly.finish()
