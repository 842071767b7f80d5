"""Writing one folded batch: one transaction, and harmless when it is tried again.

Rule: the journal's piece goes in first under its own number, so that a batch whose commit was not confirmed is known
when it comes again. Each column says how it meets what is there already.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any, Literal, cast

from sqlalchemy import JSON, Boolean, Dialect, Float, LargeBinary, Table, case, func, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from agentserve.store import schema
from agentserve.store.database import Database, blames_rows
from agentserve.store.folded import Folded, Values
from agentserve.store.rows import COLUMNS, Row

# columns whose values every driver takes as they are in Python; JSON comes as its text
PLAIN = (Boolean, Float, LargeBinary, JSON)
CHUNK_ROWS = 250  # one statement; between two of them other threads get their turn

Meeting = Literal["add", "most", "least", "keep", "take", "state"]

_SUMS: dict[str, Meeting] = {
    "programs": "add", "steps": "add", "prompt_tokens": "add", "cached_tokens": "add", "output_tokens": "add",
}  # fmt: skip
# How a column of a row that exists meets the new value: added up, the larger, the smaller, the new one unless it is
# null ("keep"), the new one ("take"), or the new one unless it is empty ("state"). Columns not named stay.
MEETINGS: dict[str, dict[str, Meeting]] = {
    "tenants": {**_SUMS, "first_seen_at": "least", "last_seen_at": "most"},
    "workflows": {
        "programs": "add",
        "steps": "add",
        "first_seen_at": "least",
        "last_seen_at": "most",
    },
    "programs": {
        **{k: v for k, v in _SUMS.items() if k != "programs"},
        "failed_steps": "add",
        "engine_s": "add",
        "queue_s": "add",
        "opened_at": "least",
        "last_at": "most",
        "state": "state",
        "ended_at": "keep",
        "end_reason": "keep",
        "parent": "keep",
        "workflow": "keep",
        "session": "keep",
        "model": "keep",
        "identity_source": "keep",
        "seconds": "keep",
        "human_s": "keep",
        "tool_s": "keep",
        "slowdown": "keep",
    },
    "steps": {},
    "pins": {
        "tokens": "take",
        "mode": "take",
        "outcome": "take",
        "reason": "take",
        "held_s": "take",
        "saved_s": "take",
        "until": "keep",
        "ended_at": "keep",
    },
    "warms": {"outcome": "take", "ended_at": "take", "cached_tokens": "take"},
    "engines": {
        "state": "state",
        "kind": "keep",
        "url": "keep",
        "models": "keep",
        "kv_tokens": "keep",
        "running": "keep",
        "waiting": "keep",
        "kv_used_share": "keep",
        "reason": "keep",
        "seen_at": "most",
    },
    "forecasts": {"body": "take", "at": "take"},
    "accounts": {"service": "take", "at": "take"},
    "chains": {"body": "take", "at": "take"},
    "graphs": {"body": "take", "at": "take"},
    "prompts": {},
    "notes": {"tenant": "take", "at": "take", "body": "take"},
}

TABLES: dict[str, Table] = dict(schema.Row.metadata.tables)


class Prepared:
    """A statement as the driver takes it. To bind thousands of rows by the general way would cost more than to write
    them: here a row is its values already, or becomes them by one look-up in C."""

    def __init__(self, statement: Any, fields: tuple[str, ...], dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=fields)
        self.text = str(compiled)
        names = tuple(compiled.positiontup)
        self._ordered = names == fields
        self._take = itemgetter(*names)
        self._constants = {name: compiled.params[name] for name in names if name not in fields}
        for name in names:
            kind = compiled.binds[name].type
            plain = isinstance(kind, PLAIN) or kind.dialect_impl(dialect).bind_processor(dialect) is None
            assert plain, f"{name} would have to be converted"

    def values(self, rows: list[Values] | list[Row]) -> list[Row]:
        """The rows' values in the statement's order."""
        if self._ordered and isinstance(rows[0], tuple):
            return rows
        return [self._take({**self._constants, **cast(Values, row)}) for row in rows]


class Writer:
    """Writes batches of one gateway's run to one database."""

    def __init__(self, database: Database, writer: str) -> None:
        self._database = database
        self._writer = writer
        self._prepared: dict[tuple[str, tuple[str, ...]], Prepared] = {}  # by table and fields of its rows

    async def write(self, folded: Folded, number: int, dropped: int, now: float) -> None:
        """The whole batch in one transaction."""
        try:
            async with self._database.begin() as connection:
                await connection.execute(
                    insert(TABLES["batches"]), [self._piece(folded, number, dropped, now)]
                )
                for table, rows in folded.tables():
                    await self._rows(connection, table, rows)
        except IntegrityError:
            if not await self.written(number):
                raise

    async def written(self, number: int) -> bool:
        """Was this batch committed?"""
        batches = schema.table(schema.Batch)
        async with self._database.engine.connect() as connection:
            found = await connection.scalar(
                func.count().select().where(batches.c.writer == self._writer, batches.c.number == number)
            )
        return bool(found)

    async def write_apart(
        self, folded: Folded, number: int, dropped: int, now: float
    ) -> dict[str, list[str]]:
        """Row by row, for a batch with rows that the database refuses; which rows, and what it said.

        Nothing is written, and the error raised, when it is not a row's fault or no row at all can be written.
        """
        refused: dict[str, list[str]] = {}
        wrote = 0
        last: Exception | None = None
        async with self._database.engine.connect() as connection:
            await connection.begin()
            rows: list[tuple[str, Any]] = [("batches", self._piece(folded, number, dropped, now))]
            rows += [(table, row) for table, some in folded.tables() for row in some]
            for table, row in rows:
                try:
                    async with connection.begin_nested():
                        await self._rows(connection, table, [row])
                    wrote += 1
                except Exception as error:
                    if not blames_rows(error):
                        raise
                    last = error
                    refused.setdefault(table, []).append(str(error).splitlines()[0][:200])
            if not wrote and last is not None:
                raise last
            await connection.commit()
        return refused

    async def _rows(self, connection: AsyncConnection, table: str, rows: list[Values] | list[Row]) -> None:
        fields = COLUMNS.get(table) or tuple(rows[0])
        prepared = self._prepared.get((table, fields))
        if prepared is None:
            prepared = self._prepared[table, fields] = Prepared(
                self._statement(table), fields, self._database.engine.dialect
            )
        values = prepared.values(rows)
        for start in range(0, len(values), CHUNK_ROWS):
            await connection.exec_driver_sql(prepared.text, values[start : start + CHUNK_ROWS])

    def _statement(self, name: str) -> Any:
        table = TABLES[name]
        if name not in MEETINGS:
            return insert(table)
        statement = self._database.insert(table)
        keys = [column.name for column in table.primary_key]
        meetings = MEETINGS[name]
        if not meetings:
            return statement.on_conflict_do_nothing(index_elements=keys)
        changes = {column: _meet(table, statement.excluded, column, how) for column, how in meetings.items()}
        if name == "programs":  # a program that is heard of again is not over
            back = statement.excluded.state == "live"
            for column in ("ended_at", "end_reason"):
                changes[column] = case((back, None), else_=changes[column])
        return statement.on_conflict_do_update(index_elements=keys, set_=changes)

    def _piece(self, folded: Folded, number: int, dropped: int, now: float) -> Values:
        return {
            "writer": self._writer,
            "number": number,
            "written_at": now,
            "first_at": folded.first_at,
            "last_at": folded.last_at,
            "events": folded.events,
            "dropped": dropped,
            "body": folded.journal,
        }


def _meet(table: Table, new: Any, column: str, how: Meeting) -> Any:
    mine, theirs = table.c[column], new[column]
    if how == "add":
        return mine + theirs
    if how == "most":
        return case((mine > theirs, mine), else_=theirs)
    if how == "least":
        return case((mine < theirs, mine), else_=theirs)
    if how == "keep":
        return func.coalesce(theirs, mine)
    if how == "state":
        return case((theirs == "", mine), else_=theirs)
    return theirs
