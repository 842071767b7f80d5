"""DSPy: the outermost module's call is a program, its tools are tool calls.

Rule: DSPy's settings are left alone, for they belong to the thread that made them.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, Optional

from agentserve_sdk._context import headers
from agentserve_sdk._hooks import around, quiet, run_mark, tool_mark
from agentserve_sdk._imports import when_imported
from agentserve_sdk._propagate import MARK, PREFIX, ours_url
from agentserve_sdk._wrap import Mark


def register() -> None:
    """Hook in."""
    import dspy

    for method in ("__call__", "acall"):
        around(dspy.Module, method, _run)
        around(dspy.Tool, method, _tool)
    for name in ("_sync", "_async"):
        when_imported(f"dspy._vendor.lm15.transports.{name}", _carry)


def _carry(transports: ModuleType) -> None:
    """DSPy brings an HTTP client of its own along."""
    for cls in vars(transports).values():
        inner = vars(cls).get("stream") if isinstance(cls, type) else None
        if inner is not None and not getattr(inner, MARK, False):
            setattr(cls, "stream", _carrying(inner))  # noqa: B010 - mypy knows no such class


def _carrying(inner: Any) -> Any:
    @functools.wraps(inner)
    def stream(self: Any, request: Any) -> Any:
        _add(request)
        return inner(self, request)

    setattr(stream, MARK, True)
    return stream


@quiet
def _add(request: Any) -> None:
    if ours_url(request.url) and not any(name.lower().startswith(PREFIX) for name, _ in request.headers):
        request.headers.extend(headers().items())


def _run(module: Any, *args: Any, **kwargs: Any) -> Optional[Mark]:
    return run_mark(type(module).__name__)


def _tool(tool: Any, *args: Any, **kwargs: Any) -> Optional[Mark]:
    return None if tool.name == "finish" else tool_mark(tool.name)
