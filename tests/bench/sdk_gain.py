"""What announcing tools is worth: coding agents through one gateway, without the SDK and with it.

Run by hand: `python -m tests.bench.sdk_gain`. Three arms, the same programs, engines and gateway settings in each:

- `silent`: no SDK; the gateway sees requests alone,
- `ends`: the SDK tells when a tool begins and ends,
- `progress`: the tool also tells how far it is, as MCP servers and test runners do, from which the SDK foretells its
  end; what is foretold is off by a factor of a log-normal of `--hint-sigma`.

Reported is the time to first token of the calls that follow a long tool, in the engines' seconds, split into the wait
for a seat and what came after it. `--overhead-s` is what the client does between a tool's end and its next call; the
workload's own is a median of 0.02 s. Each round takes the next seed and turns the arms' order, because the machine has
other work to do; the table is of all rounds' calls together, since few of them wait long and those make the mean.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import random
import statistics
from typing import Any

import agentserve_sdk as agentserve

from agentserve.cli import demo, stage
from agentserve.cli.crowd import Crowd, Door
from agentserve.sim.programs import ProgramPlan, StepPlan, ToolPlan, Workload
from agentserve.sim.traces import StepTrace

ARMS = ("silent", "ends", "progress")
REPORTS = (0.25, 0.5, 0.75)  # of its duration, where a tool tells how far it is


class Carried(Door):
    """Each step carries its program, as a patched client's would."""

    def headers(self, plan: ProgramPlan, k: int, parent: ProgramPlan | None) -> dict[str, str]:
        return agentserve.headers()


class Announced(Crowd):
    """The demo's agents, with the SDK."""

    progress: bool = False
    sigma: float = 0.0

    async def _program(self, index: int) -> None:
        async with agentserve.workflow("swe"):
            await super()._program(index)

    async def _gap(self, step: StepPlan, reply: dict[str, Any]) -> None:
        calls = [str(call["id"]) for call in reply.get("tool_calls", ())]
        await asyncio.gather(
            *(self._tool(plan, call) for plan, call in zip(step.tools, calls, strict=False)),
            asyncio.sleep(max((tool.seconds for tool in step.tools), default=0.0) / self.scale),
        )
        await asyncio.sleep(step.think_s / self.scale)

    async def _tool(self, plan: ToolPlan, call_id: str) -> None:
        program = agentserve.current()
        assert program is not None
        draws = random.Random(call_id)
        async with agentserve.tool(plan.name, call_id=call_id):
            done = 0.0
            for at in REPORTS if self.progress else ():
                await asyncio.sleep((at - done) * plan.seconds / self.scale)
                done = at
                program.expect((1 - at) * plan.seconds / self.scale * draws.lognormvariate(0.0, self.sigma))
            await asyncio.sleep((1 - done) * plan.seconds / self.scale)


@dataclasses.dataclass(slots=True, kw_only=True)
class Calls:
    """What became of calls, one run's or several runs' together."""

    long: list[StepTrace] = dataclasses.field(default_factory=list)  # after a long tool
    others: list[StepTrace] = dataclasses.field(default_factory=list)
    completions_s: list[float] = dataclasses.field(default_factory=list)

    def add(self, more: Calls) -> None:
        self.long += more.long
        self.others += more.others
        self.completions_s += more.completions_s

    def figures(self) -> dict[str, float]:
        ttft = [trace.first_at - trace.sent_at for trace in self.long]
        return {
            "TTFT after long tools, s": statistics.fmean(ttft),
            "  of it in the queue, s": statistics.fmean(t.dispatched_at - t.sent_at for t in self.long),
            "  its median, s": statistics.median(ttft),
            "TTFT after others, s": statistics.fmean(t.first_at - t.sent_at for t in self.others),
            "cached after long tools": sum(t.cached for t in self.long) / sum(t.prompt for t in self.long),
            "completion, s": statistics.fmean(self.completions_s),
            "long tools": len(self.long),
        }


async def arm(name: str, args: argparse.Namespace, workload: Workload) -> Calls:
    """One run of the workload."""
    concurrency = max(2, workload.concurrency(args.pressure, args.kv_tokens * args.engines))
    async with contextlib.AsyncExitStack() as stack:
        urls = await demo._engines(args, stack)
        pace = stage.paced(args.time_scale)
        gateway = (await stack.enter_async_context(stage.gateway(urls, *pace))).url
        kind, door = (Crowd, Door([gateway])) if name == "silent" else (Announced, Carried([gateway]))
        if name != "silent":
            agentserve.init(gateway, integrations=False)
            stack.callback(agentserve.shutdown)
        crowd = kind(workload, door, model=await demo._model(urls[0]), scale=args.time_scale)
        if isinstance(crowd, Announced):
            crowd.progress, crowd.sigma = name == "progress", args.hint_sigma
        result = await crowd.run(min(concurrency, len(workload.roots)))
        if name != "silent" and (lost := agentserve.stats()["failed"] + agentserve.stats()["dropped"]):
            raise RuntimeError(f"{lost} events were lost")
    calls = Calls(completions_s=[p.ended_at - p.started_at for p in result.programs])
    for trace in result.steps:
        if trace.index:
            tools = workload.programs[trace.program].steps[trace.index - 1].tools
            long = max((t.seconds for t in tools), default=0.0) >= args.long_s
            (calls.long if long else calls.others).append(trace)
    return calls


def with_overhead(workload: Workload, seconds: float | None) -> Workload:
    """The same agents, whose clients take so long between a tool's end and their next call."""
    if seconds is None:
        return workload

    def slower(plan: ProgramPlan) -> ProgramPlan:
        *before, last = plan.steps
        steps = (*(dataclasses.replace(step, think_s=seconds) for step in before), last)
        return dataclasses.replace(plan, steps=steps)

    return dataclasses.replace(workload, programs=[slower(plan) for plan in workload.programs])


async def main() -> None:
    """All arms, some rounds, and what they gave together."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    demo.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long-s", type=float, default=4.0, help="what a long tool is")
    parser.add_argument("--overhead-s", type=float, help="the client's, after each tool")
    parser.add_argument("--hint-sigma", type=float, default=0.3)
    args = parser.parse_args()
    arms = {name: Calls() for name in ARMS}
    for i in range(args.rounds):
        workload = with_overhead(demo.plan(args), args.overhead_s)
        for name in (*ARMS[i % len(ARMS) :], *ARMS[: i % len(ARMS)]):
            calls = await arm(name, args, workload)
            arms[name].add(calls)
            said = {key.strip(): round(value, 3) for key, value in calls.figures().items()}
            print(f"seed {args.seed}, {name}: {said}", flush=True)
        args.seed += 1
    rows = {name: calls.figures() for name, calls in arms.items()}
    print(f"{'':<26}" + "".join(f"{name:>12}" for name in ARMS))
    for key, silent in rows["silent"].items():
        gains = [f"{rows[name][key] / silent - 1:+.0%}" if silent else "" for name in ARMS[1:]]
        print(f"{key:<26}" + "".join(f"{rows[name][key]:>12.3f}" for name in ARMS), *gains)


if __name__ == "__main__":
    asyncio.run(main())
