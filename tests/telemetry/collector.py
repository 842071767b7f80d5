"""An OTLP collector in this process: what an exporter sends over HTTP, decoded.

Rule: only the standard library's server and the protocol's own messages; bound to loopback on a port of the system's
choosing, and closed by its `with`.
"""

from __future__ import annotations

import gzip
import http.server
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

WAIT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Of a span."""

    name: str
    at: float
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A span as it came over the wire. Ids are hex; `parent` is empty for a root."""

    trace: str
    id: str
    parent: str
    name: str
    start: float
    end: float
    attributes: dict[str, Any]
    events: tuple[Event, ...] = ()
    failed: bool = False


@dataclass(slots=True)
class Collector:
    """`with Collector() as collector:` point an exporter at `collector.url`."""

    spans: list[Seen] = field(default_factory=list)
    _server: http.server.ThreadingHTTPServer | None = None
    _thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where spans are posted."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"

    def __enter__(self) -> Self:
        spans = self.spans

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                spans.extend(decoded(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_request(self, *_: Any) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT_S)

    def wait_for(self, enough: Callable[[list[Seen]], bool], timeout_s: float = WAIT_S) -> list[Seen]:
        """The spans once they are enough; those that came when the time is over."""
        until = time.monotonic() + timeout_s
        while not enough(list(self.spans)) and time.monotonic() < until:
            time.sleep(0.05)
        return list(self.spans)


def decoded(body: bytes) -> list[Seen]:
    """The spans of one export."""
    request = ExportTraceServiceRequest()
    request.ParseFromString(body)
    return [
        Seen(
            trace=span.trace_id.hex(),
            id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            name=span.name,
            start=span.start_time_unix_nano / 1e9,
            end=span.end_time_unix_nano / 1e9,
            attributes={pair.key: plain(pair.value) for pair in span.attributes},
            events=tuple(
                Event(
                    name=event.name,
                    at=event.time_unix_nano / 1e9,
                    attributes={pair.key: plain(pair.value) for pair in event.attributes},
                )
                for event in span.events
            ),
            failed=span.status.code == span.status.STATUS_CODE_ERROR,
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def plain(value: AnyValue) -> Any:
    """An attribute's value."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None
