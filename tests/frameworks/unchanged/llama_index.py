"""LlamaIndex: an agent that calls functions."""

import os

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.openai_like import OpenAILike


def search(q: str) -> str:
    """Search the web."""
    return "three cities"


async def run(question: str) -> str:
    model = OpenAILike(
        model="emulated", api_base=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"],
        is_chat_model=True, is_function_calling_model=True,
    )  # fmt: skip
    return str(await FunctionAgent(tools=[search], llm=model, system_prompt="You research.").run(question))
