"""A small client of the admin API, for scripts and notebooks: one method for each of its operations.

Rule: unlike the rest of the SDK it is asked by a person, so it waits for answers and raises `AdminError`.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import Any, Dict, Generator, Iterator, List, Optional, cast
from urllib.parse import quote, urlencode, urlsplit

from agentserve_sdk._client import URL_DEFAULT

ROOT = "/admin/v1"
TIMEOUT_S = 10.0
EVENTS_IDLE_S = 60.0  # the stream says now and then that it is still there
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
        handlers = []
        if urlsplit(self._url).hostname in ("localhost", "127.0.0.1", "::1"):
            # no proxy of the environment could mean this machine, and it would be shown the key
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def me(self) -> Row:
        """The tenant that the key stands for, and what it may do."""
        return self._ask("GET", "me")

    def summary(self) -> Row:
        """The gateway at a glance."""
        return self._ask("GET", "summary")

    def drain(self) -> Row:
        """Take nothing new, for good; what is under way finishes."""
        return self._ask("POST", "/drain")

    # -- programs

    def programs(
        self,
        *,
        tenant: Optional[str] = None,
        state: Optional[str] = None,
        text: Optional[str] = None,
        order: str = "recent",
        offset: int = 0,
        limit: int = 100,
    ) -> List[Row]:
        """Live programs, the most recently active first, or by `order`: `oldest`, `context`, `steps`.

        `state` is `idle`, `waiting`, `running` or `turn_done`; `text` is looked for in id, workflow and engine.
        """
        return self._rows(
            "programs", tenant=tenant, state=state, q=text, order=order, offset=offset, limit=limit
        )

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

    def events(
        self, *, tenant: Optional[str] = None, after: Optional[int] = None
    ) -> Generator[Row, None, None]:
        """What happens, as it happens, until the gateway ends or the generator is closed.

        With `after`, the `serial` of an event, first what is remembered of later than that.
        """
        with self._open(
            "GET", _with("events", tenant=tenant, after=after), timeout_s=EVENTS_IDLE_S
        ) as stream:
            for line in stream:
                if line.startswith(b"data: "):
                    yield cast(Row, json.loads(line[len(b"data: ") :]))

    # -- workflows and forecasts

    def workflows(self, *, tenant: Optional[str] = None) -> List[Row]:
        """Declared step graphs."""
        return self._rows("workflows", tenant=tenant)

    def graphs(self) -> List[Row]:
        """Workflows of which a step graph is known, declared or learned."""
        return self._rows("graphs")

    def graph(self, tenant: str, workflow: str) -> str:
        """A workflow's step graph, drawn: the text of an SVG image."""
        with self._open("GET", f"graphs/{quote(tenant, safe='')}/{quote(workflow)}") as reply:
            return str(reply.read(REPLY_BYTES_MAX).decode())

    def forecasts(self) -> Row:
        """When programs that called a tool are back; of gaps and lengths, what was forecast beside what came."""
        return self._ask("GET", "forecasts")

    # -- engines

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

    # -- tenants

    def shares(self) -> Row:
        """Tenants with their weight, the service they had, and the largest gap between those that waited."""
        return self._ask("GET", "shares")

    def tenants(self) -> List[Row]:
        """Tenants with limits of their own."""
        return self._rows("tenants")

    def tenant(self, tenant: str) -> Row:
        """One tenant's limits."""
        return self._ask("GET", f"tenants/{quote(tenant, safe='')}")

    def put_tenant(self, tenant: str, **limits: Any) -> Row:
        """Replace a tenant's limits: `weight`, `priority_max`, `programs_max`, `tokens_per_minute` and so on."""
        return self._ask("PUT", f"tenants/{quote(tenant, safe='')}", limits)

    # -- asking

    def _rows(self, path: str, **query: Any) -> List[Row]:
        return cast(List[Row], self._ask("GET", _with(path, **query))["data"])

    def _ask(self, method: str, path: str, body: Optional[Row] = None) -> Row:
        with self._open(method, path, body) as reply:
            return cast(Row, json.loads(reply.read(REPLY_BYTES_MAX)))

    @contextmanager
    def _open(
        self, method: str, path: str, body: Optional[Row] = None, *, timeout_s: Optional[float] = None
    ) -> Iterator[Any]:
        """The reply, still to be read; a path is below the API's root, unless it begins with a slash."""
        headers = {"accept": "*/*"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        data = None
        if body is not None:
            data, headers["content-type"] = json.dumps(body).encode(), "application/json"
        url = self._url + (path if path.startswith("/") else f"{ROOT}/{path}")
        asked = urllib.request.Request(url, data, headers, method=method)
        try:
            with self._opener.open(asked, timeout=timeout_s or self._timeout_s) as reply:
                yield reply
        except urllib.error.HTTPError as error:
            with error:
                raise AdminError(error.code, _message(error.read(64 * 1024)) or str(error)) from None
        except (OSError, ValueError) as error:
            raise AdminError(0, f"no answer from {self._url}: {error}") from error


def _with(path: str, **query: Any) -> str:
    given = urlencode({k: v for k, v in query.items() if v is not None})
    return f"{path}?{given}" if given else path


def _message(reply: bytes) -> str:
    try:
        return str(json.loads(reply)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
