"""Coding agents: SWE-style autonomous ones, the same with slow or heavy-tailed tools, and interactive ones.

Fitted to public figures (medians, p90 and p99 over all steps or programs):
- autonomous, SWE-rebench agent runs: steps 31 / 78 / 122, prompt 40k / 71k / 100k, output 117 / 564 / 1.4k,
  growth a step 447 / 1.7k / 9.6k, tool gap 0.05 / 9.0 / 33 s with mean 2.9 s;
- interactive, Claude Code sessions published with the Entire CLI: steps 46 / 169 / 310, prompt 94k / 143k / 162k,
  output 128 / 650 / 2.3k, growth 606 / 2.5k / 14k, tool gap 0.26 / 12 / 284 s, human gap 119 / 995 s and a long tail.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from agentserve.sim.programs import OWN_KEYS, ProgramPlan, Run, StepPlan, ToolPlan
from agentserve.sim.workloads.draws import Draws

SYSTEM_TOKENS = 6_000  # system prompt and tool schemas, the same for all programs of an agent

# tool: share of calls, median seconds, sigma of ln seconds, and of that the part that is the program's own
TOOLS: dict[tuple[str, str], tuple[float, float, float, float]] = {
    ("read", ".py"): (0.22, 0.03, 0.8, 0.3),
    ("edit", ".py"): (0.23, 0.04, 0.8, 0.3),
    ("bash", "grep"): (0.15, 0.12, 0.9, 0.3),
    ("bash", "git diff"): (0.10, 0.15, 1.0, 0.3),
    ("bash", "pytest"): (0.15, 4.5, 1.1, 0.7),
    ("bash", "make"): (0.07, 4.5, 1.1, 0.7),
    ("bash", "pip install"): (0.02, 21.0, 0.5, 0.2),
    ("bash", "python"): (0.06, 1.0, 1.2, 0.5),
}
Seconds = Callable[[Draws, float, float], float]


def plain(draws: Draws, median: float, sigma: float) -> float:
    return draws.lognormal(median, sigma, most=600.0)


def slow(draws: Draws, median: float, sigma: float) -> float:
    """Everything five times longer."""
    return 5.0 * draws.lognormal(median, sigma, most=600.0)


def heavy(draws: Draws, median: float, sigma: float) -> float:
    """The same mean as plain, coefficient of variation 3: a log-normal with sigma squared = ln(1 + 3 squared)."""
    spread = math.sqrt(math.log(10.0))
    mean = median * math.exp(sigma * sigma / 2)
    return draws.lognormal(mean * math.exp(-spread * spread / 2), spread, most=3600.0)


class Tooling:
    """The tools of one program: how long each takes here, on this repository and machine."""

    def __init__(self, draws: Draws, seconds: Seconds) -> None:
        self._draws = draws
        self._seconds = seconds
        self.local = {
            tool: math.exp(own * sigma * draws.rng.gauss(0.0, 1.0))
            for tool, (_, _, sigma, own) in TOOLS.items()
        }
        self._weights = {i: TOOLS[tool][0] for i, tool in enumerate(TOOLS)}
        self._names = list(TOOLS)

    def call(self) -> ToolPlan:
        index = self._draws.rng.choices(list(self._weights), list(self._weights.values()))[0]
        tool = self._names[index]
        _, median, sigma, own = TOOLS[tool]
        within = sigma * math.sqrt(1.0 - own * own)
        seconds = self._seconds(self._draws, median * self.local[tool], within)
        return ToolPlan(name=tool[0], argument_class=tool[1], seconds=seconds)

    def turn(self) -> tuple[ToolPlan, ...]:
        calls = 1 if not self._draws.chance(0.1) else self._draws.rng.randint(2, 4)
        return tuple(self.call() for _ in range(calls))


def steps_of(draws: Draws) -> int:
    """How many steps an autonomous program takes: drawn independently of all else."""
    return draws.count(31, 78, most=125, least=3)


def autonomous(
    index: int, seed: int, *, name: str, seconds: Seconds = plain, tenant: str = "default"
) -> ProgramPlan:
    """One SWE-style program: reads, edits and runs tests until it submits."""
    draws = Draws(name, seed, index)
    tooling = Tooling(draws, seconds)
    length = steps_of(draws)
    steps = []
    for k in range(length):
        growth = draws.by_p90(447, 1700, most=12_000)
        output = max(8, int(draws.by_p90(117, 564, most=4096)))
        new = int(draws.by_p90(9000, 20_000, most=40_000)) if k == 0 else max(16, int(growth - output))
        last = k == length - 1
        steps.append(
            StepPlan(
                new_tokens=new,
                output_tokens=output,
                tools=() if last else tooling.turn(),
                think_s=0.0 if last else draws.lognormal(0.02, 0.5),
                node="act",
            )
        )
    return ProgramPlan(
        id=f"{name}-{seed}-{index}",
        steps=tuple(steps),
        tenant=tenant,
        workflow="swe",
        role=1,
        shared=(Run(1, SYSTEM_TOKENS),),
        own=OWN_KEYS + index,
        tools_offered=8,
    )


def interactive(index: int, seed: int, *, name: str = "interactive", tenant: str = "default") -> ProgramPlan:
    """One session of a coding assistant: turns of tool calls with a person, and permission prompts, between them."""
    draws = Draws(name, seed, index)
    tooling = Tooling(draws, lambda d, m, s: d.lognormal(3.0 * m, s, most=900.0))
    length = draws.count(46, 169, most=320, least=2)
    window = draws.rng.uniform(140_000, 165_000)
    context = int(draws.by_p90(20_000, 42_000, most=80_000))
    own = 0
    steps = []
    for k in range(length):
        output = max(8, int(draws.by_p90(128, 650, most=8000)))
        new = context if k == 0 else max(16, int(draws.by_p90(606, 2500, most=40_000) - output))
        compact = None
        if own + new > window:
            compact = int(draws.by_p90(9_000, 18_000, most=30_000))
            own = compact
        own += new + output
        last = k == length - 1
        human = not last and draws.chance(0.12)
        think = 0.0 if last else draws.lognormal(0.05, 0.6)
        if human:
            think = draws.by_p90(119, 995, most=7200.0)
        elif not last and draws.chance(0.04):  # a permission prompt
            think += draws.by_p90(8, 60, most=1200.0)
        steps.append(
            StepPlan(
                new_tokens=new,
                output_tokens=output,
                tools=() if last or human else tooling.turn(),
                think_s=think,
                human=human,
                compact_to=compact,
                node="turn",
            )
        )
    return ProgramPlan(
        id=f"{name}-{seed}-{index}",
        steps=tuple(steps),
        tenant=tenant,
        workflow="assistant",
        role=2,
        shared=(Run(2, 14_000),),
        own=OWN_KEYS + index,
        priority="interactive",
        tools_offered=14,
    )
