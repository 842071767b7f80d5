"""pyright: decorated functions keep their signatures and kinds, as `tests/typing/api.py` says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("basedpyright")  # pyright, with the Node that it needs
ROOT = Path(__file__).resolve().parents[2]
PROJECT = {
    "include": ["api.py"],
    "extraPaths": [str(ROOT / "sdk")],
    "typeCheckingMode": "strict",
    "pythonVersion": "3.11",
    "reportUnnecessaryTypeIgnoreComment": "error",
    "enableTypeIgnoreComments": False,
}


def checked(folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "pyrightconfig.json").write_text(json.dumps(PROJECT))
    command = [sys.executable, "-m", "basedpyright", "--project", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_it_finds_every_type_kept(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "typing" / "api.py", tmp_path)
    done = checked(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_sees_a_wrong_call_of_a_decorated_function(tmp_path: Path) -> None:
    (tmp_path / "api.py").write_text(
        "import agentserve_sdk as agentserve\n\n\n"
        "@agentserve.tool(expected_s=1.0)\n"
        "async def search(q: str) -> int:\n    return len(q)\n\n\n"
        "search(3)\n"
        'text: str = search("x")\n'
    )
    done = checked(tmp_path)
    assert done.returncode == 1
    assert "reportArgumentType" in done.stdout
    assert "reportAssignmentType" in done.stdout
