"""Steps that hold nothing of their program but what its model said before."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from agentserve.core.identity.quoting import HANDED_S
from tests.core.identity.speech import ASK, Json, Wire, chat, result, user


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


def test_what_gathers_the_replies_of_one_of_two_twins_goes_on_from_it(wire: Wire) -> None:
    """Asked the same at the same time, both say the same: each of the two unions is somebody's next step."""
    parts = {
        "history": "The harbour was dug when the old river had silted up for the third time.",
        "numbers": "Forty cranes lift nine thousand boxes on a day without any wind at all.",
        "people": "Most of the dockers live behind the second lock and walk to their work.",
    }
    twins = [wire.send(chat(ASK, system="You plan.", tools=False)) for _ in range(2)]
    for twin in twins:
        wire.answer(twin, "chat", "First its history, then the numbers, and last of all the people of it.")
    for part, text in parts.items():
        words = user(
            f"Plan: First its history, then the numbers, and last of all the people of it. Write {part}."
        )
        written = [wire.send(chat(words, system=f"You write on {part}.", tools=False)) for _ in range(2)]
        assert {r.program_id for r in written} == {t.program_id for t in twins}
        for resolved in written:
            wire.answer(resolved, "chat", text)
    union = user("Make one report of these:\n" + "\n".join(parts.values()))
    unions = [wire.send(chat(union, system="You edit.", tools=False)) for _ in range(2)]
    assert {r.program_id for r in unions} == {t.program_id for t in twins}


@pytest.mark.parametrize("tools", [False, True])
def test_a_teams_member_joins_the_run_whose_reply_it_is_shown(wire: Wire, tools: bool) -> None:
    """As in AutoGen's teams: the critic is given the question that all runs began with, and the writer's answer as
    another user's words."""
    said = ("The cranes at the northern pier are older than the town hall itself.",
            "Nobody has counted the boats at the southern pier since last autumn.",
            "A ferry calls at the western pier twice on every day but Sunday.")  # fmt: skip
    runs = []
    for at, words in enumerate(said):
        resolved, written = wire.send(chat(ASK, system="You write.")), [ASK]
        if tools:
            [echo], _ = wire.answer(resolved, "chat", "", [(f"call_{at}", "search", {"q": "piers"})])
            written += [echo, result(f"call_{at}")]
            resolved = wire.send(chat(*written, system="You write."))
        [echo], _ = wire.answer(resolved, "chat", words)
        runs.append((resolved.program_id, words, [*written, echo]))
    for program, words, written in reversed(runs):
        critic = wire.send(chat(ASK, user(words), system="You criticise.", tools=False))
        assert (critic.program_id, critic.relation) == (program, "continues")
        wire.answer(critic, "chat", f"Say more of it than this: {words}")
        better = wire.send(chat(*written, user(f"Say more of it than this: {words}"), system="You write."))
        assert (better.program_id, better.relation) == (program, "continues")


def test_each_of_a_teams_equal_runs_gets_one_member(wire: Wire) -> None:
    said = "The cranes at the northern pier are older than the town hall itself."
    runs = [wire.send(chat(ASK, system="You write.")) for _ in range(4)]
    for resolved in runs:
        wire.answer(resolved, "chat", said)
    critics = [wire.send(chat(ASK, user(said), system="You criticise.", tools=False)) for _ in runs]
    assert {critic.program_id for critic in critics} == {resolved.program_id for resolved in runs}


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


# -- hand-overs as frameworks write them -----------------------------------------------------------------------------

DOCUMENT = (
    "The council met on Monday to hear about the northern pier. Its cranes date from before the war, two of its "
    "sheds have no roof, and the rails were lifted in spring. A ferry still calls there twice a day.\n\n"
    "The treasurer said that repairs would cost four million, and that the bank wants an answer before winter."
)
DRAFT = (
    "Repairing the pier is cheaper than closing it, since every family on the island depends on its ferry for "
    "school and for bread.\n\n"
    "Sell the two old cranes for scrap, rebuild only the eastern shed, and leave the rails as they are.\n\n"
    "The bank should be offered a tenth at once and the remainder over twelve years, secured by harbour dues."
)
OTHER = (
    "Nobody reads the newspaper on the second floor any longer, so its shelves could hold the maps instead.\n\n"
    "Move the lamps nearer to the windows, and let the porter lock the garden gate an hour before the house closes."
)
PAGES = "\n\n".join(
    f"Entry {at} of the register names house {at * 7}, its owner and his trade." for at in range(400)
)
CREW = (
    "\nCurrent Task: Edit the report.\n\nThis is the expected criteria for your final answer: a report\nyou MUST "
    "return the actual complete content as the final answer, not a summary.\n\nThis is the context you're working with:"
    "\n{}\n\nBegin! This is VERY important to you, use the tools available and give your best Final Answer, your job "
    "depends on it!\n\nThought:"
)


