"""LlamaIndex, unchanged but for two lines: `python llama_index_agent.py`."""

import asyncio
import os

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.openai_like import OpenAILike

import agentserve_sdk as agentserve

agentserve.init()
URL = os.environ.get("AGENTSERVE_URL", "http://127.0.0.1:8400")


def search(q: str) -> str:
    """Search the web."""
    return f"nothing new about {q}"


async def main() -> None:
    model = OpenAILike(
        model=os.environ.get("MODEL", "emulated"), api_base=f"{URL}/v1", api_key="none",
        is_chat_model=True, is_function_calling_model=True,
    )  # fmt: skip
    print(await FunctionAgent(tools=[search], llm=model, name="researcher").run("What is new?"))


asyncio.run(main())
