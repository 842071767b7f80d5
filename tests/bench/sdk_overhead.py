"""What the SDK costs: `python -m tests.bench.sdk_overhead`.

Rule: times are the application's own thread's, best of several rounds, for another process on this machine may take
its core away; the gateway's states are real sockets.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import agentserve_sdk as agentserve

ROUNDS, CALLS = 20, 200
PACED_CALLS, PAUSE_S = 1000, 0.005
TOOL_US_MAX, CALL_MS_MAX, IMPORT_MS_MAX = 5.0, 1.0, 30.0


@agentserve.tool
def nothing() -> None: ...


@agentserve.workflow
def one_call() -> None:
    """A program, a step in it, a tool, and the headers of a model call."""
    with agentserve.step("s"):
        nothing()
        agentserve.headers()


def best_us(fn: Callable[[], object]) -> float:
    """Microseconds a call, in the best round."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(CALLS):
            fn()
        rounds.append((time.thread_time() - began) / CALLS)
        agentserve.flush(0.02)
    return min(rounds) * 1e6


def worst_ms(fn: Callable[[], object]) -> float:
    """Milliseconds of wall time a call, at the 99th percentile.

    With a pause between calls, as an agent has many longer ones: back to back, the sending thread and ours would take
    turns with the interpreter, at up to 5 ms a turn.
    """
    took = []
    for _ in range(PACED_CALLS):
        time.sleep(PAUSE_S)
        began = time.perf_counter()
        fn()
        took.append(time.perf_counter() - began)
    return sorted(took)[int(len(took) * 0.99)] * 1e3


@contextlib.contextmanager
def elsewhere(status: int) -> Iterator[str]:
    """A gateway in a process of its own, for in ours it would take turns with what is measured."""
    code = (
        "import sys; from agentserve_sdk import testing; gateway = testing.Gateway().start(); "
        f"gateway.status = {status}; print(gateway.url, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


@contextlib.contextmanager
def hung() -> Iterator[str]:
    """It takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def import_ms() -> float:
    """Of a fresh interpreter, over one that imports nothing."""

    def run(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-c", code], check=True)
        return time.perf_counter() - began

    path = f"import sys; sys.path.insert(0, {str(agentserve.__path__[0]).rsplit('/', 1)[0]!r}); "
    pairs = [(run(path), run(path + "import agentserve_sdk")) for _ in range(10)]
    return (min(b for _, b in pairs) - min(a for a, _ in pairs)) * 1e3


def main() -> int:
    """Print the figures; 1 when one is over its bound."""
    rows: list[tuple[str, float, float, str]] = [("import", import_ms(), IMPORT_MS_MAX, "ms")]
    rows.append(("tool, no init", best_us(nothing), TOOL_US_MAX, "µs"))
    bare_ms = worst_ms(one_call)  # what other processes on this machine do to any call
    with elsewhere(200) as url:
        agentserve.init(url, integrations=False)
        with agentserve.workflow("w"):
            rows.append(("tool in a program", best_us(nothing), TOOL_US_MAX, "µs"))
        rows.append(("added to a call, gateway well", worst_ms(one_call) - bare_ms, CALL_MS_MAX, "ms, p99"))
        agentserve.shutdown(0.0)
    with elsewhere(500) as url:
        agentserve.init(url, integrations=False)
        rows.append(
            ("added to a call, gateway answers 500", worst_ms(one_call) - bare_ms, CALL_MS_MAX, "ms, p99")
        )
        agentserve.shutdown(0.0)
    agentserve.init("http://127.0.0.1:9", integrations=False)
    rows.append(("added to a call, gateway stopped", worst_ms(one_call) - bare_ms, CALL_MS_MAX, "ms, p99"))
    agentserve.shutdown(0.0)
    with hung() as url:
        agentserve.init(url, integrations=False)
        rows.append(("added to a call, gateway hung", worst_ms(one_call) - bare_ms, CALL_MS_MAX, "ms, p99"))
        agentserve.shutdown(0.0)
    for name, value, most, unit in rows:
        print(f"{name:<34}{value:>9.3f} {unit:<8} (at most {most:g}){'' if value <= most else '  OVER'}")
    return 1 if any(value > most for _, value, most, _ in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
