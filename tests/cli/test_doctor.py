"""`agentserve doctor` and `agentserve engines` against engines that answer over HTTP."""

from __future__ import annotations

import dataclasses
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agentserve.cli import main
from agentserve.cli.doctor import Finding, render
from agentserve.ports import Capabilities, EngineLoad

NOBODY = "http://127.0.0.1:1"


class PlainEngine(BaseHTTPRequestHandler):
    """A model list in OpenAI's shape, and a gateway's admin API beside it."""

    answers: dict[str, Any] = {
        "/v1/models": {"object": "list", "data": [{"id": "tiny", "owned_by": "someone"}]},
        "/admin/v1/engines": {
            "data": [{"id": "e1", "kind": "vllm", "state": "up", "models": ["tiny"], "kv_tokens": 5000}]
        },
    }

    def do_GET(self) -> None:
        found = self.answers.get(self.path)
        body = json.dumps(found if found is not None else {"error": "no such path"}).encode()
        self.send_response(200 if found is not None else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Tests are quiet."""


@pytest.fixture
def engine() -> Iterator[str]:
    yield from _served(PlainEngine)


def _served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join(5)
    server.server_close()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Made out to `localhost`, and signed by nobody else; with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    made = tmp_path / "engine.pem"
    asked = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    files = ["-keyout", str(tmp_path / "key"), "-out", str(made)]
    subprocess.run(["openssl", *asked.split(), *files], check=True, capture_output=True)
    return made


@pytest.fixture
def secure_engine(certificate: Path) -> Iterator[int]:
    """The port of an engine behind TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), PlainEngine)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # clients that hang up are the point
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join(5)
    server.server_close()


def test_doctor_says_what_is_wrong_with_a_certificate_and_what_to_set(
    secure_engine: int, certificate: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["doctor", f"https://localhost:{secure_engine}"]) == 1
    said = capsys.readouterr().out
    assert "is not trusted (self-signed certificate)" in said
    assert "SSL_CERT_FILE" in said
    assert "running" not in said
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert main(["doctor", f"https://localhost:{secure_engine}"]) == 0
    assert "tiny" in capsys.readouterr().out
    assert main(["doctor", f"https://127.0.0.1:{secure_engine}"]) == 1
    assert "use an address that the certificate is for" in capsys.readouterr().out
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_name("absent.pem")))
    assert main(["doctor", f"https://localhost:{secure_engine}"]) == 2
    assert "SSL_CERT_FILE" in capsys.readouterr().err


def test_doctor_says_of_an_engine_behind_tls_that_it_is_no_plain_http(
    secure_engine: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", f"http://localhost:{secure_engine}"]) == 1
    assert "is it https://" in capsys.readouterr().out


class ClosedEngine(PlainEngine):
    """Says the same to everything: the status that its path names first, as `/401/v1/models` does."""

    def do_GET(self) -> None:
        body = b'{"error": {"message": "so it is"}}'
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def closed_engine() -> Iterator[str]:
    yield from _served(ClosedEngine)


@pytest.mark.parametrize(("status", "remedy"), [(401, "api_key_env"), (503, "still loading"), (404, "kind")])
def test_doctor_says_what_an_address_answers_that_no_adapter_knows(
    closed_engine: str, status: int, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", f"{closed_engine}/{status}"]) == 1
    said = capsys.readouterr().out
    assert f"HTTP {status}: so it is" in said
    assert remedy in said


@pytest.mark.parametrize("key", ["schl\u00fcssel", "two\nlines"])
def test_doctor_refuses_a_key_that_no_header_may_hold(
    engine: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", engine, "--api-key", key]) == 2
    assert "cannot be sent" in capsys.readouterr().err


def test_what_an_engine_calls_its_model_does_not_command_the_terminal(
    engine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"data": [{"id": "\x1b[31mred", "owned_by": "someone"}, {"id": None}]}
    monkeypatch.setitem(PlainEngine.answers, "/v1/models", models)
    assert main(["doctor", engine]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "models: \ufffd[31mred\n" in said


def test_doctor_says_of_a_plain_engine_that_it_speaks_no_tls(
    engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", engine.replace("http", "https")]) == 1
    assert "speaks no TLS; write http://" in capsys.readouterr().out


def test_doctor_says_what_a_usable_engine_is_and_exits_with_zero(
    engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", engine]) == 0
    said = capsys.readouterr().out
    assert "openai_http" in said
    assert "usable" in said
    assert "tiny" in said
    assert "reserved: held by admission at the proxy" in said


def test_doctor_exits_with_one_when_an_engine_does_not_answer(
    engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", engine, NOBODY]) == 1
    assert "not usable" in capsys.readouterr().out


def test_doctor_says_how_much_the_engine_has_found_cached_so_far() -> None:
    seen = Finding(
        url="http://gpu1",
        kind="vllm",
        capabilities=Capabilities(kind="vllm", models=("tiny",)),
        load=EngineLoad(prefix_queries_tokens=2_000_000, prefix_hits_tokens=120_000),
    )
    assert "  found cached since its start: 6% of 2,000,000 prompt tokens" in render(seen).splitlines()
    fresh = dataclasses.replace(seen, load=EngineLoad(prefix_queries_tokens=0, prefix_hits_tokens=0))
    assert "found cached" not in render(fresh)
    assert "found cached" not in render(dataclasses.replace(seen, load=EngineLoad()))


def test_doctors_json_holds_what_its_text_says(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", engine, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["usable"] is True
    assert found["kind"] == "openai_http"
    assert found["models"] == ["tiny"]
    assert found["mechanisms"]["pin"].startswith("reserved")


def test_an_engine_taken_for_another_kind_by_name_is_reported_as_that(
    engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["doctor", engine, "--kind", "tgi", "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert found["kind"] == "tgi"
    assert found["usable"] is False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kind", "vlm", NOBODY], "did you mean `vllm`?"),
        (["engine:8000"], "http://host:port"),
        ([], "name its address"),
    ],
)
def test_a_wrong_command_exits_with_two_and_says_how_it_is_right(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_engines_lists_those_of_the_settings(
    engine: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = tmp_path / "agentserve.toml"
    settings.write_text(f'[[engines]]\nid = "a"\nurl = "{engine}"\n[[engines]]\nid = "b"\nurl = "{NOBODY}"\n')
    assert main(["engines", "--config", str(settings)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[0] == "a" and " up " in line for line in lines)
    assert any(line.split()[0] == "b" and " down " in line for line in lines)


def test_engines_of_a_gateway_are_its_own_view(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines", "--gateway", engine]) == 0
    assert "5,000" in capsys.readouterr().out
    assert main(["engines", "--gateway", NOBODY]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["engines", "--gateway", "gpu1:8400"],
        ["engines", "--gateway", "http://[::1"],
        ["engines", "--gateway", ""],
        ["run", "--url", "http://127.0.0.1:99999", "--", "true"],
        ["demo", "--engine", "http://127.0.0.1:99999"],
        ["profile", "llama-3.1-8b-h100", "--measure", "http://127.0.0.1:99999"],
    ],
)
def test_an_address_that_is_none_is_refused_in_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "write it as http://" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", [["engines", "--api-key"], ["run", "--key"]])
def test_a_gateways_key_that_no_header_may_hold_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--gateway", NOBODY] if arguments[0] == "engines" else ["--", "true"]
    assert main([*arguments, "schl\u00fcssel", *where]) == 2
    assert "cannot be sent" in capsys.readouterr().err


def test_engines_without_any_are_an_empty_list_to_programs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["engines", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["engines"]) == 0
    assert "agentserve up" in capsys.readouterr().out
