"""The SDK needs nothing but the standard library, and little of that until it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SDK = Path(__file__).parents[2] / "sdk"
FRAMEWORKS_OWN = {"claude_agent", "pydantic_ai"}  # made of their framework's classes when they are imported


def alone(code: str) -> str:
    """Run in an interpreter that sees no installed package."""
    path = f"import sys; sys.path.insert(0, {str(SDK)!r})\n"
    command = [sys.executable, "-I", "-S", "-W", "error", "-c", path + code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def test_it_runs_where_no_package_is_installed() -> None:
    code = (
        "import agentserve_sdk as a\n"
        "with a.testing.Gateway() as g:\n"
        "    with a.workflow('w'), a.step('s'), a.tool('t'): pass\n"
        "    print(g.only_program.status, len(g.only_program.tools))\n"
    )
    assert alone(code) == "succeeded 1"


def test_the_import_loads_no_network_and_no_logging() -> None:
    code = "import agentserve_sdk, sys; print(sorted(sys.modules))"
    loaded = alone(code)
    for heavy in ("asyncio", "http.client", "json", "logging", "socket", "ssl", "urllib.parse", "concurrent"):
        assert f"'{heavy}'" not in loaded, heavy


def test_every_module_imports_without_its_framework() -> None:
    names = [
        p.stem
        for p in sorted((SDK / "agentserve_sdk").glob("*.py"))
        if p.stem not in {*FRAMEWORKS_OWN, "__init__"}
    ]
    code = (
        f"import importlib\nfor n in {names!r}: importlib.import_module('agentserve_sdk.' + n)\nprint('ok')"
    )
    assert alone(code) == "ok"
