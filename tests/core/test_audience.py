"""Who hears of what, and in which order."""

from __future__ import annotations

from typing import Any

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.audience import Audience
from agentserve.core.ids import EngineId, StepId


def test_each_hears_of_its_kinds_alone_and_whoever_listens_to_everything_comes_last() -> None:
    heard: list[tuple[str, str]] = []

    def by(name: str) -> Any:
        return lambda it, now: heard.append((name, type(it).__name__))

    audience = Audience({do.Dispatch: by("a")})
    stop = audience.listen(lambda event, now, decided: heard.append(("all", type(event).__name__)))
    audience.hear({ev.StepStarted: by("b"), do.Dispatch: by("b")})
    dispatch = do.Dispatch(step=StepId("s"), engine=EngineId("e"))
    audience.tell(ev.StepStarted(step=StepId("s")), 0.0, [dispatch])
    assert heard == [("b", "StepStarted"), ("a", "Dispatch"), ("b", "Dispatch"), ("all", "StepStarted")]
    stop()
    audience.tell(ev.TimerFired(), 1.0, [])
    assert len(heard) == 4
