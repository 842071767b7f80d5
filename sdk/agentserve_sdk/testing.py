"""A gateway for your own tests: it answers model calls as you say, and remembers what it was told.

Rule: it lives in this process, on a loopback port, and keeps nothing after the test.

    with testing.Gateway() as gateway:
        run_my_agent(base_url=gateway.base_url)
    assert [tool.name for tool in gateway.only_program.tools] == ["search"]
"""

from __future__ import annotations

import http.server
import json
import threading
from types import TracebackType
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Type, Union
from urllib.parse import unquote

from agentserve_sdk import _client, _replies

CALLS_MAX = 10_000
BODY_BYTES_MAX = 8 * 1024 * 1024


class ToolCall(NamedTuple):
    """An answer that asks for a tool."""

    name: str
    arguments: Dict[str, Any] = {}  # noqa: RUF012 - a default of a named tuple, and only read
    id: Optional[str] = None


Answer = Union[str, ToolCall, List[ToolCall]]


class Call(NamedTuple):
    """One model call as the gateway got it."""

    path: str
    headers: Dict[str, str]
    body: Dict[str, Any]

    @property
    def program_id(self) -> Optional[str]:
        """By header, or by base URL."""
        if self.path.startswith("/p/"):
            return unquote(self.path.split("/")[2])
        return self.headers.get("x-agentserve-program-id")

    @property
    def step(self) -> Optional[str]:
        """The node of the step graph that it says it is."""
        return self.headers.get("x-agentserve-step")

    @property
    def turns(self) -> int:
        """How many answers of the model it brings along."""
        said = self.body.get("messages", self.body.get("input", []))
        if isinstance(said, str):
            return 0
        return sum(m.get("role") == "assistant" or m.get("type") == "function_call" for m in said)

    @property
    def text(self) -> str:
        """All that it says, as JSON: for looking whether something is in it."""
        return json.dumps(self.body.get("messages", self.body.get("input", "")))


class Tool(NamedTuple):
    """A tool call that was announced."""

    name: str
    call_id: str
    ended: bool
    status: Optional[str]
    duration_ms: Optional[float]


class Program:
    """What was told of one program."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.declared: Dict[str, Any] = {}
        self.events: List[Dict[str, Any]] = []
        self.calls: List[Call] = []

    @property
    def status(self) -> Optional[str]:
        """How it ended, if it was told that it did."""
        return next((str(e.get("status")) for e in self.events if e["type"] == "end"), None)

    @property
    def steps(self) -> List[Optional[str]]:
        """The names of the steps that its calls were made in."""
        return [call.step for call in self.calls]

    @property
    def tools(self) -> List[Tool]:
        """Announced tool calls, in the order of their starts."""
        ends = {e["tool_call_id"]: e for e in self.events if e["type"] == "tool_end"}
        return [
            Tool(
                name=e["tool"],
                call_id=e["tool_call_id"],
                ended=e["tool_call_id"] in ends,
                status=ends.get(e["tool_call_id"], {}).get("status"),
                duration_ms=ends.get(e["tool_call_id"], {}).get("duration_ms"),
            )
            for e in self.events
            if e["type"] == "tool_start"
        ]


class Gateway:
    """A gateway; as a context manager it is the one that the SDK talks to."""

    def __init__(
        self, answer: Optional[Callable[[Call], Answer]] = None, *, integrations: Any = True
    ) -> None:
        self._answer = answer or (lambda call: "ok")
        self._integrations = integrations
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.gateway = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.calls: List[Call] = []
        self.programs: Dict[str, Program] = {}
        self.workflows: Dict[str, Any] = {}
        self.status = 200  # of every reply to the SDK; set 500 to see your agent not mind

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes."""
        return f"{self.url}/v1"

    @property
    def only_program(self) -> Program:
        """The one program, where there is just one."""
        self.settle()
        (program,) = self.programs.values()
        return program

    def settle(self) -> None:
        """Wait until it has got all that was told."""
        _client.flush(5.0)

    def start(self) -> Gateway:
        """Listen."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Gateway:
        self.start()
        _client.init(self.url, integrations=self._integrations)
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.settle()
        _client.shutdown(0.0)
        self.stop()

    # -- what the server calls

    def got_call(self, call: Call) -> Answer:
        """Remember a model call, and say what to answer."""
        with self._lock:
            if len(self.calls) < CALLS_MAX:
                self.calls.append(call)
                if call.program_id is not None:
                    self._program(call.program_id).calls.append(call)
        return self._answer(call)

    def got_told(self, method: str, path: str, body: Any) -> Tuple[int, Dict[str, Any]]:
        """Remember what a program says of itself."""
        if self.status >= 400:
            return self.status, {"error": {"message": "as the test wants it"}}
        parts = [unquote(part) for part in path.strip("/").split("/")]
        with self._lock:
            if method == "PUT" and parts[:2] == ["v1", "workflows"]:
                self.workflows["/".join(parts[2:])] = body
                return 200, {"name": "/".join(parts[2:])}
            if parts == ["v1", "programs"] and method == "POST":
                program = self._program(body["id"])
                program.declared.update(body)
                return 201, {"id": program.id, "base_url": f"{self.url}/p/{program.id}/v1"}
            if len(parts) == 4 and parts[3] == "events":
                self._program(parts[2]).events.extend(body)
                return 202, {"accepted": len(body)}
            if len(parts) == 3 and parts[2] in self.programs:
                return 200, {"id": parts[2]}
        return 404, {"error": {"message": f"nothing at {path}"}}

    def _program(self, name: str) -> Program:
        return self.programs.setdefault(name, Program(name))


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    gateway: Gateway


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        length = min(int(self.headers.get("content-length") or 0), BODY_BYTES_MAX)
        body = json.loads(self.rfile.read(length) or b"null")
        path = self.path.partition("?")[0]
        protocol = _replies.protocol_of(path)
        if protocol is None or self.command != "POST":
            status, said = self.server.gateway.got_told(self.command, path, body)
            self._reply(status, json.dumps(said).encode(), "application/json")
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.gateway.got_call(Call(path, headers, body))
        kind, payload = _replies.written(protocol, body, answer)
        self._reply(200, payload, kind)

    do_PUT = do_DELETE = do_GET = do_POST  # noqa: N815 - the server looks for these names

    def _reply(self, status: int, payload: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a test's output is its own."""
