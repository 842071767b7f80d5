"""Headers on their way to an engine: a client's bytes as they were, and names of ours in whatever script."""

from __future__ import annotations

from agentserve.live.passage import header_value


def test_a_clients_header_travels_on_in_the_bytes_that_it_came_in() -> None:
    sent = bytes(range(0x20, 0x100))
    assert header_value(sent.decode("latin-1")) == sent


def test_a_programs_name_in_any_script_can_be_told_to_an_engine() -> None:
    assert header_value("tenant/計画") == "tenant/計画".encode()
