"""Haystack: its agent."""

import os

from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import create_tool_from_function


def search(q: str) -> str:
    """Search the web."""
    return "three cities"


def run(question: str) -> str:
    model = OpenAIChatGenerator(model="emulated", api_base_url=os.environ["OPENAI_BASE_URL"])
    tools = [create_tool_from_function(search)]
    agent = Agent(chat_generator=model, tools=tools, system_prompt="You research.")
    return agent.run(messages=[ChatMessage.from_user(question)])["messages"][-1].text
