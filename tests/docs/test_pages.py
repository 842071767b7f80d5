"""The pages' examples, as written: what they print is what they say, and what they define works."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agentserve.cli import VERBS
from tests.docs.pages import Block, blocks

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
PAGES = [*sorted(p for p in ROOT.glob("*/*.md") if not p.parent.name.startswith(".")), ROOT / "README.md"]
CALLED = re.compile(r"(?<!install )(?<![\w/.@-])agentserve ([a-z]+)\b([^`\n]*)")
NAMED = re.compile(r"`((?:core|live|cli|store|telemetry|sim|engine)/[\w/]+\.(?:py|md))`")


def of(page: str, language: str) -> list[Block]:
    return [b for b in blocks(ROOT / page) if b.language == language]


def python(text: str, folder: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_decisions_that_the_page_shows_are_those_that_are_made(tmp_path: Path) -> None:
    (code,) = of("agentserve/DECISIONS.md", "python")
    (shown,) = of("agentserve/DECISIONS.md", "text")
    made = [line.rstrip() for line in python(code.text, tmp_path).splitlines()]
    assert made == shown.text.splitlines()


def test_a_policy_written_by_the_page_runs_in_simulation_and_passes_its_own_test(tmp_path: Path) -> None:
    policy, test = of("agentserve/POLICIES.md", "python")
    (tmp_path / "my_policies.py").write_text(policy.text, encoding="utf-8")
    simulate, _ = of("agentserve/POLICIES.md", "sh")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    text = simulate.text.replace("--programs 60", "--programs 12")
    assert text != simulate.text
    done = subprocess.run(
        ["bash", "-c", text], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "my_policies.Smallest:programs_at_once=12" in done.stdout
    python(test.text + "\n\ntest_the_smallest_newcomer_goes_next()\n", tmp_path)


def test_the_policys_settings_are_taken(tmp_path: Path) -> None:
    (settings,) = of("agentserve/POLICIES.md", "toml")
    assert tomllib.loads(settings.text)["scheduler"]["params"] == {"programs_at_once": 12}
    (tmp_path / "agentserve.toml").write_text(settings.text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "agentserve.cli", "up", "--print-config"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "scheduler.params = {'programs_at_once': 12}" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_and_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [name for name in LINK.findall(text) if not (page.parent / name).exists()]
    if page.parent.name == "agentserve":
        missing += [name for name in NAMED.findall(text) if not (page.parent / name).exists()]
    assert not missing


def flags_of(verb: str) -> set[str]:
    """Every flag of a verb, those of its actions included."""
    parser = argparse.ArgumentParser(prog=verb)
    importlib.import_module(f"agentserve.cli.{verb}").add_arguments(parser)
    found: set[str] = set()
    parsers = [parser]
    while parsers:
        for action in parsers.pop()._actions:
            found |= set(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_verb_and_flag_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    unknown = []
    for verb, rest in CALLED.findall("\n".join(spoken(text))):
        if verb not in VERBS:
            unknown.append(f"agentserve {verb}")
            continue
        own = rest.split(" -- ")[0]  # what follows belongs to the command that is run
        unknown += [
            f"{verb} {flag}"
            for flag in re.findall(r"(?<=\s)--[a-z][\w-]*", own)
            if flag not in flags_of(verb)
        ]
    assert not unknown


def spoken(text: str) -> list[str]:
    """The commands of a page: its inline code and the lines of its blocks, without their comments."""
    inline = re.findall(r"`(agentserve [^`]+)`", text)
    fenced = [line for part in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in part.splitlines()]
    return inline + [re.sub(r"\s#.*", "", line) for line in fenced]


MOVES = {
    "dispatch",
    "wait",
    "reject",
    "pin",
    "unpin",
    "warm",
    "abort",
    "_let_go",
    "_place",
    "Reject",
    "Dispatch",
    "_refuse",
}
DECIDERS = (
    "core/scheduler.py",
    "core/policies/working_set.py",
    "core/policies/keeper.py",
    "core/policies/guests.py",
    "live/driver.py",
)


def reasons(path: Path) -> set[str]:
    """The words that moves are given as reasons."""
    calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    found: set[str] = set()
    for call in calls:
        if (
            call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        ) in MOVES:
            given = [*call.args, *(k.value for k in call.keywords if k.arg == "reason")]
            words = [n.value for g in given for n in ast.walk(g) if isinstance(n, ast.Constant)]
            found |= {w for w in words if isinstance(w, str) and re.fullmatch(r"[a-z_]+", w)}
    return found


def test_every_reason_of_a_decision_is_explained() -> None:
    text = (ROOT / "agentserve" / "TROUBLESHOOTING.md").read_text(encoding="utf-8")
    told = set().union(*(reasons(ROOT / "agentserve" / name) for name in DECIDERS))
    assert {"seated", "no_seat", "queue_timeout", "guest"} <= told
    assert not [word for word in sorted(told) if f"`{word}`" not in text]


def test_every_error_that_is_explained_is_one_that_is_raised() -> None:
    text = (ROOT / "agentserve" / "TROUBLESHOOTING.md").read_text(encoding="utf-8")
    part = text.split("## Requests are refused", 1)[1].split("## It waits", 1)[0]
    sources = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "agentserve").rglob("*.py"))
    said = [
        piece.strip()
        for quote in re.findall(r'\d "([^"]+)"', part)
        for piece in quote.split("…")
        if piece.strip()
    ]
    assert len(said) > 8
    assert not [piece for piece in said if piece not in sources]
