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


RUN = {"x-agentserve-program-id": "run-1"}


def test_a_named_step_that_failed_is_the_same_step_when_it_is_sent_again(wire: Wire) -> None:
    first = wire.send(chat(ASK), headers=RUN)
    wire.fail(first)
    again = wire.send(chat(ASK), headers=RUN)
    assert (again.program_id, again.relation, again.step_index) == (first.program_id, "retry", 0)


def test_a_named_step_that_its_client_gave_up_on_is_sent_again_as_the_same_step(wire: Wire) -> None:
    first = wire.send(chat(ASK), headers=RUN)  # and it still runs
    again = wire.send(chat(ASK), headers={**RUN, "x-stainless-retry-count": "1"})
    assert (again.program_id, again.relation) == (first.program_id, "retry")


def test_a_named_step_that_is_made_anew_is_no_new_step_and_a_sample_beside_it_is(wire: Wire) -> None:
    first = wire.send(chat(ASK), headers=RUN)
    beside = wire.send(chat(ASK), headers=RUN)
    assert (beside.program_id, beside.relation) == (first.program_id, "fork")
    wire.fail(beside)
    wire.answer(first, "chat", "A plan.")
    anew = wire.send(chat(ASK), headers=RUN)
    assert (anew.program_id, anew.relation) == (first.program_id, "retry")


def test_a_named_program_whose_past_was_edited_goes_on_by_the_results_it_brings(wire: Wire) -> None:
    first = wire.send(chat(ASK), headers=RUN)
    [echo], _ = wire.answer(first, "chat", "", [("call_1", "search", {"q": "cities"})])
    other = {
        "role": "user",
        "content": "In short: which are the three largest cities, and how do they compare?",
    }
    more = {"role": "user", "content": "Take your time over it."}
    edited = wire.send(chat(other, more, echo, result("call_1")), headers=RUN)
    assert (edited.program_id, edited.relation, edited.returns) == (
        first.program_id,
        "continues",
        ("call_1",),
    )


def test_another_voice_without_tools_in_a_session_is_beside_its_program(wire: Wire) -> None:
    session = {"x-session-id": "s-1"}
    first, echo = wire.send(chat(ASK), headers=session), None
    [echo], _ = wire.answer(first, "chat", "", [("call_1", "search", {"q": "cities"})])
    title = wire.send(
        chat({"role": "user", "content": "Name this talk."}, system="You title.", tools=False),
        headers=session,
    )
    assert (title.program_id, title.relation) == (first.program_id, "auxiliary")
    second = wire.send(chat(ASK, echo, result("call_1")), headers=session)
    assert (second.relation, second.step_index) == ("continues", 1)


def test_a_short_call_in_the_programs_own_voice_is_a_compaction_in_a_session_and_a_step_under_a_given_name(
    wire: Wire,
) -> None:
    told = {"role": "user", "content": "So far: three cities were found. Go on."}
    for headers, relation in (({"x-session-id": "s-1"}, "compaction"), (RUN, "continues")):
        first = wire.send(chat(ASK), headers=headers)
        [echo], _ = wire.answer(first, "chat", "Three cities.")
        second = wire.send(chat(ASK, echo, {"role": "user", "content": "And their rivers?"}), headers=headers)
        wire.answer(second, "chat", "Three rivers.")
        third = wire.send(chat(told), headers=headers)
        assert (third.program_id, third.relation) == (first.program_id, relation)


def test_a_call_goes_on_with_its_sub_agents_talk_under_its_own_name_and_never_with_a_strangers(
    wire: Wire,
) -> None:
    for name, parent in (("lead", None), ("helper", "lead"), ("deep", "helper"), ("stranger", None)):
        wire.resolver.declare(tenant="acme", name=name, parent=parent, now=wire.now)
    words = {"role": "user", "content": "Read the minutes of the council and say who voted against it."}
    deep = wire.send(chat(words), headers={"x-agentserve-program-id": "deep"})
    [echo], _ = wire.answer(deep, "chat", "The mayor did, and said so twice.")
    talk = chat(words, echo, {"role": "user", "content": "And why?"})
    stranger = wire.send(talk, headers={"x-agentserve-program-id": "stranger"})
    assert stranger.name == "stranger"
    lead = wire.send(talk, headers={"x-agentserve-program-id": "lead"})
    assert (lead.program_id, lead.relation) == (deep.program_id, "continues")


def test_the_same_request_from_a_sub_agent_is_the_sub_agents(wire: Wire) -> None:
    for name, parent in (("lead", None), ("helper", "lead")):
        wire.resolver.declare(tenant="acme", name=name, parent=parent, now=wire.now)
    wire.send(chat(ASK), headers={"x-agentserve-program-id": "lead"})
    helper = wire.send(chat(ASK), headers={"x-agentserve-program-id": "helper"})
    assert helper.name == "helper"
