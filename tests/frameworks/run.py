"""Every framework's test in an environment of its own: `python -m tests.frameworks.run [NAME ...]`.

Rule: environments live in the user's cache, one a framework, and are made anew when their requirements change. What a
framework's newest version breaks is seen here and not by users, so versions are not pinned.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
INSTALL_S, TEST_S = 900, 300
TESTS_NEED = ("pytest>=8.4", "pytest-asyncio>=1.2")

# no telemetry, and nothing asked of the network while a test runs
QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HAYSTACK_TELEMETRY_ENABLED": "false",
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "OTEL_SDK_DISABLED": "true",
    "AGNO_TELEMETRY": "false",
    "OPENAI_AGENTS_DISABLE_TRACE_EXPORT": "1",
    "OPENAI_API_KEY": "none",
}

FRAMEWORKS: dict[str, tuple[str, ...]] = {
    "openai": ("openai",),
    "anthropic": ("anthropic",),
    "langgraph": ("langgraph", "langchain-openai", "langchain"),
    "openai_agents": ("openai-agents",),
    "pydantic_ai": ("pydantic-ai-slim[openai]",),
    "smolagents": ("smolagents[openai]",),
    "llama_index": ("llama-index-core>=0.14", "llama-index-llms-openai-like"),
    "crewai": ("crewai",),
    "dspy": ("dspy",),
    "autogen": ("autogen-agentchat", "autogen-ext[openai]"),
    "haystack": ("haystack-ai",),
    "adk": ("google-adk", "litellm", "mcp"),
    "strands": ("strands-agents[openai]",),
    "agno": ("agno", "openai"),
    "mcp": ("mcp",),
    "pyright": ("basedpyright",),  # no framework, but as heavy as one
}


class Row(NamedTuple):
    """A line of the table."""

    name: str
    version: str
    recognised_by: str
    calls: str
    passed: str
    ok: bool


def main() -> int:
    """Print the table; 1 when any test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    names = parser.parse_args().names or list(FRAMEWORKS)
    unknown = [name for name in names if name not in FRAMEWORKS]
    if unknown:
        parser.error(f"no test of {', '.join(unknown)}; there are {', '.join(FRAMEWORKS)}")
    print(
        f"{'framework':<15}{'version':<22}{'recognised by':<46}{'steps right':<14}{'tests':<10}took",
        flush=True,
    )
    failed = 0
    for name in names:
        began = time.monotonic()
        row = tried(name)
        took_s = time.monotonic() - began
        print(
            f"{row.name:<15}{row.version:<22}{row.recognised_by:<46}{row.calls:<14}{row.passed:<10}{took_s:.0f} s"
        )
        sys.stdout.flush()
        failed += not row.ok
    return 1 if failed else 0


def tried(name: str) -> Row:
    """One framework."""
    try:
        python = environment(name)
    except (subprocess.SubprocessError, OSError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        print(f"  {name} cannot be installed: {str(detail).strip().splitlines()[-1:]}", file=sys.stderr)
        return Row(name, "-", "-", "-", "no", False)
    report = python.parents[1] / "report.xml"
    report.unlink(missing_ok=True)
    command = [
        str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "-o", "filterwarnings=default",
        "-o", "junit_family=xunit1", f"--junitxml={report}", f"--rootdir={ROOT}", f"tests/frameworks/test_{name}.py",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT / "sdk"), "PYTHONDONTWRITEBYTECODE": "1", **QUIET}
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TEST_S)
    except subprocess.TimeoutExpired:
        return Row(name, version(python, name), "-", "-", "hangs", False)
    if done.returncode != 0:
        print(done.stdout[-4_000:], done.stderr[-2_000:], file=sys.stderr)
    return row_of(name, version(python, name), report, done.returncode == 0)


def row_of(name: str, framework_version: str, report: Path, ok: bool) -> Row:
    """What its tests recorded."""
    if not report.is_file():
        return Row(name, framework_version, "-", "-", "none", False)
    cases = list(ET.parse(report).getroot().iter("testcase"))
    passed = sum(not any(c.tag in ("failure", "error", "skipped") for c in case) for case in cases)
    said = [(p.get("name"), str(p.get("value"))) for case in cases for p in case.iter("property")]
    right = sum(int(value.split()[0]) for key, value in said if key == "calls")
    by = next(
        (value for key, value in said if key == "recognised by"),
        "header on its HTTP client" if right else "-",
    )
    # a skipped test is one that did not run: the framework is not there after all
    return Row(
        name,
        framework_version,
        by,
        f"{right} of {right}" if right else "-",
        f"{passed}/{len(cases)}",
        ok and passed == len(cases),
    )


def environment(name: str) -> Path:
    """Its interpreter, installed if it is not."""
    needs = [*FRAMEWORKS[name], *TESTS_NEED]
    mark = hashlib.sha256("\n".join([sys.version, *needs]).encode()).hexdigest()[:12]
    home = cache() / f"{name}-{mark}"
    python = home / "bin" / "python"
    if (home / "installed").is_file():
        return python
    uv = shutil.which(
        "uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )
    if uv is None:
        raise FileNotFoundError("uv is not installed")
    made = {"check": True, "capture_output": True, "text": True, "timeout": INSTALL_S}
    subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, str(home)], **made)  # type: ignore[call-overload]
    subprocess.run([uv, "pip", "install", "-q", "--python", str(python), *needs], **made)  # type: ignore[call-overload]
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


if __name__ == "__main__":
    sys.exit(main())
