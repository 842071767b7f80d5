"""Google ADK, over LiteLLM."""

import os

from google.adk.agents import Agent
from google.adk.models.lite_llm import LiteLlm
from google.adk.runners import InMemoryRunner
from google.genai import types


def search(q: str) -> str:
    """Search the web."""
    return "three cities"


async def run(question: str) -> str:
    model = LiteLlm(
        model="openai/emulated", api_base=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"]
    )
    agent = Agent(name="researcher", model=model, tools=[search], instruction="You research.")
    runner = InMemoryRunner(agent=agent, app_name="app")
    session = await runner.session_service.create_session(app_name="app", user_id="u")
    said = types.Content(role="user", parts=[types.Part(text=question)])
    text = ""
    async for event in runner.run_async(user_id="u", session_id=session.id, new_message=said):
        for part in event.content.parts if event.content else ():
            text = part.text or text
    return text
