"""What the command line, the admin API and the console ask of the store.

Rule: read only, every list bounded, rows as plain mappings whose keys are the columns of `schema`, ready for JSON.
Figures lag what happens by the journal's flush interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, Table, func, or_, select

from agentserve.store import schema
from agentserve.store.database import Database

Rows = list[dict[str, Any]]
ROWS_MAX = 10_000
ID_CHARS_MAX = 1_000  # no id is longer, and databases refuse to look for much longer ones

_programs = schema.table(schema.Program)
_steps = schema.table(schema.Step)
_tools = schema.table(schema.ToolCall)
_pins = schema.table(schema.Pin)
_warms = schema.table(schema.Warm)
_decisions = schema.table(schema.Decision)
_engines = schema.table(schema.Engine)
_tenants = schema.table(schema.Tenant)
_accounts = schema.table(schema.Account)
_workflows = schema.table(schema.Workflow)
_graphs = schema.table(schema.Graph)


async def programs(
    database: Database,
    *,
    tenant: str | None = None,
    workflow: str | None = None,
    live: bool | None = None,
    parent: str | None = None,
    search: str | None = None,
    before: float | None = None,
    limit: int = 100,
) -> Rows:
    """Programs, the most recently active first. `before`: those whose `last_at` is earlier, to page on."""
    query = select(_programs).order_by(_programs.c.last_at.desc(), _programs.c.id).limit(bounded(limit))
    if tenant is not None:
        query = query.where(_programs.c.tenant == tenant)
    if workflow is not None:
        query = query.where(_programs.c.workflow == workflow)
    if live is not None:
        query = query.where(_programs.c.state != "ended" if live else _programs.c.state == "ended")
    if parent is not None:
        query = query.where(_programs.c.parent == parent)
    if search:
        query = query.where(
            or_(
                _programs.c.id.contains(search, autoescape=True),
                _programs.c.workflow.contains(search, autoescape=True),
            )
        )
    if before is not None:
        query = query.where(_programs.c.last_at < before)
    return await _rows(database, query)


async def program(database: Database, name: str) -> dict[str, Any] | None:
    """One program by its id; also by the name that its tenant knows it by, where only one has it."""
    found = await named(database, name)
    return found[0] if len(found) == 1 else None


async def named(database: Database, name: str) -> Rows:
    """The program of this id, else those that their tenants call so, two at most."""
    found = await _rows(database, select(_programs).where(_programs.c.id == name))
    if found or len(name) > ID_CHARS_MAX:
        return found
    ends = _programs.c.id.endswith("/" + name, autoescape=True)
    return await _rows(database, select(_programs).where(ends).order_by(_programs.c.id).limit(2))


async def steps(database: Database, program_id: str, *, after: float = 0.0, limit: int = 1000) -> Rows:
    """A program's steps, in order of arrival."""
    query = select(_steps).where(_steps.c.program == program_id, _steps.c.arrived_at > after)
    return await _rows(database, query.order_by(_steps.c.arrived_at, _steps.c.id).limit(bounded(limit)))


async def tool_calls(database: Database, program_id: str, *, limit: int = 1000) -> Rows:
    """A program's tool calls, in order of their starts."""
    query = select(_tools).where(_tools.c.program == program_id)
    return await _rows(database, query.order_by(_tools.c.started_at, _tools.c.serial).limit(bounded(limit)))


async def decisions(
    database: Database, *, program_id: str | None = None, after: int = 0, limit: int = 1000
) -> Rows:
    """Decisions with their reasons: of a program in order, or of all, those after a serial number."""
    query = select(_decisions).where(_decisions.c.serial > after)
    if program_id is not None:
        query = query.where(_decisions.c.program == program_id)
    return await _rows(database, query.order_by(_decisions.c.serial).limit(bounded(limit)))


async def pins(
    database: Database,
    *,
    program_id: str | None = None,
    engine: str | None = None,
    open_only: bool = False,
    limit: int = 200,
) -> Rows:
    """Pins, the newest first."""
    query = select(_pins).order_by(_pins.c.made_at.desc()).limit(bounded(limit))
    if program_id is not None:
        query = query.where(_pins.c.program == program_id)
    if engine is not None:
        query = query.where(_pins.c.engine == engine)
    if open_only:
        query = query.where(_pins.c.outcome == "open")
    return await _rows(database, query)


