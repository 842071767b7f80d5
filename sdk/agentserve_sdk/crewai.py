"""CrewAI: a kickoff is a program, an agent's role is its step, tools are tool calls.

Rule: a crew or flow started by another is part of that one's program.
"""

from __future__ import annotations

from typing import Any, Optional

from agentserve_sdk._hooks import around, in_step, quiet, run_mark, tool_mark
from agentserve_sdk._imports import when_imported
from agentserve_sdk._wrap import Mark


def register() -> None:
    """Hook in."""
    when_imported("crewai.crew", _crews)
    when_imported("crewai.agent.core", _agents)
    when_imported("crewai.tools.base_tool", _tools)


def _crews(module: Any) -> None:
    around(module.Crew, "kickoff", _run)


def _agents(module: Any) -> None:
    around(module.Agent, "execute_task", _step)


def _tools(module: Any) -> None:
    around(module.Tool, "run", _tool)
    around(module.BaseTool, "run", _tool)


def _run(crew: Any, *args: Any, **kwargs: Any) -> Optional[Mark]:
    return run_mark(crew.name or "crew")


@quiet
def _step(agent: Any, *args: Any, **kwargs: Any) -> Optional[Mark]:
    in_step(agent.role)
    return None


def _tool(tool: Any, *args: Any, **kwargs: Any) -> Optional[Mark]:
    return tool_mark(tool.name)
