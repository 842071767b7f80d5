"""DSPy: modules and tools, over LiteLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agentserve_sdk import testing

dspy = pytest.importorskip("dspy")


def search(q: str) -> str:
    """Search."""
    return "res"


def answer(call: testing.Call) -> testing.Answer:
    """In the layout that DSPy's own adapter reads."""
    if "[[ ## next_tool_name ## ]]" not in call.text:
        return "[[ ## reasoning ## ]]\nr\n\n[[ ## answer ## ]]\nthree cities\n\n[[ ## completed ## ]]"
    seen = "[[ ## observation_0 ## ]]" in call.text
    name, arguments = ("finish", "{}") if seen else ("search", '{"q": "cities"}')
    return (
        f"[[ ## next_thought ## ]]\nt\n\n[[ ## next_tool_name ## ]]\n{name}\n\n"
        f"[[ ## next_tool_args ## ]]\n{arguments}\n\n[[ ## completed ## ]]"
    )


@pytest.fixture
def agent(held: Any) -> Any:
    held.gateway._answer = answer
    react = dspy.ReAct("question->answer", tools=[search], max_iters=3)
    react.set_lm(dspy.LM("openai/m", api_base=held.gateway.base_url, api_key="k", cache=False))
    return react


def test_threads_carry_their_own(held: Any, agent: Any) -> None:
    held.in_threads(lambda question: agent(question=question))


async def test_tasks_carry_their_own(held: Any, agent: Any) -> None:
    await held.side_by_side(lambda question: agent.acall(question=question))


def test_a_call_is_a_program(held: Any, agent: Any) -> None:
    assert agent(question="of land-1").answer == "three cities"
    held.one_program()


def test_the_example_runs_as_it_stands(held: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_CACHEDIR", str(tmp_path))  # else it answers from what it kept of the last run
    held.gateway._answer = answer
    held.example("dspy_react.py", text="three cities")
