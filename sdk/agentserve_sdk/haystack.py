"""Haystack: a pipeline's or an agent's run is a program, tools are tool calls.

Rule: an agent inside of a pipeline is part of the pipeline's run.
"""

from __future__ import annotations

from typing import Any, Optional

from agentserve_sdk._hooks import around, run_mark, tool_mark
from agentserve_sdk._wrap import Mark


def register() -> None:
    """Hook in."""
    from agentserve_sdk._imports import when_imported

    when_imported("haystack.components.agents.agent", lambda module: _runs(module.Agent, "run", "run_async"))
    when_imported("haystack.core.pipeline.pipeline", lambda module: _runs(module.Pipeline, "run"))
    when_imported("haystack.tools.tool", _tools)


def _runs(cls: Any, *methods: str) -> None:
    for method in methods:
        around(cls, method, _run)


def _tools(module: Any) -> None:
    for method in ("invoke", "invoke_async"):
        if hasattr(module.Tool, method):
            around(module.Tool, method, _tool)


def _run(runner: Any, *args: Any, **kwargs: Any) -> Optional[Mark]:
    return run_mark(type(runner).__name__)


def _tool(tool: Any, *args: Any, **kwargs: Any) -> Optional[Mark]:
    return tool_mark(tool.name)
