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
import math
import signal
import sys
import tempfile
import webbrowser
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import httpx

from agentserve.cli import stage
from agentserve.cli.address import base_url
from agentserve.cli.crowd import Crowd, Door
from agentserve.cli.trials import check_files, progress_bar, write_text
from agentserve.engine import profile
from agentserve.errors import UsageError
from agentserve.live.upstream.hosted import THIS_MACHINE
from agentserve.sim.page import Arm, page
from agentserve.sim.programs import ProgramPlan, Workload
from agentserve.sim.report import Figures, jain, summarise
from agentserve.sim.run import alone_s
from agentserve.sim.workloads import make_workload

HELP = "the same agents direct and through agentserve, on emulated engines, compared"
PROFILE = "llama-3.1-8b-h100"
GAP_S_MAX = 20.0
OUTPUT_TOKENS_MAX = 500
ROWS = (
    ("jct_mean_s", "mean completion, s", ",.0f"),
    ("jct_p95_s", "p95 completion, s", ",.0f"),
    ("ttft_mean_s", "mean time to first token, s", ",.1f"),
    ("steps_per_min", "steps a minute", ",.0f"),
    ("cached_share", "cached share of prompts", ".0%"),
    ("reprefilled_tokens", "re-prefilled tokens", ",.0f"),
    ("fairness", "fairness between programs (Jain, of slowdowns)", ".2f"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--quick", action="store_true", help="fewer and shorter programs: about a minute")
    parser.add_argument("--programs", type=int, help="how many agents (default 72, quick 48)")
    parser.add_argument("--engines", type=int, default=2, help="emulated engines (default 2)")
    parser.add_argument(
        "--kv-tokens", type=int, default=240_000, help="KV tokens of each engine (default 240000)"
    )
    parser.add_argument(
        "--pressure", type=float, default=2.0, help="live contexts over the engines' KV (default 2)"
    )
    parser.add_argument(
        "--time-scale", type=float, default=10.0, help="how much faster than real (default 10)"
    )
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
        if not 0 < getattr(args, name) < math.inf:
            raise UsageError(f"--{name.replace('_', '-')} is not positive", remedy="give a number above zero")
    if args.programs is not None and args.programs < 2:
        raise UsageError("--programs is below 2", remedy="a comparison needs a few programs")
    args.engine = [base_url(url, "--engine") for url in args.engine]
    args.html = args.html or str(Path(tempfile.gettempdir()) / "agentserve-demo.html")
    check_files(args)
    return asyncio.run(_ending(_run(args)))


async def _ending(running: Coroutine[Any, Any, int]) -> int:
    """A signal that would end us at once ends what was started first; the status is then as the shell has it."""
    task, told = asyncio.ensure_future(running), list[int]()

    def end(number: int) -> None:
        told.append(number)
        task.cancel()

    with contextlib.suppress(NotImplementedError, AttributeError, RuntimeError):  # no POSIX, no main thread
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, end, number)
    try:
        status = await task
    except asyncio.CancelledError:
        if not told:
            raise
    return 128 + told[0] if told else status


async def _run(args: argparse.Namespace) -> int:
    workload = plan(args)
    engines = len(args.engine) or args.engines
    concurrency = workload.concurrency(args.pressure, args.kv_tokens * engines)
    concurrency = max(2, min(concurrency, len(workload.roots)))
    arms = []
    async with contextlib.AsyncExitStack() as stack:
        urls = await _engines(args, stack)
        args.model = args.model or await _model(urls[0])
        arms.append(await _arm("direct", args, workload, urls, concurrency))
    async with contextlib.AsyncExitStack() as stack:
        pace = stage.paced(1.0 if args.engine else args.time_scale)
        gateway = (await stack.enter_async_context(stage.gateway(await _engines(args, stack), *pace))).url
        arms.append(await _arm("agentserve", args, workload, [gateway], concurrency))
        _report(args, arms, concurrency)
        if args.keep:
            print(
                f"the gateway stays at {gateway} (console {gateway}/console); end it with Ctrl-C",
                file=sys.stderr,
            )
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
    return 0


async def _engines(args: argparse.Namespace, stack: contextlib.AsyncExitStack) -> list[str]:
    """Their addresses: yours, or fresh emulated ones, so that each arm begins with cold caches."""
    if args.engine:
        return list(args.engine)
    shape = {"profile": PROFILE, "time_scale": args.time_scale, "kv_tokens": args.kv_tokens}
    return [(await stack.enter_async_context(stage.engine(**shape))).url for _ in range(args.engines)]


async def _arm(
    label: str, args: argparse.Namespace, workload: Workload, urls: Sequence[str], concurrency: int
) -> Arm:
    if args.engine:  # these keep their caches from one arm to the next
        workload = _in_other_words(workload, label)
    crowd = Crowd(workload, Door(urls), model=args.model, scale=1.0 if args.engine else args.time_scale)
    with progress_bar(label, len(workload.programs)) as tick:
        result = await crowd.run(concurrency, tick)
    shape = profile(PROFILE)
    figures = summarise(workload, result, lambda program: alone_s(program, shape), {})
    plans = workload.programs
    slowdowns = [(t.ended_at - t.started_at) / alone_s(plans[t.index], shape) for t in result.programs]
    figures["fairness"] = jain(slowdowns)
    return Arm(label, figures, workload, result)


async def _model(url: str) -> str:
    async with httpx.AsyncClient(timeout=10, mounts=THIS_MACHINE) as client:
        try:
            return str((await client.get(f"{url}/v1/models")).json()["data"][0]["id"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise UsageError(f"{url} lists no models: {error}", remedy="name one with --model") from error


def plan(args: argparse.Namespace) -> Workload:
    """Coding agents from the generator, each seen for some steps in the middle of its life, to bound the wait."""
    steps_max = 8 if args.quick else 16
    programs = args.programs or (48 if args.quick else 72)
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
        tools = tuple(dataclasses.replace(t, seconds=min(t.seconds, GAP_S_MAX)) for t in step.tools)
        output = min(step.output_tokens, OUTPUT_TOKENS_MAX)
        steps.append(dataclasses.replace(step, new_tokens=new, output_tokens=output, tools=tools))
    return dataclasses.replace(program, steps=tuple(steps))


def _in_other_words(workload: Workload, salt: str) -> Workload:
    """The same programs in words that no cache has seen: every run of text under another key."""
    shift = int.from_bytes(salt.encode()[:6], "little") << 48
    programs = [
        dataclasses.replace(
            p,
            own=p.own + shift,
            shared=tuple(dataclasses.replace(run, key=run.key + shift) for run in p.shared),
        )
        for p in workload.programs
    ]
    return dataclasses.replace(workload, programs=programs)


# -- what came of it


def _report(args: argparse.Namespace, arms: Sequence[Arm], concurrency: int) -> None:
    direct, ours = (arm.figures for arm in arms)
    ratio = direct["jct_mean_s"] / max(ours["jct_mean_s"], 1e-9)
    where = Path(args.html).absolute()
    title = f"Direct and through agentserve, seed {args.seed}"
    lead = (f"{_what(direct, concurrency)}: {_gain(ratio)}", _on_what(args))
    write_text(args.html, page(arms, title, lead))
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
            write_text(args.json, text_ + "\n")
    if args.json != "-":
        _table(args, direct, ours, ratio, concurrency)
        print(f"report: {where}")
    if args.open:
        webbrowser.open(where.as_uri())


def _table(args: argparse.Namespace, direct: Figures, ours: Figures, ratio: float, concurrency: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=_what(direct, concurrency))
    table.add_column("")
    table.add_column("direct", justify="right")
    table.add_column("agentserve", justify="right")
    for name, words, form in ROWS:
        table.add_row(words, format(direct[name], form), format(ours[name], form))
    console = Console()
    console.print(table)
    console.print(_gain(ratio))
    console.print(_on_what(args))


def _what(direct: Figures, concurrency: int) -> str:
    return f"{direct['programs']} coding agents, {concurrency} at a time, {direct['steps']} steps"


def _gain(ratio: float) -> str:
    if ratio < 1:
        return f"agents take {1 / ratio:.2f} times as long on the same engines"
    return f"agents are done {ratio:.2f} times sooner on the same engines"


def _on_what(args: argparse.Namespace) -> str:
    """What was real, and how to see the same elsewhere."""
    if args.engine:
        return f"The engines are yours ({', '.join(args.engine)}), asked for {args.model}."
    return (
        f"The engines are emulated ({PROFILE}, {args.engines} x {args.kv_tokens:,} tokens of KV, "
        f"{args.time_scale:g} times real speed); HTTP, gateway, scheduler and store are real. "
        "On yours: agentserve demo --engine http://…"
    )
