"""Verbs that are interrupted or killed: nothing of theirs goes on, and no file is half theirs."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import agentserve.cli
from agentserve.cli.export import _opened
from agentserve.cli.whole import whole

PATIENCE_S = 60.0


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def goes_on(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("verb", "number", "status"),
    [
        (
            ("simulate", "--seed", "1", "--seed", "2", "--workers", "2", "--programs", "2000"),
            signal.SIGINT,
            130,
        ),
        (
            ("simulate", "--seed", "1", "--seed", "2", "--workers", "2", "--programs", "2000"),
            signal.SIGKILL,
            -9,
        ),
        (("simulate", "--tune", "40", "--workers", "2", "--programs", "2000"), signal.SIGKILL, -9),
        (("demo", "--quick", "--time-scale", "1"), signal.SIGTERM, 143),
        (("demo", "--quick", "--time-scale", "1"), signal.SIGHUP, 129),
    ],
)
def test_what_a_verb_started_ends_with_it(
    verb: tuple[str, ...], number: signal.Signals, status: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "agentserve.cli", *verb]
    verb_process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    until = time.monotonic() + PATIENCE_S
    started: set[int] = set()
    while len(started) < 2 and time.monotonic() < until and verb_process.poll() is None:
        time.sleep(0.05)
        started |= children(verb_process.pid)
    assert len(started) == 2
    verb_process.send_signal(number)
    _, said = verb_process.communicate(timeout=PATIENCE_S)
    assert (verb_process.returncode, said) == (status, b"")
    until = time.monotonic() + PATIENCE_S
    try:
        while any(map(goes_on, started)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(map(goes_on, started))
    finally:
        for pid in filter(goes_on, started):
            os.kill(pid, signal.SIGKILL)


def test_an_interrupt_while_a_verb_is_being_loaded_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(verb: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(agentserve.cli, "build_parser", interrupted)
    assert agentserve.cli.main(["simulate"]) == 130


@pytest.mark.parametrize("name", ["steps.jsonl", "steps.jsonl.gz"])
def test_an_export_that_is_cut_short_leaves_the_file_that_was_there(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"before")

    def cut_short() -> None:
        with _opened(str(tmp_path / name)) as stream:
            stream.write(b"half a li")
            stream.flush()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_short()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(name, b"before")]


def test_a_whole_file_takes_the_place_and_the_mode_of_the_one_before(tmp_path: Path) -> None:
    file, link = tmp_path / "a", tmp_path / "link"
    file.write_text("before")
    file.chmod(0o640)
    link.symlink_to(file)
    with whole(str(link)) as part:
        Path(part).write_text("after")
        assert file.read_text() == "before"
    assert (link.is_symlink(), file.read_text(), stat.S_IMODE(file.stat().st_mode)) == (True, "after", 0o640)
    with whole("/dev/null") as part:
        assert part == "/dev/null"
    with whole(str(tmp_path / "none")):
        pass  # nothing was written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "link"]
