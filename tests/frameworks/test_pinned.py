"""The light frameworks' tests with the SDK, where the project's own environment has none of them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.frameworks import environments, run

TESTS_S_MAX = 900


def test_the_light_frameworks_carry_their_programs() -> None:
    python = environments.pinned_home() / "bin" / "python"
    if not python.is_file():
        pytest.skip("not installed; `python -m tests.frameworks.environments` does it")
    files = [f"tests/frameworks/test_{name}.py" for name in environments.PINNED]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AGENTSERVE_", "PYTEST_"))}
    env |= environments.QUIET | {"PYTHONPATH": str(environments.ROOT / "sdk")}
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", "-rs", *run.PLAIN, f"--rootdir={environments.ROOT}", *files],
        cwd=environments.ROOT, env=env, capture_output=True, text=True, timeout=TESTS_S_MAX,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]
    assert "SKIPPED" not in done.stdout, "what is pinned is there"


def test_every_light_framework_has_a_test_with_the_sdk() -> None:
    for name in environments.PINNED:
        assert Path(__file__).with_name(f"test_{name}.py").is_file()
