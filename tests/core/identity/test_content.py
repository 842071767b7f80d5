"""Programs recognised by what was said: no header, no id, only traffic as real frameworks make it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from agentserve.core.identity import Resolver
from tests.core.identity.speech import ASK, TASK, Json, Wire, begin, chat, result


def test_an_agent_loop_is_one_program(wire: Wire) -> None:
    first, echo = begin(wire)
    history = [ASK, echo, result("call_1")]
    for step in range(1, 6):
        resolved = wire.send(chat(*history))
        assert (resolved.program_id, resolved.step_index) == (first.program_id, step)
        assert (resolved.relation, resolved.source, resolved.confidence) == (
            "continues",
            "content:reply",
            0.95,
        )
        [echo], _ = wire.answer(resolved, "chat", "", [(f"call_{step + 1}", "search", {"q": f"city {step}"})])
        history += [echo, result(f"call_{step + 1}", f"result {step}")]
    assert len(wire.resolver) == 1


def respelt(echo: Json) -> Json:
    """As LangChain, Haystack and others do: parse the arguments and write them again."""
    [call] = echo["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    call["function"]["arguments"] = json.dumps(dict(reversed(arguments.items())), separators=(",", ":"))
    return echo


def without_content(echo: Json) -> Json:
    del echo["content"]
    return echo


def with_thoughts(echo: Json) -> Json:
    return {
        **echo,
        "reasoning_content": "Let me think.",
        "reasoning": "Let me think.",
        "refusal": None,
        "audio": None,
    }


@pytest.mark.parametrize(
    "changed",
    [
        respelt,
        without_content,
        with_thoughts,
        lambda echo: {**echo, "content": ""},
        lambda echo: {**echo, "content": []},
        lambda echo: {**echo, "content": [{"type": "text", "text": ""}]},
        lambda echo: {**echo, "name": "researcher", "id": "msg_9", "status": "completed"},
        lambda echo: dict(reversed(echo.items())),
    ],
    ids=[
        "arguments respelt",
        "no content",
        "reasoning added",
        "empty string",
        "no parts",
        "empty part",
        "named",
        "order",
    ],
)
def test_an_echo_that_a_framework_changed_is_still_the_reply(wire: Wire, changed: Any) -> None:
    first, echo = begin(wire)
    second = wire.send(chat(ASK, changed(copy.deepcopy(echo)), result("call_1")))
    assert (second.program_id, second.source) == (first.program_id, "content:reply")


@pytest.mark.parametrize(
    "opening",
    [
        {"role": "user", "content": [{"type": "text", "text": TASK}]},
        {"role": "user", "content": [{"type": "text", "text": TASK[:9]}, {"type": "text", "text": TASK[9:]}]},
        {"role": "user", "content": [{"type": "text", "text": TASK, "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": f"{TASK}\n<total_tokens>123 tokens left</total_tokens>"},
        {"role": "user", "content": f" {TASK}\n"},
    ],
    ids=["parts", "split parts", "cache marker", "token count", "white space"],
)
def test_a_message_that_is_rendered_anew_is_the_same_message(wire: Wire, opening: Json) -> None:
    first, echo = begin(wire)
    second = wire.send(chat(opening, echo, result("call_1")))
    assert (second.program_id, second.source) == (first.program_id, "content:reply")


def test_system_text_tools_and_model_are_no_part_of_the_conversation(wire: Wire) -> None:
    first, echo = begin(wire)
    body = chat(ASK, echo, result("call_1"), system="You research. It is Tuesday.", tools=False)
    body["messages"].append({"role": "system", "content": "One more rule in the middle of it."})
    second = wire.send({**body, "model": "another"})
    assert (second.program_id, second.relation) == (first.program_id, "continues")


def test_thoughts_inside_the_text_may_be_kept_or_dropped(wire: Wire) -> None:
    first = wire.send(chat(ASK))
    wire.answer(first, "chat", "<think>Well, let me see.</think>\n\nIt is Berlin.")
    more = {"role": "user", "content": "And the second?"}
    stripped = wire.send(chat(ASK, {"role": "assistant", "content": "It is Berlin."}, more))
    assert (stripped.program_id, stripped.source, stripped.human, stripped.turn) == (
        first.program_id, "content:reply", True, 1,
    )  # fmt: skip


def test_identical_concurrent_openers_are_two_programs_and_stay_apart(wire: Wire) -> None:
    (one, echo1), (two, echo2) = begin(wire, "call_a"), begin(wire, "call_b")
    assert one.program_id != two.program_id
    two2 = wire.send(chat(ASK, echo2, result("call_b")))
    one2 = wire.send(chat(ASK, echo1, result("call_a")))
    assert (one2.program_id, two2.program_id) == (one.program_id, two.program_id)


def test_twins_that_never_diverge_keep_their_number_and_their_steps(wire: Wire) -> None:
    """Temperature zero and ids that count from nought: nothing tells them apart, and yet each has its own steps."""
    openers = [wire.send(chat(ASK)) for _ in range(5)]
    assert len({r.program_id for r in openers}) == 5
    history, current = [ASK], openers
    for step in range(1, 4):
        for resolved in current:
            [echo], _ = wire.answer(resolved, "chat", "", [("call_0", "search", {"q": str(step)})])
        history += [echo, result("call_0", f"result {step}")]
        current = [wire.send(chat(*history)) for _ in range(5)]
        assert {r.program_id for r in current} == {r.program_id for r in openers}
        assert all((r.step_index, r.relation) == (step, "continues") for r in current)


def test_a_slow_twin_is_not_taken_for_a_retry_of_the_fast_one(wire: Wire) -> None:
    one, two = wire.send(chat(ASK)), wire.send(chat(ASK))
    [echo], _ = wire.answer(one, "chat", "", [("call_0", "search", {"q": "x"})])
    wire.answer(two, "chat", "", [("call_0", "search", {"q": "x"})])
    history = [ASK, echo, result("call_0")]
    fast = wire.send(chat(*history))
    [echo2], _ = wire.answer(fast, "chat", "", [("call_0", "search", {"q": "y"})])
    fast2 = wire.send(chat(*history, echo2, result("call_0", "more")))
    slow = wire.send(chat(*history))
    assert fast2.program_id == fast.program_id
    assert slow.program_id != fast.program_id
    assert {fast.program_id, slow.program_id} == {one.program_id, two.program_id}


def test_equal_programs_one_after_the_other_are_two(wire: Wire) -> None:
    first, _ = begin(wire)
    again, _ = begin(wire)
    assert again.relation == "new"
    assert again.program_id != first.program_id


def test_a_retry_is_the_same_step(wire: Wire) -> None:
    first = wire.send(chat(ASK))
    wire.fail(first)
    again = wire.send(chat(ASK))
    assert (again.program_id, again.relation, again.step_index) == (first.program_id, "retry", 0)
    [echo], _ = wire.answer(again, "chat", "", [("call_1", "search", {"q": "x"})])
    second = wire.send(chat(ASK, echo, result("call_1")))
    hurried = wire.send(chat(ASK, echo, result("call_1")), headers={"x-stainless-retry-count": "1"})
    assert (hurried.program_id, hurried.relation, hurried.step_index) == (first.program_id, "retry", 1)
    wire.fail(second)  # the first try ends, and the second is still in flight
    wire.answer(hurried, "chat", "Berlin.")
    assert len(wire.resolver) == 1


def test_a_step_made_anew_is_no_new_step(wire: Wire) -> None:
    first, echo = begin(wire)
    second = wire.send(chat(ASK, echo, result("call_1")))
    wire.answer(second, "chat", "Berlin.")
    regenerated = wire.send(chat(ASK, echo, result("call_1")))
    assert (regenerated.program_id, regenerated.relation, regenerated.step_index) == (
        first.program_id,
        "retry",
        1,
    )


def test_several_samples_of_one_step_are_one_program(wire: Wire) -> None:
    first, echo = begin(wire)
    samples = [wire.send(chat(ASK, echo, result("call_1"))) for _ in range(3)]
    assert {s.program_id for s in samples} == {first.program_id}
    assert [s.relation for s in samples] == ["continues", "fork", "fork"]


def test_going_back_to_an_earlier_message_is_a_fork_of_the_program(wire: Wire) -> None:
    first = wire.send(chat(ASK))
    [echo], _ = wire.answer(first, "chat", "Berlin, Hamburg and Munich.")
    wire.answer(
        wire.send(chat(ASK, echo, {"role": "user", "content": "And their mayors?"})), "chat", "I do not know."
    )
    other = wire.send(chat(ASK, echo, {"role": "user", "content": "And their rivers?"}))
    assert (other.program_id, other.relation) == (first.program_id, "fork")


def test_ids_that_begin_anew_each_turn_are_each_turns_own(wire: Wire) -> None:
    first, echo = begin(wire, "functions.search:0")
    other, echo_b = begin(wire, "functions.search:0")
    history = [ASK, echo, result("functions.search:0", "one")]
    second = wire.send(chat(*history))
    assert second.returns == ("functions.search:0",)
    [echo2], _ = wire.answer(second, "chat", "", [("functions.search:0", "search", {"q": "y"})])
    third = wire.send(chat(*history, echo2, result("functions.search:0", "two")))
    assert (third.program_id, third.returns) == (second.program_id, ("functions.search:0",))
    b2 = wire.send(chat(ASK, echo_b, result("functions.search:0", "other")))
    assert {second.program_id, b2.program_id} == {first.program_id, other.program_id}


def test_an_agent_whose_tools_speak_as_the_user_is_one_program_with_one_tool(wire: Wire) -> None:
    """smolagents: the reply comes back as other text, and results as a user's words."""
    first = wire.send(chat(ASK))
    wire.answer(first, "chat", "I will search.", [("call_1", "search", {"q": "x"})])
    flat = {"role": "assistant", "content": "I will search.\nCalling tools:\n[{'name': 'search'}]"}
    seen = {"role": "user", "content": "Observation:\nBerlin, Hamburg, Munich"}
    second = wire.send(chat(ASK, flat, seen))
    assert (second.program_id, second.source, second.human) == (first.program_id, "content:request", False)
    assert second.returns == ("call_1",)  # no id came with it, but this is what the program waited for
    _, outcome = wire.answer(second, "chat", "", [("call_2", "final_answer", {"answer": "Berlin"})])
    assert outcome.final


