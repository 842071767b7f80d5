"""Other people's routers in front of two emulated engines, with the real OpenAI client, streaming and not.

Run by hand, since the routers want an environment of their own:

    uv venv /tmp/peers
    uv pip install --python /tmp/peers/bin/python vllm-router sglang-router 'litellm[proxy]'
    python -m tests.contract.peers_route_to_emulated --peers /tmp/peers/bin

A router passes when every reply is whole, streamed text equals the unstreamed, usage arrives, and both engines served.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn
from agentserve_adapters.emulated import EmulatedOptions, EmulatedServer

CALLS = 8  # of each kind, all different, so that a router has something to spread
START_S_MAX = 150.0  # LiteLLM's first start compiles its imports
CALL_S_MAX = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was seen of one router."""

    router: str
    whole: int = 0
    streamed: int = 0
    alike: int = 0
    counted: int = 0
    shares: tuple[int, ...] = ()
    failure: str = ""

    @property
    def passed(self) -> bool:
        counts = (self.whole, self.streamed, self.alike, self.counted)
        return not self.failure and counts == (CALLS,) * 4 and min(self.shares) > 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def engine() -> AsyncIterator[tuple[str, EmulatedServer]]:
    """One emulated engine under a real server."""
    app = EmulatedServer(EmulatedOptions(time_scale=20.0))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}", app
    finally:
        server.should_exit = True
        await serving


def vllm_router(port: int, urls: list[str], _: Path) -> list[str]:
    command = ["vllm-router", "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    return [*command, "--prometheus-port", str(free_port()), "--worker-urls", *urls]


def sglang_router(port: int, urls: list[str], _: Path) -> list[str]:
    command = ["python", "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port)]
    return [
        *command,
        "--prometheus-port",
        str(free_port()),
        "--policy",
        "round_robin",
        "--worker-urls",
        *urls,
    ]


def litellm(port: int, urls: list[str], folder: Path) -> list[str]:
    models = [
        {
            "model_name": "emulated",
            "litellm_params": {"model": "hosted_vllm/emulated", "api_base": f"{url}/v1", "api_key": "none"},
        }
        for url in urls
    ]
    path = folder / "litellm.json"  # JSON is YAML
    path.write_text(json.dumps({"model_list": models}), encoding="utf-8")
    return ["litellm", "--host", "127.0.0.1", "--port", str(port), "--config", str(path)]


ROUTERS: dict[str, Callable[[int, list[str], Path], list[str]]] = {
    "vllm-router": vllm_router,
    "sglang-router": sglang_router,
    "litellm": litellm,
}


async def ready(url: str, process: asyncio.subprocess.Process) -> None:
    """Wait until the router gets an answer from an engine; not all of them list models by name."""
    until = time.monotonic() + START_S_MAX
    headers = {"authorization": "Bearer sk-peers"}
    asked = {"model": "emulated", "max_tokens": 1, "messages": [{"role": "user", "content": "ready?"}]}
    async with httpx.AsyncClient(timeout=5.0) as client:
        while time.monotonic() < until:
            if process.returncode is not None:
                raise RuntimeError(f"it ended with status {process.returncode}")
            with contextlib.suppress(httpx.HTTPError):
                reply = await client.post(f"{url}/v1/chat/completions", headers=headers, json=asked)
                if reply.status_code == 200:
                    return
            await asyncio.sleep(0.3)
    raise RuntimeError(f"it was not ready within {START_S_MAX:.0f} s")


async def call(client: openai.AsyncOpenAI, i: int) -> tuple[bool, bool, bool, bool]:
    """One question, whole and streamed: whole, streamed, alike, counted."""
    messages: list[Any] = [{"role": "user", "content": f"question {i}: " + f"why {i}? " * 50}]
    whole = await client.chat.completions.create(model="emulated", messages=messages, max_tokens=24)
    stream = await client.chat.completions.create(
        model="emulated",
        messages=messages,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, finish, usage = "", None, None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    said = whole.choices[0].message.content
    return bool(said), bool(text and finish), text == said, bool(usage and usage.prompt_tokens)


async def meet(router: str, peers: Path) -> Outcome:
    """Start two engines and the router, and talk through it."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engines = [await stack.enter_async_context(engine()) for _ in range(2)]
        port = free_port()
        command = ROUTERS[router](port, [url for url, _ in engines], folder)
        log = stack.enter_context((folder / "log").open("wb"))
        process = await asyncio.create_subprocess_exec(
            str(peers / command[0]),
            *command[1:],
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, "LITELLM_MASTER_KEY": "sk-peers", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        )
        try:
            await ready(f"http://127.0.0.1:{port}", process)
            before = [
                app.host.record.finished["stop"] + app.host.record.finished["length"] for _, app in engines
            ]
            client = await stack.enter_async_context(
                openai.AsyncOpenAI(
                    base_url=f"http://127.0.0.1:{port}/v1",
                    api_key="sk-peers",
                    max_retries=0,
                    timeout=CALL_S_MAX,
                )
            )
            seen = [await call(client, i) for i in range(CALLS)]
            after = [
                app.host.record.finished["stop"] + app.host.record.finished["length"] for _, app in engines
            ]
            sums = [sum(column) for column in zip(*seen, strict=True)]
            shares = tuple(b - a for a, b in zip(before, after, strict=True))
            whole, streamed, alike, counted = sums
            return Outcome(
                router=router, whole=whole, streamed=streamed, alike=alike, counted=counted, shares=shares
            )
        except (RuntimeError, openai.OpenAIError) as error:
            tail = (folder / "log").read_text(encoding="utf-8", errors="replace")[-600:]
            return Outcome(router=router, failure=f"{type(error).__name__}: {error}\n{tail}")
        finally:
            await end(process)


async def end(process: asyncio.subprocess.Process) -> None:
    """Stop the router, by force if it does not listen."""
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 8.0)
        except TimeoutError:
            process.kill()
            await process.wait()


def table(outcomes: list[Outcome]) -> str:
    """What was seen, a line for each router."""
    lines = [f"{'router':<15}{'whole':>7}{'streamed':>10}{'alike':>7}{'usage':>7}  {'engines':<10}result"]
    for o in outcomes:
        shares = "/".join(map(str, o.shares)) or "-"
        counts = f"{o.whole:>7}{o.streamed:>10}{o.alike:>7}{o.counted:>7}"
        lines.append(f"{o.router:<15}{counts}  {shares:<10}{'pass' if o.passed else 'FAIL'}")
        lines += [f"    {line}" for line in o.failure.splitlines()]
    return "\n".join(lines)


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="folder with the routers' executables")
    parser.add_argument("routers", nargs="*", default=list(ROUTERS), help="some of " + ", ".join(ROUTERS))
    args = parser.parse_args()
    outcomes = [await meet(router, args.peers) for router in args.routers]
    print(table(outcomes))
    return 0 if all(o.passed for o in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
