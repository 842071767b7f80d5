"""Agents that keep a small fleet busy, so that every figure has something to show.

Rule: they are plain OpenAI clients of two tenants; most say nothing of programs, some use the headers that agentserve
reads. More of them run than fit the engines' KV.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Sequence
from typing import Any

import httpx

TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("search", "bash")
]
SCRIPT = [{"tool": "search", "arguments": {}}, {"tool": "bash", "arguments": {}}] * 2 + [{"text": "all done"}]


async def agent(client: httpx.AsyncClient, key: str, name: str, *, words: int, seed: int) -> None:
    """One run: five steps with four tool calls between them."""
    draw = random.Random(seed)
    headers = {"authorization": f"Bearer {key}"}
    explicit = seed % 3 == 0
    if explicit:
        headers["x-agentserve-program-id"] = name
        headers["x-agentserve-workflow"] = "research"
    text = " ".join(f"{name}{draw.randrange(10**6)}" for _ in range(words))
    messages: list[Any] = [
        {"role": "system", "content": f"You are {name}.\nagentserve-script: {json.dumps(SCRIPT)}"},
        {"role": "user", "content": text},
    ]
    for turn in range(len(SCRIPT)):
        if explicit and turn == len(SCRIPT) - 1:
            headers["x-agentserve-final"] = "true"
        body = {"model": "emulated", "messages": messages, "tools": TOOLS, "max_tokens": 60}
        reply = await client.post("/v1/chat/completions", json=body, headers=headers)
        if reply.status_code != 200:
            return  # an engine was killed under it
        message = reply.json()["choices"][0]["message"]
        messages.append(message)
        for call in message.get("tool_calls") or ():
            await asyncio.sleep(draw.choice((0.05, 0.1, 0.4)))
            found = " ".join(f"found{draw.randrange(10**6)}" for _ in range(words // 4))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": found})


async def crowd(url: str, keys: Sequence[str], *, agents: int, words: int, enough: asyncio.Event) -> int:
    """So many agents at a time, one after another, until there is enough; how many runs were begun."""
    began = 0
    async with httpx.AsyncClient(
        base_url=url, timeout=60, limits=httpx.Limits(max_connections=agents)
    ) as client:

        async def places(place: int) -> None:
            nonlocal began
            while not enough.is_set():
                began += 1
                key = keys[place % len(keys)]
                with contextlib.suppress(httpx.TransportError):
                    await agent(client, key, f"run{began}", words=words, seed=began)

        await asyncio.gather(*(places(place) for place in range(agents)))
    return began
