"""Agno: its agent."""

import os

from agno.agent import Agent
from agno.models.openai.like import OpenAILike


def search(q: str) -> str:
    """Search the web."""
    return "three cities"


def run(question: str) -> str:
    model = OpenAILike(
        id="emulated", base_url=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"]
    )
    agent = Agent(model=model, tools=[search], instructions="You research.", telemetry=False)
    return agent.run(question).content
