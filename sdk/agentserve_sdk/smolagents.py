"""smolagents: an agent's run is a program, its tools are tool calls; a managed agent's run belongs to its manager's.

Rule: `final_answer` is how a run ends and no tool.
"""

from __future__ import annotations

from typing import Any, Optional

from agentserve_sdk._hooks import around, run_mark, tool_mark
from agentserve_sdk._wrap import Mark


def register() -> None:
    """Hook in."""
    from smolagents.agents import MultiStepAgent
    from smolagents.tools import Tool

    around(MultiStepAgent, "_run_stream", _run)
    around(Tool, "__call__", _tool)


def _run(agent: Any, *args: Any, **kwargs: Any) -> Optional[Mark]:
    return run_mark(getattr(agent, "name", None) or type(agent).__name__)


def _tool(tool: Any, *args: Any, **kwargs: Any) -> Optional[Mark]:
    return None if tool.name == "final_answer" else tool_mark(tool.name)
