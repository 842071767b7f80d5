"""Rows as tuples: each value is in its column, and every column has one."""

from __future__ import annotations

from agentserve.store.rows import COLUMNS, step_row
from agentserve.store.schema import Row
from agentserve.store.words import WORDS_MAX, Words, clean, name
from tests.store.conftest import AT, step_record

# columns that are called otherwise than the record's field, or reckoned from others
RECKONED = {"id", "number", "role", "tools"}


def test_the_columns_are_the_tables_columns_in_their_order() -> None:
    for table, columns in COLUMNS.items():
        in_schema = [column.name for column in Row.metadata.tables[table].columns if column.name != "serial"]
        assert list(columns) == in_schema


def test_every_value_of_a_step_is_in_its_column() -> None:
    texts = ("model", "engine", "outcome", "error", "node", "relation", "finish_reason", "reason", "detail")
    record = step_record(
        "s", "acme/p", AT, index=7, role=255, tools=("a", "b"), overhead_s=0.25, gap_s=3.0, streamed=True,
        identity_source="path", identity_confidence=0.5, expected_cached_tokens=12, trace_id="t",
        **{field: field for field in texts},
    )  # fmt: skip
    row = dict(zip(COLUMNS["steps"], step_row(record, Words(clean), Words(name)), strict=True))
    assert {field: row[field] for field in RECKONED} == {
        "id": "s", "number": 7, "role": "00000000000000ff", "tools": '["a","b"]',
    }  # fmt: skip
    assert all(row[field] == getattr(record, field) for field in row.keys() - RECKONED)


def test_words_are_made_once_and_forgotten_before_there_are_too_many() -> None:
    made = []

    def upper(given: str) -> str:
        made.append(given)
        return given.upper()

    words = Words(upper)
    assert [words["a"], words["a"], words[None]] == ["A", "A", None]
    assert made == ["a"]
    for k in range(2 * WORDS_MAX):
        assert words[f"w{k}"] == f"W{k}"
    assert len(words) <= WORDS_MAX
    assert words[None] is None
    assert words["l" * 5_000] == "L" * 5_000
    assert "l" * 5_000 not in words
