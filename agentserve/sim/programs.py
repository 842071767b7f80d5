"""What a simulated agent program will do: its steps, tools, children and contents, fixed before the run.

Rule: a program's plan does not depend on how it is served. So two policies are compared on the same work,
and an oracle can be given the truth.

Contents are runs of `(key, tokens)`: equal keys at equal positions are equal text. A program's own text is one
run that grows; shared system prompts and tools are runs whose key other programs use too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from agentserve.core.events import PriorityClass, ToolKind

# Keys of runs from here on belong to one program alone; below are those that programs share.
OWN_KEYS = 1 << 32


@dataclass(frozen=True, slots=True)
class Run:
    """A piece of a prompt."""

    key: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPlan:
    """A tool call that follows a step."""

    name: str
    argument_class: str = ""
    seconds: float = 0.0
    kind: ToolKind = "tool"


SUB_AGENT = ToolPlan(name="Task", kind="subagent")  # it takes as long as the sub-agent


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One LLM call and what the agent does after it.

    `contents` is the whole prompt; without it the prompt is the program's shared runs, then its own text so far
    and `new_tokens` more.
    """

    new_tokens: int
    output_tokens: int
    tools: tuple[ToolPlan, ...] = ()  # run in parallel
    think_s: float = 0.0  # client overhead, or a person, after the tools
    human: bool = False  # a person speaks before the next step
    compact_to: int | None = None  # before this step: the own text is replaced by one of this length
    contents: tuple[Run, ...] | None = None
    handed: bool = False  # its last run is what the program began with and all that was said of it since
    children: tuple[int, ...] = ()  # programs started after this step; the next waits for all of them
    node: str | None = None
    role: int = 0

    @property
    def gap_s(self) -> float:
        return max((t.seconds for t in self.tools), default=0.0) + self.think_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramPlan:
    """One agent program."""

    id: str
    steps: tuple[StepPlan, ...]
    tenant: str = "default"
    workflow: str = ""
    role: int = 0
    shared: tuple[Run, ...] = ()
    own: int = 0  # key of its own text
    arrives_s: float | None = None  # open loop; None: when a place is free, or when its parent starts it
    parent: int | None = None
    priority: PriorityClass = "standard"
    deadline_s: float | None = None
    tools_offered: int = 0
    kind: Literal["agent", "chat"] = "agent"

    def prompts(self) -> list[int]:
        """Prompt tokens of every step."""
        out = []
        own = 0
        shared = sum(r.tokens for r in self.shared)
        for step in self.steps:
            if step.contents is not None:
                out.append(sum(r.tokens for r in step.contents))
                continue
            own = (step.compact_to if step.compact_to is not None else own) + step.new_tokens
            out.append(shared + own)
            own += step.output_tokens
        return out

    def mean_own_context(self) -> tuple[float, int]:
        """Sum over steps of the context that is the program's alone, and the number of steps."""
        shared = sum(r.tokens for r in self.shared)
        total = 0.0
        for prompt, step in zip(self.prompts(), self.steps, strict=True):
            if step.contents is not None:
                total += sum(r.tokens for r in step.contents if r.key >= OWN_KEYS) + step.output_tokens
            else:
                total += prompt - shared + step.output_tokens
        return total, len(self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A finite list of programs. `roots` are those that start by themselves."""

    name: str
    programs: Sequence[ProgramPlan]
    seed: int = 0
    shared_tokens: int = 0  # distinct shared runs, all together
    roots: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.roots:
            roots = tuple(i for i, p in enumerate(self.programs) if p.parent is None)
            object.__setattr__(self, "roots", roots)

    def concurrency(self, pressure: float, fleet_kv_tokens: int) -> int:
        """How many programs live at once hold `pressure` times what the fleet can.

        A program in the middle of its life stands for it, so the mean is over steps, not over programs.
        """
        total = 0.0
        steps = 0
        for program in self.programs:
            context, n = program.mean_own_context()
            total += context
            steps += n
        family = len(self.programs) / max(len(self.roots), 1)
        mean = max(total / max(steps, 1), 1.0) * (1 + (family - 1) / 2)
        return max(1, round((pressure * fleet_kv_tokens - self.shared_tokens) / mean))

    def steps(self) -> int:
        return sum(len(p.steps) for p in self.programs)
