"""Contexts that were cut down, and histories that were pruned or rewritten."""

from __future__ import annotations

import pytest

from tests.core.identity.speech import ASK, Wire, begin, chat, result


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
