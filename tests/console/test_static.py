"""The console's files: self-contained, and never markup from what clients sent."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

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


@pytest.mark.skipif(shutil.which("node") is None, reason="the console's words are made by its own code")
def test_where_a_forecast_ends_is_not_told_as_when_programs_are_back(tmp_path: Path) -> None:
    (tmp_path / "page.mjs").write_text((STATIC / "page.js").read_text())
    (tmp_path / "ask.mjs").write_text(
        "globalThis.sessionStorage = { getItem: () => null };"
        'const { back, by } = await import("./page.mjs");'
        "const week = 604800;"
        "console.log(JSON.stringify([back(2, 60, week), back(2, null, week), back(null, null, week),"
        " by(2, week), by(null, week)]));"
    )
    done = subprocess.run(
        ["node", "ask.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == [
        "half are back by 2.0 s, nine in ten by 60.0 s",
        "half are back by 2.0 s, fewer than nine in ten within 168.0 h",
        "fewer than half are back within 168.0 h; by when is not known",
        "2.0 s",
        "not within 168.0 h",
    ]
