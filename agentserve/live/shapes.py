"""Errors in the shape of the protocol that the client speaks.

Rule: a client library must be able to raise its own exception from what is made here, with a message that says what
to do. Nothing secret, and nothing of an exception that we did not mean to show, goes into a message.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from agentserve.errors import (
    AgentServeError,
    EngineError,
    EngineTimeout,
    Overloaded,
    RequestError,
)

JSON_TYPE = (b"content-type", b"application/json")

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


def status_of(error: Exception) -> int:
    """The HTTP status that tells this error."""
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, EngineTimeout):
        return 504
    if isinstance(error, EngineError):
        return 502
    return 500


def error_json(
    protocol: str, status: int, message: str, *, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """The body of an error."""
    if protocol == "messages":
        kind = _ANTHROPIC_TYPES.get(status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}}
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: Exception) -> tuple[int, str, str | None, str | None, float | None]:
    """An exception as (status, message, code, field, seconds until a retry makes sense)."""
    status = status_of(error)
    retry_after_s: float | None = None
    code: str | None = "internal_error"
    field: str | None = None
    message = "the gateway failed on this request; its log says more"
    if isinstance(error, AgentServeError):
        message = str(error)
        code = "engine_error"
    if isinstance(error, RequestError):
        code, field = error.code, error.field
    if isinstance(error, EngineTimeout):
        code = "engine_timeout"
    if isinstance(error, Overloaded):
        retry_after_s = error.retry_after_s
    return status, message, code, field, retry_after_s


def refusal(protocol: str, error: Exception) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """A whole answer that tells the error: status, headers, body."""
    status, message, code, field, retry_after_s = describe(error)
    body = msgspec.json.encode(error_json(protocol, status, message, code=code, param=field))
    headers = [JSON_TYPE, (b"content-length", b"%d" % len(body))]
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(retry_after_s))))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return status, headers, body


def stream_error(protocol: str, error: Exception) -> bytes:
    """The event that ends a stream which has begun already."""
    status, message, code, _, _ = describe(error)
    if protocol == "responses":
        event = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": 0}
        return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"
    data = msgspec.json.encode(error_json(protocol, status, message, code=code))
    return (b"event: error\ndata: " if protocol == "messages" else b"data: ") + data + b"\n\n"
