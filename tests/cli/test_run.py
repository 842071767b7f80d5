"""`agentserve run`: any command as one program, with its own status whatever the gateway does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import agentserve_sdk as agentserve
import httpx
import pytest
from agentserve_sdk import testing

from agentserve.cli.run import Gateway, environment, pointed

SHOWS = "import json, os; print(json.dumps(dict(os.environ)))"
CALLS = """
import os, urllib.request, json
for _ in range(2):
    asked = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", json.dumps(
        {"model": "emulated", "messages": [{"role": "user", "content": "hi"}]}).encode())
    urllib.request.urlopen(asked, timeout=10).read()
raise SystemExit(3)
"""


AGENT = """
import json, os, time, urllib.request
def ask(messages, program=None):
    base, headers = os.environ["OPENAI_BASE_URL"], {}
    if program is not None:
        base = os.environ["AGENTSERVE_URL"] + "/v1"
        headers = {"x-agentserve-program-id": program,
                   "x-agentserve-parent-id": os.environ["AGENTSERVE_PROGRAM_ID"]}
    tools = [{"type": "function", "function": {"name": "read_file", "parameters": {"type": "object"}}}]
    asked = urllib.request.Request(base + "/chat/completions", json.dumps(
        {"model": "emulated", "max_tokens": 30, "tools": tools, "messages": messages}).encode(), headers)
    return json.loads(urllib.request.urlopen(asked, timeout=10).read())["choices"][0]["message"]
turns = [{"tool": "read_file", "arguments": {"path": "a"}}, {"tool": "read_file", "arguments": {"path": "b"}}]
said = [{"role": "system", "content": "You are careful. " * 100},
        {"role": "user", "content": "agentserve-script: " + json.dumps([*turns, {"text": "done"}])}]
for _ in range(3):
    reply = ask(said)
    said.append(reply)
    for call in reply.get("tool_calls") or ():
        time.sleep(0.2)
        said.append({"role": "tool", "tool_call_id": call["id"], "content": "some text " * 20})
