"""Which module hooks into which framework, and when: as soon as the framework is imported.

Rule: an integration is loaded only with its framework, and a framework without one still carries the program's id.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Iterable, Optional

from agentserve_sdk._imports import when_imported

# integration -> the framework's module whose import is the moment to hook in
MOMENTS = {
    "openai_agents": "agents.tracing",
    "langgraph": "langchain_core.callbacks.manager",
    "llama_index": "llama_index.core.instrumentation",
    "crewai": "crewai.events",
    "dspy": "dspy",
    "smolagents": "smolagents.agents",
    "mcp": "mcp.client.session",
    "haystack": "haystack.tracing",
    "strands": "strands.agent.agent",
}
_installed = set()  # type: set[str]


def install(names: Optional[Iterable[str]] = None) -> None:
    """Hook into these frameworks, or into all."""
    for name in MOMENTS if names is None else names:
        moment = MOMENTS.get(name)
        if moment is None:
            raise ValueError(f"no integration is called {name!r}; there are {', '.join(MOMENTS)}")
        if name not in _installed:
            _installed.add(name)
            when_imported(moment, functools.partial(_load, name))


def _load(name: str, framework: ModuleType) -> None:
    importlib.import_module(f"agentserve_sdk.{name}").register()