def test_results_without_ids_are_those_that_the_step_before_had_asked_for(wire: Wire) -> None:
    first = wire.send(chat(ASK))
    [echo], outcome = wire.answer(first, "chat", "", [("", "search", {"q": "x"}), ("", "search", {"q": "y"})])
    assert [tool.id for tool in outcome.tools] == ["search:0", "search:1"]
    nameless = {"role": "tool", "content": "Berlin"}
    second = wire.send(chat(ASK, echo, nameless, nameless))
    assert (second.relation, second.returns) == ("continues", ("search:0", "search:1"))
    [echo2], _ = wire.answer(second, "chat", "", [("call_2", "search", {"q": "z"})])
    denied = {"role": "user", "content": "No, do not search for that."}
    third = wire.send(chat(ASK, echo, nameless, nameless, echo2, denied))
    assert third.returns == ("call_2",)
    [echo3], _ = wire.answer(third, "chat", "As you wish.")
    more = {"role": "user", "content": "Tell me what you know."}
    assert wire.send(chat(ASK, echo, nameless, nameless, echo2, denied, echo3, more)).human


def test_text_tool_agents_get_one_tool_without_a_name(wire: Wire) -> None:
    first = wire.send(chat(ASK, tools=False))
    [echo], outcome = wire.answer(first, "chat", "```bash\nls\n```")
    assert outcome.turn_done
    seen = {"role": "user", "content": "<returncode>0</returncode><output>README</output>"}
    second = wire.send(chat(ASK, echo, seen, tools=False))
    assert (second.human, second.turn) == (False, 0)
    [echo2], outcome = wire.answer(second, "chat", "```bash\ncat README\n```")
    assert not outcome.turn_done
    assert [tool.name for tool in outcome.tools] == ["text"]
    third = wire.send(chat(ASK, echo, seen, echo2, {**seen, "content": seen["content"] + " "}, tools=False))
    assert third.returns == ("text",)


