"""The rows of one batch, by table, and its piece of the journal.

Rule: what a batch says of one program, tenant or workflow is added up here, so that the database touches each once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from agentserve.store.rows import Row

Values = dict[str, Any]


class Folded:
    """Rows to be added as they are, and rows by their keys, which meet what is there."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {"steps": [], "decisions": [], "tool_calls": []}
        self.keyed: dict[str, dict[Any, Values]] = defaultdict(dict)
        self.journal = b""
        self.events = 0
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.malformed: Counter[str] = Counter()  # by kind
        self.complaint = ""  # about the first of them

    def left_out(self, kind: str, error: Exception) -> None:
        """Something could not be folded."""
        self.malformed[kind] += 1
        self.complaint = self.complaint or f"{kind}: {error!r}"

    def count(self) -> int:
        """Rows to write, the journal's piece aside."""
        return sum(map(len, self.rows.values())) + sum(map(len, self.keyed.values()))

    def tables(self) -> Iterable[tuple[str, list[Values] | list[Row]]]:
        """Every table's rows; keyed ones in the order of their keys, so that two writers never deadlock."""
        for table, keyed in self.keyed.items():
            yield table, [keyed[key] for key in sorted(keyed)]
        for table, rows in self.rows.items():
            if rows:
                yield table, rows

    def program(self, key: str, tenant: str, at: float) -> Values:
        """What is said of a program, which was heard of at this time."""
        row = self.keyed["programs"].get(key)
        if row is None:
            row = self.keyed["programs"][key] = {
                **_NEW_PROGRAM, "id": key, "tenant": tenant, "opened_at": at, "last_at": at,
            }  # fmt: skip
        elif at < row["opened_at"]:
            row["opened_at"] = at
        elif at > row["last_at"]:
            row["last_at"] = at
        return row

    def tenant(self, key: str, at: float) -> Values:
        """What is said of a tenant."""
        row = self.keyed["tenants"].get(key)
        if row is None:
            row = self.keyed["tenants"][key] = {**_NEW_TENANT, "id": key, "first_seen_at": at}
        row["last_seen_at"] = at
        return row

    def workflow(self, tenant: str, workflow: str, at: float) -> Values:
        """What is said of a kind of program."""
        key = (tenant, workflow)
        row = self.keyed["workflows"].get(key)
        if row is None:
            row = self.keyed["workflows"][key] = {
                "tenant": tenant, "name": workflow, "first_seen_at": at, "programs": 0, "steps": 0,
            }  # fmt: skip
        row["last_seen_at"] = at
        return row

    def engine(self, engine: str) -> Values:
        """What is said of an engine."""
        row = self.keyed["engines"].get(engine)
        if row is None:
            row = self.keyed["engines"][engine] = {**_NEW_ENGINE, "id": engine}
        return row


_NEW_PROGRAM: Values = {
    "state": "", "ended_at": None, "end_reason": None, "parent": None, "workflow": None, "session": None,
    "model": None, "identity_source": None, "steps": 0, "failed_steps": 0, "prompt_tokens": 0,
    "cached_tokens": 0, "output_tokens": 0, "engine_s": 0.0, "queue_s": 0.0, "seconds": None, "human_s": None,
    "tool_s": None, "slowdown": None,
}  # fmt: skip
_NEW_TENANT: Values = {
    "programs": 0, "steps": 0, "prompt_tokens": 0, "cached_tokens": 0, "output_tokens": 0,
}  # fmt: skip
_NEW_ENGINE: Values = {
    "state": "", "kind": None, "url": None, "models": None, "kv_tokens": None, "running": None,
    "waiting": None, "kv_used_share": None, "seen_at": 0.0, "reason": None,
}  # fmt: skip
