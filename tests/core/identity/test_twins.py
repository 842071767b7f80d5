"""Conversations that stand at the same words: each call goes to the one that waits for it."""

from __future__ import annotations

import pytest

from agentserve.core.identity import Resolver
from agentserve.core.identity.matching import CANDIDATES_MAX
from tests.core.identity.speech import ASK, Json, Wire, chat, result, user


def twins(wire: Wire, count: int) -> list[tuple[str, Json]]:
    """Programs that asked the same and were answered the same, but for the ids of their calls."""
    asked = [wire.send(chat(ASK)) for _ in range(count)]
    made = []
    for at, resolved in enumerate(asked):
        [echo], _ = wire.answer(resolved, "chat", "", [(f"call_{at}", "search", {"q": "cities"})])
        made.append((resolved.program_id, echo))
    assert len({program for program, _ in made}) == count
    return made


def test_a_result_goes_to_the_twin_that_asked_for_it(wire: Wire) -> None:
    made = twins(wire, 4)
    for at in (2, 0, 3, 1):
        program, echo = made[at]
        back = wire.send(chat(ASK, echo, result(f"call_{at}")))
        assert (back.program_id, back.relation) == (program, "continues"), at


def test_a_result_goes_to_who_asked_although_another_role_brings_it(wire: Wire) -> None:
    made = twins(wire, 3)
    program, echo = made[1]
    back = wire.send(chat(ASK, echo, result("call_1"), system="You only read."))
    assert back.program_id == program


def test_of_twins_that_wait_for_nothing_the_one_of_the_same_role_goes_on(wire: Wire) -> None:
    systems = ("You plan with great care.", "You write what was planned.")
    words = user("Please write the report about the three largest cities of the country.")
    first = [wire.send(chat(words, system=system)) for system in systems]
    echoes = [wire.answer(resolved, "chat", "Done.")[0][0] for resolved in first]
    assert first[0].program_id != first[1].program_id
    for at in (1, 0):
        back = wire.send(chat(words, echoes[at], user("Go on."), system=systems[at]))
        assert back.program_id == first[at].program_id


@pytest.mark.parametrize("restarted", [False, True])
def test_what_a_person_adds_later_goes_to_the_twin_whose_results_stand_above_it(
    wire: Wire, restarted: bool
) -> None:
    """All words are the same by then; the ids of the calls that were answered are not."""
    said: list[tuple[str, Json, Json]] = []
    for at, (program, echo) in enumerate(twins(wire, 4)):
        back = wire.send(chat(ASK, echo, result(f"call_{at}")))
        [more], _ = wire.answer(back, "chat", "Berlin is the largest.")
        said.append((program, echo, more))
    if restarted:
        kept, wire.resolver = wire.resolver.snapshot(), Resolver()
        assert wire.resolver.restore(kept) == 4
    for at in (2, 0, 3, 1):
        program, echo, more = said[at]
        on = wire.send(chat(ASK, echo, result(f"call_{at}"), more, user("Go on.")))
        assert (on.program_id, on.relation) == (program, "continues"), at


def test_results_told_as_text_go_to_the_twin_whose_calls_are_told_above_them(wire: Wire) -> None:
    """As smolagents does: neither its calls nor their results are sent as such."""
    made = twins(wire, 3)
    for at in (1, 2, 0):
        asked = {
            "id": f"call_{at}",
            "type": "function",
            "function": {"name": "search", "arguments": {"q": "cities"}},
        }
        told = {"role": "assistant", "content": [{"type": "text", "text": f"Calling tools:\n[{asked}]"}]}
        back = wire.send(chat(ASK, told, user("Observation:\nBerlin, Hamburg, Munich")))
        assert (back.program_id, back.returns) == (made[at][0], (f"call_{at}",)), at


def test_a_failed_step_is_tried_again_for_the_twin_whose_results_it_brings(wire: Wire) -> None:
    made = twins(wire, 3)
    for at in range(3):
        wire.fail(wire.send(chat(ASK, made[at][1], result(f"call_{at}"))))
    for at in (1, 2, 0):
        again = wire.send(chat(ASK, made[at][1], result(f"call_{at}")))
        assert (again.program_id, again.relation) == (made[at][0], "retry"), at


def test_a_result_goes_to_who_asked_although_a_twin_failed_with_the_same_words(wire: Wire) -> None:
    made = twins(wire, 2)
    wire.fail(wire.send(chat(ASK, made[0][1], result("call_0"))))
    back = wire.send(chat(ASK, made[1][1], result("call_1")))
    assert (back.program_id, back.relation) == (made[1][0], "continues")


