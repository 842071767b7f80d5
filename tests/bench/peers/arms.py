"""How each router is started before the engines.

Rule: a router's own defaults, agentserve's too, but for what must be said: addresses, ports and, where it keeps time of
its own, its intervals divided by the time scale, so that it decides as often as it would in real time. A router that is
not installed is left out and named, never faked.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentserve.cli import stage
from agentserve.cli.crowd import Door
from agentserve.engine import profile
from tests.bench.peers import doors
from tests.bench.peers.programs import Setting

THUNDERAGENT_TICK_S = 5.0
VLLM_TICK_S = 1.0
BODY_MB_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast an engine is and how much it holds, as vllm-router's program scheduling wants to be told."""

    kv_tokens: int
    time_scale: float  # by which a second of the engine's is divided
    prefill_s: float  # of an empty prompt
    prefill_s_per_1k: float
    prefill_s_per_1k_squared: float
    decode_s: float  # of a step
    decode_s_per_token: float  # of context


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a router is started with."""

    peers: Path  # a folder with one environment for each peer
    folder: Path  # for its files
    engines: Sequence[str]
    port: int
    pace: Pace
    model: str = "emulated"

    def bin(self, peer: str, command: str) -> str:
        return str(self.peers / peer / "bin" / command)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to the engines."""

    name: str
    door: type[Door]
    command: Callable[[Place], Sequence[str]] | None = None  # None: no process of its own, or agentserve's
    installed: Callable[[Path], bool] = lambda peers: True
    ready: str = "/health"
    told: str = ""  # what it is told of the programs


def emulated(setting: Setting) -> Pace:
    """The emulated engine's own roofline."""
    shape = profile(setting.profile)
    return Pace(
        kv_tokens=setting.kv_tokens,
        time_scale=setting.time_scale,
        prefill_s=shape.overhead_s,
        prefill_s_per_1k=2.0 * shape.model.parameters * 1000 / (shape.flops * shape.mfu),
        prefill_s_per_1k_squared=shape.attention_s_per_token_context() * 1e6 / 2,
        decode_s=shape.linear_s(1) + shape.overhead_s,
        decode_s_per_token=shape.kv_read_s_per_token(),
    )


def _nginx(place: Place) -> Sequence[str]:
    servers = "\n".join(f"    server {url.removeprefix('http://')};" for url in place.engines)
    config = f"""
daemon off; pid {place.folder}/nginx.pid; worker_processes 1; error_log {place.folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_max_body_size {BODY_MB_MAX}m; client_body_buffer_size 2m;
  client_body_temp_path {place.folder}/body; proxy_temp_path {place.folder}/proxy;
  fastcgi_temp_path {place.folder}/fastcgi; uwsgi_temp_path {place.folder}/uwsgi;
  scgi_temp_path {place.folder}/scgi;
  upstream engines {{
    least_conn;
{servers}
    keepalive 64;
  }}
  server {{
    listen 127.0.0.1:{place.port};
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 900s;
    }}
  }}
}}
"""
    path = place.folder / "nginx.conf"
    path.write_text(config, encoding="utf-8")
    return [str(shutil.which("nginx")), "-e", f"{place.folder}/error.log", "-c", str(path)]


def _vllm_router(place: Place) -> Sequence[str]:
    flags = ["--host", "127.0.0.1", "--port", str(place.port), "--prometheus-port", str(stage.free_port())]
    return [
        place.bin("vllm-router", "vllm-router"),
        *flags,
        *("--prometheus-host", "127.0.0.1", "--log-level", "warning"),
        "--worker-urls",
        *place.engines,
    ]


def _vllm_router_programs(place: Place) -> Sequence[str]:
    """Calibrated to the engine, in the units that its documentation asks for."""
    pace, scale = place.pace, place.pace.time_scale
    config = {
        "global_queue": True,
        "resume_order": "mru",
        "token_capacity_per_target": pace.kv_tokens,
        "metrics_interval_seconds": VLLM_TICK_S / scale,
        "force_resume_timeout_seconds": 300.0 / scale,
        "max_acting_ttl_seconds": 10.0 / scale,
        "prefill_cost_model": {
            "intercept_seconds": pace.prefill_s / scale,
            "linear_seconds_per_1k_tokens": pace.prefill_s_per_1k / scale,
            "quadratic_seconds_per_1k_tokens_squared": pace.prefill_s_per_1k_squared / scale,
            "decode_throughput_alpha": 0.15,
        },
        "decode_throughput_model": {
            "fixed_step_seconds": pace.decode_s / scale,
            "batch_step_seconds_per_request": 1e-6 / scale,
            "context_step_seconds_per_token": pace.decode_s_per_token / scale,
        },
    }
    flags = ["--enable-program-scheduling", "--policy", "consistent_hash"]
    return [*_vllm_router(place), *flags, "--program-scheduling-config-json", json.dumps(config)]


