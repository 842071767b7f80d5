"""A LangGraph of one's own: a plan, three parts written at once, and their union."""

import operator
from collections.abc import Callable
from typing import Annotated, Any

from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

PARTS = ("history", "numbers", "people")


class State(TypedDict):
    topic: str
    plan: str
    parts: Annotated[list[str], operator.add]


def graph(model: ChatOpenAI) -> StateGraph:
    def plan(state: State) -> dict[str, Any]:
        said = [("system", "You plan reports."), ("user", state["topic"])]
        return {"plan": model.invoke(said).content}

    def writer(part: str) -> Callable[[State], dict[str, Any]]:
        def write(state: State) -> dict[str, Any]:
            asked = f"The topic: {state['topic']}\nThe plan: {state['plan']}\nWrite about its {part}."
            return {"parts": [model.invoke([("system", f"You write on {part}."), ("user", asked)]).content]}

        return write

    def union(state: State) -> dict[str, Any]:
        asked = "Make one report of these parts:\n" + "\n".join(state["parts"])
        return {"parts": [model.invoke([("system", "You are an editor."), ("user", asked)]).content]}

    made = StateGraph(State)
    made.add_node("plan", plan)
    made.add_node("union", union)
    for part in PARTS:
        made.add_node(part, writer(part))
        made.add_edge("plan", part)
    made.add_edge(list(PARTS), "union")
    made.add_edge(START, "plan")
    made.add_edge("union", END)
    return made


def run(question: str) -> str:
    return graph(ChatOpenAI(model="emulated")).compile().invoke({"topic": question, "parts": []})["parts"][-1]
