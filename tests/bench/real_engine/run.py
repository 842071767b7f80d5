"""The same agents on the same real vLLM (CPU), direct and through proxies: completion times, cached share, preemptions.

    python -m tests.bench.real_engine.run                                # direct and agentserve
    python -m tests.bench.real_engine.run --thunderagent SOURCES         # ThunderAgent beside them, from its sources
    python -m tests.bench.real_engine.run --peers DIR                    # and the routers of tests.bench.peers.install
    python -m tests.bench.real_engine.run --agents 3 --seeds 21 22       # few enough to fit

One vLLM serves all arms; they take turns seed by seed, in an order that rotates, so that a machine that slows down
slows them all. Ratios are to `direct` of the same seed. Wants an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from agentserve_adapters.exposition import Exposition

from tests.bench.peers.arms import ARMS, Pace
from tests.bench.real_engine import agents, arms
from tests.engines.installs import INSTALLS, Install, number_format
from tests.engines.run import serving

BLOCKS = 48  # one is vLLM's own
BLOCK_TOKENS = 128
PACE_WORDS = (60, 600)
MODEL_SHAPE = ("--hidden", "768", "--layers", "12", "--heads", "12", "--context", "4096")
Arm = Callable[[str], AbstractContextManager[str]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run of one arm."""

    arm: str
    seed: int
    steps: int
    wall_s: float
    mean_completion_s: float
    step_p50_s: float
    step_p95_s: float
    cached_share: float
    engine_hit_share: float
    preemptions: int


def start_vllm(env: Path, model: Path, port: int) -> list[str]:
    """With memory for about five of the agents, and no flag that a plain `vllm serve` would not have but the detail."""
    return [
        str(env / "bin" / "vllm"), "serve", str(model), "--served-model-name", "tiny", "--host", "127.0.0.1",
        "--port", str(port), "--dtype", number_format(), "--max-model-len", "4096", "--enforce-eager",
        "--enable-prompt-tokens-details", "--num-gpu-blocks-override", str(BLOCKS), "--max-num-seqs", "16",
    ]  # fmt: skip


def engine() -> Install:
    """vLLM as the engine tests install it, with a model whose prefill costs something."""
    install = INSTALLS["vllm"]
    variables = {k: v for k, v in install.variables.items() if k != "VLLM_SERVER_DEV_MODE"}
    return dataclasses.replace(
        install,
        command=start_vllm,
        variables=variables,
        model_name="vllm-82m",
        model_shape=MODEL_SHAPE,
    )


def gauges(url: str) -> dict[str, float]:
    page = Exposition(httpx.get(f"{url}/metrics", trust_env=False, timeout=30).text, prefixes=("vllm:",))
    names = {
        "queries": "vllm:prefix_cache_queries_total",
        "hits": "vllm:prefix_cache_hits_total",
        "preemptions": "vllm:num_preemptions_total",
    }
    return {key: page.total(name) or 0.0 for key, name in names.items()}


async def one(name: str, arm: Arm, url: str, count: int, seed: int, mark: str) -> Row:
    """One arm with one seed's agents."""
    with arm(url) as base:
        before = gauges(url)
        whom = agents.agents(count, seed, mark)
        ended = partial(release, base) if name == "thunderagent" else None
        tells = TELLS.get(name, agents.nothing)
        result = await agents.run(base, arms.MODEL, whom, tells=tells, ended=ended)
        after = gauges(url)
    since = {key: after[key] - before[key] for key in before}
    return Row(
        arm=name,
        seed=seed,
        steps=len(result.steps),
        wall_s=result.wall_s,
        mean_completion_s=result.mean_completion_s,
        step_p50_s=result.step_quantile(0.5),
        step_p95_s=result.step_quantile(0.95),
        cached_share=result.cached_share,
        engine_hit_share=since["hits"] / max(since["queries"], 1),
        preemptions=int(since["preemptions"]),
    )


def names_it(program: str, step: int, last: bool) -> dict[str, Any]:
    """As ThunderAgent wants it."""
    return {"program_id": program}


def gives_context(program: str, step: int, last: bool) -> dict[str, Any]:
    """As vllm-router's program scheduling wants it: as text, since vLLM takes no object in `vllm_xargs`."""
    context = {"program_id": program, "session_id": program, "step_id": step, "expected_resume": not last}
    return {"vllm_xargs": {"agentic_context": json.dumps(context)}}


TELLS = {"thunderagent": names_it, "vllm-router-programs": gives_context}


async def release(base: str, program: str) -> None:
    """ThunderAgent is told that a program is over."""
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        await client.post(f"{base}/programs/release", json={"program_id": program})


