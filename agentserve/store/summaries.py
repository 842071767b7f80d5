"""A program in a few sums, its sub-agents' programs with it: how many steps, where the time went, what was spared.

Rule: read from what the journal wrote, so it is there a moment after it happened; a database that is away has none.
"""

from __future__ import annotations

from collections import defaultdict

from agentserve.errors import StoreError
from agentserve.ports import ProgramSummary, ToolTime
from agentserve.store import queries
from agentserve.store.database import Database

FAMILY_MAX = 200  # programs that are summed up: the program and its sub-agents
TOOLS_SHOWN_MAX = 10


class Summaries:
    """Implements `ports.Summaries`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def summary(self, program: str) -> ProgramSummary | None:
        try:
            return await self._read(program)
        except StoreError:
            return None

    async def _read(self, program: str) -> ProgramSummary | None:
        database = self._database
        root = await queries.program(database, program)
        if root is None or root["id"] != program:
            return None
        family = [root, *await queries.programs(database, parent=program, limit=FAMILY_MAX - 1)]
        by_tool: defaultdict[str, float] = defaultdict(float)
        tool_s, saved = 0.0, []
        for one in family:
            calls = await queries.tool_calls(database, one["id"])
            for tool in calls:
                by_tool[tool["name"]] += tool["seconds"] or 0.0
            # calls beside one another fill one gap; how long the gaps were is known once the program is over
            gaps_s = one["tool_s"]
            tool_s += sum(call["seconds"] or 0.0 for call in calls) if gaps_s is None else gaps_s
            saved += [pin["saved_s"] for pin in await queries.pins(database, program_id=one["id"])]

        def total(field: str) -> float:
            return sum(row[field] or 0 for row in family)

        longest = sorted(by_tool.items(), key=lambda pair: -pair[1])
        used = [seconds for seconds in saved if seconds]
        return ProgramSummary(
            over=root["state"] == "ended",
            agents=len(family) - 1,
            steps=int(total("steps")),
            tool_s=tool_s,
            tools=tuple(ToolTime(name=n, seconds=s) for n, s in longest[:TOOLS_SHOWN_MAX]),
            queue_s=total("queue_s"),
            prompt_tokens=int(total("prompt_tokens")),
            cached_tokens=int(total("cached_tokens")),
            output_tokens=int(total("output_tokens")),
            pins_used=len(used),
            saved_s=sum(used),
        )
