"""CrewAI, unchanged but for two lines: `python crewai_crew.py`."""

import os

from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool

import agentserve_sdk as agentserve

agentserve.init()
URL = os.environ.get("AGENTSERVE_URL", "http://127.0.0.1:8400")


@tool("search")
def search(q: str) -> str:
    """Search the web."""
    return f"nothing new about {q}"


model = LLM(model=f"openai/{os.environ.get('MODEL', 'emulated')}", base_url=f"{URL}/v1", api_key="none")
agent = Agent(role="researcher", goal="know", backstory="curious", tools=[search], llm=model)
task = Task(description="What is new?", expected_output="a line", agent=agent)
print(Crew(name="news", agents=[agent], tasks=[task]).kickoff())
