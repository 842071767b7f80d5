"""Mark workflows, steps and tools of an agent, so that agentserve can serve it sooner.

Rule: nothing here ever raises into the application, blocks it or changes a result; without a gateway it does nothing.
It imports only the standard library, and what a feature needs is loaded when the feature is first used.

    import agentserve_sdk as agentserve

    agentserve.init()

    @agentserve.workflow
    async def report(topic): ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentserve_sdk._client import flush, init, shutdown, stats
from agentserve_sdk._context import Program, current, headers
from agentserve_sdk._marks import end, step, tool, workflow
from agentserve_sdk._threads import bind

if TYPE_CHECKING:
    from agentserve_sdk._executor import ThreadPoolExecutor as ThreadPoolExecutor
    from agentserve_sdk.admin import Admin as Admin

__all__ = [
    "Admin",
    "Program",
    "ThreadPoolExecutor",
    "bind",
    "current",
    "end",
    "flush",
    "headers",
    "init",
    "shutdown",
    "stats",
    "step",
    "tool",
    "workflow",
]
__version__ = "0.1.0"

# name -> module; loaded when first asked for
_LATER = {"ThreadPoolExecutor": "agentserve_sdk._executor", "Admin": "agentserve_sdk.admin"}
_MODULES = frozenset(
    {
        "claude_agent", "crewai", "dspy", "haystack", "langgraph", "llama_index", "mcp", "openai_agents",
        "pydantic_ai", "smolagents", "strands", "testing",
    }
)  # fmt: skip


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"agentserve_sdk.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
