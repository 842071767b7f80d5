"""Clients that forget: only the last few messages are sent, and a call begins with what was in the middle before."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.identity.conftest import PATH_OF
from tests.core.identity.speech import Json, Wire, chat, user

SAID = "I looked around there and wrote down what I found."


class Forgetful:
    """An agent whose client sends the last messages only."""

    def __init__(self, wire: Wire, keeps: int, name: str = "one", protocol: Any = "chat") -> None:
        self.wire, self.keeps, self.name, self.protocol = wire, keeps, name, protocol
        self.history: list[Json] = []

    def asks(self, words: str | None = None, **extra: Any) -> Any:
        turn = len(self.history) // 2
        self.history.append(
            user(words or f"Now look at place {turn} for {self.name}, and say what is there.")
        )
        messages = self.history[-self.keeps :]
        if self.protocol == "messages":
            body = {"model": "m", "system": "You research.", "max_tokens": 9, "messages": messages}
            return self.wire.send(body, path=PATH_OF["messages"])
        return self.wire.send(chat(*messages, tools=False, **extra))

    def hears(self, resolved: Any, words: str = SAID) -> None:
        echo, _ = self.wire.answer(resolved, self.protocol, words)
        self.history += echo

    def goes(self, steps: int, words: str = SAID) -> list[Any]:
        made = []
        for _ in range(steps):
            made.append(self.asks())
            self.hears(made[-1], words)
        return made


@pytest.mark.parametrize("protocol", ["chat", "messages"])
@pytest.mark.parametrize("keeps", [3, 4, 5, 6, 7])
def test_a_conversation_whose_beginning_is_forgotten_stays_one_program(
    wire: Wire, keeps: int, protocol: str
) -> None:
    steps = Forgetful(wire, keeps, protocol=protocol).goes(9)
    assert {step.program_id for step in steps} == {steps[0].program_id}
    assert [step.step_index for step in steps] == [*range(9)]
    assert {step.relation for step in steps[1:]} == {"continues"}
    assert steps[-1].source == "content:last-words"


def test_a_history_that_is_cut_to_its_end_is_a_compaction(wire: Wire) -> None:
    agent = Forgetful(wire, 99)
    first = agent.goes(5)[0]
    agent.keeps = 4
    cut = agent.asks()
    assert (cut.program_id, cut.relation, cut.source) == (
        first.program_id,
        "compaction",
        "content:last-words",
    )


def test_agents_that_said_the_same_last_stay_apart(wire: Wire) -> None:
    agents = [Forgetful(wire, 4, name) for name in ("one", "two", "three")]
    steps = [[agent.goes(1)[0].program_id for agent in agents] for _ in range(6)]
    assert len(set(steps[0])) == 3
    assert steps == [steps[0]] * 6


def test_agents_that_were_asked_and_said_the_same_last_are_not_guessed(wire: Wire) -> None:
    one, two = (Forgetful(wire, 6, name) for name in ("one", "two"))
    programs = {one.goes(4)[0].program_id, two.goes(4)[0].program_id}
    for agent in (one, two):
        agent.hears(agent.asks("Go on with the next place, please."), "That place was empty.")
    either = [agent.asks("What is left to be seen?") for agent in (one, two)]
    assert not programs & {step.program_id for step in either}
    assert either[0].program_id != either[1].program_id
    for agent, step in zip((one, two), either, strict=True):
        agent.hears(step, f"Nothing is left for {agent.name}.")
        assert agent.asks().program_id == step.program_id, "told apart again by what they said since"


def test_the_same_last_words_are_another_program_in_another_role(wire: Wire) -> None:
    agent = Forgetful(wire, 4)
    mine = agent.goes(4)[0].program_id
    assert agent.asks(system="You write poems.").program_id != mine


def test_the_same_last_words_of_another_person_are_another_program(wire: Wire) -> None:
    agent = Forgetful(wire, 4)
    mine = agent.goes(4)[0].program_id
    assert agent.asks(user="somebody else").program_id != mine


def test_a_few_letters_are_nobodys_last_words(wire: Wire) -> None:
    agent = Forgetful(wire, 4)
    first = agent.asks("Find the first of the places that are to be found.")
    agent.hears(first, "yes")
    for _ in range(3):
        agent.hears(agent.asks("go on"), "ok")
    assert agent.asks("go on").program_id != first.program_id


def test_last_words_that_were_gone_on_from_lead_nowhere(wire: Wire) -> None:
    agent = Forgetful(wire, 4)
    mine = agent.goes(4)[0].program_id
    before = list(agent.history)
    assert agent.goes(1)[0].program_id == mine
    agent.history = before
    assert agent.asks("And now for something else entirely.").program_id != mine


def test_last_words_of_a_program_that_ended_lead_nowhere(wire: Wire) -> None:
    agent = Forgetful(wire, 4)
    mine = agent.goes(4)[0].program_id
    wire.resolver.ended(mine, wire.now)
    assert agent.asks().program_id != mine
