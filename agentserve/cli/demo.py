"""`agentserve demo`: the same agents on the same engines, once direct and once through agentserve.

Rule: real HTTP, the real gateway, real clients; only the engines are emulated (or yours, by `--engine`), and their time
is scaled. What is printed was measured, in the engines' own seconds. The direct arm is sticky: each agent stays on one
engine, which is the best that a client can do alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import tempfile
import webbrowser
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec

from agentserve.cli.trials import progress_bar
from agentserve.engine import profile
from agentserve.errors import AgentServeError, UsageError
from agentserve.sim.page import Arm, page
from agentserve.sim.programs import ProgramPlan, ToolPlan, Workload
from agentserve.sim.report import Figures, summarise
from agentserve.sim.run import alone_s
from agentserve.sim.workloads import make_workload
from agentserve.sim.world import ProgramTrace, Result, StepTrace

HELP = "the same agents direct and through agentserve, on emulated engines, compared"
PROFILE = "llama-3.1-8b-h100"
START_S = 30.0
STEP_TIMEOUT_S = 600.0
TOKEN_CHARS = 4
SCRIPT = "agentserve-script:"  # what the emulated engine takes its turns from; to a real one it is only text
JSON = {"content-type": "application/json"}
COMMAND = {"type": "object", "properties": {"command": {"type": "string"}}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": f"{name} something", "parameters": COMMAND},
    }
    for name in ("bash", "read", "edit")
]
WORDS = (
    "read",
    "file",
    "test",
    "fails",
    "line",
    "patch",
    "apply",
    "run",
    "again",
    "green",
    "done",
    "next",
    "check",
)
ROWS = (
    ("jct_mean_s", "mean completion, s"),
    ("jct_p95_s", "p95 completion, s"),
    ("ttft_mean_s", "mean time to first token, s"),
    ("steps_per_min", "steps a minute"),
    ("cached_share", "cached share of prompts"),
    ("reprefilled_tokens", "re-prefilled tokens"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--quick", action="store_true", help="fewer and shorter programs: about a minute")
    parser.add_argument("--programs", type=int, help="how many agents (default 40, quick 24)")
    parser.add_argument("--engines", type=int, default=2, help="emulated engines (default 2)")
    parser.add_argument("--kv-tokens", type=int, default=160_000, help="KV tokens of each emulated engine")
    parser.add_argument(
        "--pressure", type=float, default=2.0, help="live contexts over the engines' KV (default 2)"
    )
    parser.add_argument("--time-scale", type=float, default=8.0, help="how much faster than real (default 8)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--engine", action="append", default=[], metavar="URL", help="a real engine; may stand again"
    )
    parser.add_argument("--model", help="with --engine: the model to ask for (default: the first it lists)")
    parser.add_argument("--json", metavar="FILE", help="figures as JSON; - for standard output")
    parser.add_argument(
        "--html", metavar="FILE", help="where to write the report (default: a temporary file)"
    )
    parser.add_argument("--open", action="store_true", help="show the report in a browser")
    parser.add_argument(
        "--keep", action="store_true", help="leave the gateway running at the end, for its console"
    )


def run(args: argparse.Namespace) -> int:
    """Both arms, then the comparison."""
    for name in ("engines", "kv_tokens", "time_scale", "pressure"):
        if getattr(args, name) <= 0:
            raise UsageError(f"--{name.replace('_', '-')} is not positive", remedy="give a number above zero")
    if args.programs is not None and args.programs < 2:
        raise UsageError("--programs is below 2", remedy="a comparison needs a few programs")
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    scale = 1.0 if args.engine else args.time_scale
    workload = plan(args)
    concurrency = workload.concurrency(args.pressure, args.kv_tokens * args.engines)
    concurrency = max(2, min(concurrency, len(workload.roots)))
    arms = []
    async with contextlib.AsyncExitStack() as stack:
        urls = args.engine or [await stack.enter_async_context(_engine(args, i)) for i in range(args.engines)]
        model = args.model or await _model(urls[0])
        direct = Crowd(workload, urls, model, scale)
        arms.append(await _arm("direct", direct, concurrency))
    async with contextlib.AsyncExitStack() as stack:
        urls = args.engine or [await stack.enter_async_context(_engine(args, i)) for i in range(args.engines)]
        gateway = await stack.enter_async_context(_gateway(urls))
        through = Crowd(workload, [gateway], model, scale)
        arms.append(await _arm("agentserve", through, concurrency))
        _report(args, arms, concurrency)
        if args.keep:
            print(
                f"the gateway stays at {gateway} (console {gateway}/console); end it with Ctrl-C",
                file=sys.stderr,
            )
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
    return 0


def plan(args: argparse.Namespace) -> Workload:
    """Coding agents from the generator, each seen for some steps in the middle of its life, to bound the wait."""
    steps_max = 8 if args.quick else 16
    programs = args.programs or (36 if args.quick else 60)
    made = make_workload("coding", programs=2 * programs, seed=args.seed)
    context_max = args.kv_tokens // 3
    cut = [_middle(p, steps_max, context_max) for p in made.programs if len(p.steps) >= steps_max]
    return Workload(name=made.name, programs=cut[:programs], seed=made.seed, shared_tokens=made.shared_tokens)


def _middle(program: ProgramPlan, steps_max: int, context_max: int) -> ProgramPlan:
    """The steps from the middle on, with what came before folded into the first prompt."""
    start = (len(program.steps) - steps_max) // 2
    shared = sum(r.tokens for r in program.shared)
    prompts = program.prompts()
    steps = []
    for k in range(start, start + steps_max):
        step = program.steps[k]
        new = min(prompts[k] - shared, context_max - shared) if k == start else step.new_tokens
        tools = tuple(dataclasses.replace(t, seconds=min(t.seconds, 20.0)) for t in step.tools)
        output = min(step.output_tokens, 500)
        steps.append(dataclasses.replace(step, new_tokens=new, output_tokens=output, tools=tools))
    return dataclasses.replace(program, steps=tuple(steps))


# -- processes


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def _process(arguments: Sequence[str], url: str, cwd: str | None = None) -> AsyncIterator[str]:
    """One of our own verbs as a process, up when `url` answers, ended with the block."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTSERVE_")}
    command = (sys.executable, "-m", "agentserve.cli", *arguments)
    devnull = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=devnull, stderr=devnull, env=env, cwd=cwd)
    try:
        async with httpx.AsyncClient() as client, asyncio.timeout(START_S):
            while True:
                if process.returncode is not None:
                    raise AgentServeError(
                        f"`agentserve {' '.join(arguments)}` ended with {process.returncode}"
                    )
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(url)).status_code == 200:
                        break
                await asyncio.sleep(0.1)
        yield url
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


