"""What the API answers, as JSON schemas: data of the OpenAPI document.

Rule: data only. A schema names every field that is always there and closes nothing, so that answers may grow within a
version.
"""

from __future__ import annotations

from collections.abc import Mapping

from agentserve.live.api_schemas import (
    COUNT,
    FLAG,
    MAYBE_COUNT,
    MAYBE_NUMBER,
    MAYBE_TEXT,
    MAYBE_WHOLE,
    NUMBER,
    PRIORITY,
    PROGRAM_STATES,
    TEXT,
    Json,
)


def answer(**fields: Json) -> Json:
    """An object that has at least these fields."""
    return {"type": "object", "required": sorted(fields), "properties": fields}


def table(row: Json, **more: Json) -> Json:
    """A list of rows in `data`."""
    return answer(data={"type": "array", "items": row}, **more)


PROGRAM = answer(
    id=TEXT,
    key=TEXT,
    tenant=TEXT,
    state={"enum": PROGRAM_STATES},
    workflow=MAYBE_TEXT,
    parent_id=MAYBE_TEXT,
    priority=TEXT,
    age_s=NUMBER,
    last_seen_s=NUMBER,
    deadline_in_s=MAYBE_NUMBER,
    steps_done=COUNT,
    steps_open=COUNT,
    context_tokens=COUNT,
    output_tokens=COUNT,
    engine=MAYBE_TEXT,
    kv={"enum": ["running", "pinned", "resting", "none"]},
    kv_tokens=COUNT,
    tools={"type": "array", "items": answer(id=TEXT, name=TEXT)},
    returns_in_s=MAYBE_NUMBER,
)
STEP = answer(
    id=TEXT,
    program=TEXT,
    tenant=TEXT,
    state=TEXT,
    engine=MAYBE_TEXT,
    model=TEXT,
    age_s=NUMBER,
    prompt_tokens=COUNT,
    expected_cached_tokens=COUNT,
    retries=COUNT,
)
PIN = answer(program=TEXT, tenant=TEXT, engine=TEXT, tokens=COUNT, pinned=FLAG, ends_in_s=MAYBE_NUMBER)
ENGINE = answer(
    id=TEXT,
    url=TEXT,
    kind=TEXT,
    version=TEXT,
    state={"enum": ["up", "down", "draining"]},
    breaker=TEXT,
    trouble=MAYBE_TEXT,
    models={"type": "array", "items": TEXT},
    protocols={"type": "array", "items": TEXT},
    mechanisms={"type": "object"},
    kv_tokens=MAYBE_COUNT,
    kv=answer(shared=COUNT, running=COUNT, pinned=COUNT, resting=COUNT),
    kv_used_share=MAYBE_NUMBER,
    running=MAYBE_COUNT,
    waiting=MAYBE_COUNT,
    preemptions=MAYBE_COUNT,
    steps_open=COUNT,
    steps=COUNT,
    failures=COUNT,
)
TENANT = answer(
    id=TEXT,
    weight=NUMBER,
    priority_max=PRIORITY,
    pin_share_max=NUMBER,
    cache_salt=FLAG,
    programs_max=MAYBE_WHOLE,
    requests_per_minute=MAYBE_WHOLE,
    tokens_per_minute=MAYBE_WHOLE,
    program_tokens_max=MAYBE_WHOLE,
    program_steps_max=MAYBE_WHOLE,
)
PROGRAM_SUMMARY = answer(
    over=FLAG,
    agents=COUNT,
    steps=COUNT,
    tool_s=NUMBER,
    tools={"type": "array", "items": answer(name=TEXT, seconds=NUMBER)},
    queue_s=NUMBER,
    prompt_tokens=COUNT,
    cached_tokens=COUNT,
    output_tokens=COUNT,
    pins_used=COUNT,
    saved_s=NUMBER,
)
WORKFLOW = answer(tenant=TEXT, name=TEXT, nodes=COUNT, edges=COUNT, declared_at=NUMBER)
GRAPH_KNOWN = answer(tenant=TEXT, name=TEXT, kind={"enum": ["declared", "learned"]}, nodes=COUNT)
TOOL_FORECAST = answer(
    tenant=TEXT,
    tool=TEXT,
    calls=COUNT,
    p50_s=MAYBE_NUMBER,  # null: not within the horizon
    p90_s=MAYBE_NUMBER,
    p99_s=MAYBE_NUMBER,
    horizon_s=MAYBE_NUMBER,
    survival={"type": "array", "items": {"type": "array", "items": NUMBER}},
)
GAP_FORETOLD = answer(
    program=TEXT,
    step=TEXT,
    tool=TEXT,
    forecast_p50_s=MAYBE_NUMBER,  # null: not within the horizon
    forecast_p90_s=MAYBE_NUMBER,
    horizon_s=NUMBER,
    actual_s=NUMBER,
)
LENGTH_FORETOLD = answer(program=TEXT, after=COUNT, forecast=NUMBER, actual=COUNT)
SHARE = answer(
    tenant=TEXT,
    weight=NUMBER,
    service_token_s=NUMBER,
    service_share=NUMBER,
    programs=COUNT,
    steps_open=COUNT,
    context_tokens=COUNT,
)
SUMMARY = answer(
    balance={"type": "object"},
    direct={"type": "object"},
    programs=COUNT,
    steps_waiting=COUNT,
    steps_running=COUNT,
    requests_open=COUNT,
    engines_up=COUNT,
    engines=COUNT,
    scheduler={"enum": ["ok", "fallback"]},
    draining=FLAG,
)
STORY = answer(
    program=TEXT,
    story={
        "type": "array",
        "items": answer(at=NUMBER, event={"type": "object"}, decisions={"type": "array"}),
    },
)
CONVERSATION = answer(
    id=TEXT, object={"const": "conversation"}, created_at=COUNT, metadata={"type": "object"}
)
PAGE = answer(
    object={"const": "list"},
    data={"type": "array"},
    first_id=MAYBE_TEXT,
    last_id=MAYBE_TEXT,
    has_more=FLAG,
)
DELETED = answer(id=TEXT, deleted={"const": True})
ENDED = answer(ended=FLAG)
MODELS = {"type": "object", "required": ["data"], "properties": {"data": {"type": "array"}}}
HEALTH = answer(status=TEXT, scheduler=TEXT)
READY = answer(status={"enum": ["ready", "no engine", "draining"]}, engines={"type": "object"})

