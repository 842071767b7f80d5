"""A LangGraph run with a sub-agent, as an application would write it; run by `langgraph_trace`.

A planner asks two researchers at once, one of them an agent of its own with a tool, and a writer joins what they found.
The emulated engine is told what to say by the script in each prompt.
"""

from __future__ import annotations

import json
import operator
import os
import time
from typing import Annotated, Any

import agentserve_sdk as agentserve
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import create_react_agent
from typing_extensions import TypedDict

agentserve.init()
model = ChatOpenAI(base_url=os.environ["AGENTSERVE_URL"] + "/v1", api_key="none", model="emulated")


def told(*turns: Any) -> str:
    return "agentserve-script: " + json.dumps(turns)


@tool
def web_search(query: str) -> str:
    """Search the web."""
    time.sleep(0.4)
    return f"three papers on {query}"


class State(TypedDict):
    question: str
    notes: Annotated[list[str], operator.add]


def plan(state: State) -> Any:
    said = model.invoke(
        f"Plan the answer to: {state['question']}\n{told({'text': 'search, compare, write'})}"
    )
    return {"notes": [said.content]}


def compare(state: State) -> Any:
    said = model.invoke(
        f"Compare what is known of: {state['question']}\n{told({'text': 'they differ in price'})}"
    )
    return {"notes": [said.content]}


reader = create_react_agent(
    model, [web_search], name="reader",
    prompt="You read papers.\n" + told({"tool": "web_search", "arguments": {"query": "KV"}}, {"text": "three agree"}),
)  # fmt: skip


def research(state: State) -> Any:
    with agentserve.workflow("reader"):  # an agent of its own: a program under ours
        found = reader.invoke({"messages": [("user", state["question"])]})
    return {"notes": [found["messages"][-1].content]}


def write(state: State) -> Any:
    notes = "; ".join(state["notes"])
    said = model.invoke(f"Write it up: {notes}\n{told({'text': 'Keep the cache while the tool runs.'})}")
    return {"notes": [said.content]}


graph = StateGraph(State)
for name, node in (("plan", plan), ("compare", compare), ("research", research), ("write", write)):
    graph.add_node(name, node)
graph.add_edge(START, "plan")
graph.add_edge("plan", "compare")
graph.add_edge("plan", "research")
graph.add_edge(["compare", "research"], "write")
graph.add_edge("write", END)
app = graph.compile(name="survey")
agentserve.langgraph.register(app)
print(app.invoke({"question": "When is it worth keeping KV?", "notes": []})["notes"][-1])