def test_a_turn_that_is_done_is_not_the_end(wire: Wire) -> None:
    first = wire.send(chat(ASK))
    [echo], outcome = wire.answer(first, "chat", "Berlin, Hamburg, Munich.")
    assert (outcome.turn_done, outcome.ended) == (True, False)
    second = wire.send(chat(ASK, echo, {"role": "user", "content": "And the fourth?"}))
    assert (second.program_id, second.human, second.turn) == (first.program_id, True, 1)


def test_responses_turns_that_send_only_what_is_new_are_one_program(wire: Wire) -> None:
    tools = [{"type": "function", "name": "search", "parameters": {}}]
    body: Json = {"model": "m", "instructions": "You research.", "input": TASK, "tools": tools}
    first = wire.send(body, path="/v1/responses")
    wire.answer(first, "responses", "", [("call_1", "search", {"q": "x"})])
    output = {"type": "function_call_output", "call_id": "call_1", "output": "Berlin"}
    second = wire.send({**body, "input": [output], "previous_response_id": "resp_0"}, path="/v1/responses")
    assert (second.program_id, second.relation, second.returns) == (
        first.program_id,
        "continues",
        ("call_1",),
    )
    wire.answer(second, "responses", "Berlin.")
    more = [{"role": "user", "content": "And then?"}]
    third = wire.send({**body, "input": more, "previous_response_id": "resp_1"}, path="/v1/responses")
    assert (third.program_id, third.step_index, third.human) == (first.program_id, 2, True)
    branch = wire.send({**body, "input": more, "previous_response_id": "resp_0"}, path="/v1/responses")
    assert (branch.program_id, branch.relation) == (first.program_id, "fork")
    foreign = wire.send(
        {**body, "input": more, "previous_response_id": "resp_0"}, path="/v1/responses", tenant="other"
    )
    assert foreign.program_id != first.program_id