async def warms(database: Database, *, program_id: str | None = None, limit: int = 200) -> Rows:
    """Warms, the newest first."""
    query = select(_warms).order_by(_warms.c.made_at.desc()).limit(bounded(limit))
    if program_id is not None:
        query = query.where(_warms.c.program == program_id)
    return await _rows(database, query)


async def engines(database: Database) -> Rows:
    """Engines as they were last seen."""
    return await _rows(database, select(_engines).order_by(_engines.c.id).limit(ROWS_MAX))


async def tenants(database: Database, *, limit: int = ROWS_MAX) -> Rows:
    """Tenants with their use, and `service`: what they have had, weighted."""
    joined = _tenants.outerjoin(_accounts, _accounts.c.tenant == _tenants.c.id)
    query = select(_tenants, _accounts.c.service).select_from(joined)
    return await _rows(database, query.order_by(_tenants.c.id).limit(bounded(limit)))


async def workflows(database: Database, *, tenant: str | None = None, limit: int = ROWS_MAX) -> Rows:
    """Workflows with how often they were seen."""
    query = select(_workflows).order_by(_workflows.c.tenant, _workflows.c.name).limit(bounded(limit))
    if tenant is not None:
        query = query.where(_workflows.c.tenant == tenant)
    return await _rows(database, query)


async def graphs(database: Database, name: str, *, tenant: str | None = None) -> Rows:
    """The graphs of a workflow: `kind` is declared (JSON) or learned (the learner's own bytes)."""
    query = select(_graphs).where(_graphs.c.name == name).order_by(_graphs.c.tenant, _graphs.c.kind)
    if tenant is not None:
        query = query.where(_graphs.c.tenant == tenant)
    return await _rows(database, query.limit(ROWS_MAX))


async def totals(database: Database, *, since: float = 0.0) -> dict[str, Any]:
    """What happened since then, in one row: programs, steps, tokens, and what the pins spared."""
    finished = _steps.c.outcome == "finished"
    stepped = select(
        func.count().label("steps"),
        func.coalesce(func.sum(_steps.c.prompt_tokens), 0).label("prompt_tokens"),
        func.coalesce(func.sum(_steps.c.cached_tokens), 0).label("cached_tokens"),
        func.coalesce(func.sum(_steps.c.output_tokens), 0).label("output_tokens"),
        func.coalesce(func.avg(_steps.c.queue_s), 0.0).label("queue_s_mean"),
    ).where(_steps.c.arrived_at >= since, finished)
    ended = select(
        func.count().label("programs"),
        func.avg(_programs.c.seconds).label("seconds_mean"),
        func.avg(_programs.c.slowdown).label("slowdown_mean"),
    ).where(_programs.c.ended_at >= since)
    pinned = select(
        func.count().label("pins"),
        func.coalesce(func.sum(_pins.c.saved_s), 0.0).label("pin_saved_s"),
    ).where(_pins.c.made_at >= since, _pins.c.outcome != "open")
    out: dict[str, Any] = {}
    for query in (stepped, ended, pinned):
        out.update((await _rows(database, query))[0])
    return {
        k: float(v) if v is not None and not isinstance(v, int) else v for k, v in out.items()
    }  # PostgreSQL sums to decimals


async def counts(database: Database, tables: Sequence[str] | None = None) -> dict[str, int]:
    """Rows of each table."""
    found: dict[str, Table] = dict(schema.Row.metadata.tables)
    out = {}
    async with database.reading() as connection:
        for name in tables or sorted(found):
            out[name] = int(await connection.scalar(select(func.count()).select_from(found[name])) or 0)
    return out


def bounded(limit: int) -> int:
    """No list is longer than `ROWS_MAX`."""
    return max(1, min(limit, ROWS_MAX))


async def _rows(database: Database, query: Select[Any]) -> Rows:
    async with database.reading() as connection:
        return [dict(row) for row in (await connection.execute(query)).mappings()]
