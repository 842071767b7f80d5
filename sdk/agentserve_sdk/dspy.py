"""DSPy: the outermost module's call is a program, each module with a name of its own a step, tools are tool calls.

Rule: DSPy's settings are left alone, for they belong to the thread that made them.
"""

from __future__ import annotations

from typing import Any, Optional

from agentserve_sdk._hooks import around, run_mark, tool_mark
from agentserve_sdk._wrap import Mark


def register() -> None:
    """Hook in."""
    import dspy

    for method in ("__call__", "acall"):
        around(dspy.Module, method, _run)
        around(dspy.Tool, method, _tool)


def _run(module: Any, *args: Any, **kwargs: Any) -> Optional[Mark]:
    return run_mark(type(module).__name__)


def _tool(tool: Any, *args: Any, **kwargs: Any) -> Optional[Mark]:
    return None if tool.name == "finish" else tool_mark(tool.name)
