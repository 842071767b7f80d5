"""LangGraph and LangChain: callbacks, parallel nodes, and the graph told once."""

from __future__ import annotations

import json
import operator
from typing import Annotated, Any

import agentserve_sdk as agentserve
import pytest
from typing_extensions import TypedDict

pytest.importorskip("langgraph")
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import create_react_agent

pytestmark = pytest.mark.filterwarnings("ignore")


@tool
def search(q: str) -> str:
    """Search."""
    return "res"


def agent(held: Any) -> Any:
    return create_react_agent(ChatOpenAI(base_url=held.gateway.base_url, api_key="k", model="m"), [search])


def said(question: str) -> Any:
    return {"messages": [("user", question)]}


async def test_tasks_carry_their_own(held: Any) -> None:
    app = agent(held)
    await held.side_by_side(lambda question: app.ainvoke(said(question)))


def test_threads_carry_their_own(held: Any) -> None:
    app = agent(held)
    held.in_threads(lambda question: app.invoke(said(question)))


def test_a_run_is_a_program_with_its_nodes_and_tools(held: Any) -> None:
    agent(held).invoke(said("of land-1"), {"configurable": {"thread_id": "t1"}})
    program = held.one_program(model_ids=True)
    assert program.steps == ["agent", "agent"]
    assert program.declared["session_id"] == "t1"


async def test_a_run_of_a_loop_is_one_too(held: Any) -> None:
    await agent(held).ainvoke(said("of land-1"))
    assert held.one_program(model_ids=True).steps == ["agent", "agent"]


async def test_a_stream_left_early_leaves_nothing_behind(held: Any) -> None:
    stream = agent(held).astream(said("of land-1"))
    await anext(stream)
    await stream.aclose()
    assert agentserve.current() is None


class State(TypedDict):
    question: str
    parts: Annotated[list[str], operator.add]


def fan(held: Any) -> Any:
    model = ChatOpenAI(base_url=held.gateway.base_url, api_key="k", model="m")

    def node(name: str) -> Any:
        def run(state: State) -> Any:
            return {"parts": [str(model.invoke(f"{name}: {state['question']}").content)]}

        return run

    graph = StateGraph(State)
    for name in ("plan", "facts", "style", "join"):
        graph.add_node(name, node(name))
    graph.add_edge(START, "plan")
    for name in ("facts", "style"):
        graph.add_edge("plan", name)
    graph.add_edge(["facts", "style"], "join")
    graph.add_edge("join", END)
    return graph.compile(name="fan")


def test_parallel_nodes_are_steps_of_one_program(held: Any) -> None:
    app = fan(held)
    agentserve.langgraph.register(app)
    app.invoke({"question": "of land-1", "parts": []})
    program = held.gateway.only_program
    assert len(program.calls) == 4
    for call in program.calls:
        assert f"{call.step}:" in json.dumps(call.body), "each call carries the node that made it"
    graph = held.gateway.workflows["fan"]
    assert ("plan", "facts") in {(e["source"], e["target"]) for e in graph["edges"]}
    assert program.declared["workflow"] == "fan"


def test_a_sub_agent_that_a_node_opens_is_a_program_under_its_graphs(held: Any) -> None:
    inner = agent(held)

    def research(state: State) -> Any:
        with agentserve.workflow("reader"):
            inner.invoke(said(state["question"]))
        return {"parts": ["read"]}

    graph = StateGraph(State)
    graph.add_node("research", research)
    graph.add_edge(START, "research")
    graph.add_edge("research", END)
    graph.compile(name="outer").invoke({"question": "of land-1", "parts": []})
    held.gateway.settle()
    (reader,) = {call.program_id for call in held.gateway.calls}
    declared = held.gateway.programs[reader].declared
    assert declared["workflow"] == "reader"
    assert held.gateway.programs[declared["parent_id"]].declared["workflow"] == "outer"
    assert [tool.name for tool in held.gateway.programs[reader].tools] == ["search"]


def test_parallel_nodes_in_threads_carry_their_own(held: Any) -> None:
    app = fan(held)
    held.in_threads(lambda question: app.invoke({"question": question, "parts": []}))


def test_the_example_runs_as_it_stands(held: Any) -> None:
    held.example("langgraph_agent.py")
