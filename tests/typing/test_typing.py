"""What users' type checkers say of the SDK. pyright's word is asked for with the frameworks: it brings a Node along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_mypy_finds_every_type_kept() -> None:
    command = [sys.executable, "-m", "mypy", "--strict", str(HERE / "api.py")]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
