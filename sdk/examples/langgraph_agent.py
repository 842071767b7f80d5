"""LangGraph, unchanged but for three lines: `python langgraph_agent.py`."""

import os

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent

import agentserve_sdk as agentserve

agentserve.init()
URL = os.environ.get("AGENTSERVE_URL", "http://127.0.0.1:8400")


@tool
def search(q: str) -> str:
    """Search the web."""
    return f"nothing new about {q}"


model = ChatOpenAI(base_url=f"{URL}/v1", api_key="none", model=os.environ.get("MODEL", "emulated"))
app = create_react_agent(model, [search], name="research")
agentserve.langgraph.register(app)  # its nodes and edges, once
said = {"messages": [("user", "What is new?")]}
print(app.invoke(said, {"configurable": {"thread_id": "t1"}})["messages"][-1].content)
