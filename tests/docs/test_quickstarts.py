"""The quickstarts as a reader pastes them: those of clients that are installed are run, the others are read."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from agentserve.cli.run import Gateway, environment
from tests.docs.pages import Block, blocks

PAGE = Path(__file__).parents[2] / "sdk" / "QUICKSTARTS.md"
ADDRESS = "http://127.0.0.1:8400"
BLOCKS = blocks(PAGE)
# Frameworks have environments of their own: where one is installed its section is run, else only compiled.
FRAMEWORKS = {"from agents import": "agents", "from langchain_openai import": "langchain_openai"}


def of(language: str) -> list[Any]:
    return [pytest.param(b, id=f"line-{b.line}") for b in BLOCKS if b.language == language]


@pytest.mark.parametrize("block", of("python"))
def test_each_python_section_runs_as_written(block: Block, gateway: str, tmp_path: Path) -> None:
    compile(block.text, f"{block.page}:{block.line}", "exec")
    wanted = [module for line, module in FRAMEWORKS.items() if line in block.text]
    if not all(map(importlib.util.find_spec, wanted)):
        assert f'base_url="{ADDRESS}/v1"' in block.text
        return
    done = subprocess.run(
        [sys.executable, "-c", block.text.replace(ADDRESS, gateway)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_section_gets_an_answer_and_a_program(gateway: str) -> None:
    (block,) = (b for b in BLOCKS if b.language == "sh" and "curl" in b.text)
    done = subprocess.run(
        ["bash", "-c", block.text.replace(ADDRESS, gateway)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "x-agentserve-program: " in done.stdout.lower()


def test_codex_settings_are_what_agentserve_run_would_give_it() -> None:
    (block,) = of("toml")
    read = tomllib.loads(block.values[0].text)
    provider = read["model_providers"][read["model_provider"]]
    assert provider["base_url"] == f"{ADDRESS}/v1"
    assert provider["wire_api"] == "responses"


def test_claude_code_settings_are_those_that_agentserve_run_sets() -> None:
    said = next(json.loads(b.text)["env"] for b in BLOCKS if b.language == "json" and "ANTHROPIC" in b.text)
    given = {k: v for k, v in os.environ.items() if "ANTHROPIC" not in k}
    made = environment(given, Gateway(ADDRESS, None), "p", "emulated")
    for name in said.keys() - {"ANTHROPIC_BASE_URL"}:
        assert said[name] == made[name], name
    assert made["ANTHROPIC_BASE_URL"].startswith(said["ANTHROPIC_BASE_URL"])
    assert not said["ANTHROPIC_BASE_URL"].endswith("/v1")


def test_opencode_settings_name_the_model_of_their_provider() -> None:
    said = next(json.loads(b.text) for b in BLOCKS if b.language == "json" and "opencode" in b.text)
    provider, _, model = said["model"].partition("/")
    assert said["provider"][provider]["options"]["baseURL"] == f"{ADDRESS}/v1"
    assert model in said["provider"][provider]["models"]