ask([{"role": "user", "content": "look around"}], "helper")
raise SystemExit(3)
"""


@pytest.fixture
def gateway() -> Iterator[testing.Gateway]:
    with testing.Gateway(integrations=False) as gateway:
        yield gateway


def command(url: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "agentserve.cli", "run", "--url", url, *arguments]


def run(url: str, *arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AGENTSERVE_", "ANTHROPIC_"))} | more
    return subprocess.run(
        command(url, *arguments), capture_output=True, text=True, cwd=cwd, env=env, timeout=60
    )


def test_the_command_is_one_program_and_its_status_is_ours(gateway: testing.Gateway, tmp_path: Path) -> None:
    done = run(gateway.url, "--program", "p1", "--", sys.executable, "-c", CALLS, cwd=tmp_path)
    assert done.returncode == 3
    program = gateway.only_program
    assert (program.id, len(program.calls), program.status) == ("p1", 2, "failed")
    assert program.declared["workflow"].startswith("python")
    assert "p1 exit status 3" in done.stderr


def test_the_environment_points_every_client_at_the_gateway(gateway: testing.Gateway, tmp_path: Path) -> None:
    done = run(
        gateway.url, "--key", "as-1", "--quiet", "--workflow", "chore", "--", sys.executable, "-c", SHOWS,
        cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    seen = json.loads(done.stdout)
    program = gateway.only_program
    root = f"{gateway.url}/p/{program.id}"
    assert seen["OPENAI_BASE_URL"] == f"{root}/v1"
    assert seen["ANTHROPIC_BASE_URL"] == root
    assert seen["AGENTSERVE_PROGRAM_ID"] == program.id
    assert (seen["OPENAI_API_KEY"], seen["ANTHROPIC_AUTH_TOKEN"]) == ("as-1", "as-1")
    assert seen["CLAUDE_CODE_GATEWAY_HINT_HEADERS"] == "1"
    assert seen["TRACEPARENT"].startswith("00-")
    assert (program.declared["workflow"], program.status) == ("chore", "succeeded")


def test_the_sdk_inside_joins_the_program_and_does_not_end_it(
    gateway: testing.Gateway, tmp_path: Path
) -> None:
    inside = (
        "import agentserve_sdk as agentserve, httpx, os\n"
        "agentserve.init()\n"
        "with agentserve.step('draft'), agentserve.tool('look', call_id='c1'):\n"
        "    url = os.environ['AGENTSERVE_URL'] + '/v1/chat/completions'\n"
        "    httpx.post(url, json={'model': 'm', 'messages': []})\n"
    )
    done = run(gateway.url, "--program", "p1", "--quiet", "--", sys.executable, "-c", inside, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    program = gateway.only_program
    assert program.steps == ["draft"]
    assert [(t.name, t.ended) for t in program.tools] == [("look", True)]
    assert [e["type"] for e in program.events].count("end") == 1


def test_codex_gets_its_provider_as_arguments(gateway: testing.Gateway, tmp_path: Path) -> None:
    codex = tmp_path / "codex"
    codex.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    codex.chmod(0o755)
    done = run(gateway.url, "--quiet", "--program", "p1", "--", str(codex), "exec", "fix it", cwd=tmp_path)
    said = json.loads(done.stdout)
    assert said[-2:] == ["exec", "fix it"]
    assert f'model_providers.agentserve.base_url="{gateway.url}/p/p1/v1"' in said
    assert 'model_providers.agentserve.wire_api="responses"' in said
    assert 'web_search="disabled"' in said  # which no engine runs


def test_clients_ask_for_the_only_model_that_is_served_unless_they_were_told_another() -> None:
    def clients(model: str | None, given: dict[str, str]) -> tuple[dict[str, str], list[str]]:
        gateway = Gateway("http://gateway", None)
        return environment(given, gateway, "p1", model), pointed(["codex", "exec"], gateway, "p1", model)

    env, codex = clients("tiny", {"ANTHROPIC_MODEL": "mine"})
    assert (env["ANTHROPIC_MODEL"], env["ANTHROPIC_DEFAULT_HAIKU_MODEL"]) == ("mine", "tiny")
    assert 'model="tiny"' in codex
    env, codex = clients(None, {})
    assert "ANTHROPIC_MODEL" not in env
    assert not any(part.startswith("model=") for part in codex)


@pytest.mark.parametrize(("served", "asked"), [(["tiny"], "tiny"), (["a", "b"], None), ([], None)])
def test_a_model_is_chosen_only_where_there_is_one(
    served: list[str], asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = {"data": [{"id": name} for name in served]}
    monkeypatch.setattr(Gateway, "_ask", lambda self, method, path, body=None: listed)
    assert Gateway("http://gateway", None).only_model() == asked


def test_a_gateway_that_is_away_is_said_once_and_changes_nothing(tmp_path: Path) -> None:
    with testing.Gateway(integrations=False) as gone:
        url = gone.url
    agentserve.shutdown(0.0)
    done = run(url, "--", sys.executable, "-c", "print('mine'); raise SystemExit(7)", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (7, "mine\n")
    assert done.stderr.count("does not answer") == 1


def test_no_proxy_of_the_environment_comes_between_the_command_and_a_gateway_on_this_machine(
    gateway: testing.Gateway, tmp_path: Path
) -> None:
    proxies = dict.fromkeys(("http_proxy", "ALL_PROXY"), "http://127.0.0.1:9")  # where nobody listens
    told = {"NO_PROXY": "corp.example", "no_proxy": ""} | proxies
    done = run(
        gateway.url, "--key", "as-1", "--quiet", "--", sys.executable, "-c", CALLS, cwd=tmp_path, **told
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert (len(gateway.only_program.calls), gateway.only_program.status) == (2, "failed")
    made = environment(told, Gateway("http://127.0.0.1:8400", None), "p1", None)
    assert (made["NO_PROXY"], made["no_proxy"]) == ("corp.example,127.0.0.1",) * 2
    afar = environment(told, Gateway("http://gateway.example", None), "p1", None)
    assert afar["NO_PROXY"] == "corp.example"  # it may be reached by the proxy alone


@pytest.mark.parametrize("broken", [{"SSL_CERT_FILE": "/nowhere/ca.pem"}, {"ALL_PROXY": "gopher://proxy:1"}])
def test_certificates_and_proxies_of_the_environment_that_cannot_be_used_keep_no_command(
    broken: dict[str, str], gateway: testing.Gateway, tmp_path: Path
) -> None:
    done = run(gateway.url, "--", sys.executable, "-c", "raise SystemExit(7)", cwd=tmp_path, **broken)
    assert (done.returncode, "Traceback" in done.stderr) == (7, False)


@pytest.mark.parametrize(
    "answer",
    [
        b'{"data":[{"name":"x"}]}',
        b'{"data":[1]}',
        b'{"data":{"id":3}}',
        b'{"data":[{"id":5}],"steps_done":null}',
        b'{"steps_done":3,"over":true}',
        b"[1]",
        b"<html>",
    ],
)
def test_a_server_that_is_no_gateway_changes_nothing(answer: bytes, tmp_path: Path) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        done = run(url, "--", sys.executable, "-c", "print('mine'); raise SystemExit(7)", cwd=tmp_path)
        server.shutdown()
    assert (done.returncode, done.stdout) == (7, "mine\n")
    assert "Traceback" not in done.stderr


def test_what_ends_us_ends_the_command_in_its_own_way(gateway: testing.Gateway, tmp_path: Path) -> None:
    waits = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n"
        "print('up', flush=True)\n"
        "time.sleep(30)\n"
    )
    arguments = command(gateway.url, "--quiet", "--", sys.executable, "-c", waits)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 9
    assert gateway.only_program.status == "failed"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is no command to run"),
        (["--", "no-such-agent"], "there is no command 'no-such-agent'"),
        (["--deadline", "0", "--", "true"], "more than 0 seconds"),
        (["--deadline", "nan", "--", "true"], "more than 0 seconds"),
        (["--url", "http://[::1", "--", "true"], "write it as http://127.0.0.1:8400"),
        (["--program", "é", "--", "true"], "characters of ASCII"),
        (["--", "./"], "no file that may be executed"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = run("http://127.0.0.1:9", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr


def ready(url: str) -> None:
    """Returns once the gateway can serve."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=1).status_code == 200:
                return
        time.sleep(0.1)
    raise TimeoutError(url)


