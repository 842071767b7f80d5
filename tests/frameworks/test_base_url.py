"""Real frameworks, not a line changed, a base URL alone: what the gateway makes of their traffic.

Rule: no SDK and no header of ours. The framework runs in the environment where it is installed, the gateway is
`agentserve up` with its emulated engine, whose model says what the question's script tells it to, and what is
asserted is read from the gateway's store.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agentserve.store import queries
from agentserve.store.database import Database
from tests.cli.test_up import up
from tests.frameworks import environments

UNCHANGED = Path(__file__).with_name("unchanged")
PATIENCE_S = 120.0
SAID = "three cities"


class Agent(NamedTuple):
    """An agent, and what a run of it is: the tools that each of its steps calls."""

    title: str
    file: str
    framework: str
    last: dict[str, Any] = {"text": SAID}
    tool: str = "search"
    steps: tuple[tuple[str, ...], ...] = ()
    script: bool = True

    @property
    def question(self) -> str:
        """With the model's part, where it is written down."""
        said = f"Which are the three largest cities? ({self.file})"
        one, two, three = ({"tool": self.tool, "arguments": {"q": q}} for q in ("cities", "one", "two"))
        return (
            f"{said}\nagentserve-script: {json.dumps([one, [two, three], self.last])}"
            if self.script
            else said
        )

    @property
    def wanted(self) -> list[tuple[str, ...]]:
        """The tools that each step calls."""
        return list(self.steps or ((self.tool,), (self.tool, self.tool), ()))


AGENTS = (
    Agent("openai client, chat completions", "openai_plain", "openai"),
    Agent("openai client, responses", "openai_responses", "openai"),
    Agent("anthropic client, messages", "anthropic_plain", "anthropic"),
    Agent("OpenAI Agents SDK, responses", "openai_agents", "openai_agents"),
    Agent("LangChain's agent on LangGraph", "langgraph", "langgraph"),
    Agent("LangGraph, three nodes at once", "langgraph_fan_out", "langgraph", steps=((),) * 5, script=False),
    Agent("Pydantic AI, chat completions", "pydantic_ai", "pydantic_ai"),
    Agent("Pydantic AI, messages", "pydantic_ai_anthropic", "pydantic_ai"),
    Agent(
        "smolagents", "smolagents", "smolagents",
        last={"tool": "final_answer", "arguments": {"answer": SAID}},
        steps=(("search",), ("search", "search"), ("final_answer",)),
    ),
    Agent("LlamaIndex", "llama_index", "llama_index"),
    Agent("AutoGen", "autogen", "autogen"),
    Agent("Haystack", "haystack", "haystack"),
    Agent("Agno", "agno", "agno"),
    Agent("Claude Agent SDK (Claude Code)", "claude_agent", "claude_agent", tool="mcp__web__search"),
    Agent("CrewAI", "crewai", "crewai", last={"text": f"Final Answer: {SAID}"}),
    Agent("Strands", "strands", "strands"),
    Agent("Google ADK over LiteLLM", "adk", "adk"),
)  # fmt: skip


class Served(NamedTuple):
    """A gateway with a store."""

    url: str
    store: str

    async def programs(self, known: set[str], wanted: int, steps: int) -> list[dict[str, Any]]:
        """Those not known before, with their steps, once `steps` of `wanted` programs are written and over."""
        database = Database(self.store)
        try:
            until = time.monotonic() + PATIENCE_S
            while True:
                found = [p for p in await queries.programs(database, limit=500) if p["id"] not in known]
                for program in found:
                    program["steps"] = [
                        step for step in await queries.steps(database, program["id"]) if step["ended_at"]
                    ]
                written = sum(len(p["steps"]) for p in found)
                if written >= wanted * steps or time.monotonic() > until:
                    return found
                await asyncio.sleep(0.1)
        finally:
            await database.close()

    async def tool_calls(self, program: str, wanted: int) -> list[dict[str, Any]]:
        """Those of a program, once they are written."""
        database = Database(self.store)
        try:
            until = time.monotonic() + PATIENCE_S
            while True:
                found = await queries.tool_calls(database, program)
                if len(found) >= wanted or time.monotonic() > until:
                    return list(found)
                await asyncio.sleep(0.1)
        finally:
            await database.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("gateway")
    with up(home, "--time-scale", "20") as (url, _):
        yield Served(url, f"sqlite:///{home / 'agentserve.db'}")


