"""Programs, steps and tool calls as lines that `replay` and `forecast evaluate` read.

**programs** (the default, for `replay` and `forecast evaluate --programs`): the first line is `{"schema":
"agent_programs/1", ...}`, then a line for each program: `id`, `source` ("agentserve"), `tenant`, `workflow`,
`parent`, `session`, `model`, `start_epoch` (seconds), `n` (turns) and `turns`. A turn is a step that finished:
`t` seconds since the program's start, `llm` seconds from sending to the last byte, `queue` seconds in the
proxy, `in`, `hit` and `out` tokens with `in_src`, `hit_src`, `out_src` ("m": the engine said so), `k` what
triggered it (human, tool or chain), `tools` as `[name, argument class, exec_s, wall_s, method, quality]`, `gap`
seconds to the program's next turn and `gap_k` its trigger.

**tools** (for `forecast evaluate`): a line for each tool call: `tool`, `argument_class`, `exact_hash`, `kind`,
`t` (epoch seconds when it was asked for or began), `seconds`, `censored` (it took at least so long), `measured`
(by the client; else it is the gap that the server saw), `quality` ("clean", or "wait" where a person was waited
for), `program`, `tenant`, `step`, `size` (calls asked for together).

**steps**: a line for each step, the columns of the table.

Rule: rows are read a program or a page at a time, so that the export of a large database needs little memory,
and nothing in it was ever a prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import Table, select

from agentserve.store import queries, schema
from agentserve.store.database import Database

KINDS = ("programs", "tools", "steps")
PAGE = 500
PARQUET_ROWS = 10_000
SCHEMA = "agent_programs/1"
HUMAN_KINDS = ("human", "permission")

Line = dict[str, Any]


def head(kind: str) -> Line:
    """The first line of a JSONL file, which says what the others are."""
    schema_of = {
        "programs": SCHEMA,
        "tools": "agentserve_tool_calls/1",
        "steps": "agentserve_steps/1",
    }
    return {"schema": schema_of[kind], "source": "agentserve"}


def lines(
    database: Database, kind: str, *, since: float = 0.0, tenant: str | None = None
) -> AsyncIterator[Line]:
    """The lines of one kind, oldest first."""
    if kind == "programs":
        return _programs(database, since, tenant)
    if kind == "tools":
        return _tools(database, since, tenant)
    return _steps(database, since, tenant)


async def _programs(database: Database, since: float, tenant: str | None) -> AsyncIterator[Line]:
    table = schema.table(schema.Program)
    async for row in _paged(database, table, "opened_at", "id", since, tenant):
        steps = await queries.steps(database, row["id"], limit=queries.ROWS_MAX)
        tools = await queries.tool_calls(database, row["id"], limit=queries.ROWS_MAX)
        line = program_line(row, steps, tools)
        if line["turns"]:
            yield line


def program_line(program: dict[str, Any], steps: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Line:
    """One program as `replay` reads it."""
    asked: dict[str, list[dict[str, Any]]] = {}
    for tool in tools:
        asked.setdefault(tool["step"], []).append(tool)
    turns = [
        step
        for step in steps
        if step["outcome"] == "finished" and step["relation"] not in ("auxiliary", "retry")
    ]
    start = turns[0]["arrived_at"] if turns else program["opened_at"]
    out: list[Line] = []
    trigger = "human"
    for step, following in itertools.zip_longest(turns, turns[1:]):
        calls = asked.get(step["id"], [])
        gap_kind = None
        if following is not None:
            waited = any(call["kind"] in HUMAN_KINDS for call in calls)
            gap_kind = "human" if waited or not step["tools"] else "tool"
        out.append(_turn(step, following, calls, start, trigger, gap_kind))
        trigger = gap_kind or "chain"
    return {
        "id": program["id"],
        "source": "agentserve",
        "tenant": program["tenant"],
        "workflow": program["workflow"],
        "parent": program["parent"],
        "session": program["session"],
        "model": program["model"],
        "start_epoch": start,
        "end_reason": program["end_reason"],
        "n": len(out),
        "turns": out,
    }


def _turn(
    step: dict[str, Any],
    following: dict[str, Any] | None,
    calls: list[dict[str, Any]],
    start: float,
    trigger: str,
    gap_kind: str | None,
) -> Line:
    ended_at = step["ended_at"] if step["ended_at"] is not None else step["arrived_at"]
    sent_at = step["dispatched_at"] if step["dispatched_at"] is not None else step["arrived_at"]
    tools = [_tool(call) for call in calls] or [
        [name, "", None, None, "none", "unknown"] for name in step["tools"]
    ]
    return {
        "t": round(step["arrived_at"] - start, 6),
        "llm": round(max(ended_at - sent_at, 0.0), 6),
        "queue": round(step["queue_s"], 6),
        "in": step["prompt_tokens"],
        "in_src": "m",
        "hit": step["cached_tokens"],
        "hit_src": "usage" if step["cached_tokens"] is not None else None,
        "out": step["output_tokens"],
        "out_src": "m",
        "k": trigger,
        "node": step["node"],
        "tools": tools,
        "gap": round(max(following["arrived_at"] - ended_at, 0.0), 6) if following is not None else None,
        "gap_k": gap_kind,
    }


def _tool(call: dict[str, Any]) -> list[Any]:
    seconds = round(call["seconds"], 6)
    quality = "censored" if call["censored"] else "wait" if call["kind"] in HUMAN_KINDS else "clean"
    measured = call["measured"]
    return [
        call["name"],
        call["argument_class"],
        seconds if measured and not call["censored"] else None,
        seconds,
        "measured" if measured else "gap",
        quality,
    ]


async def _tools(database: Database, since: float, tenant: str | None) -> AsyncIterator[Line]:
    table = schema.table(schema.ToolCall)
    async for row in _paged(database, table, "started_at", "serial", since, tenant):
        yield {
            "tool": row["name"],
            "argument_class": row["argument_class"],
            "exact_hash": row["exact_hash"],
            "kind": row["kind"],
            "t": row["started_at"],
            "seconds": row["seconds"],
            "censored": row["censored"],
            "measured": row["measured"],
            "quality": "wait" if row["kind"] in HUMAN_KINDS else "clean",
            "ok": row["ok"],
            "pipes": row["pipes"],
            "chain": row["chain"],
            "timeout_s": row["timeout_s"],
            "background": row["background"],
            "size": row["beside"] + 1,
            "program": row["program"],
            "tenant": row["tenant"],
            "step": row["step"],
        }


async def _steps(database: Database, since: float, tenant: str | None) -> AsyncIterator[Line]:
    async for row in _paged(database, schema.table(schema.Step), "arrived_at", "id", since, tenant):
        yield row


async def _paged(
    database: Database, table: Table, order: str, key: str, since: float, tenant: str | None
) -> AsyncIterator[Line]:
    """All rows in order, a page at a time, so that no transaction stays open while the reader writes."""
    at, last = table.c[order], table.c[key]
    query = select(table).order_by(at, last).limit(PAGE)
    if tenant is not None:
        query = query.where(table.c.tenant == tenant)
    place = at >= since
    while True:
        async with database.reading() as connection:
            rows = [dict(row) for row in (await connection.execute(query.where(place))).mappings()]
        for row in rows:
            yield row
        if len(rows) < PAGE:
            return
        end_at, end_key = rows[-1][order], rows[-1][key]
        place = (at > end_at) | ((at == end_at) & (last > end_key))