def first_stage(wire: Wire, document: str, reply: str, *, system: str = "You advise.", **extra: Any) -> Any:
    resolved = wire.send(chat(user(document), system=system, tools=False, **extra))
    wire.answer(resolved, "chat", reply)
    return resolved


def next_stage(
    wire: Wire, content: Any, *, system: str = "You edit.", tenant: str = "acme", **extra: Any
) -> Any:
    return wire.send(chat(user(content), system=system, tools=False, **extra), tenant=tenant)


@pytest.mark.parametrize(
    "form",
    [
        lambda said: said,
        lambda said: f"{DOCUMENT}\n\n{said}",
        lambda said: f"Here is the draft:\n\n{said}\n\nPlease review it.",
        lambda said: f"<document>{DOCUMENT}</document>\n<draft>{said}</draft>\nImprove the draft.",
        lambda said: "\n".join(f"> {line}" for line in said.split("\n")) + "\n\nWhat is missing here?",
        lambda said: "> " + "\n> ".join(textwrap.wrap(said, 70)),
        lambda said: f"State: {json.dumps({'document': DOCUMENT, 'draft': said})}",
        lambda said: "\n".join(f"- {line}" for line in said.replace("\n\n", " ").split(". ")),
        CREW.format,
        lambda said: [{"type": "text", "text": "Edit this:"}, {"type": "text", "text": said}],
        lambda said: f"{PAGES}\n\n{said}\n\n{PAGES}",
        lambda said: f"Only this is still open:\n{said.split(chr(10) * 2)[1]}",
    ],
    ids=[
        "alone", "behind the document", "with a label", "in tags", "as a quote", "as a wrapped quote", "in JSON",
        "as points", "CrewAI", "in parts", "amid pages", "one paragraph",
    ],
)  # fmt: skip
def test_a_reply_that_is_handed_on_makes_the_next_step(wire: Wire, form: Callable[[str], Any]) -> None:
    other = first_stage(wire, "What should become of the library?", OTHER)
    one = first_stage(wire, DOCUMENT, DRAFT)
    second = next_stage(wire, form(DRAFT))
    assert (second.program_id, second.relation, second.step_index) == (one.program_id, "continues", 1)
    assert next_stage(wire, form(OTHER)).program_id == other.program_id


def test_a_list_is_known_by_its_lines_wherever_they_stand(wire: Wire) -> None:
    found = json.dumps(
        [{"crane": f"the one with number {at}", "built": 1900 + at} for at in range(12)], indent=1
    )
    one = first_stage(wire, DOCUMENT, found)
    assert next_stage(wire, f"{PAGES}\n\n{found}\n\n{PAGES}").program_id == one.program_id


def test_documents_that_pass_through_roles_with_all_that_was_said_of_them_stay_apart(wire: Wire) -> None:
    documents = [f"Report {at}: {DOCUMENT}" for at in range(3)]
    texts = list(documents)
    programs: list[str] = []
    for stage in range(4):
        steps = [next_stage(wire, text, system=f"You are stage {stage} of this.") for text in texts]
        programs = programs or [step.program_id for step in steps]
        assert [step.program_id for step in steps] == programs
        assert {step.step_index for step in steps} == {stage}
        for at, step in enumerate(steps):
            said = f"At stage {stage} pier {at * 31} was found to need {stage * 17 + at} new beams and a coat of tar."
            wire.answer(step, "chat", said)
            texts[at] += f"\n\n{said}"
    assert len(set(programs)) == 3


