"""LlamaIndex: a workflow's run, agents included, is a program; function tools are tool calls.

Rule: a run goes on after `run()` has returned, so the program ends with the run's handler and not with the call.
"""

from __future__ import annotations

import functools
from typing import Any, Optional

from agentserve_sdk import _client
from agentserve_sdk._announce import open_program, status_of
from agentserve_sdk._context import SCOPE, Scope, name_of, scope
from agentserve_sdk._hooks import around, quiet, tool_mark
from agentserve_sdk._imports import when_imported
from agentserve_sdk._propagate import MARK
from agentserve_sdk._wrap import Mark


def register() -> None:
    """Hook in."""
    when_imported("workflows.workflow", lambda module: _follow(module.Workflow))
    when_imported(
        "llama_index.core.agent.workflow.base_agent", lambda module: _follow(module.BaseWorkflowAgent)
    )
    when_imported("llama_index.core.agent.workflow.multi_agent_workflow", lambda m: _follow(m.AgentWorkflow))
    when_imported("llama_index.core.tools.function_tool", _tools)


def _tools(module: Any) -> None:
    around(module.FunctionTool, "acall", _tool)
    around(module.FunctionTool, "call", _tool)


def _tool(tool: Any, *args: Any, **kwargs: Any) -> Optional[Mark]:
    return tool_mark(tool.metadata.name)


def _follow(cls: Any) -> None:
    """The scope is in force while the run is started: its task takes the context along."""
    inner = vars(cls).get("run")
    if inner is None or getattr(inner, MARK, False):
        return

    @functools.wraps(inner)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = SCOPE.get()
        program = None
        if scope() is None and _client.enabled():
            program = open_program(workflow=name_of(getattr(self, "name", None) or type(self).__name__))
            SCOPE.set(Scope(program))
        try:
            handler = inner(self, *args, **kwargs)
        except BaseException as error:
            if program is not None:
                program.end(status_of(error))
            raise
        finally:
            SCOPE.set(before)
        if program is not None:
            _end_with(handler, program)
        return handler

    setattr(run, MARK, True)
    cls.run = run


@quiet
def _end_with(handler: Any, program: Any) -> None:
    @quiet
    def over(done: Any) -> None:
        if done.cancelled():
            program.end("cancelled")
        else:
            program.end(status_of(done.exception()))

    future = handler if hasattr(handler, "add_done_callback") else handler._result_task
    future.add_done_callback(over)
