"""What the API's requests look like, as JSON schemas: data of the OpenAPI document.

Rule: data only. A request's schema never refuses what the handlers take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentserve.coercion import WEIGHT_MAX, WEIGHT_MIN

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
NAME: Json = {"type": "string", "minLength": 1, "maxLength": 256}
MAYBE_TEXT: Json = {"type": ["string", "null"]}
NUMBER: Json = {"type": "number"}
MAYBE_NUMBER: Json = {"type": ["number", "null"]}
COUNT: Json = {"type": "integer", "minimum": 0}
MAYBE_COUNT: Json = {"type": ["integer", "null"], "minimum": 0}
WHOLE: Json = {"type": "integer", "minimum": 1, "maximum": 10**12}
MAYBE_WHOLE: Json = {"type": ["integer", "null"], "minimum": 1, "maximum": 10**12}
FLAG: Json = {"type": "boolean"}
PRIORITY: Json = {"enum": ["interactive", "standard", "batch"]}
DURATION_MS: Json = {"type": "number", "minimum": 0, "maximum": 2_592_000_000}

# -- requests

GRAPH: Json = {
    "type": "object",
    "description": "Nodes and edges, LangGraph's to_json() unchanged, or a list of steps.",
    "properties": {"nodes": {"type": "array"}, "edges": {"type": "array"}, "steps": {"type": "array"}},
}
DECLARE: Json = {
    "type": "object",
    "properties": {
        "id": NAME,
        "parent_id": NAME,
        "workflow": NAME,
        "priority": PRIORITY,
        "deadline_ms": DURATION_MS,
        "graph": GRAPH,
    },
}
EVENT_TYPES = ("step_start", "tool_start", "tool_end", "tool_error", "next", "hint", "compacted", "end")
EVENTS: Json = {
    "type": "array",
    "maxItems": 1000,
    "items": {
        "type": "object",
        "required": ["type"],
        "properties": {
            "type": {"enum": list(EVENT_TYPES)},
            "tool_call_id": NAME,
            "tool": TEXT,
            "status": TEXT,
            "duration_ms": DURATION_MS,
            "eta_ms": DURATION_MS,
            "in_ms": DURATION_MS,
            "steps_left": {"type": "number", "minimum": 0, "maximum": 10**12},
        },
    },
}
ADD_ENGINE: Json = {
    "type": "object",
    "required": ["id", "url"],
    "properties": {
        "id": NAME,
        "url": {"type": "string", "format": "uri", "pattern": "^https?://"},
        "kind": TEXT,
        "models": {"type": "array", "items": {"type": "string", "minLength": 1}},
        "kv_tokens": WHOLE,
    },
    "additionalProperties": False,
}
LIMITS: Json = {
    "type": "object",
    "properties": {
        "id": NAME,
        "weight": {"type": "number", "minimum": WEIGHT_MIN, "maximum": WEIGHT_MAX},
        "priority_max": PRIORITY,
        "pin_share_max": {"type": "number", "minimum": 0, "maximum": 1},
        "cache_salt": FLAG,
        "programs_max": MAYBE_WHOLE,
        "requests_per_minute": MAYBE_WHOLE,
        "tokens_per_minute": MAYBE_WHOLE,
        "program_tokens_max": MAYBE_WHOLE,
        "program_steps_max": MAYBE_WHOLE,
    },
    "additionalProperties": False,
}


def call(*, needs: tuple[str, ...] = (), **fields: Json) -> Json:
    """A call of a model; what is not named here travels on to the engine."""
    return {
        "type": "object",
        "required": ["model", *needs],
        "properties": {"model": TEXT, "stream": FLAG, **fields},
        "additionalProperties": True,
    }


_MESSAGES: Json = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": ["user", "assistant"]}, "content": {}},
    },
}
COUNTED = call(needs=("messages",), messages=_MESSAGES)
CALLS: Mapping[str, Json] = {
    "/v1/chat/completions": call(needs=("messages",), messages=_MESSAGES, max_tokens=WHOLE),
    "/v1/completions": call(needs=("prompt",), prompt={"type": ["string", "array"]}, max_tokens=WHOLE),
    "/v1/responses": call(
        needs=("input",),
        input={"type": ["string", "array"]},
        max_output_tokens=WHOLE,
        previous_response_id=MAYBE_TEXT,
        conversation={"type": ["string", "object", "null"]},
        store=FLAG,
        background=FLAG,
    ),
    "/v1/messages": call(needs=("messages", "max_tokens"), messages=_MESSAGES, max_tokens=WHOLE),
    "/v1/embeddings": call(needs=("input",), input={"type": ["string", "array"]}),
}
ITEMS: Json = {
    "type": "object",
    "properties": {
        "items": {"type": "array", "items": {"type": "object"}},
        "metadata": {"type": "object", "maxProperties": 16},
    },
}

BODIES: Mapping[tuple[str, str], Json] = {
    ("post", "/v1/programs"): DECLARE,
    ("post", "/v1/programs/{program}/events"): EVENTS,
    ("put", "/v1/workflows/{name}"): GRAPH,
    ("post", "/v1/conversations"): ITEMS,
    ("post", "/v1/conversations/{conversation}"): ITEMS,
    ("post", "/v1/conversations/{conversation}/items"): ITEMS,
    ("post", "/v1/messages/count_tokens"): COUNTED,
    ("post", "/admin/v1/engines"): ADD_ENGINE,
    ("put", "/admin/v1/tenants/{tenant}"): LIMITS,
}

# -- parameters

PROGRAM_STATES = ["idle", "waiting", "running", "turn_done"]
_LIMIT: Json = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000}}
_TENANT: Json = {"name": "tenant", "in": "query", "schema": TEXT}
_PAGING: list[Json] = [
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100}},
    {"name": "order", "in": "query", "schema": {"enum": ["asc", "desc"]}},
    {"name": "after", "in": "query", "schema": TEXT},
]
_STATE: Json = {"name": "state", "in": "query", "schema": {"enum": PROGRAM_STATES}}
_OFFSET: Json = {
    "name": "offset",
    "in": "query",
    "schema": {"type": "integer", "minimum": 0, "maximum": 10_000_000},
}
_ORDER: Json = {
    "name": "order",
    "in": "query",
    "schema": {"enum": ["recent", "oldest", "context", "steps"]},
}
_AFTER: Json = {
    "name": "after",
    "in": "query",
    "schema": {"type": "integer", "minimum": 0, "maximum": 1 << 53},
}
_TEXT: Json = {"name": "q", "in": "query", "schema": TEXT}
QUERIES: Mapping[tuple[str, str], list[Json]] = {
    ("get", "/admin/v1/programs"): [_LIMIT, _OFFSET, _ORDER, _TENANT, _STATE, _TEXT],
    ("get", "/admin/v1/steps"): [_LIMIT],
    ("get", "/admin/v1/pins"): [_LIMIT],
    ("get", "/admin/v1/workflows"): [_TENANT],
    ("get", "/admin/v1/events"): [_TENANT, _AFTER],
    ("get", "/v1/responses/{response}/input_items"): _PAGING,
    ("get", "/v1/conversations/{conversation}/items"): _PAGING,
}