def table(rows: list[Row]) -> str:
    """Means over seeds, and the mean of each seed's ratio to direct."""
    lines = [
        "| arm | mean completion, s | of direct | wall, s | of direct | step p95, s | cached | preemptions a run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    plain = {r.seed: r for r in rows if r.arm == "direct"}
    for name in dict.fromkeys(r.arm for r in rows):
        mine = [r for r in rows if r.arm == name]
        told = [r for r in mine if r.seed in plain]
        mean = statistics.fmean
        to_direct = [
            f"{mean(getattr(r, key) / getattr(plain[r.seed], key) for r in told):.2f}" if told else "–"
            for key in ("mean_completion_s", "wall_s")
        ]
        lines.append(
            f"| {name} | {mean(r.mean_completion_s for r in mine):.1f} | {to_direct[0]} "
            f"| {mean(r.wall_s for r in mine):.1f} | {to_direct[1]} | {mean(r.step_p95_s for r in mine):.1f} "
            f"| {mean(r.cached_share for r in mine):.0%} | {mean(r.preemptions for r in mine):.1f} |"
        )
    return "\n".join(lines)


def arms_of(args: argparse.Namespace, install: Install) -> dict[str, Arm]:
    found: dict[str, Arm] = {
        "direct": arms.direct,
        "agentserve": partial(arms.agentserve, more=[w for s in args.set for w in ("--set", s)]),
    }
    if args.thunderagent is not None:
        python = str(install.env / "bin" / "python")
        found["thunderagent"] = partial(
            arms.thunderagent, sources=args.thunderagent, python=python, interval_s=args.interval
        )
    return {k: v for k, v in found.items() if not args.arms or k in args.arms}


def routers(args: argparse.Namespace, at: Pace) -> dict[str, Arm]:
    """Those that are installed."""
    found: dict[str, Arm] = {}
    for name in arms.ROUTERS:
        if args.arms and name not in args.arms:
            continue
        if not ARMS[name].installed(args.peers):
            print(f"{name} is not installed: python -m tests.bench.peers.install DIR", file=sys.stderr)
            continue
        found[name] = partial(arms.router, name=name, peers=args.peers, pace=at)
    return found


async def pace(url: str) -> Pace:
    """How fast this engine is by itself: two prompts that it has not seen, and steps of the longer one's reply."""
    seen = []
    for words in PACE_WORDS:
        body = agents.opening(words)
        began = time.monotonic()
        result = await agents.run(url, arms.MODEL, [body])
        seen.append((result.steps[0], time.monotonic() - began))
    short, long = (told for told, _ in seen)
    tokens = max(long.prompt_tokens - short.prompt_tokens, 1)
    return Pace(
        kv_tokens=(BLOCKS - 1) * BLOCK_TOKENS,
        time_scale=1.0,
        prefill_s=0.0,
        prefill_s_per_1k=max(long.first_s - short.first_s, 0.0) / tokens * 1000,
        prefill_s_per_1k_squared=0.0,
        decode_s=(long.took_s - long.first_s) / agents.OUTPUT_TOKENS,
        decode_s_per_token=0.0,
    )


async def runs(args: argparse.Namespace, url: str, found: dict[str, Arm]) -> list[Row]:
    rows: list[Row] = []
    await one("direct", arms.direct, url, 1, 0, "warm-up")
    if args.peers is not None:
        found |= routers(args, await pace(url))
    order = list(found)
    for turn, seed in enumerate(args.seeds):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            rows.append(await one(name, found[name], url, args.agents, seed, name))
            print(json.dumps(dataclasses.asdict(rows[-1])), flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 22, 23, 24])
    parser.add_argument("--arms", nargs="*", default=[], help="some of them only")
    parser.add_argument("--thunderagent", type=Path, metavar="SOURCES", help="its checked-out repository")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="an environment for each other router")
    parser.add_argument(
        "--interval", type=float, default=0.5, help="ThunderAgent's, in seconds (it defaults to 5)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the gateway"
    )
    parser.add_argument("--url", help="a vLLM that runs already")
    parser.add_argument("--out", type=Path, help="all runs as JSON lines")
    args = parser.parse_args()
    install = engine()
    found = arms_of(args, install)
    if args.url:
        rows = asyncio.run(runs(args, args.url, found))
    else:
        with serving(install) as (url, _):
            rows = asyncio.run(runs(args, url, found))
    print("\n" + table(rows))
    if args.out is not None:
        args.out.write_text("".join(json.dumps(dataclasses.asdict(r)) + "\n" for r in rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
