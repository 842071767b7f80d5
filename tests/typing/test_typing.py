"""What users' type checkers say of the SDK."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def checked(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_mypy_finds_every_type_kept() -> None:
    checked(sys.executable, "-m", "mypy", "--strict", str(HERE / "api.py"))


@pytest.mark.slow
def test_pyright_finds_every_type_kept(tmp_path: Path) -> None:
    pyright = shutil.which("pyright", path=str(Path(sys.executable).parent)) or shutil.which("pyright")
    if pyright is None:
        pytest.skip("pyright is not installed")
    shutil.copy(HERE / "api.py", tmp_path)  # what is checked lies beside its project file
    project = tmp_path / "pyrightconfig.json"
    project.write_text(
        json.dumps(
            {
                "include": ["api.py"],
                "extraPaths": [str(ROOT / "sdk")],
                "typeCheckingMode": "strict",
                "pythonVersion": "3.11",
                "reportUnnecessaryTypeIgnoreComment": "error",
                "enableTypeIgnoreComments": False,
            }
        )
    )
    checked(pyright, "--project", str(project))
