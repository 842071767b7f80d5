"""What the ledger believes of KV when the engine says itself what it holds."""

from __future__ import annotations

from typing import Any

from agentserve.core import events as ev
from agentserve.core.ids import EngineId, ProgramId

E, P = EngineId("e0"), ProgramId("p")


def one_step(d: Any, program: str, step: int, *, tokens: int, cached: int | None = None) -> None:
    d.arrive(program, step, tokens=tokens)
    d.start(program, step, after=0.1)
    d.finish(program, step, tokens=tokens, cached_tokens=cached)


def believed(d: Any, program: str) -> int:
    board = d.board
    return int(board.fleet.expected_cached(board.programs[program], board.fleet["e0"]))


def test_what_an_engine_tells_of_a_program_stands_against_the_clock(desk: Any) -> None:
    d = desk("affinity", kv_tokens=4_000)
    one_step(d, "p", 0, tokens=1_000)
    d.tell(ev.KvStored(engine=E, program=P, tokens=992))
    for i in range(8):  # an LRU that wrote so much would have let it go
        one_step(d, f"q{i}", 0, tokens=1_000)
    assert believed(d, "q0") == 0
    assert believed(d, "p") == 992


def test_a_removal_is_believed_at_once_and_so_is_what_comes_back(desk: Any) -> None:
    d = desk()
    one_step(d, "p", 0, tokens=1_000)
    d.tell(ev.KvStored(engine=E, program=P, tokens=992))
    d.tell(ev.KvRemoved(engine=E, program=P, tokens_left=0))
    assert believed(d, "p") == 0
    d.tell(ev.KvRemoved(engine=E, program=P, tokens_left=480))
    assert believed(d, "p") == 480


def test_events_that_come_before_the_reply_outlast_it(desk: Any) -> None:
    d = desk()
    d.arrive("p", tokens=1_000)
    d.tell(ev.KvStored(engine=E, program=P, tokens=640), after=0.1)
    d.finish("p", tokens=1_000, cached_tokens=0)
    assert believed(d, "p") == 640


def test_a_reply_that_found_more_than_the_events_tell_is_believed(desk: Any) -> None:
    d = desk()
    one_step(d, "p", 0, tokens=1_000)
    d.tell(ev.KvRemoved(engine=E, program=P, tokens_left=0))
    one_step(d, "p", 1, tokens=1_200, cached=992)
    assert believed(d, "p") >= 1_200


def test_a_compacted_program_has_only_its_shared_beginning(desk: Any) -> None:
    d = desk()
    one_step(d, "p", 0, tokens=1_000)
    d.tell(ev.KvStored(engine=E, program=P, tokens=992))
    d.tell(ev.HintGiven(program=P, compacted=True))
    assert believed(d, "p") == 0


def begins(program: str, step: int, task: int, *more: int) -> dict[str, Any]:
    """A step of 4,000 tokens: what every agent is told, the task, and further messages."""
    path = ((1, 500), (task, 3_000), *((name, 100) for name in more))
    return {"program": program, "step": step, "tokens": 4_000, "prefix": tuple(ev.Segment(*s) for s in path)}


def test_what_one_program_alone_begins_with_is_its_own(desk: Any) -> None:
    d = desk("affinity", kv_tokens=20_000)
    d.arrive(**begins("p", 0, 7))
    d.finish("p", 0, tokens=4_000)
    d.arrive(**begins("p", 1, 7, 8, 9))
    d.finish("p", 1, tokens=4_000)
    program = d.board.programs["p"]
    assert (program.shared_tokens, program.own_tokens()) == (500, program.context_tokens - 500)
    d.board.fleet[E].written += 21_000
    assert believed(d, "p") == 500, "its task is gone with the rest of it"


