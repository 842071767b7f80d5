"""The examples run as they stand, against the test gateway; those of heavy frameworks where these are installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from agentserve_sdk import testing

EXAMPLES = Path(__file__).parents[2] / "sdk" / "examples"
LINES_MAX = 40


def asks_once(call: testing.Call) -> testing.Answer:
    return (
        testing.ToolCall("search", {"q": "news"}) if call.body.get("tools") and not call.turns else "Nothing."
    )


def run(name: str, gateway: testing.Gateway) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "AGENTSERVE_URL": gateway.url, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(EXAMPLES / name)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < LINES_MAX
    assert f"`python {path.name}`" in text or f"python {path.name}" in text.splitlines()[0]


def test_plain_announces_its_tools_by_the_models_ids(gateway: testing.Gateway) -> None:
    gateway._answer = asks_once
    done = run("plain.py", gateway)
    assert done.stdout == "Nothing.\n", done.stderr
    program = gateway.only_program
    assert (program.declared["workflow"], program.status) == ("research", "succeeded")
    assert program.tools[0].call_id in program.calls[1].text


def test_pipeline_tells_its_graph_and_its_steps(gateway: testing.Gateway) -> None:
    done = run("pipeline.py", gateway)
    assert done.stdout == "ok\n", done.stderr
    assert sorted(str(step) for step in gateway.only_program.steps) == ["facts", "join", "plan", "style"]
    graph = gateway.workflows["report"]
    assert {(e["source"], e["target"]) for e in graph["edges"]} == {
        ("plan", "facts"), ("plan", "style"), ("facts", "join"), ("style", "join"),
    }  # fmt: skip
