"""LangGraph's ready-made agent."""

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def search(q: str) -> str:
    """Search the web."""
    return "three cities"


def run(question: str) -> str:
    app = create_agent(ChatOpenAI(model="emulated"), [search], system_prompt="You research.")
    return app.invoke({"messages": [("user", question)]})["messages"][-1].content
