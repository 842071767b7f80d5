"""Is the house in order? Run by `make check`; `python -m tests.tidy`.

Size is advice: what is over the advised length is listed, and only the extreme fails. Calls that would make the
core depend on the outside world (clocks, global randomness, printing) fail wherever they stand.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES_ADVISED, FILE_LINES_MAX = 450, 900
FUNCTION_LINES_ADVISED, FUNCTION_LINES_MAX = 60, 150
SANS_IO = ("agentserve/core/", "agentserve/engine/", "agentserve/sim/")
# Attributes of modules that a sans-IO file must not touch.
BANNED = {
    "time": {"time", "monotonic", "perf_counter", "sleep", "time_ns", "monotonic_ns"},
    "random": {
        "random", "randint", "choice", "choices", "shuffle", "uniform", "gauss", "seed", "sample", "expovariate",
        "randrange",
    },
    "datetime": {"now", "utcnow", "today"},
    "os": {"environ", "getenv", "urandom"},
    "uuid": {"uuid1", "uuid4"},
}  # fmt: skip
FOREIGN_NOUNS = {"utils", "helpers", "manager", "common"}


def main() -> int:
    """Print what is wrong and what is advised; 1 when anything is wrong."""
    wrong: list[str] = []
    advice: list[str] = []
    for path in python_files():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        wrong += [
            f"{path}: a module called {path.stem} holds no noun" for _ in [0] if path.stem in FOREIGN_NOUNS
        ]
        for problem, fatal in sizes(path, text, tree):
            (wrong if fatal else advice).append(problem)
        if str(path).startswith(SANS_IO):
            wrong += banned_calls(path, tree)
        if str(path).startswith(("agentserve/", "adapters/", "sdk/agentserve_sdk/")):
            wrong += undocumented(path, text, tree)
    for line in advice:
        print(f"advice: {line}")
    for line in wrong:
        print(f"wrong: {line}")
    return 1 if wrong else 0


def python_files() -> list[Path]:
    """The Python files that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    return sorted(p for name in listed.split("\0") if name and (p := Path(name)).is_file())


def sizes(path: Path, text: str, tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Files and functions that are too long to read in one sitting."""
    lines = text.count("\n")
    if lines > FILE_LINES_ADVISED:
        yield f"{path}: {lines} lines; does it hold two nouns?", lines > FILE_LINES_MAX
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_ADVISED and "migrations" not in path.parts:
                yield f"{path}:{node.lineno}: {node.name} has {length} lines", length > FUNCTION_LINES_MAX


def banned_calls(path: Path, tree: ast.Module) -> list[str]:
    """Clocks, global randomness and the environment in code that must be a function of its inputs."""
    out = []
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.attr in BANNED.get(node.value.id, ())
        ):
            out.append(f"{path}:{node.lineno}: {node.value.id}.{node.attr} in sans-IO code")
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"print", "open", "hash"}
        ):
            out.append(f"{path}:{node.lineno}: {node.func.id}() in sans-IO code")
    return out


def undocumented(path: Path, text: str, tree: ast.Module) -> list[str]:
    """A module opens with what it does, unless there is nothing in it."""
    if text.strip() and ast.get_docstring(tree) is None:
        return [f"{path}: no module docstring"]
    return []


if __name__ == "__main__":
    sys.exit(main())
