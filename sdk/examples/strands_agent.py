"""Strands, unchanged but for two lines: `python strands_agent.py`."""

import os

from strands import Agent, tool
from strands.models.openai import OpenAIModel

import agentserve_sdk as agentserve

agentserve.init()
URL = os.environ.get("AGENTSERVE_URL", "http://127.0.0.1:8400")


@tool
def search(q: str) -> str:
    """Search the web."""
    return f"nothing new about {q}"


client = {"base_url": f"{URL}/v1", "api_key": "none"}
model = OpenAIModel(client_args=client, model_id=os.environ.get("MODEL", "emulated"))
Agent(model=model, tools=[search], name="researcher")("What is new?")
