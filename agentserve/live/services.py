"""Everything that is not the hot path: health, drain, metrics, models; programs and admin are mounted beside.

Rule: small handlers over the gateway's own objects; errors take the shape of the path that was called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

import agentserve
from agentserve.errors import AgentServeError, BadRequest, NotAuthorised, NotFound
from agentserve.live import openapi, shapes
from agentserve.live.admin import Admin
from agentserve.live.auth import ADMIN, CALL, READ, Principal, authorise, is_loopback
from agentserve.live.programs import Programs, mapping
from agentserve.live.reading import TOO_DEEP
from agentserve.live.replies import json_body, json_response
from agentserve.live.wire import PATHS

if TYPE_CHECKING:
    from agentserve.live.app import Gateway

CONSOLE = Path(agentserve.__file__).parent / "console" / "static"  # the console's page, where it is installed
FORWARDED = (
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-real-ip",
)  # a proxy of this machine asks for somebody else

# Nothing but our own files, no inline script or style, no frame around it; graphs are shown as images of our making.
CONSOLE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class ConsoleFiles(StaticFiles):
    """The console's page, with headers that hold it to itself."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(CONSOLE_HEADERS)
        return response


class Services:
    """The routes beside the hot path."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def application(self) -> Starlette:
        """The Starlette application of all of them."""
        routes: list[BaseRoute] = [
            Route("/healthz", self.health),
            Route("/readyz", self.ready),
            Route("/drain", self.drain, methods=["POST"]),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
            Route("/v1/messages/count_tokens", self.count_tokens, methods=["POST"]),
            *Programs(self._gateway, self).routes(),
            *self._gateway.responses.routes(self),
            *Admin(self._gateway, self).routes(),
        ]
        api = openapi.document(routes)
        text = openapi.page(api)

        async def document(request: Request) -> Response:
            return json_response(api)

        async def docs(request: Request) -> Response:
            return HTMLResponse(text)

        routes += [Route("/openapi.json", document), Route("/docs", docs)]
        if CONSOLE.is_dir():
            routes.append(Mount("/console", ConsoleFiles(directory=CONSOLE, html=True)))
        return Starlette(
            routes=routes,
            exception_handlers={
                AgentServeError: _refused,
                HTTPException: _http_refused,
                RecursionError: _too_deep,
                Exception: _failed,
            },
        )

    def authorise(self, request: Request, scope: str) -> Principal:
        """Who is calling."""
        headers = dict(request.headers.items())
        gateway = self._gateway
        try:
            return authorise(gateway.keys, headers, scope, gateway.clock())
        except NotAuthorised as error:
            gateway.telemetry.count("refusals", status=str(error.status), reason=error.code)
            raise

    async def health(self, request: Request) -> Response:
        """Alive: the loop turns."""
        gateway = self._gateway
        return json_response({"status": "ok", "scheduler": "ok" if gateway.driver.healthy else "fallback"})

    async def ready(self, request: Request) -> Response:
        """Ready: an engine can take steps, and we are not on our way out."""
        gateway = self._gateway
        engines = {e.id: "draining" if e.draining else "up" if e.up else "down" for e in gateway.engines}
        if gateway.relay.draining:
            return json_response({"status": "draining", "engines": engines}, 503)
        ready = "up" in engines.values()
        return json_response(
            {"status": "ready" if ready else "no engine", "engines": engines}, 200 if ready else 503
        )

    async def drain(self, request: Request) -> Response:
        """Take nothing new; what is under way finishes."""
        self.authorise(request, ADMIN)
        self._gateway.relay.draining = True
        return json_response({"status": "draining", "open": len(self._gateway.relay.open)}, 202)

    async def metrics(self, request: Request) -> Response:
        """The metrics as text; from elsewhere than this machine only with a key that may read."""
        here = request.client is not None and is_loopback(request.client.host)
        if not here or any(name in request.headers for name in FORWARDED):
            self.authorise(request, READ)
        render = getattr(self._gateway.telemetry, "render", None)
        if render is None:
            raise NotFound("metrics are switched off", remedy="set telemetry.metrics = true")
        content_type, text = render(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    async def models(self, request: Request) -> Response:
        """What all engines serve."""
        self.authorise(request, CALL)
        listed = list(self._models().values())
        if "anthropic-version" in request.headers:
            ids = [model["id"] for model in listed]
            return json_response(
                {
                    "data": [_anthropic_model(model) for model in listed],
                    "has_more": False,
                    "first_id": ids[0] if ids else None,
                    "last_id": ids[-1] if ids else None,
                }
            )
        return json_response({"object": "list", "data": listed})

    async def model(self, request: Request) -> Response:
        """One of them."""
        self.authorise(request, CALL)
        name = request.path_params["model"]
        found = self._models().get(name)
        if found is None:
            raise NotFound(f"the model {name!r} is not served here", remedy="GET /v1/models lists what is")
        return json_response(_anthropic_model(found) if "anthropic-version" in request.headers else found)

    async def count_tokens(self, request: Request) -> Response:
        """How long a prompt is: the engine's own count where it has one, else an estimate."""
        self.authorise(request, CALL)
        limit = self._gateway.settings.limits.body_bytes_max
        body = mapping(await json_body(request, bytes_max=limit))
        model = body.get("model")
        if not isinstance(model, str):
            raise BadRequest("a model is needed", field="model")
        if not self._gateway.engines.known_model(model):
            raise NotFound(f"the model {model!r} is not served here", remedy="GET /v1/models lists what is")
        counted = await self._gateway.engines.count_tokens(model, "messages", dict(body))
        if counted is None:
            counted = self._gateway.relay.estimate_tokens("/v1/messages", body)
        return json_response({"input_tokens": counted})

    def _models(self) -> dict[str, dict[str, Any]]:
        created = int(self._gateway.started_at)
        found: dict[str, dict[str, Any]] = {}
        for engine in self._gateway.engines:
            length = engine.capabilities.context_tokens_max if engine.capabilities is not None else None
            for name in engine.models:
                entry = found.setdefault(
                    name, {"id": name, "object": "model", "created": created, "owned_by": "agentserve"}
                )
                if length is not None:
                    entry["max_model_len"] = min(entry.get("max_model_len", length), length)
        return found


