"""The gateway's API as an OpenAPI document, and a page of it for people.

Rule: paths, methods and summaries come from the routes and their handlers' docstrings, so that the document cannot
name what is not there; what bodies, parameters and answers look like is in `api_schemas` and `api_answers`. The page
needs no script and no network.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

from starlette.routing import Route

from agentserve.live.api_answers import ANSWERS, ERROR, STREAMS, TEXTS
from agentserve.live.api_schemas import BODIES, CALLS, NAME, QUERIES, Json
from agentserve.live.wire import PATHS

VERSION = "1"
ABOUT = "Everything under `/v1/` is served under `/p/{program}/v1/` too: the base URL of one program."
_OPEN = ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs")


def document(routes: Iterable[Any]) -> Json:
    """The OpenAPI document of these routes and the inference endpoints."""
    paths: dict[str, Json] = {}
    for path in PATHS:
        for prefix in ("", "/p/{program}"):
            entry = _operation(
                "post", prefix + path, f"Inference: {path.removeprefix('/v1/')}, streaming and not."
            )
            entry["requestBody"] = _body(CALLS[path])
            paths[prefix + path] = {"post": entry}
    for route in routes:
        if not isinstance(route, Route) or route.path in ("/openapi.json", "/docs"):
            continue
        path = re.sub(r":\w+}", "}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD", "OPTIONS"}):
            entry = _operation(method.lower(), path, (route.endpoint.__doc__ or "").strip().split("\n")[0])
            if (body := BODIES.get((method.lower(), path))) is not None:
                entry["requestBody"] = _body(body)
            paths.setdefault(path, {})[method.lower()] = entry
    return {
        "openapi": "3.1.0",
        "info": {"title": "agentserve", "version": VERSION, "description": ABOUT},
        "paths": dict(sorted(paths.items())),
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "schemas": {"Error": ERROR},
        },
    }


def _operation(method: str, path: str, summary: str) -> Json:
    parameters: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": NAME}
        for name in re.findall(r"{(\w+)}", path)
    ]
    error = {
        "description": "An error, in the shape of the protocol that was called.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    status, answer = _answer(method, path)
    made: Json = {
        "operationId": f"{method}_{re.sub(r'[^a-z0-9]+', '_', path.lower()).strip('_')}",
        "summary": summary,
        "parameters": parameters + QUERIES.get((method, path), []),
        "responses": {status: answer, "4XX": error, "5XX": error},
    }
    if path == "/readyz":  # says the same, and that it is not ready
        made["responses"]["503"] = answer
    if path not in _OPEN:
        made["security"] = [{"bearer": []}, {"key": []}]
    return made


def _answer(method: str, path: str) -> tuple[str, Json]:
    """How a success is answered: its status and what it holds."""
    if path in STREAMS:
        return "200", {"description": "Server-sent events.", "content": {"text/event-stream": {}}}
    if path in TEXTS:
        return "200", {"description": "Text."}
    if (found := ANSWERS.get((method, path))) is not None:
        status, schema = found
        return str(status), {"description": "Done.", "content": {"application/json": {"schema": schema}}}
    return "200", {"description": "As the engine, or whoever declared it, said it."}


def _body(schema: Json) -> Json:
    return {"required": False, "content": {"application/json": {"schema": schema}}}


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;"
    "background:#fff}h1{font-size:1.4rem}code{font:13px ui-monospace,monospace}table{border-collapse:collapse;"
    "width:100%}td{padding:.3rem .6rem;border-top:1px solid #d8dee4;vertical-align:top}td:first-child{width:5rem;"
    "font-weight:600}summary{cursor:pointer;color:#57606a}pre{background:#f6f8fa;padding:.6rem;overflow:auto}"
    "@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}td{border-color:#30363d}"
    "pre{background:#161b22}}"
)


def page(api: Json) -> str:
    """The document for people."""
    rows = []
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody")
            shown = ""
            if body is not None:
                fields = body["content"]["application/json"]["schema"]
                names = fields.get("properties") or fields.get("items", {}).get("properties") or {}
                text = ", ".join(f"<code>{html.escape(name)}</code>" for name in names)
                shown = f"<details><summary>body</summary>{text or 'any object'}</details>"
            rows.append(
                f"<tr><td>{method.upper()}</td><td><code>{html.escape(path)}</code><br>"
                f"{html.escape(operation['summary'])}{shown}</td></tr>"
            )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>agentserve API</title><style>{_STYLE}</style>"
        "<h1>agentserve API</h1><p>The machine-readable form is <a href=openapi.json>openapi.json</a>. Send "
        "<code>Authorization: Bearer KEY</code> or <code>x-api-key: KEY</code>; under <code>/admin</code> looking "
        "needs a key with the scope <code>read</code>, changing one with <code>admin</code>.</p>"
        f"<table>{''.join(rows)}</table></html>"
    )