class Driven(NamedTuple):
    """An agent's process, which runs it as often as it is told."""

    process: asyncio.subprocess.Process

    async def round(self, question: str, *, at_once: int) -> list[str]:
        """What the runs said."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"question": question, "at_once": at_once}).encode() + b"\n")
        printed = b""
        async with asyncio.timeout(PATIENCE_S):
            while line := await self.process.stdout.readline():
                if line.startswith(b"round: "):
                    answer = json.loads(line.removeprefix(b"round: "))
                    assert answer["failed"] == []
                    return list(answer["said"])
                printed += line
        raise AssertionError(printed.decode(errors="replace")[-4_000:])


@contextlib.asynccontextmanager
async def driven(python: Path, agent: Agent, url: str, folder: Path, **more: str) -> AsyncIterator[Driven]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AGENTSERVE_", "OPENAI_", "ANTHROPIC_"))}
    env |= environments.QUIET | {
        "OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_BASE": f"{url}/v1", "ANTHROPIC_BASE_URL": url, "HOME": str(folder),
    } | more  # fmt: skip
    drive = Path(__file__).with_name("drive.py")
    process = await asyncio.create_subprocess_exec(
        str(python), "-P", "-W", "ignore", str(drive), str(UNCHANGED / f"{agent.file}.py"),
        cwd=folder, env=env, limit=2**20,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield Driven(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.file)
async def test_a_run_is_one_program_and_two_at_once_are_two(
    agent: Agent, served: Served, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    python = environments.interpreter(agent.framework)
    if python is None:
        pytest.skip(f"{agent.framework} is not installed; `make test-frameworks` does it")
    known = {p["id"] for p in await served.programs(set(), 0, 0)}
    async with driven(python, agent, served.url, tmp_path) as runs:
        alone = await runs.round(agent.question, at_once=1)
        found = await served.programs(known, 1, len(agent.wanted))
        assert len(found) == 1, story(found)
        right(agent, found[0])
        known.add(found[0]["id"])
        together = await runs.round(agent.question, at_once=2)
        twins = await served.programs(known, 2, len(agent.wanted))
    assert len(twins) == 2, story(twins)
    for program in twins:
        right(agent, program)
    if agent.script:
        assert all(SAID in said for said in [*alone, *together])
    sources = dict.fromkeys(step["identity_source"] for step in found[0]["steps"])
    steps = sum(len(p["steps"]) for p in [*found, *twins])
    record_property("title", agent.title)
    record_property("runs", "1 alone, 2 at once")
    record_property("recognised by", ", ".join(sources))
    record_property("steps", f"{steps} of {3 * len(agent.wanted)}")


async def test_what_claude_code_measures_of_its_tools_is_what_is_known_of_them(
    served: Served, tmp_path: Path
) -> None:
    (agent,) = (one for one in AGENTS if one.file == "claude_agent")
    python = environments.interpreter(agent.framework)
    if python is None:
        pytest.skip(f"{agent.framework} is not installed; `make test-frameworks` does it")
    known = {p["id"] for p in await served.programs(set(), 0, 0)}
    async with driven(python, agent, served.url, tmp_path, CLAUDE_CODE_GATEWAY_HINT_HEADERS="1") as runs:
        await runs.round(agent.question, at_once=1)
        (program,) = await served.programs(known, 1, len(agent.wanted))
    calls = await served.tool_calls(program["id"], 3)
    assert [(call["name"], call["measured"]) for call in calls] == [(agent.tool, True)] * 3
    assert all(0 <= call["seconds"] < program["last_at"] - program["opened_at"] for call in calls)


def right(agent: Agent, program: dict[str, Any]) -> None:
    """The program has the agent's steps, and each step its tools."""
    steps = program["steps"]
    assert [step["status"] for step in steps] == [200] * len(agent.wanted), story([program])
    assert [tuple(step["tools"]) for step in steps] == agent.wanted, story([program])
    assert [step["number"] for step in steps] == list(range(len(steps))), story([program])
    if "fan_out" in agent.file:
        parts = steps[1:4]
        begun, over = max(s["arrived_at"] for s in parts), min(s["ended_at"] for s in parts)
        assert begun < over, "the three parts are open at one time"


def story(programs: list[dict[str, Any]]) -> str:
    """Which steps were taken for whose."""
    return "\n".join(
        f"{p['id']} {s['number']} {s['relation']} by {s['identity_source']}, calls {s['tools']}, status {s['status']}"
        for p in programs
        for s in p["steps"]
    )
