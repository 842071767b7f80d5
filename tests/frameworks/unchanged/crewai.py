"""CrewAI: a crew of one, with one task."""

import os

from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool


@tool("search")
def search(q: str) -> str:
    """Search the web."""
    return "three cities"


def run(question: str) -> str:
    model = LLM(model="openai/emulated", base_url=os.environ["OPENAI_BASE_URL"])
    agent = Agent(role="researcher", goal="know", backstory="curious", tools=[search], llm=model)
    task = Task(description=question, expected_output="a line", agent=agent)
    return str(Crew(agents=[agent], tasks=[task]).kickoff())
