"""kv-cache-tester's traces: Claude Code sessions and their sub-agents, with runs of 64-token block hashes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from agentserve.sim.importers.reading import (
    GAP_S_MAX,
    REPLY_S_PER_TOKEN,
    UNFIT,
    Malformed,
    Reader,
    count,
    fault,
)
from agentserve.sim.programs import OWN_KEYS, SUB_AGENT, ProgramPlan, Run, StepPlan, ToolPlan

DEFINITION_TOKENS = 600  # of one tool of a coding agent: 12,500 tokens are its twenty or so


def kv_cache_tester(reader: Reader) -> Iterator[ProgramPlan]:
    index = 0
    for row in reader.objects():
        try:
            family = _family(row, index)
        except UNFIT as error:
            reader.complain(fault(error))
            continue
        index += len(family)
        yield from family


def _family(row: dict[str, Any], index: int) -> list[ProgramPlan]:
    """A trace and its sub-agents; a sub-agent runs while its parent's next request waits for it."""
    block = count(row.get("block_size", 64), "block_size", least=1)
    name = str(row.get("id") or f"trace-{index}")
    children: list[ProgramPlan] = []
    steps: list[StepPlan] = []
    scope = OWN_KEYS * (4 + index)
    offered = _tools(row)
    before: dict[str, Any] | None = None
    for request in row["requests"]:
        if request.get("type") == "subagent":
            inner = [r for r in request.get("requests") or () if r.get("type") == "n"]
            if inner and steps:
                child = index + 1 + len(children)
                children.append(
                    ProgramPlan(
                        id=f"{name}/{request.get('agent_id', child)}",
                        steps=_steps(inner, block, scope, _tools(request)),
                        workflow=str(request.get("subagent_type") or "subagent"),
                        own=OWN_KEYS + child,
                        parent=index,
                        tools_offered=_tools(request),
                    )
                )
                steps[-1] = _starting(steps[-1], child)
            continue
        if before is not None and not steps[-1].children:
            steps[-1] = _step(before, request, block, scope, offered)
        steps.append(_step(request, None, block, scope, offered))
        before = request
    if not steps:
        raise Malformed("a trace without requests")
    lead = ProgramPlan(
        id=name, steps=tuple(steps), workflow="claude-code", own=OWN_KEYS + index, tools_offered=offered
    )
    return [lead, *children]


def _tools(traced: dict[str, Any]) -> int:
    """How many tools an agent was offered, by what their definitions weighed in its prompt."""
    return -(-count(traced.get("tool_tokens") or 0, "tool_tokens") // DEFINITION_TOKENS)


def _starting(step: StepPlan, child: int) -> StepPlan:
    """The step whose reply asked for one more sub-agent, and waits for it."""
    children = (*step.children, child)
    return dataclasses.replace(
        step, children=children, tools=(SUB_AGENT,) * len(children), think_s=0.0, human=False
    )


def _steps(requests: Sequence[dict[str, Any]], block: int, scope: int, offered: int) -> tuple[StepPlan, ...]:
    following = (*requests[1:], None)
    return tuple(_step(r, f, block, scope, offered) for r, f in zip(requests, following, strict=True))


def _step(
    request: dict[str, Any], following: dict[str, Any] | None, block: int, scope: int, offered: int
) -> StepPlan:
    """A request and the gap after it: a person's where the turn had ended, else that of a tool.

    Tools are not named, so all have one name. Of a few streams no end was recorded; they are followed as soon as
    replies with tool calls are, and so taken for such.
    """
    length = count(request["in"], "in", least=1)
    output = max(count(request.get("out") or 1, "out"), 1)
    runs = []
    left = length
    for first, blocks in request.get("h") or ():
        tokens = min(int(blocks) * block, left)
        if tokens > 0:
            # runs of consecutive hashes are equal text as far as they agree; name them by their first block
            runs.append(Run(scope + int(first), tokens))
            left -= tokens
    if left > 0:
        runs.append(Run(scope + (1 << 30) + length, left))
    gap = 0.0
    if following is not None:
        served = float(request.get("api_time") or REPLY_S_PER_TOKEN * output)
        gap = min(max(float(following["t"]) - float(request["t"]) - served, 0.0), GAP_S_MAX)
    ended = request.get("stop") == "end_turn"
    called = bool(offered) and following is not None and not ended
    return StepPlan(
        new_tokens=0,
        output_tokens=output,
        contents=tuple(runs),
        tools=(ToolPlan(name="tool", seconds=gap),) if called else (),
        think_s=0.0 if called else gap,
        human=ended,
    )