def test_twins_that_forget_how_they_began_stay_apart_by_their_results(wire: Wire) -> None:
    """Only the last call and its result are sent: the other's same words were sent before."""
    made = twins(wire, 3)
    for turn in range(4):
        for at, (program, echo) in enumerate(made):
            back = wire.send(chat(echo, result(f"call_{at + 10 * turn}")))
            assert (back.program_id, back.step_index) == (program, turn + 1), (turn, at)
            [more], _ = wire.answer(
                back, "chat", "", [(f"call_{at + 10 * (turn + 1)}", "search", {"q": f"city {turn}"})]
            )
            made[at] = (program, more)


def test_results_that_two_programs_wait_for_tell_nothing(wire: Wire) -> None:
    """Ids that an engine counts anew for each program: whose history was edited cannot be told by them."""
    one = wire.send(chat(user("Find the rivers of the country, please, and say how long each is.")))
    two = wire.send(chat(user("Find the lakes of the country, please, and say how deep each is.")))
    for resolved in (one, two):
        [echo], _ = wire.answer(resolved, "chat", "", [("call_0", "search", {"q": "water"})])
    edited = wire.send(chat(user("Find it."), echo, result("call_0")))
    assert edited.program_id not in (one.program_id, two.program_id)


def test_ids_that_an_engine_counts_anew_give_no_step_away_to_who_still_waits_for_such_a_one(
    wire: Wire,
) -> None:
    questions = [
        user(f"Find the {what} of the country, please, and say how large.") for what in ("rivers", "lakes")
    ]
    asked = [wire.send(chat(question)) for question in questions]
    echoes = [wire.answer(one, "chat", "", [("search:0", "search", {"q": "water"})])[0][0] for one in asked]
    mine = chat(questions[0], echoes[0], result("search:0"))
    failed = wire.send(mine)
    wire.fail(failed)
    again = wire.send(mine)
    assert (again.program_id, again.relation) == (asked[0].program_id, "retry")
    wire.answer(again, "chat", "The rivers are long.")
    edited = wire.send(chat(questions[0], {"role": "assistant", "content": "Hm."}, result("search:0")))
    assert edited.program_id == asked[0].program_id


def test_a_failed_twin_is_the_one_that_is_tried_again(wire: Wire) -> None:
    first, second, third = (wire.send(chat(ASK)) for _ in range(3))
    wire.fail(second)
    again = wire.send(chat(ASK))
    assert (again.program_id, again.relation) == (second.program_id, "retry")
    assert len({first.program_id, second.program_id, third.program_id}) == 3


def test_a_result_goes_to_who_asked_however_many_twins_stand_before_it(wire: Wire) -> None:
    made = twins(wire, CANDIDATES_MAX + 3)
    program, echo = made[-1]
    # its words, and those of all others; the role of none
    back = wire.send(chat(ASK, echo, result(f"call_{len(made) - 1}"), system="You only read."))
    assert (back.program_id, back.relation) == (program, "continues")


def test_a_named_call_never_goes_to_a_twin_under_another_name(wire: Wire) -> None:
    """Ids that are counted anew: the other one waits for a result of this id, and the call brings one."""
    names = [{"x-agentserve-program-id": name} for name in ("one", "two")]
    first = [wire.send(chat(ASK), headers=name) for name in (names[0], *names)]
    echoes = [wire.answer(r, "chat", "", [("call_0", "search", {"q": "cities"})])[0][0] for r in first]
    for at in (0, 1):  # both samples of the first
        back = wire.send(chat(ASK, echoes[at], result("call_0")), headers=names[0])
        assert (back.name, back.relation) == ("one", "continues")
    again = [wire.send(chat(ASK), headers=name) for name in reversed(names)]
    assert [r.name for r in again] == ["two", "one"]
    for resolved in again:
        wire.fail(resolved)
    assert [wire.send(chat(ASK), headers=name).name for name in names] == ["one", "two"]


def test_a_reply_that_comes_back_in_other_words_is_followed_from_the_request_before_it(wire: Wire) -> None:
    first = wire.send(chat(ASK, tools=False))
    wire.answer(first, "chat", "Berlin is the largest, then Hamburg, then Munich.")
    other = {"role": "assistant", "content": "Berlin, Hamburg, Munich."}
    back = wire.send(chat(ASK, other, user("And the smallest?"), tools=False))
    assert (back.program_id, back.relation, back.source) == (
        first.program_id,
        "continues",
        "content:request",
    )
