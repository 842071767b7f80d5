"""Pydantic AI: `Agent(model, capabilities=[Serve()])`. A run is a program, a tool call one with the model's own id.

Rule: a run inside of another, by a tool that asks another agent, is the same program in a step of its own.
"""

from __future__ import annotations

from typing import Any

from pydantic_ai.capabilities import AbstractCapability

from agentserve_sdk._context import SCOPE, Scope, name_of, scope
from agentserve_sdk._hooks import quiet, run_mark, tool_mark


class Serve(AbstractCapability[Any]):
    """Tells the gateway of an agent's runs and tools."""

    async def wrap_run(self, ctx: Any, *, handler: Any) -> Any:
        """A run."""
        before = SCOPE.get()
        agent = getattr(ctx, "agent", None)
        name = name_of(getattr(agent, "name", None) or "agent")
        mark = _run(name, getattr(ctx, "conversation_id", None))
        run = None if mark is None else mark.open()
        found = scope()
        if found is not None:
            SCOPE.set(Scope(found.program, name))
        try:
            result = await handler()
        except BaseException as error:
            if run is not None:
                mark.close(run, error)
            raise
        finally:
            SCOPE.set(before)
        if run is not None:
            mark.close(run, None)
        return result

    async def wrap_tool_execute(self, ctx: Any, *, call: Any, tool_def: Any, args: Any, handler: Any) -> Any:
        """A tool call."""
        mark = _tool(call.tool_name, call.tool_call_id)
        run = None if mark is None else mark.open()
        if run is None:
            return await handler(args)
        try:
            result = await handler(args)
        except BaseException as error:
            mark.close(run, error)
            raise
        mark.close(run, None)
        return result


_run = quiet(run_mark)
_tool = quiet(tool_mark)
