"""`agentserve up` as a newcomer runs it: one process, one call, and everything that follows from it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
from openai.types.chat.chat_completion_chunk import ChoiceDeltaToolCall

START_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def up(folder: Path, *arguments: str, port: int | None = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The gateway as a process of its own, ready."""
    port = port or free_port()
    command = [sys.executable, "-m", "agentserve.cli", "up", "--port", str(port), *arguments]
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTSERVE_")}
    process = subprocess.Popen(
        command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if process.poll() is not None:
                raise AssertionError(process.communicate()[1])
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            time.sleep(0.1)
        yield url, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=40)


def verb(folder: Path, *arguments: str) -> Any:
    """A verb's JSON."""
    command = [sys.executable, "-m", "agentserve.cli", *arguments, "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def eventually(ask: Any, *, timeout_s: float = 15.0) -> Any:
    """What `ask` answers once it is something."""
    until = time.monotonic() + timeout_s
    while True:
        found = ask()
        if found or time.monotonic() > until:
            return found
        time.sleep(0.2)


SCRIPT = 'agentserve-script: [{"tool": "search", "arguments": {"q": "x"}}, {"text": "all done"}]'
SEARCH: Any = {
    "type": "function",
    "function": {"name": "search", "parameters": {"type": "object", "properties": {}}},
}


async def talk(url: str) -> AsyncIterator[Any]:
    """One agent of two steps with a tool call between, streamed."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        messages: list[Any] = [{"role": "user", "content": f"find x\n{SCRIPT}"}]
        for _ in range(2):
            stream = await client.chat.completions.create(
                model="emulated", messages=messages, tools=[SEARCH], stream=True
            )
            said = ""
            call: ChoiceDeltaToolCall | None = None
            async for chunk in stream:
                delta = chunk.choices[0].delta
                said += delta.content or ""
                if delta.tool_calls:
                    call = call or delta.tool_calls[0]
            yield said, call
            if call is not None:
                function = {"name": "search", "arguments": '{"q":"x"}'}
                messages.append(
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [{"id": call.id, "type": "function", "function": function}],
                    }
                )
                messages.append({"role": "tool", "tool_call_id": call.id, "content": "found"})


def test_one_agent_is_one_program_in_the_store_the_metrics_and_a_trace(tmp_path: Path) -> None:
    with up(tmp_path, "--traces", "console", "--time-scale", "20") as (url, process):
        models = httpx.get(f"{url}/v1/models").json()
        assert [m["id"] for m in models["data"]] == ["emulated"]

        async def run() -> list[Any]:
            return [turn async for turn in talk(url)]

        (_, call), (said, _) = asyncio.run(run())
        assert call.function.name == "search"
        assert said == "all done"
        (program,) = eventually(
            lambda: [p for p in verb(tmp_path, "programs", "list") if p["steps"] == 2], timeout_s=20
        )
        assert program["prompt_tokens"] > 0
        assert program["output_tokens"] > 0
        assert program["engine_s"] > 0
        metrics = httpx.get(f"{url}/metrics").text
        assert 'agentserve_steps_total{outcome="finished",tenant="default",workflow="none"} 2.0' in metrics
        shown = verb(tmp_path, "programs", "show", program["id"])
        assert [s["status"] for s in shown["step_list"]] == [200, 200]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=40)
    assert "base URL" in out
    assert "chat emulated" in out + err, "a span for the step came out of the console exporter"
    assert "execute_tool search" in out + err


def test_a_running_agent_is_the_same_program_after_the_gateway_was_killed(tmp_path: Path) -> None:
    port = free_port()

    async def first_step() -> Any:
        async for turn in talk(f"http://127.0.0.1:{port}"):
            return turn
        raise AssertionError

    def programs() -> Any:
        return verb(tmp_path, "programs", "list")

    with up(tmp_path, "--time-scale", "20", port=port) as (_, process):
        asyncio.run(first_step())
        assert eventually(lambda: [p for p in programs() if p["steps"] == 1])
        time.sleep(1.5)  # the last second of records may be lost
        process.kill()
        process.wait()
    with up(tmp_path, "--time-scale", "20", port=port) as (url, _):
        body = {
            "model": "emulated",
            "messages": [
                {"role": "user", "content": f"find x\n{SCRIPT}"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "c",
                            "type": "function",
                            "function": {"name": "search", "arguments": '{"q":"x"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "c", "content": "found"},
            ],
            "tools": [SEARCH],
        }
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20)
        assert reply.status_code == 200
        (program,) = eventually(lambda: [p for p in programs() if p["steps"] == 2]) or programs()
        assert program["steps"] == 2


def test_sighup_takes_over_a_new_tenant_and_keeps_the_old_settings_when_the_new_are_wrong(
    tmp_path: Path,
) -> None:
    settings = tmp_path / "agentserve.toml"
    settings.write_text("[gateway]\nlog_level = 'info'\n")
    with up(tmp_path) as (url, process):
        settings.write_text("[gateway]\nlog_levl = 'info'\n")
        process.send_signal(signal.SIGHUP)
        time.sleep(1.0)
        assert httpx.get(f"{url}/healthz").status_code == 200
        settings.write_text("[[tenants]]\nid = 'team'\nweight = 3.0\n")
        process.send_signal(signal.SIGHUP)
        time.sleep(1.0)
        assert httpx.get(f"{url}/healthz").status_code == 200
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=40)
    assert "did you mean `log_level`" in err
    assert "settings reloaded" in err


def test_strangers_are_refused_until_there_is_a_key(tmp_path: Path) -> None:
    with up(tmp_path, "--host", "0.0.0.0") as (url, process):
        body = {"model": "emulated", "messages": [{"role": "user", "content": "x"}]}
        assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 401
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=40)
    assert "every call is refused" in out


def test_it_says_that_it_is_up_once_it_takes_connections_and_not_before(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "agentserve.cli", "up", "--port", str(port)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    process = subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert "is up" in process.stdout.readline()
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=40)


def children(pid: int) -> list[int]:
    """The processes that it started and that are there."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_workers_finish_their_streams_when_told_to_stop_and_leave_nothing_behind(tmp_path: Path) -> None:
    slow = ("--workers", "2", "--time-scale", "0.2")
    body = {
        "model": "emulated",
        "stream": True,
        "max_tokens": 60,
        "messages": [{"role": "user", "content": "x"}],
    }
    with up(tmp_path, *slow) as (url, process):
        pids = children(process.pid)
        assert len(pids) == 2
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        process.wait(40)
    assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_workers_end_with_a_scheduler_that_was_killed_and_free_the_port(tmp_path: Path) -> None:
    port = free_port()
    with up(tmp_path, "--workers", "2", port=port) as (_, process):
        pids = children(process.pid)
        process.kill()
        process.wait(10)
        assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), timeout_s=40)
    with up(tmp_path, "--workers", "2", port=port) as (url, again):
        assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
        arguments = [sys.executable, "-m", "agentserve.cli", "up", "--workers", "2", "--port", str(port)]
        third = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert third.returncode == 2
        assert "cannot listen" in third.stderr
        assert again.poll() is None
