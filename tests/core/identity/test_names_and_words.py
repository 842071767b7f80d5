"""Names beside content: what each can reach, and which of them goes before the other."""

from __future__ import annotations

from tests.core.identity.speech import ASK, Wire, begin, chat, result


def test_no_client_can_reach_another_tenants_program(wire: Wire) -> None:
    first, echo = begin(wire)
    same_words = wire.send(chat(ASK, echo, result("call_1")), tenant="other")
    assert same_words.program_id != first.program_id
    assert same_words.relation == "new"
    mine = wire.send(chat(ASK), headers={"x-agentserve-program-id": "run-1"})
    for name in ("run-1", mine.program_id, first.name, first.program_id, "../acme/run-1"):
        theirs = wire.send(chat(ASK), headers={"x-agentserve-program-id": name}, tenant="other")
        assert theirs.program_id not in (mine.program_id, first.program_id)
    parent = {"x-agentserve-program-id": "x", "x-agentserve-parent-id": mine.program_id}
    assert wire.send(chat(ASK), headers=parent, tenant="other").parent_id != mine.program_id
    slashed = wire.send(chat(ASK), headers={"x-agentserve-program-id": "b/run"}, tenant="a")
    nested = wire.send(chat(ASK), headers={"x-agentserve-program-id": "run"}, tenant="a/b")
    assert slashed.program_id != nested.program_id


def test_a_name_given_on_purpose_keeps_separate_conversations_together(wire: Wire) -> None:
    named = {"x-agentserve-program-id": "run-1"}
    one = wire.send(chat(ASK, system="You plan.", tools=False), headers=named)
    wire.answer(one, "chat", "A plan.")
    two = wire.send(
        chat({"role": "user", "content": "Another prompt."}, system="You write.", tools=False), headers=named
    )
    three = wire.send(chat({"role": "user", "content": "A third."}, system="You check."), headers=named)
    assert [r.relation for r in (one, two, three)] == ["new", "continues", "fork"]
    assert [r.step_index for r in (one, two, three)] == [0, 1, 2]


def test_a_trace_groups_what_content_does_not_and_yields_where_it_does(wire: Wire) -> None:
    def trace(digit: str) -> dict[str, str]:
        return {"traceparent": f"00-{digit * 32}-00f067aa0ba902b7-01"}

    one = wire.send(chat(ASK), headers=trace("a"))
    beside = wire.send(
        chat({"role": "user", "content": "A search of its own."}, tools=False), headers=trace("a")
    )
    assert beside.program_id == one.program_id
    [echo], _ = wire.answer(one, "chat", "Berlin.")
    later = wire.send(chat(ASK, echo, {"role": "user", "content": "And then?"}), headers=trace("b"))
    assert (later.program_id, later.source) == (one.program_id, "content:reply")


def test_a_trace_a_request_does_not_split_a_program(wire: Wire) -> None:
    """As when only the HTTP client is instrumented; here with replies that come back rewritten."""
    first = wire.send(chat(ASK), headers={"traceparent": f"00-{'a' * 32}-00f067aa0ba902b7-01"})
    wire.answer(first, "chat", "I will search.", [("call_1", "search", {"q": "x"})])
    flat = {"role": "assistant", "content": "I will search. Calling tools: search"}
    seen = {"role": "user", "content": "Observation: Berlin"}
    second = wire.send(chat(ASK, flat, seen), headers={"traceparent": f"00-{'b' * 32}-00f067aa0ba902b7-01"})
    assert (second.program_id, second.relation) == (first.program_id, "continues")
    wire.fail(second)
    again = wire.send(chat(ASK, flat, seen), headers={"traceparent": f"00-{'c' * 32}-00f067aa0ba902b7-01"})
    assert (again.program_id, again.relation) == (first.program_id, "retry")
