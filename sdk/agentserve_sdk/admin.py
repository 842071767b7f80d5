"""A small client of the admin API, for scripts and notebooks.

Rule: unlike the rest of the SDK it is asked by a person, so it waits for answers and raises `AdminError`.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Any, Dict, List, Optional, cast
from urllib.parse import quote, urlencode

from agentserve_sdk._client import URL_DEFAULT

TIMEOUT_S = 10.0
REPLY_BYTES_MAX = 32 * 1024 * 1024
Row = Dict[str, Any]


class AdminError(Exception):
    """The gateway refused, or did not answer. `status` is 0 when there was no answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Admin:
    """What runs and why, and the few things an operator changes at run time."""

    def __init__(
        self, url: Optional[str] = None, *, api_key: Optional[str] = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._url = (url or os.environ.get("AGENTSERVE_URL") or URL_DEFAULT).rstrip("/")
        if not self._url.startswith(("http://", "https://")):
            raise ValueError(f"{self._url!r} is not an http:// or https:// address")
        self._key = api_key or os.environ.get("AGENTSERVE_API_KEY")
        self._timeout_s = timeout_s

    def summary(self) -> Row:
        """The gateway at a glance."""
        return self._ask("GET", "summary")

    def programs(self, *, tenant: Optional[str] = None, limit: int = 100) -> List[Row]:
        """Live programs, the most recently active first."""
        return self._rows("programs", tenant=tenant, limit=limit)

    def program(self, key: str) -> Row:
        """One live program, by its key `tenant/name`."""
        return self._ask("GET", f"programs/{quote(key)}")

    def decisions(self, key: str) -> List[Row]:
        """What happened to a program and what was decided, with reasons."""
        return cast(List[Row], self._ask("GET", f"programs/{quote(key)}/decisions")["story"])

    def end_program(self, key: str) -> bool:
        """Declare a program over; false when it was not known."""
        return bool(self._ask("DELETE", f"programs/{quote(key)}")["ended"])

    def steps(self, *, limit: int = 100) -> List[Row]:
        """Open steps, the longest waiting first."""
        return self._rows("steps", limit=limit)

    def pins(self, *, limit: int = 100) -> List[Row]:
        """Programs in a gap whose KV is kept."""
        return self._rows("pins", limit=limit)

    def workflows(self, *, tenant: Optional[str] = None) -> List[Row]:
        """Declared step graphs."""
        return self._rows("workflows", tenant=tenant)

    def engines(self) -> List[Row]:
        """All engines."""
        return self._rows("engines")

    def engine(self, engine: str) -> Row:
        """One engine."""
        return self._ask("GET", f"engines/{quote(engine, safe='')}")

    def add_engine(
        self,
        id: str,
        url: str,
        *,
        kind: str = "auto",
        models: Optional[List[str]] = None,
        kv_tokens: Optional[int] = None,
    ) -> Row:
        """Take an engine in."""
        said = {"id": id, "url": url, "kind": kind, "models": models or [], "kv_tokens": kv_tokens}
        return self._ask("POST", "engines", {k: v for k, v in said.items() if v is not None})

    def drain_engine(self, engine: str) -> Row:
        """Give it nothing new."""
        return self._ask("POST", f"engines/{quote(engine, safe='')}/drain")

    def resume_engine(self, engine: str) -> Row:
        """Give it steps again."""
        return self._ask("POST", f"engines/{quote(engine, safe='')}/resume")

    def remove_engine(self, engine: str) -> None:
        """Take it out."""
        self._ask("DELETE", f"engines/{quote(engine, safe='')}")

    def tenants(self) -> List[Row]:
        """Tenants with limits of their own."""
        return self._rows("tenants")

    def tenant(self, tenant: str) -> Row:
        """One tenant's limits."""
        return self._ask("GET", f"tenants/{quote(tenant, safe='')}")

    def put_tenant(self, tenant: str, **limits: Any) -> Row:
        """Replace a tenant's limits: `weight`, `priority_max`, `programs_max`, `tokens_per_minute` and so on."""
        return self._ask("PUT", f"tenants/{quote(tenant, safe='')}", limits)

    def _rows(self, path: str, **query: Any) -> List[Row]:
        given = urlencode({k: v for k, v in query.items() if v is not None})
        return cast(List[Row], self._ask("GET", f"{path}?{given}" if given else path)["data"])

    def _ask(self, method: str, path: str, body: Optional[Row] = None) -> Row:
        headers = {"accept": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        data = None
        if body is not None:
            data, headers["content-type"] = json.dumps(body).encode(), "application/json"
        asked = urllib.request.Request(f"{self._url}/admin/v1/{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=self._timeout_s) as reply:
                return cast(Row, json.loads(reply.read(REPLY_BYTES_MAX)))
        except urllib.error.HTTPError as error:
            with error:
                raise AdminError(error.code, _message(error.read(64 * 1024)) or str(error)) from None
        except (OSError, ValueError) as error:
            raise AdminError(0, f"no answer from {self._url}: {error}") from error


def _message(reply: bytes) -> str:
    try:
        return str(json.loads(reply)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
