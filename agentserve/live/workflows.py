"""Step graphs that clients declared, by tenant and name.

Rule: bounded, and a tenant sees only its own. What a graph says is the core's to use; what it looks like is kept as
it was sent.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import msgspec

from agentserve.core.ids import WorkflowId
from agentserve.core.workflow import LearnedGraph, Remaining, WorkflowGraph
from agentserve.errors import AgentServeError, BadRequest, NotFound
from agentserve.live.wire import printable_id
from agentserve.ports import Journal

WORKFLOWS_MAX = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """One graph."""

    tenant: str
    name: str
    graph: WorkflowGraph
    sent: Any
    at: float
    whole: Remaining  # what a program of it is expected to take


class Workflows:
    """All of them, least recently declared first out."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._declared: OrderedDict[tuple[str, str], Declared] = OrderedDict()

    def put(self, tenant: str, name: Any, sent: Any, *, at: float) -> Declared:
        """Declare a graph, or declare it anew."""
        declared = self._take(tenant, workflow_id(name), sent, WorkflowGraph.parse(sent), at)
        self._journal.fact(
            "graph",
            {
                "tenant": tenant,
                "name": declared.name,
                "graph": "declared",
                "body": msgspec.json.encode(sent),
                "at": at,
            },
        )
        return declared

    def restore(self, tenant: str, name: str, body: bytes, *, at: float) -> None:
        """Take up again what was declared before a restart; what cannot be read is left out."""
        with contextlib.suppress(AgentServeError, msgspec.DecodeError, UnicodeError):
            sent = msgspec.json.decode(body)
            self._take(tenant, workflow_id(name), sent, WorkflowGraph.parse(sent, kept=True), at)

    def _take(
        self, tenant: str, workflow: WorkflowId, sent: Any, graph: WorkflowGraph, at: float
    ) -> Declared:
        declared = Declared(
            tenant=tenant,
            name=workflow,
            graph=graph,
            sent=sent,
            at=at,
            whole=LearnedGraph(declared=graph).whole(),
        )
        self._declared[tenant, workflow] = declared
        self._declared.move_to_end((tenant, workflow))
        if len(self._declared) > WORKFLOWS_MAX:
            self._declared.popitem(last=False)
        return declared

    def get(self, tenant: str, name: str) -> Declared | None:
        """The graph of that name, if the tenant declared one."""
        return self._declared.get((tenant, name))

    def __getitem__(self, key: tuple[str, str]) -> Declared:
        found = self._declared.get(key)
        if found is None:
            raise NotFound(f"there is no workflow {key[1]!r}", remedy="PUT /v1/workflows/{name} declares one")
        return found

    def of(self, tenant: str | None = None) -> list[Declared]:
        """A tenant's graphs, or everybody's."""
        return [d for (owner, _), d in self._declared.items() if tenant is None or owner == tenant]


def workflow_id(name: Any) -> WorkflowId:
    """A workflow's name as a client may choose it."""
    found = printable_id(name)
    if found is None:
        raise BadRequest("a workflow's name is a short printable text", field="workflow")
    return WorkflowId(found)
