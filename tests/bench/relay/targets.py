"""What is measured: how each proxy is started in front of the fake engine, and how its processor time is read.

Rule: one core for the proxy, the other for engine and load. A proxy that is not installed is left out, never faked.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

START_S = 30.0
STOP_S = 5.0
TICKS_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one proxy runs."""

    port: int
    engine: int  # the fake engine's port
    folder: Path
    peers: Path | None  # a folder with one environment for each peer, as `tests.bench.peers.install` makes it

    @property
    def engine_url(self) -> str:
        return f"http://127.0.0.1:{self.engine}"

    def bin(self, peer: str, command: str) -> str | None:
        """A command of a peer: in its own environment, else wherever it is found."""
        if self.peers is not None and (own := self.peers / peer / "bin" / command).exists():
            return str(own)
        return shutil.which(command) if command != "python" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One proxy. Its command is None where it is not installed."""

    name: str
    command: Callable[[Place], Sequence[str] | None]
    path: str = "/v1/chat/completions"
    environment: Mapping[str, str] = field(default_factory=dict)
    python: bool = False  # a Python program: what a Python gateway may be compared with
    install: str = "python -m tests.bench.peers.install DIR"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """The command on one core, where that can be chosen."""
    taskset = shutil.which("taskset")
    return [taskset, "-c", str(core), *command] if taskset and (os.cpu_count() or 1) > 1 else list(command)


@contextlib.contextmanager
def started(
    command: Sequence[str], port: int, *, core: int, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The process, listening on its port; stopped at the end."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            pinned(core, command),
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    try:
        until = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{command[0]} does not listen; see {log}")
            time.sleep(0.05)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_S)


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    """Processor seconds of the whole session that the process leads."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            fields = entry.read_text().rpartition(")")[2].split()
            if int(fields[3]) == process.pid:  # its session
                total += int(fields[11]) + int(fields[12])
    return total / TICKS_S


def rss_mb(process: subprocess.Popen[bytes]) -> float:
    """Resident memory of that session."""
    pages = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            fields = entry.read_text().rpartition(")")[2].split()
            if int(fields[3]) == process.pid:
                pages += int(fields[21])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# -- the proxies


def _nginx(place: Place) -> Sequence[str] | None:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        return None
    folder = place.folder
    conf = folder / "nginx.conf"
    conf.write_text(
        f"worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n"
        "events { worker_connections 4096; }\n"
        "http { access_log off; keepalive_requests 100000000; client_max_body_size 64m; client_body_buffer_size 1m;\n"
        f" client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;\n"
        f" uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n"
        f" upstream engine {{ server 127.0.0.1:{place.engine}; keepalive 256; keepalive_requests 100000000; }}\n"
        f" server {{ listen 127.0.0.1:{place.port}; location / {{ proxy_pass http://engine; proxy_http_version 1.1;\n"
        '   proxy_set_header Connection ""; proxy_buffering off; } } }\n'
    )
    return [found, "-c", str(conf)]


def _agentserve(place: Place) -> Sequence[str]:
    """Everything on: identity, the scheduler, journal on SQLite, metrics, 1% of traces, response headers."""
    found = Path(sys.executable).with_name("agentserve")
    return [
        str(found), "up", "--port", str(place.port), "--engine", place.engine_url,
        "--store", f"sqlite+aiosqlite:///{place.folder}/bench-{place.port}.db", "--log-level", "warning",
        "--traces", "console", "--set", "telemetry.trace_sample=0.01",
    ]  # fmt: skip


def _bare(place: Place) -> Sequence[str]:
    """The same parts with nothing between them: what the language and the two protocols cost."""
    return [sys.executable, "-m", "tests.bench.relay.bare", str(place.port), place.engine_url]


def _reading(place: Place) -> Sequence[str]:
    """The same, and what a recogniser that remembers no bodies does: both of them read, the messages hashed."""
    return [*_bare(place), "--reads"]


def _vllm_router(place: Place) -> Sequence[str] | None:
    found = place.bin("vllm-router", "vllm-router")
    flags = ["--host", "127.0.0.1", "--port", str(place.port), "--prometheus-port", str(free_port())]
    flags += ["--worker-urls", place.engine_url, "--policy", "round_robin", "--log-level", "warning"]
    return found and [found, *flags]


def _sglang_router(place: Place) -> Sequence[str] | None:
    found = place.bin("sglang-router", "python")
    flags = ["--host", "127.0.0.1", "--port", str(place.port), "--prometheus-port", str(free_port())]
    flags += ["--worker-urls", place.engine_url, "--policy", "cache_aware", "--log-level", "warn"]
    return found and [found, "-m", "sglang_router.launch_router", *flags]


def _litellm(place: Place) -> Sequence[str] | None:
    found = place.bin("litellm", "litellm")
    conf = place.folder / "litellm.yaml"
    conf.write_text(
        "model_list: [{model_name: m, litellm_params: {model: openai/m, api_key: x, "
        f"api_base: '{place.engine_url}/v1'}}}}]\n"
    )
    return found and [found, "--config", str(conf), "--port", str(place.port), "--host", "127.0.0.1"]


def _thunderagent(place: Place) -> Sequence[str] | None:
    found = place.bin("thunderagent", "python")
    flags = ["--host", "127.0.0.1", "--port", str(place.port), "--log-level", "warning"]
    # as a plain proxy: its program scheduling admits nothing where the engine has no metrics of vLLM's
    flags += ["--backends", place.engine_url, "--router", "default", "--backend-type", "vllm"]
    return found and [found, "-m", "ThunderAgent", *flags]


def _production_stack(place: Place) -> Sequence[str] | None:
    found = place.bin("production-stack", "python")
    flags = ["--host", "127.0.0.1", "--port", str(place.port), "--service-discovery", "static"]
    flags += ["--static-backends", place.engine_url, "--static-models", "m", "--routing-logic", "roundrobin"]
    return found and [found, "-m", "vllm_router.app", *flags, "--log-level", "warning"]


TARGETS = (
    Target(name="nginx", command=_nginx, install="apt-get install nginx"),
    Target(name="agentserve", command=_agentserve),
    Target(name="agentserve, programs named", command=_agentserve, path="/p/bench-%d/v1/chat/completions"),
    Target(name="floor: bare relay", command=_bare),
    Target(name="floor: bare relay that reads", command=_reading),
    Target(name="vllm-router", command=_vllm_router),
    Target(name="sglang-router", command=_sglang_router),
    Target(
        name="litellm",
        command=_litellm,
        python=True,
        environment={"LITELLM_MASTER_KEY": "bench", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    ),
    Target(name="thunderagent", command=_thunderagent, python=True),
    Target(name="production-stack", command=_production_stack, python=True),
)
