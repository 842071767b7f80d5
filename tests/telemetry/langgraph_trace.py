"""One LangGraph run through the gateway, exported by OTLP and printed as a tree. By hand:

    python -m tests.telemetry.langgraph_trace

LangGraph comes from an environment that `tests.frameworks` makes for it. The tree in
`agentserve/telemetry/README.md` is what this printed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from tests.frameworks import environments
from tests.frameworks.environments import QUIET, ROOT
from tests.scenarios import stage
from tests.telemetry.collector import Collector, Seen
from tests.telemetry.tree import tree

AGENT = Path(__file__).with_name("langgraph_agent.py")
RUN_S = 120.0


async def traced(folder: Path, python: Path) -> list[Seen]:
    """The spans of the run."""
    with Collector() as collector:
        tracing = ("telemetry.traces=otlp", f"telemetry.otlp_endpoint={collector.url}")
        async with (
            stage.emulated(folder) as engine,
            stage.gateway([f"http://127.0.0.1:{engine.port}"], folder, *tracing) as gateway,
        ):
            env = {**os.environ, **QUIET, "PYTHONPATH": str(ROOT / "sdk")}
            env["AGENTSERVE_URL"] = f"http://127.0.0.1:{gateway.port}"
            run = await asyncio.create_subprocess_exec(str(python), "-W", "ignore", str(AGENT), env=env)
            if await asyncio.wait_for(run.wait(), RUN_S) != 0:
                raise SystemExit("the agent failed")
        # the gateway hands over its last spans as it stops
        return list(collector.spans)


def main() -> int:
    """Print the tree."""
    python = environments.interpreter("langgraph") or environments.own("langgraph")
    with tempfile.TemporaryDirectory() as folder:
        spans = asyncio.run(traced(Path(folder), python))
    print(tree(spans))
    return 0


if __name__ == "__main__":
    sys.exit(main())
