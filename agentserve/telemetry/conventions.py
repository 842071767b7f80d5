"""The names of spans and attributes, once, in the newest GenAI conventions and in those of 1.36.

Rule: code speaks of our keys on the left; what goes on the wire is in the table. `None` means that the version has no
such attribute, and then it is left out. The conventions are still marked as in development: when they move, this
table moves and nothing else does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# our key: (latest, 1.36)
ATTRIBUTES: dict[str, tuple[str | None, str | None]] = {
    "operation": ("gen_ai.operation.name", "gen_ai.operation.name"),
    "provider": ("gen_ai.provider.name", "gen_ai.system"),
    "conversation": ("gen_ai.conversation.id", "gen_ai.conversation.id"),
    "agent_name": ("gen_ai.agent.name", "gen_ai.agent.name"),
    "workflow_name": ("gen_ai.workflow.name", None),
    "model": ("gen_ai.request.model", "gen_ai.request.model"),
    "stream": ("gen_ai.request.stream", None),
    "finish_reasons": ("gen_ai.response.finish_reasons", "gen_ai.response.finish_reasons"),
    "first_chunk_s": ("gen_ai.response.time_to_first_chunk", None),
    "input_tokens": ("gen_ai.usage.input_tokens", "gen_ai.usage.input_tokens"),
    "output_tokens": ("gen_ai.usage.output_tokens", "gen_ai.usage.output_tokens"),
    "cached_tokens": ("gen_ai.usage.cache_read.input_tokens", None),
    "tool_name": ("gen_ai.tool.name", "gen_ai.tool.name"),
    "tool_call": ("gen_ai.tool.call.id", "gen_ai.tool.call.id"),
    "tool_type": ("gen_ai.tool.type", "gen_ai.tool.type"),
    "error": ("error.type", "error.type"),
    "status": ("http.response.status_code", "http.response.status_code"),
    # what Phoenix, Arize and Langfuse group and draw by
    "session": ("session.id", "session.id"),
    "kind": ("openinference.span.kind", "openinference.span.kind"),
    "node": ("graph.node.id", "graph.node.id"),
    "node_name": ("graph.node.name", "graph.node.name"),
    "node_parent": ("graph.node.parent_id", "graph.node.parent_id"),
    # ours
    "program": ("agentserve.program.id", "agentserve.program.id"),
    "tenant": ("agentserve.tenant", "agentserve.tenant"),
    "step": ("agentserve.step.id", "agentserve.step.id"),
    "index": ("agentserve.step.index", "agentserve.step.index"),
    "relation": ("agentserve.step.relation", "agentserve.step.relation"),
    "engine": ("agentserve.engine", "agentserve.engine"),
    "source": ("agentserve.identity.source", "agentserve.identity.source"),
    "confidence": ("agentserve.identity.confidence", "agentserve.identity.confidence"),
    "queue_s": ("agentserve.queue.time", "agentserve.queue.time"),
    "gap_s": ("agentserve.tool.gap", "agentserve.tool.gap"),
    "expected_cached": ("agentserve.cache.expected_tokens", "agentserve.cache.expected_tokens"),
    "reason": ("agentserve.decision.reason", "agentserve.decision.reason"),
    "detail": ("agentserve.decision.detail", "agentserve.decision.detail"),
    "tokens": ("agentserve.decision.tokens", "agentserve.decision.tokens"),
    "mode": ("agentserve.pin.mode", "agentserve.pin.mode"),
    "inferred": ("agentserve.inferred", "agentserve.inferred"),
    "end_reason": ("agentserve.program.end_reason", "agentserve.program.end_reason"),
    "slowdown": ("agentserve.program.slowdown", "agentserve.program.slowdown"),
    "steps": ("agentserve.program.steps", "agentserve.program.steps"),
}

# our operation: (latest, 1.36)
OPERATIONS: dict[str, tuple[str, str]] = {
    "chat": ("chat", "chat"),
    "completions": ("text_completion", "text_completion"),
    "embeddings": ("embeddings", "embeddings"),
    "agent": ("invoke_agent", "invoke_agent"),
    "workflow": ("invoke_workflow", "invoke_agent"),
    "tool": ("execute_tool", "execute_tool"),
}


class Conventions:
    """One version's names."""

    def __init__(self, version: str = "latest") -> None:
        column = 0 if version == "latest" else 1
        self._names = {key: names[column] for key, names in ATTRIBUTES.items()}
        self._operations = {key: names[column] for key, names in OPERATIONS.items()}

    def attributes(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes as they are called on the wire; what is None or has no name is left out."""
        names = self._names
        return {
            name: value
            for key, value in values.items()
            if value is not None and (name := names[key]) is not None
        }

    def operation(self, key: str) -> str:
        """What an operation is called."""
        return self._operations.get(key, "chat")
