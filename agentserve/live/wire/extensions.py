"""What clients say of themselves beyond their protocol: ids, priorities, deadlines, in headers and body fields.

Rule: this module *finds* the values and bounds them; what they mean for a program is the resolver's to say. A value
that is malformed is left out, never an error: an extension must not be able to fail a request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from agentserve.core.events import PriorityClass
from agentserve.core.identity.evidence import digest_of

ID_CHARS_MAX = 256
DEADLINE_S_MAX = 30 * 86_400.0
TOKENS_MAX = 2**40  # JSON has numbers of any length, and the forecasts reckon with floats

# Body fields that may hold an id, by dotted path. Paths through a string go through the JSON in it.
ID_PATHS = (
    "program_id", "job_id", "session_id", "conversation_id", "run_id", "previous_response_id", "prompt_cache_key",
    "conversation", "conversation.id", "agent_hint.session_id", "agent_hint.parent_session_id",
    "nvext.agent_context.session_id", "nvext.agent_context.parent_session_id", "nvext.agent_context.trajectory_id",
    "nvext.session_control.session_id", "nvext.session_control.action",
    "vllm_xargs.agentic_context.program_id", "vllm_xargs.agentic_context.parent_program_id",
    "vllm_xargs.session_id", "metadata.session_id", "metadata.sessionId", "metadata.promptId",
    "metadata.program_id", "metadata.conversation_id", "metadata.user_id.session_id",
    "litellm_session_id", "metadata.litellm_session_id", "litellm_metadata.session_id",
    "client_metadata.session_id", "client_metadata.thread_id",
)  # fmt: skip
# By the field that they begin with: most bodies hold none of these.
_PATHS: dict[str, list[tuple[str, list[str]]]] = {}
for _path in ID_PATHS:
    _first, *_rest = _path.split(".")
    _PATHS.setdefault(_first, []).append((_path, _rest))
_ID_FIELDS = frozenset(_PATHS)
_PERSON_FIELDS = frozenset({"metadata", "user", "safety_identifier"})
_OLD_CLAUDE_USER = re.compile(r"\Auser_[^ ]*?_session_([0-9a-f-]{36})\Z")
_PRIORITIES = frozenset(get_args(PriorityClass))
_PRIORITY_OF_TIER: Mapping[str, PriorityClass] = {"flex": "batch", "priority": "interactive"}
_EMPTY: Mapping[str, Any] = {}
_TRUE = frozenset({"1", "true", "yes", "on"})
CLASSES: Mapping[str, PriorityClass] = {
    "interactive": "interactive", "high": "interactive", "standard": "standard", "normal": "standard",
    "medium": "standard", "batch": "batch", "low": "batch", "background": "batch",
}  # fmt: skip


class Extensions(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked for, beyond the completion itself."""

    workflow: str | None = None
    node: str | None = None  # the declared step that this call is
    priority: PriorityClass | None = None
    deadline_s: float | None = None  # from the program's start
    output_tokens_expected: int | None = None
    final: bool = False  # the client says that this is the program's last call


_NONE = Extensions()
_HEADERS = frozenset(
    {
        "x-agentserve-workflow", "x-agentserve-step", "x-agentserve-priority", "x-agentserve-deadline-ms",
        "x-agentserve-final", "x-dynamo-session-final",
    }
)  # fmt: skip
_FIELDS = frozenset({"agentserve", "nvext", "service_tier", "is_last_step"})


def printable_id(value: Any) -> str | None:
    """An id as a client may name one: printable, not empty, not endless. Numbers count as their digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return None
    value = value.strip()
    return value if 0 < len(value) <= ID_CHARS_MAX and value.isprintable() else None


def _step_into(value: Any, key: str) -> Any:
    if isinstance(value, str):
        if value.startswith("{"):
            try:
                value = msgspec.json.decode(value)
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                return None
        elif key == "session_id" and (old := _OLD_CLAUDE_USER.match(value)):
            return old[1]
    return value.get(key) if isinstance(value, dict) else None


def named_in(body: Mapping[str, Any]) -> dict[str, str]:
    """Every id that the body holds in a place where ids are known to be."""
    found: dict[str, str] = {}
    if _ID_FIELDS.isdisjoint(body):
        return found
    for field in body:
        for path, rest in _PATHS.get(field, ()):
            value = body[field]
            for key in rest:
                if value is None:
                    break
                value = _step_into(value, key)
            if value is not None and (name := printable_id(value)) is not None:
                found[path] = name
    return found


def person_of(body: Mapping[str, Any]) -> int:
    """A digest of the person for whom the call is made; 0 when the body does not say."""
    if _PERSON_FIELDS.isdisjoint(body):
        return 0
    metadata = body.get("metadata")
    by_metadata = metadata.get("user_id") if isinstance(metadata, dict) else None
    if isinstance(by_metadata, str) and (by_metadata.startswith("{") or _OLD_CLAUDE_USER.match(by_metadata)):
        by_metadata = None  # it holds a session
    for value in (body.get("user"), body.get("safety_identifier"), by_metadata):
        if isinstance(value, str) and value:
            return digest_of(b"person", value.encode("utf-8", "surrogatepass"))
    return 0


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _EMPTY


def tokens(*values: Any) -> int | None:
    """The first that is a whole number of tokens, bounded."""
    for value in values:
        if type(value) is int and value >= 0:  # a truth value is none
            return value if value < TOKENS_MAX else TOKENS_MAX
    return None


def _deadline_s(headers: Mapping[str, str]) -> float | None:
    told = headers.get("x-agentserve-deadline-ms")
    if told is None:
        return None
    try:
        deadline_s = float(told) / 1000.0
    except ValueError:
        return None
    return deadline_s if 0 < deadline_s <= DEADLINE_S_MAX else None


def _priority(headers: Mapping[str, str], body: Mapping[str, Any]) -> PriorityClass | None:
    for named in (headers.get("x-agentserve-priority"), _mapping(body.get("agentserve")).get("priority")):
        if isinstance(named, str) and (known := CLASSES.get(named.strip().lower())):
            return known
    tier = body.get("service_tier")
    return _PRIORITY_OF_TIER.get(tier) if isinstance(tier, str) else None


def truthy(value: Any) -> bool:
    """Does a header or field say yes?"""
    return value is True or (isinstance(value, str) and value.strip().lower() in _TRUE)


def extensions_of(headers: Mapping[str, str], body: Mapping[str, Any]) -> Extensions:
    """Read the extension headers and fields; header names are in lower case."""
    if _HEADERS.isdisjoint(headers) and _FIELDS.isdisjoint(body):
        return _NONE
    ours = _mapping(body.get("agentserve"))
    agent_hints = _mapping(_mapping(body.get("nvext")).get("agent_hints"))
    return Extensions(
        workflow=printable_id(headers.get("x-agentserve-workflow", ours.get("workflow"))),
        node=printable_id(headers.get("x-agentserve-step", ours.get("step"))),
        priority=_priority(headers, body),
        deadline_s=_deadline_s(headers),
        output_tokens_expected=tokens(agent_hints.get("osl")) or None,
        final=truthy(headers.get("x-agentserve-final"))
        or truthy(headers.get("x-dynamo-session-final"))
        or body.get("is_last_step") is True
        or _mapping(_mapping(body.get("nvext")).get("session_control")).get("action") == "close",
    )
