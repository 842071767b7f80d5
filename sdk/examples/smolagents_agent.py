"""smolagents, unchanged but for two lines: `python smolagents_agent.py`."""

import os

from smolagents import OpenAIServerModel, ToolCallingAgent, tool

import agentserve_sdk as agentserve

agentserve.init()
URL = os.environ.get("AGENTSERVE_URL", "http://127.0.0.1:8400")


@tool
def search(q: str) -> str:
    """Search the web.

    Args:
        q: what for
    """
    return f"nothing new about {q}"


model = OpenAIServerModel(os.environ.get("MODEL", "emulated"), api_base=f"{URL}/v1", api_key="none")
print(ToolCallingAgent(tools=[search], model=model, max_steps=3).run("What is new?"))
