"""Pages are read as a reader reads them: nothing twice, nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import PageError, blocks, changed, commands
from tests.docs.readme import NOT_RUN

README = Path(__file__).parents[2] / "README.md"
PAGE = """Say `agentserve up --port 1`, or `else`.

```sh
# a comment alone
first \\
  --more    # said why
for x in a b; do
  second $x
done
```

<!-- ci: 300 becomes 3; --slow becomes nothing -->
```sh
third 300 --slow
```

```toml
[not.a]
command = 1
```
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(PAGE, encoding="utf-8")
    return path


def test_commands_come_in_order_with_their_continuations_and_loops(page: Path) -> None:
    found = commands(page)
    assert [c.text.split()[0] for c in found] == ["agentserve", "first", "for", "third"]
    assert [c.line for c in found] == [1, 5, 7, 14]
    assert found[1].text.endswith("--more    # said why")
    assert found[2].text.splitlines()[-1] == "done"
    assert [c.inline for c in found] == [True, False, False, False]


def test_a_mark_belongs_to_the_block_behind_it_and_says_what_is_changed(page: Path) -> None:
    marked = [b for b in blocks(page) if b.mark]
    assert [b.text for b in marked] == ["third 300 --slow"]
    assert changed(marked[0].text, marked[0].mark).split() == ["third", "3"]


def test_a_mark_that_changes_nothing_is_an_error(page: Path) -> None:
    with pytest.raises(PageError, match="stands nowhere"):
        changed("third 300", "400 becomes 4")


def test_a_mark_without_a_replacement_is_an_error() -> None:
    with pytest.raises(PageError, match="is not"):
        changed("third 300", "300, please")


def test_a_block_that_does_not_end_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("```sh\nfirst\n", encoding="utf-8")
    with pytest.raises(PageError, match="not closed"):
        blocks(path)


def test_every_command_that_is_not_run_has_a_reason_and_stands_in_the_readme() -> None:
    said = {c.text.split("#")[0].strip() for c in commands(README)}
    assert all(NOT_RUN.values())
    assert set(NOT_RUN) <= said


def test_every_mark_of_the_readme_changes_what_it_names() -> None:
    marked = [c for c in commands(README) if c.mark]
    assert len(marked) == 2
    for command in marked:
        assert changed(command.text, command.mark) != command.text
