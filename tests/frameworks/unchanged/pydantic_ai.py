"""Pydantic AI over chat completions."""

from pydantic_ai import Agent


def search(q: str) -> str:
    """Search the web."""
    return "three cities"


async def run(question: str) -> str:
    agent = Agent("openai-chat:emulated", instructions="You research.", tools=[search])
    return (await agent.run(question)).output
