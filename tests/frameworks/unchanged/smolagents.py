"""smolagents: an agent that calls tools, and ends with one."""

import os

from smolagents import OpenAIServerModel, ToolCallingAgent, tool


@tool
def search(q: str) -> str:
    """Search the web.

    Args:
        q: what for
    """
    return "three cities"


def run(question: str) -> str:
    model = OpenAIServerModel(
        "emulated", api_base=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"]
    )
    return ToolCallingAgent(tools=[search], model=model, verbosity_level=0).run(question)
