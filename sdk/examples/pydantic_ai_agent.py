"""Pydantic AI, with the capability: `python pydantic_ai_agent.py`."""

import os

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

import agentserve_sdk as agentserve
from agentserve_sdk.pydantic_ai import Serve

agentserve.init()
URL = os.environ.get("AGENTSERVE_URL", "http://127.0.0.1:8400")
provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="none")
model = OpenAIChatModel(os.environ.get("MODEL", "emulated"), provider=provider)
agent = Agent(model, name="researcher", capabilities=[Serve()])


@agent.tool_plain
def search(q: str) -> str:
    """Search the web."""
    return f"nothing new about {q}"


print(agent.run_sync("What is new?").output)
