"""What operators and owners see: programs, steps, pins and engines as plain values, read from the live records.

Rule: reads only, shows no text of any prompt and no secret; times are given as seconds ago, since the scheduler's
clock has no date.
"""

from __future__ import annotations

from typing import Any

from agentserve.core.board import Board
from agentserve.core.identity import unscoped
from agentserve.core.program import Program, Step
from agentserve.live.engines import Engine, Engines
from agentserve.live.holdings import Pins, holding

STATES = ("idle", "waiting", "running", "turn_done")


def state_of(found: Program) -> str:
    """What a program does now."""
    if found.open_steps:
        waiting = all(step.engine is None for step in found.open_steps.values())
        return "waiting" if waiting else "running"
    return "turn_done" if found.turn_done else "idle"


def program(found: Program | None, now: float, board: Board, pins: Pins) -> dict[str, Any] | None:
    """One live program."""
    if found is None:
        return None
    tenant, name = unscoped(found.id)
    kv, engine, kv_tokens = holding(found, board, pins, now)
    prompt_tokens = max((s.prompt_tokens for s in found.open_steps.values()), default=0)
    return {
        "id": name,
        "key": found.id,
        "tenant": tenant,
        "state": state_of(found),
        "workflow": found.workflow,
        "parent_id": unscoped(found.parent)[1] if found.parent else None,
        "priority": found.priority,
        "age_s": round(now - found.created_at, 3),
        "last_seen_s": round(now - found.last_seen_at, 3),
        "deadline_in_s": round(found.deadline_at - now, 3) if found.deadline_at is not None else None,
        "steps_done": found.steps_done,
        "steps_open": len(found.open_steps),
        "context_tokens": max(found.context_tokens, prompt_tokens),
        "output_tokens": found.output_tokens_total,
        "engine": engine or found.home,
        "kv": kv,
        "kv_tokens": kv_tokens,
        "tools": [{"id": tool.id, "name": tool.name} for tool in (found.pending or {}).values()],
        "returns_in_s": round(found.returns_at - now, 3) if found.returns_at is not None else None,
    }


def step(found: Step, now: float) -> dict[str, Any]:
    """One open step."""
    tenant, name = unscoped(found.program.id)
    return {
        "id": found.id,
        "program": name,
        "tenant": tenant,
        "state": found.state.name.lower(),
        "engine": found.engine,
        "model": found.model,
        "relation": found.relation,
        "age_s": round(now - found.arrived_at, 3),
        "prompt_tokens": found.prompt_tokens,
        "expected_cached_tokens": found.expected_cached,
        "retries": found.retries,
    }


def engine(found: Engine, board: Board, kv: dict[str, int] | None = None) -> dict[str, Any]:
    """One engine: what it says, what we think it holds (by what it is for), how it has answered."""
    caps, load = found.capabilities, found.load
    core = board.fleet.get(found.id)
    return {
        "id": found.id,
        "url": found.adapter.url or found.settings.url,
        "kind": caps.kind if caps is not None else found.settings.kind,
        "version": caps.version if caps is not None else "",
        "state": "draining" if found.draining else "up" if found.up else "down",
        "breaker": str(found.breaker.state),
        "trouble": found.breaker.reason,
        "models": list(found.models),
        "protocols": sorted(caps.protocols) if caps is not None else [],
        "mechanisms": dict(caps.mechanisms) if caps is not None else {},
        "kv_tokens": core.kv_tokens if core is not None and core.kv_known else None,
        "kv": kv or {"shared": 0, "running": 0, "pinned": 0, "resting": 0},
        "kv_used_share": load.kv_used_share if load is not None else None,
        "running": load.running if load is not None else None,
        "waiting": load.waiting if load is not None else None,
        "preemptions": load.preemptions if load is not None else None,
        "steps_open": len(found.running),
        "steps": found.steps,
        "failures": found.failures,
    }


def engine_fact(found: Engine, at: float) -> dict[str, Any]:
    """An engine that was taken in, as the journal keeps it."""
    settings = found.settings
    return {
        "id": found.id,
        "url": found.adapter.url or settings.url,
        "kind": settings.kind,
        "state": "added",
        "models": list(settings.models) or None,
        "kv_tokens": settings.kv_tokens,
        "seen_at": at,
    }


def summary(
    board: Board, engines: Engines, *, open_requests: int, healthy: bool, draining: bool
) -> dict[str, Any]:
    """The gateway at a glance."""
    return {
        "programs": len(board.programs),
        "steps_waiting": len(board.waiting),
        "steps_running": sum(len(e.running) for e in engines),
        "requests_open": open_requests,
        "engines_up": sum(e.up for e in engines),
        "engines": len(engines),
        "scheduler": "ok" if healthy else "fallback",
        "draining": draining,
    }
