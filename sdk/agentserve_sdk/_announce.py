"""What the application's marks and the integrations tell the gateway: programs, tool calls, graphs, how a run ended.

Rule: what is told leaves at once and nobody waits for it. What goes wrong in here is the caller's to log.
"""

from __future__ import annotations

import os
import time
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from agentserve_sdk import _client
from agentserve_sdk._context import Program, new_program_id, quoted, scope

NODES_MAX = 256  # of one workflow's graph, as its steps tell of it
WORKFLOWS_MAX = 256


class ToolRun(NamedTuple):
    """One call of a tool, announced."""

    program: Program
    call_id: str
    own_id: bool  # the model's id of the call is not known; this one is ours
    name: str
    began_at: float


def open_program(
    *,
    id: Optional[str] = None,
    workflow: Optional[str] = None,
    parent: Optional[Program] = None,
    session_id: Optional[str] = None,
    deadline_s: Optional[float] = None,
    priority: Optional[str] = None,
    graph: Optional[Dict[str, Any]] = None,
) -> Program:
    """Mint a program and tell the gateway; inside of another program it is that one's child."""
    if parent is None:
        found = scope()
        parent = None if found is None else found.program
    program = Program(
        id or new_program_id(),
        workflow=workflow,
        parent_id=None if parent is None or parent.id == id else parent.id,
        session_id=session_id,
        priority=priority,
        deadline_s=deadline_s,
    )
    if _client.enabled():
        said: Dict[str, object] = {
            "id": program.id,
            "workflow": workflow,
            "parent_id": program.parent_id,
            "session_id": session_id,
            "deadline_ms": None if deadline_s is None else deadline_s * 1e3,
            "priority": priority,
            "graph": graph,
        }
        _client.send("POST", "/v1/programs", {k: v for k, v in said.items() if v is not None})
    return program


_counter = 0
_process = os.urandom(3).hex()


def tool_began(
    program: Program, name: str, call_id: Optional[str] = None, more: Optional[Dict[str, object]] = None
) -> ToolRun:
    """Announce a tool call."""
    global _counter
    own = call_id is None
    if call_id is None:
        _counter += 1
        call_id = f"sdk-{_process}-{_counter}"
    program._tools_open += 1
    event: Dict[str, object] = {"type": "tool_start", "tool_call_id": call_id, "tool": name}
    if more:
        event.update(more)
    _client.tell(program.id, event)
    return ToolRun(program, call_id, own, name, time.perf_counter())


def tool_ended(run: ToolRun, *, ok: bool = True, took_ms: Optional[float] = None) -> None:
    """Announce its end, `took_ms` if it was measured. When no other tool is open, the program's next call comes now."""
    if took_ms is None:
        took_ms = (time.perf_counter() - run.began_at) * 1e3
    program = run.program
    program._tools_open -= 1
    event: Dict[str, object] = {
        "type": "tool_end",
        "tool_call_id": run.call_id,
        "tool": run.name,
        "status": "succeeded" if ok else "failed",
        "duration_ms": took_ms,
    }
    _client.tell(program.id, event)
    if run.own_id and program._tools_open <= 0:
        # the gateway knows this call by the model's id, which is not ours to know: say what follows from its end
        _client.tell(program.id, _RETURNS_NOW)


_RETURNS_NOW: Dict[str, object] = {"type": "next", "in_ms": 0}


def status_of(error: Optional[BaseException]) -> str:
    """How a run ended, in a word."""
    if error is None:
        return "succeeded"
    if isinstance(error, SystemExit):
        return "succeeded" if error.code in (None, 0) else "failed"
    cancelled = (
        isinstance(error, (KeyboardInterrupt, GeneratorExit)) or type(error).__name__ == "CancelledError"
    )
    return "cancelled" if cancelled else "failed"


_edges: Dict[str, Dict[str, List[str]]] = {}


def tell_edges(program: Program, name: str, following: Sequence[str]) -> None:
    """Steps tell what may come after them; when the workflow's graph has grown, it is declared anew."""
    workflow = program.workflow
    if workflow is None or not _client.enabled():
        return
    graph = _edges.get(workflow)
    if graph is None:
        if len(_edges) >= WORKFLOWS_MAX:
            return
        graph = _edges[workflow] = {}
    known = graph.setdefault(name, [])
    fresh = [one for one in following if one not in known]
    if not fresh or len(graph) > NODES_MAX:
        return
    known.extend(fresh)
    _client.send("PUT", f"/v1/workflows/{quoted(workflow)}", graph_of(graph))


def graph_of(edges: Dict[str, List[str]]) -> Dict[str, object]:
    """Edges as the gateway takes a graph. What has several ways on is a choice between them."""
    nodes = dict.fromkeys([*edges, *(target for row in edges.values() for target in row)])
    return {
        "nodes": [{"id": node, "kind": "llm"} for node in nodes],
        "edges": [
            {"source": source, "target": target, "conditional": len(row) > 1}
            for source, row in edges.items()
            for target in row
        ],
    }
