"""The wheel needs nothing but a Python, from 3.9 on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SDK = Path(__file__).resolve().parents[2] / "sdk"
AN_AGENT = """
import asyncio, json, sys, urllib.request
import agentserve_sdk as agentserve
from agentserve_sdk import testing

with testing.Gateway() as gateway:
    @agentserve.tool(expected_s=1.0)
    async def search(): ...

    @agentserve.step("draft", next=["review"])
    def draft():
        body = json.dumps({"model": "m", "messages": []}).encode()
        urllib.request.urlopen(urllib.request.Request(gateway.base_url + "/chat/completions", body)).close()

    @agentserve.workflow(name="report", deadline_s=60)
    async def report():
        await search()
        draft()
        with agentserve.ThreadPoolExecutor(2) as pool:
            pool.submit(draft).result()
        yield agentserve.current().id

    async def run():
        return [name async for name in report()]

    (name,) = asyncio.run(run())
    program = gateway.only_program
    assert (program.id, program.status, program.steps) == (name, "succeeded", ["draft", "draft"])
    assert [(tool.name, tool.ended) for tool in program.tools] == [("search", True)]
print("well")
"""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=cwd, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(SDK, folder / "sdk", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=folder / "sdk")
    (built,) = folder.glob("*.whl")
    return built


def pythons() -> list[str]:
    """Ours, and the oldest there is that is meant to work."""
    older = Path.home() / ".pyenv" / "versions"
    found = sorted(older.glob("3.9.*/bin/python3.9")) if older.is_dir() else []
    named = shutil.which("python3.9")
    return [sys.executable, *([str(found[-1])] if found else [named] if named else [])]


@pytest.mark.slow
@pytest.mark.parametrize("python", pythons(), ids=lambda path: Path(path).name)
def test_it_works_alone_in_an_empty_environment(python: str, wheel: Path, tmp_path: Path) -> None:
    run(python, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    inside = tmp_path / "env" / "bin" / "python"
    packages = run(inside, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    shutil.unpack_archive(str(wheel), packages, "zip")
    # -I: nothing but this environment; -W error: nothing is said to go away
    assert run(inside, "-I", "-W", "error", "-c", AN_AGENT, cwd=tmp_path) == "well"