def _sglang_router(place: Place) -> Sequence[str]:
    flags = ["--host", "127.0.0.1", "--port", str(place.port), "--prometheus-port", str(stage.free_port())]
    return [
        place.bin("sglang-router", "python"),
        *("-m", "sglang_router.launch_router", *flags),
        *("--prometheus-host", "127.0.0.1", "--policy", "cache_aware", "--log-level", "warn"),
        "--worker-urls",
        *place.engines,
    ]


def _litellm(place: Place) -> Sequence[str]:
    models = [
        {
            "model_name": place.model,
            "litellm_params": {
                "model": f"hosted_vllm/{place.model}",
                "api_base": f"{url}/v1",
                "api_key": "none",
            },
        }
        for url in place.engines
    ]
    path = place.folder / "litellm.json"  # JSON is YAML
    path.write_text(json.dumps({"model_list": models}), encoding="utf-8")
    flags = ["--host", "127.0.0.1", "--port", str(place.port), "--config", str(path), "--telemetry", "False"]
    return [place.bin("litellm", "litellm"), *flags]


def _thunderagent(place: Place) -> Sequence[str]:
    tick = str(THUNDERAGENT_TICK_S / place.pace.time_scale)
    flags = ["--host", "127.0.0.1", "--port", str(place.port), "--log-level", "warning"]
    flags += ["--backends", ",".join(place.engines), "--router", "tr", "--backend-type", "vllm"]
    flags += ["--metrics", "--metrics-interval", tick, "--scheduler-interval", tick]
    return [place.bin("thunderagent", "python"), "-m", "ThunderAgent", *flags]


def _has(peer: str) -> Callable[[Path], bool]:
    return lambda peers: (peers / peer / "bin" / "python").exists()


ARMS = {
    arm.name: arm
    for arm in (
        Arm(name="direct", door=doors.RoundRobin, told="-"),
        Arm(name="direct-sticky", door=Door, told="-"),
        Arm(
            name="nginx",
            door=doors.Plain,
            command=_nginx,
            installed=lambda _: shutil.which("nginx") is not None,
        ),
        Arm(
            name="litellm",
            door=doors.Plain,
            command=_litellm,
            installed=_has("litellm"),
            ready="/health/liveliness",
        ),
        Arm(name="vllm-router", door=doors.Plain, command=_vllm_router, installed=_has("vllm-router")),
        Arm(name="sglang-router", door=doors.Plain, command=_sglang_router, installed=_has("sglang-router")),
        Arm(
            name="vllm-router-programs",
            door=doors.AgenticContext,
            command=_vllm_router_programs,
            installed=_has("vllm-router"),
            told="program, parent, step, end",
        ),
        Arm(
            name="thunderagent",
            door=doors.ThunderAgentIds,
            command=_thunderagent,
            installed=_has("thunderagent"),
            told="program, end",
        ),
        Arm(name="agentserve", door=doors.Plain),
        Arm(name="agentserve-headers", door=doors.AgentserveHeaders, told="program, parent, step, end"),
    )
}


def environment() -> dict[str, str]:
    """What the peers ask for: LiteLLM a key, and not to look its prices up; none of our own settings."""
    return {
        **stage.our_environment(),
        "LITELLM_MASTER_KEY": doors.KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PATH": os.environ.get("PATH", ""),
    }


@contextlib.asynccontextmanager
async def opened(arm: Arm, place: Place) -> AsyncIterator[tuple[Door, int | None]]:
    """The router up before the engines: its door, and its process."""
    if arm.name.startswith("direct"):
        yield arm.door(place.engines), None
        return
    if arm.command is None:
        async with stage.gateway(place.engines, *stage.paced(place.pace.time_scale)) as started:
            yield arm.door([started.url]), started.pid
        return
    url = f"http://127.0.0.1:{place.port}"
    async with stage.process(
        arm.name, arm.command(place), url=url, ready=arm.ready, env=environment(), cwd=place.folder
    ) as started:
        yield arm.door([started.url]), started.pid
