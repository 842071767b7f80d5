"""Strands: an agent's invocation is a program, its tools are tool calls with the model's own ids.

Rule: hooks are added to an agent when it is made; those made before `init` carry the program's id all the same.
"""

from __future__ import annotations

import functools
from typing import Any, Optional

from agentserve_sdk._announce import ToolRun, tool_began, tool_ended
from agentserve_sdk._context import scope
from agentserve_sdk._hooks import Open, around, quiet, run_mark
from agentserve_sdk._propagate import MARK
from agentserve_sdk._wrap import Mark

_tools: Open[ToolRun] = Open()


def register() -> None:
    """Hook in."""
    from strands.agent.agent import Agent

    around(Agent, "stream_async", _run)
    made = Agent.__init__
    if getattr(made, MARK, False):
        return

    @functools.wraps(made)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        _listen(self)

    setattr(init, MARK, True)
    Agent.__init__ = init


@quiet
def _listen(agent: Any) -> None:
    from strands.hooks import AfterToolCallEvent, BeforeToolCallEvent

    agent.hooks.add_callback(BeforeToolCallEvent, _began)
    agent.hooks.add_callback(AfterToolCallEvent, _ended)


def _run(agent: Any, *args: Any, **kwargs: Any) -> Optional[Mark]:
    return run_mark(getattr(agent, "name", None) or "strands")


@quiet
def _began(event: Any) -> None:
    found = scope()
    if found is not None:
        call_id = event.tool_use["toolUseId"]
        _tools.put((found.program.id, call_id), tool_began(found.program, event.tool_use["name"], call_id))


@quiet
def _ended(event: Any) -> None:
    found = scope()
    run = None if found is None else _tools.pop((found.program.id, event.tool_use["toolUseId"]))
    if run is not None:
        tool_ended(run, ok=event.exception is None)
