"""Run one of `unchanged/`: `python drive.py FILE`, a line of standard input a round, `{"question": ..., "at_once": 1}`.

Rule: it runs in the framework's own environment, so it knows of nothing but the standard library. Agents that are
coroutines run in one event loop, the others in threads.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def loaded(path: Path) -> ModuleType:
    """The agent's module."""
    spec = importlib.util.spec_from_file_location("agent_under_test", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def main(path: Path) -> None:
    """Answer each line with what the runs said, or how they failed."""
    run: Any = loaded(path).run
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        asks = run if inspect.iscoroutinefunction(run) else lambda question: asyncio.to_thread(run, question)
        runs = [asks(asked["question"]) for _ in range(asked["at_once"])]
        answers = await asyncio.gather(*runs, return_exceptions=True)
        failed = [repr(one)[:2_000] for one in answers if isinstance(one, BaseException)]
        said = [] if failed else [str(one) for one in answers]
        print("round: " + json.dumps({"said": said, "failed": failed}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
