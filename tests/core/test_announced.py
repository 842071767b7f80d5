"""Announced tool calls sharpen what is learned from the traffic, and never blunt it."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core import events as ev
from agentserve.core.learned import Learned

PYTEST = ev.PendingTool(id="c1", name="bash", argument_class="pytest")
BARE = ev.PendingTool(id="c1", name="bash")  # as the SDK tells of it: it sees no arguments


def median_after(desk: Any, told: list[ev.AnyEvent]) -> float:
    """What is forecast for `bash pytest` after gaps of 60 s, in which this was told."""
    learned = Learned()
    d = desk(foresight=learned)
    for step in range(12):
        d.arrive("p", step, after=0.0 if step == 0 else 60.0)
        d.finish("p", step, after=0.5, tools=(PYTEST,))
        for event in told:
            d.tell(event)
    survival = learned.returns.predict(tenant="t", program=None, calls=(PYTEST,))
    return float(survival.quantile(0.5))


def test_a_call_that_is_announced_is_still_learned_as_the_model_asked_for_it(desk: Any) -> None:
    silent = median_after(desk, [])
    started = ev.ToolStarted(program="p", tool=BARE)
    ended = ev.ToolEnded(program="p", tool_id="c1", duration_s=59.0)
    assert silent > 20.0
    assert median_after(desk, [started]) == pytest.approx(silent)
    assert median_after(desk, [started, ended]) == pytest.approx(silent)


def test_an_announced_call_of_the_application_is_not_a_second_one(desk: Any) -> None:
    d = desk()
    d.arrive("p")
    d.finish("p", tools=(PYTEST,))
    d.tell(ev.ToolStarted(program="p", tool=ev.PendingTool(id="sdk-1", name="bash")))
    assert set(d.board.programs["p"].calls) == {"c1"}
    d.tell(ev.ToolStarted(program="p", tool=ev.PendingTool(id="sdk-2", name="search")))
    assert set(d.board.programs["p"].calls) == {"c1", "sdk-2"}