def _anthropic_model(model: dict[str, Any]) -> dict[str, Any]:
    from datetime import UTC, datetime

    created = datetime.fromtimestamp(model["created"], UTC).isoformat().replace("+00:00", "Z")
    return {"type": "model", "id": model["id"], "display_name": model["id"], "created_at": created}


def _protocol(request: Request) -> str:
    return "messages" if "/messages" in request.url.path or "anthropic-version" in request.headers else "chat"


async def _refused(request: Request, error: Exception) -> Response:
    status, headers, body = shapes.refusal(_protocol(request), error)
    return Response(body, status_code=status, headers={n.decode(): v.decode() for n, v in headers})


async def _failed(request: Request, error: Exception) -> Response:
    return await _refused(request, error)


async def _too_deep(request: Request, error: Exception) -> Response:
    return await _refused(request, BadRequest(TOO_DEEP))


def _meant(path: str) -> str:
    """What a client with a wrong base URL wanted."""
    meant = next((p for p in PATHS if path.rstrip("/").endswith(p.removeprefix("/v1"))), None)
    if meant is None:
        return ""
    if path.startswith("/p/") and path.endswith(meant):
        return "a program's name is of 1 to 256 printable characters"
    return f"{meant} is: look at the client's base URL"


async def _http_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404 and path in PATHS:
        error = HTTPException(405, f"{path} is asked by POST", {"allow": "POST"})
    elif error.status_code == 404:
        return await _refused(request, NotFound(f"nothing is served at {path}", remedy=_meant(path)))
    elif error.status_code == 405:
        error = HTTPException(405, f"{request.method} is not served at {path}", error.headers)
    body = shapes.error_json(_protocol(request), error.status_code, str(error.detail))
    response = json_response(body, error.status_code)
    response.headers.update(error.headers or {})
    return response
