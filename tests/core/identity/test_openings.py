"""Calls that open with the same words: titles, parallel roles, and strangers."""

from __future__ import annotations

from tests.core.identity.speech import ASK, Wire, chat, result


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
