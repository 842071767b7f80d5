"""The wheels hold everything that an installed gateway needs, and nothing of the tests."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

UV = Path(sys.executable).with_name("uv")


@pytest.fixture(scope="module")
def wheels(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("wheels")
    for project in (root, root / "sdk"):
        code = f"from hatchling.build import build_wheel; build_wheel({str(out)!r})"
        subprocess.run(
            [sys.executable, "-c", code], cwd=project, check=True, timeout=120, capture_output=True
        )
    return sorted(out.glob("*.whl"))


def test_the_gateway_s_wheel_holds_the_console_and_the_migrations(wheels: list[Path]) -> None:
    (gateway,) = [w for w in wheels if w.name.startswith("agentserve_gateway")]
    names = zipfile.ZipFile(gateway).namelist()
    assert any(n.startswith("agentserve/console/static/") and n.endswith("index.html") for n in names)
    assert any("/versions/" in n and n.endswith(".py") for n in names), "the store's migrations"
    assert any(n.startswith("agentserve_adapters/") for n in names)
    assert not any(n.startswith("tests/") for n in names)


def test_the_wheels_work_in_an_environment_that_holds_nothing_else(
    root: Path, wheels: list[Path], tmp_path: Path
) -> None:
    venv = tmp_path / "venv"
    subprocess.run([UV, "venv", "-q", "--python", sys.executable, venv], check=True, timeout=120)
    installed = subprocess.run(
        [
            UV,
            "pip",
            "install",
            "-q",
            "--python",
            venv / "bin/python",
            "-c",
            root / "requirements.lock",
            *wheels,
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if installed.returncode and "fetch" in installed.stderr:
        pytest.skip(f"no package registry and no cache: {installed.stderr.splitlines()[0]}")
    assert installed.returncode == 0, installed.stderr
    for arguments in (
        ["--help"],
        ["up", "--print-config"],
        ["simulate", "--programs", "4", "--engines", "1"],
    ):
        asked = subprocess.run(
            [venv / "bin/agentserve", *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert asked.returncode == 0, asked.stderr
    done = subprocess.run(
        [venv / "bin/python", "-c", "import agentserve_sdk; agentserve_sdk.init"],
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
