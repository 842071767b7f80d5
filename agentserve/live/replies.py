"""Reading and writing JSON off the hot path.

Rule: bodies are bounded, and what cannot be read is the client's error.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from agentserve.errors import BadRequest, TooLarge

BODY_BYTES_MAX = 1024 * 1024


def json_response(value: Any, status: int = 200) -> Response:
    """A value as JSON."""
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


async def json_body(request: Request, *, bytes_max: int = BODY_BYTES_MAX) -> Any:
    """The request's JSON, bounded; an empty body is an empty object."""
    body = await request.body()
    if len(body) > bytes_max:
        raise TooLarge(f"the request body is over the limit of {bytes_max} bytes")
    if not body:
        return {}
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadRequest(f"the request body is not valid JSON: {error}") from error