@pytest.mark.slow
def test_the_summary_says_where_the_time_went(tmp_path: Path) -> None:
    store = f"sqlite+aiosqlite:///{tmp_path}/run.db"
    (tmp_path / "elsewhere").mkdir()  # the command need not be where the store is
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    up = [
        sys.executable,
        "-m",
        "agentserve.cli",
        "up",
        "--port",
        port,
        "--store",
        store,
        "--time-scale",
        "50",
    ]
    process = subprocess.Popen(up, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ready(url)
        done = run(url, "--", sys.executable, "-c", AGENT, cwd=tmp_path / "elsewhere")
        assert done.returncode == 3
        rows = dict(line.split(maxsplit=1) for line in done.stderr.splitlines() if line.startswith("  "))
        assert rows["steps"] == "4, those of 1 sub-agents with them"
        assert rows["tool"].startswith("time ")
        assert "read_file" in rows["tool"]
        assert rows["queue"].endswith(" s")
        cached, prompt = (int(n.replace(",", "")) for n in re.findall(r"[\d,]+", rows["reused"])[:2])
        assert 0 < cached < prompt
        assert rows["output"].endswith(" tokens")
        assert "s of prefill by" in rows["saved"]
        ended = httpx.get(f"{url}/v1/programs/{done.stderr.split()[1]}", timeout=10)
        assert ended.status_code == 404, "its end was told"
        assert len(done.stderr.splitlines()) < 24
    finally:
        process.terminate()
        process.wait(20)