def test_a_conversation_that_is_kept_on_the_server_goes_on(wire: Wire) -> None:
    body: Json = {"model": "m", "input": TASK, "conversation": {"id": "conv_7"}}
    first = wire.send(body, path="/v1/responses")
    wire.answer(first, "responses", "Berlin.")
    second = wire.send({**body, "input": "And the second?"}, path="/v1/responses")
    assert (second.name, second.relation, second.step_index) == ("conv_7", "continues", 1)


def test_a_bare_prompt_that_grows_is_one_program(wire: Wire) -> None:
    prompt = "Question: which city is the largest?\nThought: I should look.\nAction: search\nObservation:"
    first = wire.send({"model": "m", "prompt": prompt}, path="/v1/completions")
    wire.resolver.replied(first, _bare_reply(), wire.now)
    second = wire.send(
        {"model": "m", "prompt": f"{prompt} Berlin\nThought: done.\nAnswer:"}, path="/v1/completions"
    )
    assert (second.program_id, second.relation) == (first.program_id, "continues")
    ids = list(range(200))
    third = wire.send({"model": "m", "prompt": ids}, path="/v1/completions")
    wire.resolver.replied(third, _bare_reply(), wire.now)
    fourth = wire.send({"model": "m", "prompt": ids + list(range(500, 600))}, path="/v1/completions")
    assert fourth.program_id == third.program_id


def _bare_reply() -> Any:
    from agentserve.core.identity import ReplyEvidence

    return ReplyEvidence(finish="stop")


def test_embeddings_are_programs_of_their_own_unless_they_are_named(wire: Wire) -> None:
    body: Json = {"model": "e", "input": ["some text", "more"]}
    assert wire.send(body, path="/v1/embeddings").relation == "new"
    named = {"x-agentserve-program-id": "run-1"}
    first = wire.send(chat(ASK), headers=named)
    aside = wire.send(body, path="/v1/embeddings", headers=named)
    assert (aside.program_id, aside.relation) == (first.program_id, "auxiliary")


def test_no_words_of_a_prompt_are_kept(wire: Wire) -> None:
    secret = "the vault opens at seventeen past nine with the brass key of the harbour master"
    ask = {"role": "user", "content": secret}
    first = wire.send(chat(ask, system=f"System: {secret}"), headers={"authorization": f"Bearer {secret}"})
    wire.answer(first, "chat", f"Echo: {secret}", [("call_1", "consult", {"question": secret})])
    record = wire.resolver.record(first.program_id)
    assert b"call_1" in record
    for word in ("vault", "seventeen", "brass"):
        assert word.encode() not in record
        assert word not in repr(first)
    call = wire.reader.read("/v1/chat/completions", {"authorization": secret}, chat(ask, system=secret))
    assert "vault" not in repr(call)


def test_after_a_restart_a_running_agents_next_call_is_the_same_program(wire: Wire) -> None:
    asked = "Read the minutes of the city council and find out who voted against the tunnel, and why."
    first, echo = begin(wire)
    parent = wire.send(chat(ASK))
    wire.answer(parent, "chat", "", [("call_0", "ask_researcher", {"prompt": asked, "depth": 2})])
    flying = wire.send(
        chat({"role": "user", "content": "An answer to this was on its way, when it happened."})
    )
    records = wire.resolver.snapshot()
    wire.resolver = Resolver()
    assert wire.resolver.restore([*records, b"\xc1", records[0][:-2]]) == 3
    wire.resolver.check()
    second = wire.send(chat(ASK, echo, result("call_1")))
    assert (second.program_id, second.step_index, second.returns) == (first.program_id, 1, ("call_1",))
    child = wire.send(chat({"role": "user", "content": asked}, system="You read."))
    assert child.parent_id == parent.program_id
    again = wire.send(
        chat({"role": "user", "content": "An answer to this was on its way, when it happened."})
    )
    assert (again.program_id, again.relation) == (flying.program_id, "retry")
    assert wire.resolver.record(first.program_id) is not None
    assert wire.resolver.restore(records) == 0
