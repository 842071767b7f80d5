"""Agent programs, as `agentserve export` writes them: turns with their gaps and tools."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from agentserve.sim.importers.reading import UNFIT, Malformed, Reader, count, fault, moment, seconds
from agentserve.sim.programs import OWN_KEYS, ProgramPlan, Run, StepPlan, ToolPlan


def agent_programs(reader: Reader) -> Iterator[ProgramPlan]:
    index = 0
    for row in reader.objects():
        if "schema" in row:
            continue
        try:
            plan = _agent_program(row, index)
        except UNFIT as error:
            reader.complain(fault(error))
            continue
        index += 1
        yield plan


def _agent_program(row: dict[str, Any], index: int) -> ProgramPlan:
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns:
        raise Malformed("a program without turns")
    began = row.get("start_epoch")
    prompts = [count(t["in"], "in", least=1) for t in turns]
    # the common head of a source's programs is its system prompt and tools; what is known of it is only that
    # a first prompt is at least as long
    source = str(row.get("source", "file"))
    head = min(8_000, min(prompts) // 2)
    steps = []
    before = head
    for k, turn in enumerate(turns):
        output = count(turn.get("out") or 1, "out", least=0) or 1
        compact = None
        new = prompts[k] - before
        if new < 1:
            # the context shrank: compaction, or another conversation; the own text starts anew
            compact = max(prompts[k] - head - 1, 0)
            new = 1
        tools = tuple(
            ToolPlan(
                name=str(t[0]),
                argument_class=str(t[1] or ""),
                seconds=seconds(t[3] if t[3] is not None else t[2], "tool seconds"),
            )
            for t in turn.get("tools") or ()
        )
        last = k == len(turns) - 1
        gap = 0.0 if last else seconds(turn.get("gap"), "gap")
        longest = max((t.seconds for t in tools), default=0.0)
        if longest > gap:
            tools = tuple(dataclasses.replace(t, seconds=min(t.seconds, gap)) for t in tools)
            longest = gap
        steps.append(
            StepPlan(
                new_tokens=new,
                output_tokens=output,
                tools=() if last else tools,
                think_s=gap - longest,
                human=turn.get("gap_k") == "human",
                compact_to=compact,
            )
        )
        before = prompts[k] + output
    return ProgramPlan(
        id=str(row.get("id") or f"program-{index}"),
        steps=tuple(steps),
        tenant=str(row.get("tenant", "default")),
        workflow=str(row.get("workflow") or row.get("set") or source),
        role=_stable(source),
        shared=(Run(_stable(source), head),) if head else (),
        own=OWN_KEYS + index,
        arrives_s=None if began is None else moment(began, "start_epoch"),
        # which it was offered is not recorded; at least those that it called
        tools_offered=len({tool.name for step in steps for tool in step.tools}),
    )


def _stable(text: str) -> int:
    """A small key from a word, the same in every process."""
    value = 7
    for byte in text.encode():
        value = (value * 257 + byte) % 1_000_003
    return value + 1_000_000
