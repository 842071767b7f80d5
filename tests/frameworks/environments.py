"""Where frameworks are installed: the light ones together and pinned, and each in an environment of its own.

`python -m tests.frameworks.environments` makes the pinned one, so that CI runs what it can. Rule: no environment is in
the repository, and none is changed once made; what it is made of is in its name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

GIVEN = "AGENTSERVE_TEST_FRAMEWORK"  # NAME=INTERPRETER: that framework alone, and where it is
ROOT = Path(__file__).resolve().parents[2]
INSTALL_S = 900
TESTS_NEED = ("pytest>=8.4", "pytest-asyncio>=1.2")

# Made by `uv pip compile tests/frameworks/requirements.in --universal --python-version 3.11 -o ...`.
LOCK = Path(__file__).with_name("requirements.lock")
OURS = ("openai", "anthropic")  # what the project's own environment has
PINNED = (
    "langgraph", "openai_agents", "pydantic_ai", "smolagents", "llama_index", "haystack", "autogen", "agno",
    "mcp", "claude_agent",
)  # fmt: skip

FRAMEWORKS: dict[str, tuple[str, ...]] = {
    "openai": ("openai",),
    "anthropic": ("anthropic",),
    "langgraph": ("langgraph", "langchain-openai", "langchain"),
    "openai_agents": ("openai-agents",),
    "pydantic_ai": ("pydantic-ai-slim[openai,anthropic]", "anthropic<1"),
    "smolagents": ("smolagents[openai]",),
    "llama_index": ("llama-index-core>=0.14", "llama-index-llms-openai-like"),
    "crewai": ("crewai",),
    "dspy": ("dspy",),
    "autogen": ("autogen-agentchat", "autogen-ext[openai]"),
    "haystack": ("haystack-ai",),
    "adk": ("google-adk", "litellm", "mcp"),
    "strands": ("strands-agents[openai]",),
    "agno": ("agno", "openai"),
    "mcp": ("mcp", "openai"),
    "claude_agent": ("claude-agent-sdk",),
    "pyright": ("basedpyright",),  # no framework, but as heavy as one
}

# no telemetry, and nothing asked of the network while a test runs
QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HAYSTACK_TELEMETRY_ENABLED": "false",
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "OTEL_SDK_DISABLED": "true",
    "AGNO_TELEMETRY": "false",
    "LANGSMITH_TRACING": "false",
    "OPENAI_AGENTS_DISABLE_TRACE_EXPORT": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "OPENAI_API_KEY": "none",
    "ANTHROPIC_API_KEY": "none",
}


def main() -> int:
    """Make the pinned environment and say where it is."""
    try:
        print(made(pinned_home(), ["-r", str(LOCK)]))
    except (subprocess.SubprocessError, OSError) as error:
        print(f"no frameworks here, their tests will skip: {error}", file=sys.stderr)
        return 1
    return 0


def interpreter(name: str) -> Path | None:
    """Of an environment that has the framework and is there: the pinned one if it holds it."""
    given, _, at = os.environ.get(GIVEN, "").partition("=")
    if given:
        return Path(at) if given == name else None
    if name in OURS:
        return Path(sys.executable)
    homes = [pinned_home()] if name in PINNED else []
    for home in [*homes, own_home(name)]:
        if (home / "installed").is_file():
            return home / "bin" / "python"
    return None


def own(name: str) -> Path:
    """The interpreter of a framework's own environment, which is made if it is not there."""
    return made(own_home(name), needs(name))


def needs(name: str) -> list[str]:
    """What is installed in a framework's own environment."""
    return [*FRAMEWORKS[name], *TESTS_NEED]


def own_home(name: str) -> Path:
    """Where a framework's own environment is."""
    return cache() / f"{name}-{_mark(needs(name))}"


def pinned_home() -> Path:
    """Where the light frameworks are together."""
    return cache() / f"pinned-{_mark(LOCK.read_text().splitlines())}"


def made(home: Path, arguments: list[str]) -> Path:
    """The interpreter of the environment there, installed if it is not."""
    python = home / "bin" / "python"
    if (home / "installed").is_file():
        return python
    uv = shutil.which(
        "uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )
    if uv is None:
        raise FileNotFoundError("uv is not installed")
    for command in (
        ["venv", "-q", "--clear", "--python", sys.executable, str(home)],
        ["pip", "install", "-q", "--python", str(python), *arguments],
    ):
        subprocess.run([uv, *command], check=True, capture_output=True, text=True, timeout=INSTALL_S)
    (home / "installed").touch()
    return python


def cache() -> Path:
    """Where the environments are."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "agentserve" / "frameworks"


def version(python: Path, name: str) -> str:
    """The framework's version, as it is installed."""
    distribution = FRAMEWORKS[name][0].partition("[")[0].partition(">")[0]
    code = f"from importlib.metadata import version; print(version({distribution!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or "-"


def _mark(lines: list[str]) -> str:
    return hashlib.sha256("\n".join([sys.version, *lines]).encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