def test_branches_that_come_together_are_steps_of_their_program(wire: Wire) -> None:
    plan = first_stage(wire, DOCUMENT, DRAFT)
    left, right = (
        next_stage(wire, f"{about}:\n{DRAFT}", system=f"You do {about}.") for about in ("costs", "law")
    )
    assert {left.program_id, right.program_id} == {plan.program_id}
    costs = "Four million is what the treasurer fears, but the roofs alone make up most of that."
    law = "Harbour dues may be pledged only where the council has agreed in two readings."
    wire.answer(left, "chat", costs)
    wire.answer(right, "chat", law)
    joined = next_stage(wire, f"Costs: {costs}\nLaw: {law}\nNow write the letter.", system="You write.")
    assert (joined.program_id, joined.step_index) == (plan.program_id, 3)


# -- and what is no hand-over ----------------------------------------------------------------------------------------


def test_who_judges_or_gathers_the_replies_of_several_programs_is_a_program_of_its_own(wire: Wire) -> None:
    one = first_stage(wire, DOCUMENT, DRAFT)
    other = first_stage(wire, "What should become of the library?", OTHER)
    judge = next_stage(
        wire, f"Answer A:\n{DRAFT}\n\nAnswer B:\n{OTHER}\n\nWhich is better?", system="You judge."
    )
    assert judge.relation == "new"
    verdict = "The second answer wastes no words on the reader, while the first one explains what it would cost him."
    wire.answer(judge, "chat", verdict)
    report = next_stage(wire, f"Tell the authors: {verdict}", system="You report.")
    assert report.program_id == judge.program_id
    aside = OTHER.split("\n\n")[0]
    on = next_stage(wire, f"{DRAFT}\n\n{DOCUMENT}\n\n(Elsewhere they said that {aside[40:96]}.)")
    assert on.program_id == one.program_id != other.program_id


@pytest.mark.parametrize(
    "said",
    ["I have finished the task, and there is nothing more to be done here.", DRAFT],
    ids=["boilerplate", "paragraphs"],
)
def test_what_programs_with_other_questions_said_too_links_nobody(wire: Wire, said: str) -> None:
    for at in range(2):
        first_stage(wire, f"Question {at}: what is to be done about the pier?", said)
    assert next_stage(wire, f"Here is what they said:\n\n{said}").relation == "new"


def test_a_heading_that_several_replies_have_in_common_links_nobody(wire: Wire) -> None:
    heading = "This is a summary of the report as the board of the harbour asked for it in its last meeting:"
    for at, text in enumerate((DRAFT, OTHER)):
        first_stage(wire, f"Question {at}", f"{heading}\n\n{text}")
    asked = next_stage(wire, f"{heading}\n\nThe boats are painted, the nets are mended and the men are paid.")
    assert asked.relation == "new"


def test_a_phrase_is_no_hand_over(wire: Wire) -> None:
    first_stage(wire, DOCUMENT, f"It is important to note that the pier is old. {DRAFT}")
    assert next_stage(wire, "It is important to note that the school is new. Who built it?").relation == "new"


def test_a_reply_is_handed_on_by_nobody_else_and_not_long_afterwards(wire: Wire) -> None:
    one = first_stage(wire, DOCUMENT, DRAFT, user="ann")
    quoted = f"Somebody was told this:\n\n{DRAFT}\n\nIs that right?"
    others = [
        next_stage(wire, quoted, tenant="other"),
        next_stage(wire, quoted, user="ben"),
        next_stage(wire, quoted, system="You advise.", user="ben"),
    ]
    wire.now += HANDED_S + 1
    others += [
        next_stage(wire, quoted, user="ann"),
        next_stage(wire, quoted, system="You advise."),
    ]
    assert one.program_id not in {other.program_id for other in others}


def test_a_document_that_two_programs_read_makes_them_no_one_program(wire: Wire) -> None:
    extract = DOCUMENT.split("\n\n")[1]
    first_stage(wire, f"Which sentence is about money?\n\n{DOCUMENT}", extract)
    reader = next_stage(wire, f"Summarise this for me, please:\n\n{DOCUMENT}", system="You read.")
    assert reader.relation == "new"
    wire.answer(reader, "chat", f'In short, the pier is old. To quote the report: "{extract}"')
    assert next_stage(wire, f"{DOCUMENT}\n\nWho is the treasurer?").relation == "new"
