"""The reference is the code's own."""

from __future__ import annotations

from tests.docs.generate import PAGE, page


def test_the_committed_reference_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run `python -m tests.docs.generate` and commit the page"
    )


def test_every_setting_has_a_meaning() -> None:
    part = page().split("## Settings", 1)[1].split("## Constants", 1)[0]
    rows = [line for line in part.splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert not [row for row in rows if row.rstrip().endswith("|  |")]