@contextlib.asynccontextmanager
async def _engine(args: argparse.Namespace, index: int) -> AsyncIterator[str]:
    port = _free_port()
    flags = ("--port", str(port), "--profile", PROFILE, "--time-scale", str(args.time_scale))
    url = f"http://127.0.0.1:{port}"
    async with _process(("engine", *flags, "--kv-tokens", str(args.kv_tokens)), f"{url}/health"):
        yield url


@contextlib.asynccontextmanager
async def _gateway(engines: Sequence[str]) -> AsyncIterator[str]:
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="agentserve-demo-") as folder:
        store = f"sqlite+aiosqlite:///{folder}/demo.db"
        flags = [*(f for e in engines for f in ("--engine", e)), "--port", str(port), "--store", store]
        async with _process(("up", *flags), f"{url}/readyz", cwd=folder):
            yield url


async def _model(url: str) -> str:
    async with httpx.AsyncClient(timeout=10) as client:
        try:
            return str((await client.get(f"{url}/v1/models")).json()["data"][0]["id"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise UsageError(f"{url} lists no models: {error}", remedy="name one with --model") from error


# -- agents


class Crowd:
    """Agents that call one or several base URLs; times are kept in the engines' seconds."""

    def __init__(self, workload: Workload, urls: Sequence[str], model: str, scale: float) -> None:
        self.workload = workload
        self.urls = urls
        self.model = model
        self.scale = scale
        self.result = Result()
        self._began = 0.0

    def _now(self) -> float:
        return (asyncio.get_running_loop().time() - self._began) * self.scale

    async def run(self, concurrency: int, progress: Callable[[int], None]) -> Result:
        """All programs, `concurrency` at a time."""
        self._began = asyncio.get_running_loop().time()
        queue = list(reversed(range(len(self.workload.programs))))
        limits = httpx.Limits(max_connections=concurrency * 2)
        async with httpx.AsyncClient(timeout=STEP_TIMEOUT_S, limits=limits) as client:

            async def worker() -> None:
                while queue:
                    index = queue.pop()
                    await self._program(client, index)
                    progress(len(self.result.programs))

            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(worker())
        self.result.ended_at = self._now()
        return self.result

    async def _program(self, client: httpx.AsyncClient, index: int) -> None:
        program = self.workload.programs[index]
        url = f"{self.urls[index % len(self.urls)]}/v1/chat/completions"
        started = self._now()
        shared = sum(r.tokens for r in program.shared)
        script = msgspec.json.encode([turn(program, k) for k in range(len(program.steps))]).decode()
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": text(program.shared[0].key, shared)},
            {
                "role": "user",
                "content": f"{text(program.own, program.steps[0].new_tokens)}\n{SCRIPT} {script}\n",
            },
        ]
        before = 0
        for k, step in enumerate(program.steps):
            trace = StepTrace(program=index, index=k, sent_at=self._now())
            reply, usage = await self._step(client, url, messages, step.output_tokens, trace)
            trace.prompt = int(usage.get("prompt_tokens", 0))
            trace.output = int(usage.get("completion_tokens", 0))
            trace.cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
            trace.fresh = trace.prompt - before
            before = trace.prompt + trace.output
            self.result.steps.append(trace)
            if k + 1 == len(program.steps):
                break
            await asyncio.sleep(step.gap_s / self.scale)
            result = text(program.own * 1000 + k, program.steps[k + 1].new_tokens)
            messages.append(reply)
            calls = reply.get("tool_calls")
            if calls:
                messages += [{"role": "tool", "tool_call_id": c["id"], "content": result} for c in calls]
            else:  # a real engine's model says what it likes
                messages.append({"role": "user", "content": result})
        self.result.programs.append(ProgramTrace(index=index, started_at=started, ended_at=self._now()))

    async def _step(
        self,
        client: httpx.AsyncClient,
        url: str,
        messages: list[dict[str, Any]],
        output: int,
        trace: StepTrace,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        body = {
            "model": self.model,
            "messages": messages,
            "tools": TOOLS,
            "max_tokens": output + 64,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        said: list[str] = []
        calls: dict[int, dict[str, Any]] = {}
        usage: dict[str, Any] = {}
        async with client.stream("POST", url, content=msgspec.json.encode(body), headers=JSON) as reply:
            if reply.status_code != 200:
                detail = (await reply.aread()).decode(errors="replace")[:300]
                raise AgentServeError(f"{url} answered {reply.status_code}: {detail}")
            queued_ms = float(reply.headers.get("x-agentserve-queue-ms") or 0.0)
            trace.dispatched_at = trace.sent_at + queued_ms / 1000 * self.scale
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                if not trace.first_at:
                    trace.first_at = self._now()
                chunk = msgspec.json.decode(line[6:])
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices") or ():
                    said.append(choice["delta"].get("content") or "")
                    gather(calls, choice["delta"].get("tool_calls") or ())
        trace.ended_at = self._now()
        message: dict[str, Any] = {"role": "assistant", "content": "".join(said)}
        if calls:
            message["tool_calls"] = list(calls.values())
        return message, usage


def gather(calls: dict[int, dict[str, Any]], parts: Iterable[dict[str, Any]]) -> None:
    """Add streamed pieces of tool calls up."""
    for part in parts:
        function = part.get("function") or {}
        call = calls.setdefault(
            part["index"], {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = part.get("id") or call["id"]
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""


def turn(program: ProgramPlan, k: int) -> Any:
    """What the emulated engine is told to say at this step: the planned tool calls, or the closing words."""
    step = program.steps[k]
    if k + 1 == len(program.steps):
        return {"text": text(program.own + k, step.output_tokens)}
    tools = step.tools or (ToolPlan(name="bash"),)
    size = max(step.output_tokens // len(tools) - 12, 4)
    return [
        {"tool": t.name, "arguments": {"command": f"{t.argument_class} {text(program.own + k, size)}"}}
        for t in tools
    ]


def text(key: int, tokens: int) -> str:
    """Words worth about this many tokens, the same for the same key."""
    size = tokens * TOKEN_CHARS
    state = key * 2654435761 + 97
    out: list[str] = []
    length = 0
    while length < size:
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        word = WORDS[(state >> 33) % len(WORDS)] + str((state >> 50) % 97)
        out.append(word)
        length += len(word) + 1
    return " ".join(out)[:size]


async def _arm(label: str, crowd: Crowd, concurrency: int) -> Arm:
    with progress_bar(label, len(crowd.workload.programs)) as tick:
        result = await crowd.run(concurrency, tick)
    shape = profile(PROFILE)

    def alone(program: ProgramPlan) -> float:
        return alone_s(program, shape)

    figures = summarise(crowd.workload, result, alone, {})
    return Arm(label, figures, SimpleNamespace(workload=crowd.workload), result)  # type: ignore[arg-type]


# -- what came of it


def _report(args: argparse.Namespace, arms: Sequence[Arm], concurrency: int) -> None:
    direct, ours = (arm.figures for arm in arms)
    ratio = direct["jct_mean_s"] / max(ours["jct_mean_s"], 1e-9)
    where = Path(args.html or Path(tempfile.gettempdir()) / "agentserve-demo.html")
    where.write_text(page(arms, f"Direct and through agentserve, seed {args.seed}"), encoding="utf-8")
    if args.json:
        emulated = (
            None
            if args.engine
            else {"profile": PROFILE, "time_scale": args.time_scale, "engines": args.engines}
        )
        out = {
            "jct_ratio": ratio,
            "concurrency": concurrency,
            "seed": args.seed,
            "emulated": emulated,
            "direct": direct,
            "agentserve": ours,
        }
        text_ = json.dumps(out, indent=2, sort_keys=True)
        if args.json == "-":
            print(text_)
        else:
            Path(args.json).write_text(text_ + "\n", encoding="utf-8")
    if args.json != "-":
        _table(args, direct, ours, ratio, concurrency)
        print(f"report: {where}")
    if args.open:
        webbrowser.open(where.as_uri())


def _table(args: argparse.Namespace, direct: Figures, ours: Figures, ratio: float, concurrency: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{direct['programs']} coding agents, {concurrency} at a time, {direct['steps']} steps"
    )
    table.add_column("")
    table.add_column("direct", justify="right")
    table.add_column("agentserve", justify="right")
    for name, words in ROWS:
        table.add_row(words, f"{direct[name]:,.2f}", f"{ours[name]:,.2f}")
    console = Console()
    console.print(table)
    console.print(f"agents are done {ratio:.2f} times sooner on the same engines")
    if not args.engine:
        console.print(
            f"The engines are emulated ({PROFILE}, {args.engines} x {args.kv_tokens:,} tokens of KV, "
            f"{args.time_scale:g} times real speed); HTTP, gateway, scheduler and store are real. "
            "On yours: agentserve demo --engine http://…"
        )
