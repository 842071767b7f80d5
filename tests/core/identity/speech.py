"""Requests as chat clients make them, and the task that most of the tests here are about."""

from __future__ import annotations

from typing import Any

Wire = Any
Json = dict[str, Any]

TASK = "Please find the three largest cities of the country and compare them."
ASK = {"role": "user", "content": TASK}
TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]


def chat(*messages: Json, system: str | None = "You research.", tools: bool = True, **extra: Any) -> Json:
    head = [{"role": "system", "content": system}] if system is not None else []
    body: Json = {"model": "m", "messages": [*head, *messages], **extra}
    return {**body, "tools": TOOLS} if tools else body


def result(call_id: str, content: Any = "Berlin, Hamburg, Munich") -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def begin(wire: Wire, call_id: str = "call_1", **extra: Any) -> tuple[Any, Json]:
    first = wire.send(chat(ASK, **extra))
    [echo], _ = wire.answer(first, "chat", "", [(call_id, "search", {"q": "largest cities", "limit": 3})])
    return first, echo


def user(text: Any) -> Json:
    return {"role": "user", "content": text}
