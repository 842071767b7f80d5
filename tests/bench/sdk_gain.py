"""What announcing tools is worth: coding agents through one gateway, without the SDK and with it.

Run by hand: `python -m tests.bench.sdk_gain`. The same programs, engines and gateway settings in both arms; the second
marks its workflow and tools. Reported is the time to first token of the calls that follow a long tool, in the engines'
seconds. Rounds alternate the arms' order, because the machine has other work to do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
from typing import Any

import agentserve_sdk as agentserve
import httpx
import msgspec

from agentserve.cli import demo
from agentserve.sim.programs import StepPlan, ToolPlan
from agentserve.sim.world import ProgramTrace, StepTrace


class Agents(demo.Crowd):
    """The demo's agents, whose tools are announced where there is an SDK that is switched on."""

    async def _program(self, client: httpx.AsyncClient, index: int) -> None:
        async with agentserve.workflow("swe"):
            await self._conversation(client, index)

    async def _conversation(self, client: httpx.AsyncClient, index: int) -> None:
        program = self.workload.programs[index]
        url = f"{self.urls[0]}/v1/chat/completions"
        started = self._now()
        shared = sum(r.tokens for r in program.shared)
        script = msgspec.json.encode([demo.turn(program, k) for k in range(len(program.steps))]).decode()
        opening = demo.text(program.own, program.steps[0].new_tokens)
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": demo.text(program.shared[0].key, shared)},
            {"role": "user", "content": f"{opening}\n{demo.SCRIPT} {script}\n"},
        ]
        for k, step in enumerate(program.steps):
            trace = StepTrace(program=index, index=k, sent_at=self._now())
            reply, usage = await self._step(client, url, messages, step.output_tokens, trace)
            trace.prompt = int(usage.get("prompt_tokens", 0))
            trace.cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
            self.result.steps.append(trace)
            if k + 1 == len(program.steps):
                break
            calls = reply["tool_calls"]
            await self._tools(step, calls)
            said = demo.text(program.own * 1000 + k, program.steps[k + 1].new_tokens)
            messages.append(reply)
            messages += [{"role": "tool", "tool_call_id": c["id"], "content": said} for c in calls]
        self.result.programs.append(ProgramTrace(index=index, started_at=started, ended_at=self._now()))

    async def _tools(self, step: StepPlan, calls: list[dict[str, Any]]) -> None:
        async def one(plan: ToolPlan, call_id: str) -> None:
            async with agentserve.tool(plan.name, call_id=call_id):
                await asyncio.sleep(plan.seconds / self.scale)

        tools = step.tools or (ToolPlan(name="bash"),)
        await asyncio.gather(*(one(t, c["id"]) for t, c in zip(tools, calls, strict=True)))
        await asyncio.sleep(step.think_s / self.scale)


async def arm(args: argparse.Namespace, *, announced: bool) -> dict[str, float]:
    """One run; TTFT after long tools and after all, the share of prompts found in KV, completion."""
    workload = demo.plan(args)
    concurrency = max(2, workload.concurrency(args.pressure, args.kv_tokens * args.engines))
    async with contextlib.AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(demo._engine(args, i)) for i in range(args.engines)]
        gateway = await stack.enter_async_context(demo._gateway(urls))
        if announced:
            agentserve.init(gateway, integrations=False)
            stack.callback(agentserve.shutdown)
        crowd = Agents(workload, [gateway], await demo._model(urls[0]), args.time_scale)
        result = await crowd.run(min(concurrency, len(workload.roots)), lambda done: None)
        if announced:
            lost = agentserve.stats()["failed"] + agentserve.stats()["dropped"]
            if lost:
                raise RuntimeError(f"{lost} events were lost")
    long: list[StepTrace] = []
    others: list[StepTrace] = []
    for trace in result.steps:
        if trace.index:
            tools = workload.programs[trace.program].steps[trace.index - 1].tools
            slow = max((t.seconds for t in tools), default=0.0) >= args.long_s
            (long if slow else others).append(trace)
    return {
        "TTFT after long tools, s": statistics.fmean(t.first_at - t.sent_at for t in long),
        "TTFT after others, s": statistics.fmean(t.first_at - t.sent_at for t in others),
        "cached after long tools": sum(t.cached for t in long) / sum(t.prompt for t in long),
        "completion, s": statistics.fmean(p.ended_at - p.started_at for p in result.programs),
        "long tools": len(long),
    }


async def main() -> None:
    """Both arms, some rounds, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    demo.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--long-s", type=float, default=4.0, help="what a long tool is")
    args = parser.parse_args()
    rows: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for i in range(args.rounds):
        for announced in (False, True) if i % 2 == 0 else (True, False):
            rows[announced].append(await arm(args, announced=announced))
            print("with the SDK  " if announced else "without it    ", rows[announced][-1], flush=True)
    for name in rows[True][0]:
        without, told = (statistics.median(r[name] for r in rows[a]) for a in (False, True))
        print(f"{name:<28}{without:>10.3f}{told:>10.3f}{told / without - 1:>+8.0%}")


if __name__ == "__main__":
    asyncio.run(main())
