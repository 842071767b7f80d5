"""The page of results: each of its commands runs as written, with fewer programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import Command, changed, commands

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "agentserve" / "RESULTS.md"
FENCED = [c for c in commands(PAGE) if not c.inline]
NOT_FENCED = {"agentserve replay FILE --policy affinity --policy agentserve --pressure 2 --pressure 4"}


def test_every_command_of_the_page_but_that_on_a_recording_is_run_below() -> None:
    assert {c.text for c in commands(PAGE) if c.inline} == NOT_FENCED


@pytest.mark.parametrize("command", FENCED, ids=lambda c: f"line {c.line}")
def test_a_command_of_the_page_prints_its_figures(command: Command) -> None:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-ec", changed_where_named(command)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert any(c.isdigit() for c in done.stdout)


def changed_where_named(command: Command) -> str:
    """The mark stands before a block of several commands: each is changed by what of it concerns that one."""
    rules = [
        rule for rule in command.mark.split(";") if rule.partition(" becomes ")[0].strip() in command.text
    ]
    text = changed(command.text, ";".join(rules)) if rules else command.text
    assert text != command.text, "it is run with fewer programs here"
    return text
