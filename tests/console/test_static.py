"""The console's files: self-contained, and never markup from what clients sent."""

from __future__ import annotations

import re
from pathlib import Path

import agentserve.console

STATIC = Path(agentserve.console.__file__).parent / "static"
CODE = sorted(STATIC.glob("*.js"))
SVG = "http://www.w3.org/2000/svg"  # a name, which nobody fetches


def test_the_page_asks_for_nothing_from_elsewhere_and_has_no_inline_script() -> None:
    for path in STATIC.iterdir():
        assert not re.search(r"https?://|//cdn|@import", path.read_text().replace(SVG, "")), path.name
    page = (STATIC / "index.html").read_text()
    assert re.findall(r'(?:src|href)="([^"#]+)"', page) == ["icon.svg", "console.css", "console.js"]
    assert "onclick" not in page
    assert not re.search(r"<script(?![^>]*src=)", page)


def test_what_clients_sent_is_set_as_text() -> None:
    for path in CODE:
        for way in ("innerHTML", "insertAdjacentHTML", "eval("):
            assert way not in path.read_text(), path.name


def test_every_place_that_the_code_fills_is_on_the_page() -> None:
    page = (STATIC / "index.html").read_text()
    for path in CODE:
        for name in re.findall(r'byId\("([a-z-]+)"\)', path.read_text()):
            assert f'id="{name}"' in page, f"{path.name}: {name}"


def test_every_module_imports_only_its_neighbours() -> None:
    here = {f"./{path.name}" for path in CODE}
    for path in CODE:
        assert set(re.findall(r'from "([^"]+)"', path.read_text())) <= here, path.name
