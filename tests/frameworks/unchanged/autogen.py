"""AutoGen: an assistant that goes on with its tools until it has an answer."""

from autogen_agentchat.agents import AssistantAgent
from autogen_ext.models.openai import OpenAIChatCompletionClient

INFO = {
    "vision": False, "function_calling": True, "json_output": False, "family": "unknown",
    "structured_output": False,
}  # fmt: skip


async def search(q: str) -> str:
    """Search the web."""
    return "three cities"


async def run(question: str) -> str:
    model = OpenAIChatCompletionClient(model="emulated", model_info=INFO)
    agent = AssistantAgent(
        "researcher", model, tools=[search], system_message="You research.", max_tool_iterations=5
    )
    try:
        return (await agent.run(task=question)).messages[-1].content
    finally:
        await model.close()
