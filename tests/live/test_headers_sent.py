"""Headers on their way to an engine: a client's bytes as they were, and names of ours in whatever script."""

from __future__ import annotations

import pytest

from agentserve.live.headers import forwarded, texts_of
from agentserve.live.passage import header_value


def test_a_clients_header_travels_on_in_the_bytes_that_it_came_in() -> None:
    sent = bytes(range(0x20, 0x100))
    assert header_value(sent.decode("latin-1")) == sent


def test_a_programs_name_in_any_script_can_be_told_to_an_engine() -> None:
    assert header_value("tenant/計画") == "tenant/計画".encode()


@pytest.mark.parametrize(
    ("headers", "texts"),
    [
        ([], {}),
        ([(b"a", b"1"), (b"b", b"\xe9")], {"a": "1", "b": "é"}),
        ([(b"a", b"1"), (b"a", b"2"), (b"b", b"")], {"a": "1", "b": ""}),
        ([(b"a", b"1\nb"), (b"b", b"2")], {"a": "1\nb", "b": "2"}),
        ([(b"a", b"1\nb\n2\nc"), (b"b", b"2")], {"a": "1\nb\n2\nc", "b": "2"}),
    ],
)
def test_headers_are_read_as_they_stand_and_the_first_of_a_name_counts(
    headers: list[tuple[bytes, bytes]], texts: dict[str, str]
) -> None:
    assert texts_of(headers) == texts


@pytest.mark.parametrize("connection", [[], [(b"connection", b"keep-alive")], [(b"connection", b"x-hop")]])
def test_what_goes_on_is_the_same_by_either_way(connection: list[tuple[bytes, bytes]]) -> None:
    sent = [
        *connection,
        (b"accept", b"*/*"),
        (b"authorization", b"Bearer key"),
        (b"x-agentserve-step", b"plan"),
        (b"x-hop", b"1"),
    ]
    hop = {} if (b"connection", b"x-hop") in connection else {"x-hop": "1"}
    assert forwarded(sent, texts_of(sent)) == {"accept": "*/*", **hop}
    twice = [*sent, (b"accept", b"text/plain")]
    assert forwarded(twice, texts_of(twice)) == {"accept": "*/*, text/plain", **hop}
