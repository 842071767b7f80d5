"""The gateway's API as an OpenAPI document, and a page of it for people.

Rule: paths, methods and summaries come from the routes and their handlers' docstrings, so that the document cannot
name what is not there; only bodies and parameters are described here. The page needs no script and no network.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.routing import Route

from agentserve.live.wire import PATHS

Json = dict[str, Any]
VERSION = "1"
_TEXT: Json = {"type": "string"}
_WHOLE: Json = {"type": "integer", "minimum": 1}
_OPEN = ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs")

_GRAPH: Json = {
    "type": "object",
    "description": "Nodes and edges, LangGraph's to_json() unchanged, or a list of steps.",
    "properties": {"nodes": {"type": "array"}, "edges": {"type": "array"}, "steps": {"type": "array"}},
}
_PROGRAM: Json = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": 256},
        "parent_id": _TEXT,
        "workflow": _TEXT,
        "priority": {"enum": ["interactive", "standard", "batch"]},
        "deadline_ms": {"type": "number", "minimum": 0},
        "graph": _GRAPH,
    },
}
_EVENTS: Json = {
    "type": "array",
    "maxItems": 1000,
    "items": {
        "type": "object",
        "required": ["type"],
        "properties": {
            "type": {
                "enum": [
                    "step_start",
                    "tool_start",
                    "tool_end",
                    "tool_error",
                    "next",
                    "hint",
                    "compacted",
                    "end",
                ]
            },
            "tool_call_id": _TEXT,
            "tool": _TEXT,
            "status": _TEXT,
            "duration_ms": {"type": "number", "minimum": 0},
            "eta_ms": {"type": "number", "minimum": 0},
            "in_ms": {"type": "number", "minimum": 0},
            "steps_left": {"type": "number", "minimum": 0},
        },
    },
}
_ENGINE: Json = {
    "type": "object",
    "required": ["id", "url"],
    "properties": {
        "id": _TEXT,
        "url": {"type": "string", "format": "uri"},
        "kind": _TEXT,
        "models": {"type": "array", "items": {"type": "string", "minLength": 1}},
        "kv_tokens": _WHOLE,
    },
}
_TENANT: Json = {
    "type": "object",
    "properties": {
        "weight": {"type": "number", "exclusiveMinimum": 0},
        "priority_max": {"enum": ["interactive", "standard", "batch"]},
        "pin_share_max": {"type": "number", "minimum": 0, "maximum": 1},
        "cache_salt": {"type": "boolean"},
        "programs_max": _WHOLE,
        "requests_per_minute": _WHOLE,
        "tokens_per_minute": _WHOLE,
        "program_tokens_max": _WHOLE,
        "program_steps_max": _WHOLE,
    },
}
_CALL: Json = {
    "type": "object",
    "required": ["model"],
    "properties": {"model": _TEXT, "stream": {"type": "boolean"}},
    "additionalProperties": True,
}
_ITEMS: Json = {
    "type": "object",
    "properties": {"items": {"type": "array", "items": {"type": "object"}}, "metadata": {"type": "object"}},
}
BODIES: Mapping[tuple[str, str], Json] = {
    ("post", "/v1/programs"): _PROGRAM,
    ("post", "/v1/programs/{program}/events"): _EVENTS,
    ("put", "/v1/workflows/{name}"): _GRAPH,
    ("post", "/v1/conversations"): _ITEMS,
    ("post", "/v1/conversations/{conversation}"): _ITEMS,
    ("post", "/v1/conversations/{conversation}/items"): _ITEMS,
    ("post", "/v1/messages/count_tokens"): _CALL,
    ("post", "/p/{program}/v1/messages/count_tokens"): _CALL,
    ("post", "/admin/v1/engines"): _ENGINE,
    ("put", "/admin/v1/tenants/{tenant}"): _TENANT,
}
_LIMIT: Json = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000}}
_TENANT_QUERY: Json = {"name": "tenant", "in": "query", "schema": _TEXT}
QUERIES: Mapping[str, list[Json]] = {
    "/admin/v1/programs": [_LIMIT, _TENANT_QUERY],
    "/admin/v1/steps": [_LIMIT],
    "/admin/v1/pins": [_LIMIT],
    "/admin/v1/workflows": [_TENANT_QUERY],
    "/admin/v1/events": [_TENANT_QUERY],
}
_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def document(routes: Iterable[Any]) -> Json:
    """The OpenAPI document of these routes and the inference endpoints."""
    paths: dict[str, Json] = {}
    for path in PATHS:
        for prefix in ("", "/p/{program}"):
            entry = _operation(
                "post", prefix + path, f"Inference: {path.removeprefix('/v1/')}, streaming and not."
            )
            entry["requestBody"] = _body(_CALL)
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
        "info": {"title": "agentserve", "version": VERSION},
        "paths": dict(sorted(paths.items())),
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "schemas": {"Error": _ERROR},
        },
    }


def _operation(method: str, path: str, summary: str) -> Json:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", path)
    ]
    error = {
        "description": "An error, in the protocol's shape.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
    made: Json = {
        "operationId": f"{method}_{re.sub(r'[^a-z0-9]+', '_', path.lower()).strip('_')}",
        "summary": summary,
        "parameters": parameters + QUERIES.get(path, []),
        "responses": {"2XX": {"description": "Done."}, "4XX": error, "5XX": error},
    }
    if path not in _OPEN:
        made["security"] = [{"bearer": []}, {"key": []}]
    return made


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
