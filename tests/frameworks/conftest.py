"""What every framework is held to: runs side by side carry their own program, and a run of its own is one program.

Rule: a real framework of a real version asks a gateway in this process; the model's answers are scripted, and each
question carries a word by which its run is told from the others, whatever the headers say.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import agentserve_sdk as agentserve
import pytest
from agentserve_sdk import testing

EXAMPLES = Path(__file__).parents[2] / "sdk" / "examples"
RUNS = 4
TOOL = "search"
QUESTION = "Please find the three largest cities of land-{run}."


def scripted(call: testing.Call) -> testing.Answer:
    """Ask for the tool once, then answer."""
    tools = json.dumps(call.body.get("tools", []))
    return (
        testing.ToolCall(TOOL, {"q": "cities"})
        if TOOL in tools and call.turns == 0
        else "Done: three cities."
    )


@pytest.fixture
def gateway() -> Iterator[testing.Gateway]:
    with testing.Gateway(scripted) as gateway:
        yield gateway


class Held:
    """The two things that a framework's test shows."""

    def __init__(self, gateway: testing.Gateway, record: Callable[[str, object], None]) -> None:
        self.gateway = gateway
        self._record = record

    async def side_by_side(self, run: Callable[[str], Awaitable[object]]) -> None:
        """Runs in tasks of one loop."""

        @agentserve.workflow("side by side")
        async def one(i: int) -> tuple[str, str]:
            await run(QUESTION.format(run=i))
            program = agentserve.current()
            assert program is not None
            return f"land-{i}", program.id

        self._right(dict(await asyncio.gather(*(one(i) for i in range(RUNS)))))

    def in_threads(self, run: Callable[[str], object]) -> None:
        """Runs in threads of a pool."""

        def one(i: int) -> tuple[str, str]:
            with agentserve.workflow("in threads") as program:
                run(QUESTION.format(run=i))
                return f"land-{i}", program.id

        with agentserve.ThreadPoolExecutor(RUNS) as pool:
            self._right(dict(pool.map(one, range(RUNS))))

    def _right(self, programs: dict[str, str]) -> None:
        """By the word in its question, every call is of the program that asked it."""
        self.gateway.settle()
        seen: dict[str, int] = {}
        for call in self.gateway.calls:
            (word,) = set(re.findall(r"land-\d+", json.dumps(call.body)))
            assert call.program_id == programs[word], f"{call.path} of {word} carries {call.program_id}"
            seen[word] = seen.get(word, 0) + 1
        assert seen.keys() == programs.keys()
        assert len(set(seen.values())) == 1, "every run makes the same calls"
        assert set(self.gateway.programs) == set(programs.values()), "no program is made up beside ours"
        self._record("calls", f"{len(self.gateway.calls)} of {len(self.gateway.calls)}")

    def example(self, name: str, *, tools: int = 1, text: str = "Done: three cities.") -> None:
        """The example of that name, as a user would start it, is one program with one tool call."""
        assert text in self.started(name)
        self.one_program(tools=tools)

    def started(self, name: str) -> str:
        """What the example of that name prints."""
        env = {**os.environ, "AGENTSERVE_URL": self.gateway.url, "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, str(EXAMPLES / name)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def one_program(self, *, tools: int = 1, model_ids: bool = False) -> testing.Program:
        """A run that the application said nothing of is one program, and its tools are announced."""
        program = self.gateway.only_program
        assert len(self.gateway.calls) >= 2
        assert {call.program_id for call in self.gateway.calls} == {program.id}
        assert program.status == "succeeded"
        assert [(t.name, t.ended, t.status) for t in program.tools] == [(TOOL, True, "succeeded")] * tools
        if model_ids:
            assert program.tools[0].call_id in json.dumps(self.gateway.calls[-1].body)
        self._record("recognised by", "integration, tools by " + ("the model's id" if model_ids else "name"))
        assert agentserve.current() is None
        return program


@pytest.fixture
def held(gateway: testing.Gateway, record_property: Callable[[str, Any], None]) -> Held:
    return Held(gateway, record_property)