ANSWERS: Mapping[tuple[str, str], tuple[int, Json]] = {
    ("get", "/healthz"): (200, HEALTH),
    ("get", "/readyz"): (200, READY),
    ("post", "/drain"): (202, answer(status=TEXT, open=COUNT)),
    ("get", "/v1/models"): (200, MODELS),
    ("get", "/v1/models/{model}"): (200, answer(id=TEXT)),
    ("post", "/v1/messages/count_tokens"): (200, answer(input_tokens=COUNT)),
    ("post", "/v1/programs"): (
        201,
        answer(id=TEXT, base_url=TEXT, headers={"type": "object"}, workflow=MAYBE_TEXT),
    ),
    ("get", "/v1/programs/{program}"): (200, PROGRAM),
    ("delete", "/v1/programs/{program}"): (200, answer(id=TEXT, ended=FLAG)),
    ("get", "/v1/summaries/{program}"): (200, PROGRAM_SUMMARY),
    ("post", "/v1/programs/{program}/events"): (202, answer(accepted=COUNT)),
    ("put", "/v1/workflows/{name}"): (200, answer(name=TEXT, nodes=COUNT, edges=COUNT)),
    ("get", "/v1/responses/{response}"): (200, answer(id=TEXT, object={"const": "response"}, status=TEXT)),
    ("delete", "/v1/responses/{response}"): (200, DELETED),
    ("post", "/v1/responses/{response}/cancel"): (200, answer(id=TEXT, status=TEXT)),
    ("get", "/v1/responses/{response}/input_items"): (200, PAGE),
    ("post", "/v1/conversations"): (200, CONVERSATION),
    ("get", "/v1/conversations/{conversation}"): (200, CONVERSATION),
    ("post", "/v1/conversations/{conversation}"): (200, CONVERSATION),
    ("delete", "/v1/conversations/{conversation}"): (200, DELETED),
    ("get", "/v1/conversations/{conversation}/items"): (200, PAGE),
    ("post", "/v1/conversations/{conversation}/items"): (200, PAGE),
    ("get", "/v1/conversations/{conversation}/items/{item}"): (200, answer(id=TEXT, type=TEXT)),
    ("delete", "/v1/conversations/{conversation}/items/{item}"): (200, CONVERSATION),
    ("get", "/admin/v1/me"): (200, answer(tenant=TEXT, scopes={"type": "array", "items": TEXT})),
    ("get", "/admin/v1/summary"): (200, SUMMARY),
    ("get", "/admin/v1/programs"): (200, table(PROGRAM, total=COUNT, matching=COUNT)),
    ("get", "/admin/v1/programs/{key}"): (200, PROGRAM),
    ("delete", "/admin/v1/programs/{key}"): (200, ENDED),
    ("get", "/admin/v1/programs/{key}/decisions"): (200, STORY),
    ("get", "/admin/v1/steps"): (200, table(STEP, total=COUNT)),
    ("get", "/admin/v1/pins"): (200, table(PIN, total=COUNT)),
    ("get", "/admin/v1/engines"): (200, table(ENGINE)),
    ("post", "/admin/v1/engines"): (201, ENGINE),
    ("get", "/admin/v1/engines/{engine}"): (200, ENGINE),
    ("delete", "/admin/v1/engines/{engine}"): (200, answer(removed=TEXT)),
    ("post", "/admin/v1/engines/{engine}/drain"): (200, ENGINE),
    ("post", "/admin/v1/engines/{engine}/resume"): (200, ENGINE),
    ("get", "/admin/v1/tenants"): (200, table(TENANT)),
    ("get", "/admin/v1/tenants/{tenant}"): (200, TENANT),
    ("put", "/admin/v1/tenants/{tenant}"): (200, TENANT),
    ("get", "/admin/v1/workflows"): (200, table(WORKFLOW)),
    ("get", "/admin/v1/graphs"): (200, table(GRAPH_KNOWN)),
    ("get", "/admin/v1/forecasts"): (
        200,
        table(
            TOOL_FORECAST,
            calibration={"type": "object"},
            gaps={"type": "array", "items": GAP_FORETOLD},
            lengths={"type": "array", "items": LENGTH_FORETOLD},
        ),
    ),
    ("get", "/admin/v1/shares"): (200, table(SHARE, gap_max_token_s=MAYBE_NUMBER)),
}
STREAMS = ("/admin/v1/events",)  # answered with server-sent events that do not end
TEXTS = ("/metrics", "/admin/v1/graphs/{tenant}/{name}")

# an engine's own refusal passes as it is, and vLLM's codes are numbers
_CODE: Json = {"type": ["string", "integer", "null"]}
_OPENAI_ERROR = answer(error=answer(message=TEXT, type=TEXT, param=MAYBE_TEXT, code=_CODE))
_ANTHROPIC_ERROR = answer(type={"const": "error"}, error=answer(type=TEXT, message=TEXT))
ERROR: Json = {"anyOf": [_OPENAI_ERROR, _ANTHROPIC_ERROR]}
