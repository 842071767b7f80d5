"""Steps of a known graph, two of them side by side: `python pipeline.py`."""

import asyncio
import os

import openai

import agentserve_sdk as agentserve

agentserve.init()
URL = os.environ.get("AGENTSERVE_URL", "http://127.0.0.1:8400")
client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("AGENTSERVE_API_KEY", "none"))
MODEL = os.environ.get("MODEL", "emulated")


async def ask(what: str) -> str:
    reply = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": what}])
    return reply.choices[0].message.content or ""


@agentserve.step("plan", next=["facts", "style"])
async def plan(topic: str) -> str:
    return await ask(f"Plan a report on {topic}.")


@agentserve.workflow(name="report")
async def report(topic: str) -> str:
    outline = await plan(topic)

    async def part(name: str) -> str:
        async with agentserve.step(name, next="join"):
            return await ask(f"{name}: {outline}")

    parts = await asyncio.gather(part("facts"), part("style"))
    with agentserve.step("join"):
        return await ask(" ".join(parts))


print(asyncio.run(report("cities")))