def test_what_another_program_begins_with_too_is_shared(desk: Any) -> None:
    d = desk("affinity", kv_tokens=20_000)
    for name in "pq":  # one task, tried twice
        d.arrive(**begins(name, 0, 7))
        d.finish(name, 0, tokens=4_000)
    assert d.board.programs["q"].shared_tokens == 3_500
    d.arrive("r", tokens=4_000, prefix=begins("r", 0, 7)["prefix"])
    assert believed(d, "r") == 3_500
    d.arrive(**begins("p", 1, 7, 8))
    assert d.board.programs["p"].shared_tokens == 3_500, "and the reply to it is its own"


def in_turn(d: Any, *, found: int) -> None:
    """A pipeline: each step of `p` begins with another role's prompt, while others use the engine too."""
    for k in range(6):
        d.arrive("p", k, tokens=4_000, prefix=(ev.Segment(k + 1, 300),), after=1.0)
        d.finish("p", k, tokens=4_000, cached_tokens=found if k else 0)
        one_step(d, f"q{k}", 0, tokens=4_000, cached=0)


def test_a_program_is_not_expected_to_find_what_it_left_behind_another_beginning(desk: Any) -> None:
    d = desk("affinity", kv_tokens=100_000)
    in_turn(d, found=0)
    d.arrive("p", 6, tokens=4_000, prefix=(ev.Segment(9, 300),))
    assert believed(d, "p") == 0


def test_one_whose_beginning_changes_a_little_is_expected_to_find_the_rest(desk: Any) -> None:
    d = desk("affinity", kv_tokens=100_000)
    in_turn(d, found=3_600)  # a date in its system prompt, behind all else
    d.arrive("p", 6, tokens=4_000, prefix=(ev.Segment(9, 300),))
    assert believed(d, "p") >= 4_000


def test_a_history_in_one_message_is_expected_to_be_found_however_it_grows(desk: Any) -> None:
    d = desk("affinity", kv_tokens=100_000)
    for k in range(4):
        tokens = 4_000 + 500 * k
        d.arrive("p", k, tokens=tokens, prefix=(ev.Segment(k + 1, tokens),), undivided=True)
        assert d.board.programs["p"].own_tokens() >= tokens, "nobody else begins so"
        assert believed(d, "p") == (tokens - 490 if k else 0), "the last prompt, and the reply to it"
        d.finish("p", k, tokens=tokens, cached_tokens=tokens - 500 if k else 0)


def test_a_pipeline_whose_steps_are_one_message_each_is_known_by_its_second(desk: Any) -> None:
    d = desk("affinity", kv_tokens=100_000)
    for k in range(3):
        d.arrive("p", k, tokens=4_000, prefix=(ev.Segment(k + 1, 4_000),), undivided=True)
        if k == 2:
            assert believed(d, "p") == 0
        d.finish("p", k, tokens=4_000, cached_tokens=0)


def test_an_engine_of_unknown_capacity_is_not_taken_for_a_small_one_by_a_pipeline(desk: Any) -> None:
    d = desk("affinity")
    d.back("x")
    d.lose("e0")
    in_turn(d, found=0)
    assert not d.board.fleet["x"].kv_known
    assert d.board.fleet["x"].kv_tokens > 100_000


def test_an_engine_that_comes_back_is_taken_at_no_word_of_before(desk: Any) -> None:
    d = desk()
    one_step(d, "p", 0, tokens=1_000)
    d.tell(ev.KvStored(engine=E, program=P, tokens=992))
    d.lose("e0")
    d.back("e0")
    assert believed(d, "p") == 0


def test_an_engine_with_blocks_keeps_whole_ones(desk: Any) -> None:
    d = desk()
    d.report("e0", block_tokens=16)
    one_step(d, "p", 0, tokens=1_000)
    assert believed(d, "p") % 16 == 0
    d.arrive("p", 1, tokens=1_024)
    assert d.board.steps["p/1"].expected_cached == believed(d, "p")
    d.finish("p", 1, tokens=1_024)
    d.arrive("p", 2, tokens=1_024)  # its last token is always computed
    assert d.board.steps["p/2"].expected_cached == 1_008
