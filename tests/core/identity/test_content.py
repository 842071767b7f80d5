"""Programs recognised by what was said: no header, no id, only traffic as real frameworks make it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from agentserve.core.identity import Resolver

Wire = Any
Json = dict[str, Any]

TASK = "Please find the three largest cities of the country and compare them."
ASK = {"role": "user", "content": TASK}
TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]


def chat(*messages: Json, system: str | None = "You research.", tools: bool = True, **extra: Any) -> Json:
    head = [{"role": "system", "content": system}] if system is not None else []
    body: Json = {"model": "m", "messages": [*head, *messages], **extra}
    return {**body, "tools": TOOLS} if tools else body


def result(call_id: str, content: Any = "Berlin, Hamburg, Munich") -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def begin(wire: Wire, call_id: str = "call_1", **extra: Any) -> tuple[Any, Json]:
    first = wire.send(chat(ASK, **extra))
    [echo], _ = wire.answer(first, "chat", "", [(call_id, "search", {"q": "largest cities", "limit": 3})])
    return first, echo


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


def test_a_title_for_the_same_words_is_auxiliary_and_changes_nothing(wire: Wire) -> None:
    first = wire.send(chat(ASK))
    title = wire.send(chat(ASK, system="Write a title.", tools=False))
    assert (title.program_id, title.relation) == (first.program_id, "auxiliary")
    wire.answer(title, "chat", "Three cities")
    [echo], _ = wire.answer(first, "chat", "", [("call_1", "search", {"q": "x"})])
    second = wire.send(chat(ASK, echo, result("call_1")))
    assert (second.program_id, second.step_index) == (first.program_id, 1)


def test_a_short_greeting_from_another_person_is_another_program(wire: Wire) -> None:
    hello = {"role": "user", "content": "hi"}
    assert wire.send(chat(hello)).program_id != wire.send(chat(hello, system="You help Ann.")).program_id
    ann, ben = (wire.send(chat(ASK, user=who, system=f"You help {who}.")) for who in ("ann", "ben"))
    assert ann.program_id != ben.program_id


def test_a_fan_out_over_one_history_is_one_program_with_parallel_steps(wire: Wire) -> None:
    plan = wire.send(chat(ASK, system="You plan.", tools=False))
    [echo], _ = wire.answer(plan, "chat", "1. sizes 2. rivers")
    left = wire.send(chat(ASK, echo, system="You do sizes.", tools=False))
    right = wire.send(chat(ASK, echo, system="You do rivers.", tools=False))
    [a], _ = wire.answer(right, "chat", "The rivers are Spree, Elbe and Isar.")
    [b], _ = wire.answer(left, "chat", "Berlin is the largest.")
    gather = wire.send(chat(ASK, echo, b, a, system="You gather.", tools=False))
    assert {left.program_id, right.program_id, gather.program_id} == {plan.program_id}
    assert [left.step_index, right.step_index, gather.step_index] == [1, 2, 3]


def test_a_fan_out_from_the_start_is_one_program_even_beside_its_twin(wire: Wire) -> None:
    roles = ["You judge style.", "You judge facts.", "You judge tone."]
    one = [wire.send(chat(ASK, system=role, tools=False)) for role in roles]
    two = [wire.send(chat(ASK, system=role, tools=False)) for role in roles]
    assert len({r.program_id for r in one}) == 1
    assert len({r.program_id for r in two}) == 1
    assert one[0].program_id != two[0].program_id


def test_programs_that_are_told_their_task_in_the_system_text_stay_apart(wire: Wire) -> None:
    begin_with = {"role": "user", "content": "Please begin to work on the task that was described above."}
    agents = [
        wire.send(chat(begin_with, system=f"Your task: write about {animal}s.")) for animal in ("ox", "emu")
    ]
    texts = [
        wire.send(chat(begin_with, system=f"{name} " * 2_000, tools=False)) for name in ("alpha", "beta")
    ]
    assert len({r.program_id for r in agents + texts}) == 4


def test_a_pipeline_whose_stages_only_quote_each_other_is_one_program(wire: Wire) -> None:
    outline = (
        "First the harbour and its cranes, then the old warehouses, then the tunnel, and at last the fish."
    )
    one = wire.send(chat(ASK, system="You outline.", tools=False))
    wire.answer(one, "chat", outline)
    prompt = f"Write the report that follows this outline:\n\n{outline}\n\nUse plain words."
    two = wire.send(chat({"role": "user", "content": prompt}, system="You write.", tools=False))
    assert (two.program_id, two.source, two.step_index) == (one.program_id, "content:quoted-reply", 1)
    beside = wire.send(chat({"role": "user", "content": f"Count the words of this: {outline}"}, tools=False))
    assert (beside.program_id, beside.relation) == (one.program_id, "fork")
    stranger = wire.send(
        chat({"role": "user", "content": "Write about the mountains, and use plain words please."})
    )
    assert stranger.program_id != one.program_id


def test_a_short_reply_is_found_only_as_a_whole(wire: Wire) -> None:
    one = wire.send(chat(ASK, tools=False))
    wire.answer(one, "chat", "The ferry leaves the northern pier at noon.")
    whole = {"role": "user", "content": "Check this: The ferry leaves the northern pier at noon. Is it so?"}
    part = {"role": "user", "content": "We know that the ferry leaves the northern shore in the evening."}
    assert wire.send(chat(part, system="You check.", tools=False)).program_id != one.program_id
    assert wire.send(chat(whole, system="You check.", tools=False)).program_id == one.program_id


def test_an_agent_that_writes_all_into_one_growing_message_is_one_program(wire: Wire) -> None:
    """As DSPy does: every call is one user message with the whole trajectory in it, under the same system text."""

    def prompt(question: str, *trajectory: str) -> Json:
        words = "\n".join(
            ["## question", question, "## trajectory", *trajectory, "Respond with thought and tool."]
        )
        return chat({"role": "user", "content": words}, system="You react.", tools=False)

    question, other = (
        "Which of the three harbours is the largest?",
        "Who was the harbour master in that year?",
    )
    runs = {q: wire.send(prompt(q)) for q in (question, other)}
    trajectory: dict[str, list[str]] = {question: [], other: []}
    for step in range(1, 4):
        for q, resolved in list(runs.items()):
            thought = f"Step {step}: I should look into this matter of {q[:22]}"
            wire.answer(resolved, "chat", f"## thought\n{thought}\n## tool\nsearch\n## args\n{{}}")
            trajectory[q] += [
                f"## thought_{step}",
                thought,
                f"## tool_{step}",
                "search",
                f"## seen_{step}",
                "nothing",
            ]
        for q, resolved in list(runs.items()):
            runs[q] = wire.send(prompt(q, *trajectory[q]))
            assert (runs[q].program_id, runs[q].step_index) == (resolved.program_id, step)
    assert runs[question].program_id != runs[other].program_id
    assert wire.send(prompt(question)).relation == "new"


def test_stages_of_equal_pipelines_are_spread_over_them(wire: Wire) -> None:
    """Equal programs with equal replies: each gets each stage once, and the newest comes first."""
    said = "The ferry leaves the northern pier at noon."
    lots = [wire.send(chat(ASK, system="You plan.", tools=False)) for _ in range(3)]
    for resolved in lots:
        wire.answer(resolved, "chat", said)
    for stage in ("style", "facts"):
        words = {"role": "user", "content": f"Check the {stage} of this: {said}"}
        stages = [wire.send(chat(words, system="You check.", tools=False)) for _ in range(3)]
        assert {r.program_id for r in stages} == {r.program_id for r in lots}


def test_a_phrase_that_many_replies_share_leads_nowhere(wire: Wire) -> None:
    phrase = "please let me know if there is anything else that I can do for you today"
    for at in range(8):
        one = wire.send(
            chat({"role": "user", "content": f"Question number {at} of a long list"}, tools=False)
        )
        wire.answer(
            one,
            "chat",
            f"Answer {at}: {'so ' * at} it is {at * 7}, and with that {phrase}, dear {at} friend of ours.",
        )
    echo = {"role": "user", "content": f"Rewrite this sentence for me in a nicer way: {phrase}"}
    assert wire.send(chat(echo, tools=False)).relation == "new"


PROMPT_A = "Look through the harbour records of the last ten years and list every crane that was replaced."
PROMPT_B = "Read the minutes of the city council and find out who voted against the tunnel, and why."


def spawn(wire: Wire, *prompts: str, tool: str = "ask_researcher") -> tuple[Any, Json]:
    first = wire.send(chat(ASK))
    calls = [(f"call_{at}", tool, {"prompt": prompt, "depth": 2}) for at, prompt in enumerate(prompts)]
    [echo], _ = wire.answer(first, "chat", "", calls)
    return first, echo


def test_a_sub_agent_opens_with_what_its_parent_asked(wire: Wire) -> None:
    parent, echo = spawn(wire, PROMPT_A, PROMPT_B)
    asked = {"role": "user", "content": f"Context: a report on cities.\n\n{PROMPT_B}\n\nAnswer briefly."}
    child_b = wire.send(chat(asked, system="You read."))
    child_a = wire.send(chat({"role": "user", "content": PROMPT_A}, system="You read."))
    assert child_a.relation == child_b.relation == "subagent"
    assert child_a.parent_id == child_b.parent_id == parent.program_id
    assert child_a.program_id != child_b.program_id
    _, outcome = wire.answer(child_a, "chat", "Seven cranes.")
    assert outcome.ended  # a child that asks for nothing more
    back = wire.send(chat(ASK, echo, result("call_0"), result("call_1")))
    assert (back.program_id, back.relation, back.returns) == (
        parent.program_id,
        "continues",
        ("call_0", "call_1"),
    )
    [more], _ = wire.answer(child_b, "chat", "", [("call_9", "search", {"q": "minutes"})])
    on = wire.send(chat(asked, more, result("call_9"), system="You read."))
    assert on.program_id == child_b.program_id  # it was not closed when its parent went on


def test_an_agent_that_starts_after_its_call_was_answered_is_still_a_child(wire: Wire) -> None:
    parent, echo = spawn(wire, PROMPT_A, tool="Task")
    wire.send(chat(ASK, echo, result("call_0", "Agent started.")))
    child = wire.send(chat({"role": "user", "content": PROMPT_A}, system="You read."))
    assert (child.relation, child.parent_id) == ("subagent", parent.program_id)


def test_siblings_that_were_asked_the_same_are_two_children(wire: Wire) -> None:
    parent, _ = spawn(wire, PROMPT_A, PROMPT_A)
    one, two = (wire.send(chat({"role": "user", "content": PROMPT_A}, system="You read.")) for _ in range(2))
    assert one.program_id != two.program_id
    assert one.parent_id == two.parent_id == parent.program_id


def test_asking_a_tool_the_users_own_words_makes_no_child_of_a_twin(wire: Wire) -> None:
    first = wire.send(chat(ASK))
    wire.answer(first, "chat", "", [("call_1", "search", {"q": TASK})])
    twin = wire.send(chat(ASK))
    assert (twin.relation, twin.parent_id) == ("new", None)


def test_compaction_keeps_the_program_and_opens_a_new_window(wire: Wire) -> None:
    first, echo = begin(wire)
    history = [ASK, echo, result("call_1")]
    second = wire.send(chat(*history))
    [echo2], _ = wire.answer(second, "chat", "", [("call_2", "search", {"q": "y"})])
    summing = wire.send(
        chat(*history, echo2, result("call_2"), {"role": "user", "content": "Sum up."}, tools=False)
    )
    assert (summing.program_id, summing.window) == (first.program_id, 0)
    summary = "We looked for the largest cities and found Berlin, Hamburg and Munich; their rivers are still missing."
    wire.answer(summing, "chat", summary)
    after = wire.send(
        chat({"role": "user", "content": f"This session goes on from an earlier one.\n{summary}\nGo on."})
    )
    assert (after.program_id, after.relation, after.window) == (first.program_id, "compaction", 1)
    [echo3], _ = wire.answer(after, "chat", "", [("call_3", "search", {"q": "rivers"})])
    body = chat({"role": "user", "content": f"This session goes on from an earlier one.\n{summary}\nGo on."}, echo3,
                result("call_3"))  # fmt: skip
    on = wire.send(body)
    assert (on.program_id, on.relation, on.window) == (first.program_id, "continues", 1)


@pytest.mark.parametrize("headers", [{}, {"x-session-id": "s-1"}], ids=["by content", "by name"])
def test_a_context_of_which_only_the_opening_is_kept_was_compacted(
    wire: Wire, headers: dict[str, str]
) -> None:
    history = [ASK]
    for step in range(4):
        resolved = wire.send(chat(*history), headers=headers)
        [echo], _ = wire.answer(
            resolved, "chat", f"These are the rivers and bridges of city number {step}, as far as known."
        )
        history += [echo, {"role": "user", "content": f"And the next one, {step}?"}]
    summary = f"Summary of what was said:\n{history[-2]['content']}"
    cut = [ASK, {"role": "user", "content": summary}, {"role": "user", "content": "And the last one?"}]
    after = wire.send(chat(*cut), headers=headers)
    assert (after.program_id, after.relation, after.window) == (resolved.program_id, "compaction", 1)


def test_a_history_that_was_pruned_is_found_by_the_results_it_brings(wire: Wire) -> None:
    first, echo = begin(wire, "call_9f3a77c1")
    second = wire.send(chat(ASK, echo, result("call_9f3a77c1", "a very long result")))
    [echo2], _ = wire.answer(second, "chat", "", [("call_5b21d0e4", "search", {"q": "y"})])
    pruned = wire.send(chat(ASK, echo, result("call_9f3a77c1", "[cleared]"), echo2, result("call_5b21d0e4")))
    assert (pruned.program_id, pruned.relation) == (first.program_id, "continues")
    assert pruned.returns == ("call_5b21d0e4",)


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
    first, echo = begin(wire)
    parent, _ = spawn(wire, PROMPT_A)
    flying = wire.send(
        chat({"role": "user", "content": "An answer to this was on its way, when it happened."})
    )
    records = wire.resolver.snapshot()
    wire.resolver = Resolver()
    assert wire.resolver.restore([*records, b"\xc1", records[0][:-2]]) == 3
    wire.resolver.check()
    second = wire.send(chat(ASK, echo, result("call_1")))
    assert (second.program_id, second.step_index, second.returns) == (first.program_id, 1, ("call_1",))
    child = wire.send(chat({"role": "user", "content": PROMPT_A}, system="You read."))
    assert child.parent_id == parent.program_id
    again = wire.send(
        chat({"role": "user", "content": "An answer to this was on its way, when it happened."})
    )
    assert (again.program_id, again.relation) == (flying.program_id, "retry")
    assert wire.resolver.record(first.program_id) is not None
    assert wire.resolver.restore(records) == 0
