"""The console's files: self-contained, and never markup from what clients sent."""

from __future__ import annotations

import re
from pathlib import Path

import agentserve.console

STATIC = Path(agentserve.console.__file__).parent / "static"


def test_the_page_asks_for_nothing_from_elsewhere_and_has_no_inline_script() -> None:
    for path in STATIC.iterdir():
        assert not re.search(r"https?://|//cdn|@import", path.read_text()), path.name
    page = (STATIC / "index.html").read_text()
    assert re.findall(r'(?:src|href)="([^"#]+)"', page) == ["console.css", "console.js"]
    assert "onclick" not in page
    assert not re.search(r"<script(?![^>]*src=)", page)


def test_what_clients_sent_is_set_as_text() -> None:
    code = (STATIC / "console.js").read_text()
    assert "innerHTML" not in code
    assert "insertAdjacentHTML" not in code
    assert "eval(" not in code


def test_every_place_that_the_code_fills_is_on_the_page() -> None:
    page = (STATIC / "index.html").read_text()
    for name in re.findall(r'byId\("([a-z-]+)"\)', (STATIC / "console.js").read_text()):
        assert f'id="{name}"' in page, name
