"""Strands: its agent."""

from strands import Agent, tool
from strands.models.openai import OpenAIModel


@tool
def search(q: str) -> str:
    """Search the web."""
    return "three cities"


def run(question: str) -> str:
    model = OpenAIModel(model_id="emulated")
    agent = Agent(model=model, tools=[search], system_prompt="You research.", callback_handler=None)
    return str(agent(question))
