"""What an event teaches is taken in after its decisions: whenever that is, the next event finds it learned."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core import events as ev
from agentserve.core.learned import Learned

TOOL = (ev.PendingTool(id="c", name="bash"),)


def played(desk: Any, *, settle: bool) -> tuple[list[Any], Learned]:
    """Forty programs on an engine with room for a few of them."""
    learned = Learned()
    d = desk(foresight=learned, kv_tokens=20_000)
    for i in range(40):
        d.arrive(f"p{i}", tokens=2_000, workflow="w")
        for name in list(d.board.programs):
            step = next(iter(d.board.programs[name].open_steps), None)
            if step is not None and step in d.dispatched:
                number = int(step.split("/")[1])
                d.finish(name, number, tokens=2_000, output=50 + i, tools=TOOL, final=number == i % 4)
                if number != i % 4:
                    d.arrive(name, number + 1, tokens=2_100, after=1.0 + number, workflow="w")
            if settle:
                d.scheduler.settle()
    d.scheduler.settle()
    return d.all, learned


def test_the_same_is_decided_whether_or_not_there_was_time_between_events(desk: Any) -> None:
    at_leisure, learned = played(desk, settle=True)
    in_a_hurry, hurried = played(desk, settle=False)
    assert at_leisure == in_a_hurry
    assert {k: dump() for k, dump in learned.states().items()} == {
        k: dump() for k, dump in hurried.states().items()
    }


def test_a_decision_waits_for_no_lesson_and_what_is_kept_misses_none(desk: Any) -> None:
    learned = Learned()
    d = desk(foresight=learned)
    d.arrive("p", tokens=100)
    d.finish("p", tokens=100, output=5_000, tools=TOOL)
    before = learned.outputs.predict(tenant="t").quantile(0.5)
    dumped = learned.states()["outputs"]()
    assert learned.outputs.predict(tenant="t").quantile(0.5) > before, (
        "who keeps what was learned settles it first"
    )
    again = Learned()
    again.restore({"outputs": dumped})
    assert again.outputs.predict(tenant="t").quantile(0.5) == pytest.approx(
        learned.outputs.predict(tenant="t").quantile(0.5)
    )
