"""What agents of a plan say: lengths, shared beginnings, and what is kept from one prompt to the next."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import msgspec
import pytest
from agentserve_adapters.emulated.speech import speak
from agentserve_adapters.emulated.tokens import template

from agentserve.cli.conversation import TOOLS, Conversation, common_tokens, offered, text, turn
from agentserve.core.forecast.calls import classify
from agentserve.sim.programs import OWN_KEYS, ProgramPlan, Run, StepPlan, ToolPlan

BASH = ToolPlan(name="bash", argument_class="pytest", seconds=1.0)
RECORDED_MARKS_TOKENS_MAX = 60  # a recorded prompt's length holds the script and the tools
MARKS_TOKENS_MAX = 400  # scripts, tools and marks around the planned words of these small programs


def agent(own: int = OWN_KEYS, **first: Any) -> ProgramPlan:
    steps = (
        StepPlan(new_tokens=300, output_tokens=40, tools=(BASH,)),
        StepPlan(new_tokens=100, output_tokens=30, tools=(BASH, BASH), **first),
        StepPlan(new_tokens=50, output_tokens=20),
    )
    return ProgramPlan(id=f"p{own}", steps=steps, shared=(Run(1, 200),), own=own)


def replayed(*prompts: tuple[Run, ...]) -> ProgramPlan:
    steps = tuple(StepPlan(new_tokens=0, output_tokens=10, contents=p) for p in prompts)
    return ProgramPlan(id="r", steps=steps, own=OWN_KEYS, tools_offered=3)


def reply_of(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """What the emulated engine answers."""
    said = speak(b"seed", messages=messages, tools=TOOLS, tokens_max=4096)
    message: dict[str, Any] = {"role": "assistant", "content": said.text}
    if said.calls:
        message["tool_calls"] = list(said.calls)
    return message


def prompts(plan: ProgramPlan) -> list[list[dict[str, Any]]]:
    conversation = Conversation(plan)
    out = []
    for k in range(len(plan.steps)):
        messages = conversation.prompt(k)
        out.append(msgspec.json.decode(msgspec.json.encode(messages)))
        conversation.answered(k, reply_of(messages))
    return out


def test_more_words_of_a_key_begin_with_the_fewer() -> None:
    assert text(7, 90).startswith(text(7, 40))
    assert len(text(7, 90)) == 4 * 90
    assert text(7, 40) != text(8, 40)


def test_every_prompt_repeats_the_one_before_it_and_the_reply() -> None:
    seen = prompts(agent())
    for before, after in itertools.pairwise(seen):
        assert after[: len(before)] == before
        assert after[len(before)] == reply_of(before)


def test_prompts_have_the_planned_length() -> None:
    plan = agent()
    for planned, messages in zip(plan.prompts(), prompts(plan), strict=True):
        tokens = len(template(messages, None))
        assert planned <= tokens <= planned + MARKS_TOKENS_MAX


def test_parallel_calls_are_all_answered_and_share_what_came_back() -> None:
    last = prompts(agent())[2]
    calls = next(m for m in reversed(last) if m["role"] == "assistant")["tool_calls"]
    results = [m for m in last if m["role"] == "tool"][-2:]
    assert [c["id"] for c in calls] == [r["tool_call_id"] for r in results]
    assert sum(len(r["content"]) for r in results) == 4 * 50


def test_the_engine_calls_the_planned_tools_and_then_closes() -> None:
    seen = prompts(agent())
    assert [len(reply_of(m).get("tool_calls", ())) for m in seen] == [1, 2, 0]


def test_programs_share_their_system_prompt_and_nothing_else() -> None:
    one, other = (prompts(agent(OWN_KEYS + i))[0] for i in (0, 1))
    assert one[0] == other[0]
    assert one[1]["content"][:40] != other[1]["content"][:40]


def test_a_compaction_starts_a_new_conversation_under_the_same_system_prompt() -> None:
    plan = agent(compact_to=60)
    conversation = Conversation(plan)
    conversation.answered(0, reply_of(conversation.prompt(0)))
    messages = conversation.prompt(1)
    assert [m["role"] for m in messages] == ["system", "user"]
    assert conversation.kept_tokens == 200
    assert len(reply_of(messages)["tool_calls"]) == 2  # the script goes on where it was


def test_a_recorded_prompt_that_extends_the_last_continues_its_conversation() -> None:
    seen = prompts(replayed((Run(1, 400),), (Run(1, 600),)))
    assert seen[1][: len(seen[0])] == seen[0]
    assert [m["role"] for m in seen[1]] == ["system", "user", "assistant", "tool"]
    assert len(template(seen[1], TOOLS)) == pytest.approx(600, abs=RECORDED_MARKS_TOKENS_MAX)


def test_recorded_prompts_keep_their_lengths_where_a_reply_was_longer_than_what_came_of_it() -> None:
    # what was thought is no part of the next prompt: here it grows by less than the reply
    grown = itertools.accumulate([2000, 900, 5, 5, 900, 40, 900])
    plan = replayed(*((Run(1, tokens),) for tokens in grown))
    thought = dataclasses.replace(
        plan, steps=tuple(dataclasses.replace(s, output_tokens=100) for s in plan.steps)
    )
    seen = prompts(thought)
    assert len(template(seen[-1], TOOLS)) == pytest.approx(4750, abs=RECORDED_MARKS_TOKENS_MAX)


def test_where_no_tools_were_recorded_none_are_offered_and_words_are_said() -> None:
    plan = dataclasses.replace(replayed((Run(1, 400),), (Run(1, 600),)), tools_offered=0)
    assert offered(plan) == []
    assert turn(plan, 0) == {"text": text((OWN_KEYS * 1000) | 1 << 96, 10)}


def test_a_reply_that_starts_sub_agents_asks_for_each_of_them() -> None:
    lead = StepPlan(new_tokens=100, output_tokens=60, children=(1, 2))
    plan = ProgramPlan(id="lead", steps=(lead, StepPlan(new_tokens=9, output_tokens=9)), own=OWN_KEYS)
    calls = reply_of(prompts(plan)[0])["tool_calls"]
    kinds = [classify(c["function"]["name"], c["function"]["arguments"]).kind for c in calls]
    assert kinds == ["subagent", "subagent"]


def test_a_call_whose_class_is_not_planned_is_read_as_one_without() -> None:
    step = StepPlan(new_tokens=100, output_tokens=60, tools=(ToolPlan(name="tool"),))
    plan = ProgramPlan(id="p", steps=(step, StepPlan(new_tokens=9, output_tokens=9)), own=OWN_KEYS)
    (call,) = reply_of(prompts(plan)[0])["tool_calls"]
    assert classify("tool", call["function"]["arguments"]).argument_class == ""


def test_a_recorded_prompt_that_turns_off_early_keeps_the_messages_before_that_place() -> None:
    plan = replayed((Run(1, 400),), (Run(1, 900),), (Run(1, 420), Run(2, 300)))
    seen = prompts(plan)
    assert seen[2][:2] == seen[1][:2]
    assert [m["role"] for m in seen[2]] == ["system", "user", "user"]  # no call without its result


def test_recorded_prompts_without_a_common_beginning_are_conversations_of_their_own() -> None:
    seen = prompts(replayed((Run(1, 300), Run(50, 200)), (Run(2, 300), Run(51, 200))))
    assert text(2, 300).startswith(seen[1][0]["content"])
    assert len(seen[1]) == 2


def pipeline(*outputs: int, document: int = 500) -> ProgramPlan:
    """Fixed roles that hand a document on with all that was said of it."""
    steps = tuple(
        StepPlan(
            new_tokens=0,
            output_tokens=output,
            contents=(Run(k + 1, 400), Run(OWN_KEYS + k, document + sum(outputs[:k]))),
            handed=k > 0,
        )
        for k, output in enumerate(outputs)
    )
    return ProgramPlan(id="chain", steps=steps, own=OWN_KEYS)


def test_a_pipeline_hands_its_document_and_all_replies_on_behind_each_roles_own_prompt() -> None:
    plan = pipeline(60, 90, 40)
    seen = prompts(plan)
    replies = [reply_of(messages)["content"] for messages in seen]
    assert [len(r) for r in replies] == [4 * s.output_tokens for s in plan.steps]
    document = seen[0][1]["content"][: 4 * 480]
    for k, messages in enumerate(seen):
        assert [m["role"] for m in messages] == ["system", "user"]
        assert messages[0]["content"] == text(k + 1, 400)
        assert messages[1]["content"].startswith(document)
        assert all(reply in messages[1]["content"] for reply in replies[:k])
        planned = plan.prompts()[k]
        assert planned <= len(template(messages, None)) <= planned + MARKS_TOKENS_MAX


def test_where_replies_fill_all_that_a_role_is_planned_to_read_the_newest_words_are_handed_on() -> None:
    plan = pipeline(300, 300, document=200)
    conversation = Conversation(plan)
    conversation.prompt(0)
    conversation.answered(0, {"role": "assistant", "content": text(7, 600) + "the end"})
    words = conversation.prompt(1)[1]["content"].split("\nagentserve-script:")[0]
    assert len(words) == 4 * 500
    assert words.endswith("the end")


def test_common_beginnings_end_where_runs_differ_in_key_or_length() -> None:
    assert common_tokens((Run(1, 10), Run(2, 5)), (Run(1, 10), Run(2, 9))) == 15
    assert common_tokens((Run(1, 10), Run(2, 5)), (Run(1, 8), Run(2, 5))) == 8
    assert common_tokens((Run(1, 10),), (Run(3, 10),)) == 0
