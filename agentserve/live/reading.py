"""A request read: its bytes, decoded once, and the call that they are.

Rule: of a long request only what its program's last one did not hold is read; what comes of it is the same as though
all of it were. What is no JSON object is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agentserve.core.identity import named_by_header
from agentserve.errors import BadRequest
from agentserve.live.exchange import Exchange
from agentserve.live.wire import Call, CallReader
from agentserve.live.wire.history import BODY_BYTES_MIN, PROTOCOLS, History

TOO_DEEP = "the request body is nested too deeply"
_decode = msgspec.json.Decoder().decode


class Reading:
    """Reads requests, and remembers what the long ones held."""

    def __init__(self) -> None:
        self.reader = CallReader()
        self._history = History(self.reader.canon)

    def of(self, x: Exchange) -> Call:
        """The call that a request is; its body is left in the exchange."""
        try:
            return self._read(x)
        except RecursionError as error:  # what could just be decoded may be too deep for whatever walks it
            raise BadRequest(TOO_DEEP) from error

    def _read(self, x: Exchange) -> Call:
        assert x.principal is not None
        if len(x.raw) < BODY_BYTES_MIN or x.protocol not in PROTOCOLS:
            x.body = parse_body(x.raw, x.headers)
            said = self.reader.conversation(x.protocol, x.body, x.raw)
            return self.reader.read_as(x.protocol, x.named, x.headers, x.body, said)
        # a client that does not say whose request it is has a connection of its own for each program, or loses little
        whose = x.named or named_by_header(x.headers) or x.scope.get("client")
        key = x.principal.tenant, x.protocol, whose
        found = self._history.read(key, x.protocol, x.raw) if plain(x.headers) else None
        if found is not None:
            x.body, said = found
        else:
            x.body = parse_body(x.raw, x.headers)
            said = self.reader.conversation(x.protocol, x.body, x.raw)
            self._history.keep(key, x.raw, x.body.get("messages"), said.systems)
        return self.reader.read_as(x.protocol, x.named, x.headers, x.body, said)


def plain(headers: Mapping[str, str]) -> bool:
    """Is the body's JSON sent as it is?"""
    return headers.get("content-encoding", "identity") == "identity"


def parse_body(raw: bytes, headers: dict[str, str]) -> dict[str, Any]:
    """The request's JSON object."""
    if not plain(headers):
        raise BadRequest(
            "compressed request bodies are not read", field="content-encoding", remedy="send it plain"
        )
    try:
        body = _decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadRequest(f"the request body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequest("the request body is not a JSON object")
    return body
