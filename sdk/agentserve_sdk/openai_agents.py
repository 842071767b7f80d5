"""OpenAI Agents SDK: a trace is a program, an agent a step, a function call a tool call.

Rule: it listens to traces and changes none. With tracing disabled there is nothing to listen to: then use
`agentserve.workflow`, or `RunConfig(model_settings=ModelSettings(extra_headers=agentserve.headers()))`.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

from agentserve_sdk import _client
from agentserve_sdk._announce import ToolRun, open_program, tool_began, tool_ended
from agentserve_sdk._context import SCOPE, Program, Scope, name_of, scope
from agentserve_sdk._hooks import Open, in_step, quiet

_programs: Open[Program] = Open()
_before: Open[Tuple[Optional[Scope]]] = Open()
_tools: Open[ToolRun] = Open()


class Processor:
    """A trace processor; its callbacks run in the context of what they tell of. Two of them are as one."""

    @quiet
    def on_trace_start(self, trace: Any) -> None:
        """A run, or several that the application joined into one trace."""
        if scope() is None and _client.enabled():
            group = getattr(trace, "group_id", None)
            program = open_program(workflow=name_of(trace.name), session_id=group)
            _programs.put(trace.trace_id, program)
            SCOPE.set(Scope(program))

    @quiet
    def on_trace_end(self, trace: Any) -> None:
        """It is over."""
        program = _programs.pop(trace.trace_id)
        if program is not None:
            SCOPE.set(None)
            program.end()

    @quiet
    def on_span_start(self, span: Any) -> None:
        """An agent's turn begins, or a tool."""
        data, found = span.span_data, scope()
        if found is None:
            return
        if data.type == "agent" and _before.get(span.span_id) is None:
            _before.put(span.span_id, (SCOPE.get(),))
            in_step(data.name)
        elif data.type == "function" and _tools.get(span.span_id) is None:
            _tools.put(span.span_id, tool_began(found.program, name_of(data.name)))

    @quiet
    def on_span_end(self, span: Any) -> None:
        """It is over."""
        before = _before.pop(span.span_id)
        if before is not None:
            SCOPE.set(before[0])
        run = _tools.pop(span.span_id)
        if run is not None:
            tool_ended(run, ok=span.error is None)

    def shutdown(self) -> None:
        """Nothing is held."""

    def force_flush(self) -> None:
        """Nothing is held."""


_registered = False


def register() -> None:
    """Listen, beside the processors that are there."""
    global _registered
    if not _registered:
        _registered = True
        from agents.tracing import add_trace_processor

        add_trace_processor(Processor())  # type: ignore[arg-type, unused-ignore]
