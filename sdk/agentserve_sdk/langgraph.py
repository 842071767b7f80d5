"""LangGraph and LangChain: a root run is a program, a node a step, tools are tool calls with the model's own ids.

Rule: a run inside of a program of the application's own is part of that one. What a node is about is not looked at.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Dict, NamedTuple, Optional

from agentserve_sdk import _client
from agentserve_sdk._announce import ToolRun, open_program, status_of, tool_began, tool_ended
from agentserve_sdk._context import SCOPE, Lease, Program, Scope, marked, name_of, quoted, scope
from agentserve_sdk._hooks import Open, quiet


class _Run(NamedTuple):
    scope: Scope  # of what happens inside
    program: Optional[Program] = None  # if it is this run that made it


_runs: Open[_Run] = Open()
_tools: Open[ToolRun] = Open()
_handler: ContextVar[Any] = ContextVar("agentserve_langchain", default=None)


def register(app: Any = None, *, name: Optional[str] = None) -> None:
    """Hook in; with a compiled graph, tell the gateway of its nodes and edges too, once.

    Programs of that graph are then of the workflow that the graph is named for.
    """
    _install()
    if app is not None:
        _tell_graph(app, name)


@quiet
def _tell_graph(app: Any, name: Optional[str]) -> None:
    graph: Dict[str, object] = app.get_graph().to_json()
    workflow = name_of(name or getattr(app, "name", None) or "LangGraph")
    _client.send("PUT", f"/v1/workflows/{quoted(workflow)}", shape_of(graph))


def shape_of(graph: Dict[str, Any]) -> Dict[str, object]:
    """Nodes and edges without what they hold: a node's data may name classes, and says nothing of the order."""
    return {
        "nodes": [{"id": node["id"]} for node in graph["nodes"]],
        "edges": [
            {"source": e["source"], "target": e["target"], "conditional": bool(e.get("conditional"))}
            for e in graph["edges"]
        ],
    }


_installed = False


def _install() -> None:
    global _installed
    if _installed:
        return
    _installed = True
    from langchain_core.tracers.context import register_configure_hook

    # The variable's default is what every context finds, those of other threads included.
    global _handler
    _handler = ContextVar("agentserve_langchain", default=_made())  # noqa: B039 - it holds no state
    register_configure_hook(_handler, inheritable=True)


def _made() -> Any:
    """The handler's class, made when LangChain is there to be derived from."""
    from langchain_core.callbacks import BaseCallbackHandler

    class Handler(BaseCallbackHandler):
        """Callbacks run inline: in the context of what they tell of."""

        run_inline = True

        @quiet
        def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
            _began(**kwargs)

        @quiet
        def on_chain_end(self, *args: Any, **kwargs: Any) -> None:
            _ended(None, **kwargs)

        @quiet
        def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
            _ended(error, **kwargs)

        @quiet
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            if kwargs.get("parent_run_id") is not None:  # a call alone is no program
                _began(**kwargs)

        on_llm_start = on_chat_model_start

        @quiet
        def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
            _ended(None, **kwargs)

        @quiet
        def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
            _ended(error, **kwargs)

        @quiet
        def on_tool_start(self, serialized: Any, *args: Any, **kwargs: Any) -> None:
            _tool_began(serialized, **kwargs)

        @quiet
        def on_tool_end(self, *args: Any, **kwargs: Any) -> None:
            _tool_ended(None, **kwargs)

        @quiet
        def on_tool_error(self, error: BaseException, **kwargs: Any) -> None:
            _tool_ended(error, **kwargs)

    return Handler()


def _began(
    *, run_id: Any, parent_run_id: Any = None, metadata: Any = None, name: Any = None, **_: Any
) -> None:
    """A chain, a node or a model call: put its scope in force in this context.

    Not for the root: where it is streamed, its context is the consumer's. What is inside finds it by the parent's id.
    """
    if not _client.enabled():
        return
    metadata = metadata or {}
    above = _runs.get(parent_run_id)
    found = _found(above)
    made = None
    if found is None:
        thread = metadata.get("thread_id")
        made = open_program(
            workflow=name_of(name or "LangGraph"), session_id=None if thread is None else str(thread)
        )
        found = Scope(made)
    node = metadata.get("langgraph_node")
    step = found.step if node is None else name_of(node)
    # Async callbacks tell of the end from a task of their own, where setting the scope back would have no effect.
    found = Scope(found.program, step, None if made is not None else Lease(marked()))
    _runs.put(run_id, _Run(found, made))
    if made is None:
        SCOPE.set(found)


def _found(above: Optional[_Run]) -> Optional[Scope]:
    """Where a run is: with the run above it, unless a node opened a sub-agent of its own around this one."""
    here = scope()
    if above is None or (here is not None and here.program.parent_id == above.scope.program.id):
        return here
    return above.scope


def _ended(error: Optional[BaseException], *, run_id: Any, **_: Any) -> None:
    run = _runs.pop(run_id)
    if run is None:
        return
    if run.scope.lease is not None:
        run.scope.lease.over = True
    if run.program is not None:
        run.program.end(status_of(error))


def _tool_began(
    serialized: Any, *, run_id: Any, parent_run_id: Any = None, tool_call_id: Any = None, **said: Any
) -> None:
    above = _runs.get(parent_run_id)
    found = _found(above)
    if found is None or not _client.enabled():
        return
    name = said.get("name") or (serialized or {}).get("name") or "tool"
    call_id = None if tool_call_id is None else str(tool_call_id)
    _runs.put(run_id, _Run(found))
    _tools.put(run_id, tool_began(found.program, name_of(name), call_id))


def _tool_ended(error: Optional[BaseException], *, run_id: Any, **_: Any) -> None:
    _runs.pop(run_id)
    run = _tools.pop(run_id)
    if run is not None:
        tool_ended(run, ok=error is None)
