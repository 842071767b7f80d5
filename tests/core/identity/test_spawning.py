"""Sub-agents, recognised by what their parents asked them."""

from __future__ import annotations

from typing import Any

from tests.core.identity.speech import ASK, TASK, Json, Wire, chat, result

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


def test_agents_that_were_asked_the_same_go_to_their_parents_in_the_order_of_asking(wire: Wire) -> None:
    parents = [spawn(wire, PROMPT_A)[0] for _ in range(3)]
    children = [wire.send(chat({"role": "user", "content": PROMPT_A}, system="You read.")) for _ in range(3)]
    assert [child.parent_id for child in children] == [parent.program_id for parent in parents]


def test_an_agent_goes_to_a_call_that_is_still_out_before_one_that_was_answered(wire: Wire) -> None:
    before, echo = spawn(wire, PROMPT_A, tool="Task")
    wire.send(chat(ASK, echo, result("call_0", "Read and done without asking a model.")))
    waiting, _ = spawn(wire, PROMPT_A, tool="Task")
    child = wire.send(chat({"role": "user", "content": PROMPT_A}, system="You read."))
    assert child.parent_id == waiting.program_id != before.program_id


def test_asking_a_tool_the_users_own_words_makes_no_child_of_a_twin(wire: Wire) -> None:
    first = wire.send(chat(ASK))
    wire.answer(first, "chat", "", [("call_1", "search", {"q": TASK})])
    twin = wire.send(chat(ASK))
    assert (twin.relation, twin.parent_id) == ("new", None)
