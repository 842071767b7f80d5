"""The trace of a real LangGraph run is the tree that the documentation shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.frameworks import environments
from tests.telemetry.langgraph_trace import traced
from tests.telemetry.tree import tree

PAGE = environments.ROOT / "agentserve" / "telemetry" / "README.md"


def names(text: str) -> list[str]:
    """The spans of a tree in order, without times and attributes; decisions are not spans."""
    lines = [line.strip("│├└─ ") for line in text.splitlines()]
    return [line.partition("  ")[0] for line in lines if line and not line.startswith("·")]


async def test_a_langgraph_run_is_the_tree_that_is_documented(tmp_path: Path) -> None:
    python = environments.interpreter("langgraph")
    if python is None:
        pytest.skip("langgraph is not here: python -m tests.frameworks.run langgraph")
    spans = names(tree(await traced(tmp_path, python)))
    shown = PAGE.read_text().partition("### One LangGraph run")[2].split("```")[1]
    assert sorted(spans) == sorted(names(shown))
