"""OpenAI Agents SDK, unchanged but for two lines: `python openai_agents_run.py`."""

import os

from agents import Agent, OpenAIChatCompletionsModel, RunConfig, Runner, function_tool
from openai import AsyncOpenAI

import agentserve_sdk as agentserve

agentserve.init()
URL = os.environ.get("AGENTSERVE_URL", "http://127.0.0.1:8400")


@function_tool
def search(q: str) -> str:
    """Search the web."""
    return f"nothing new about {q}"


client = AsyncOpenAI(base_url=f"{URL}/v1", api_key="none")
model = OpenAIChatCompletionsModel(model=os.environ.get("MODEL", "emulated"), openai_client=client)
agent = Agent(name="researcher", instructions="You research.", tools=[search], model=model)
print(Runner.run_sync(agent, "What is new?", run_config=RunConfig(workflow_name="triage")).final_output)
