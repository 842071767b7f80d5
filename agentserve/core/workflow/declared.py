"""Step graphs as clients declare them, held as values: what follows what, how often, and what waits for what.

Rule: a graph is what `parsing` let in, so that nothing here is checked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

NODES_MAX = 512

START, END = "__start__", "__end__"

Kind = Literal["llm", "tool", "human", "code", "start", "end"]
Join = Literal["all", "any"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """The fixed beginning of a step's prompt."""

    hash: int
    chars: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A step: an LLM call, a tool, a person, or code in between."""

    id: str
    kind: Kind = "llm"
    label: str = ""
    model: str | None = None
    tool: str | None = None
    join: Join | None = None  # None: as the edges suggest
    output_tokens: float | None = None
    calls: float = 1.0  # LLM calls in one visit
    duration_s: float | None = None  # of a tool or a person, typically
    prefix: Prefix | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A transition. Of a node's conditional edges one is taken, with its `p`; of the others every one."""

    source: str
    target: str
    conditional: bool = False
    p: float | None = None
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowGraph:
    """A declared graph. Cycles are legal."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    _by_id: Mapping[str, Node] = field(default_factory=dict, repr=False, compare=False)
    _joins: Mapping[str, tuple[str, ...]] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_id", {node.id: node for node in self.nodes})

    @classmethod
    def parse(cls, given: Any, *, kept: bool = False) -> WorkflowGraph:
        """Read a graph out of decoded JSON, or raise `BadRequest` or `TooLarge` with the field's name. `kept`: it was
        taken before, by an earlier version perhaps, so keys that are not known are passed over."""
        from agentserve.core.workflow.parsing import Parser

        return Parser(given, kept=kept).graph()

    def node(self, node_id: str) -> Node | None:
        """The node of that id."""
        return self._by_id.get(node_id)

    def starts(self) -> tuple[str, ...]:
        """Where a program begins: the declared start, else the nodes that nothing leads to, else the first."""
        if START in self._by_id:
            return (START,)
        reached = {edge.target for edge in self.edges if edge.target != edge.source}
        return tuple(n.id for n in self.nodes if n.id not in reached) or tuple(n.id for n in self.nodes[:1])

    def weights(self, *, shared: bool = True) -> dict[str, dict[str, float]]:
        """For each node, how often each other one is visited next: 1 in all for a choice, 1 each for a fan-out.
        What is not declared to go on ends. `shared`: the branches that a join waits for share its one visit."""
        weights: dict[str, dict[str, float]] = {node.id: {} for node in self.nodes}
        leaving = self._leaving()
        for source, row in weights.items():
            edges = leaving.get(source, [])
            choice = [edge for edge in edges if edge.conditional]
            said = sum(edge.p for edge in choice if edge.p is not None)
            silent = sum(edge.p is None for edge in choice)
            for edge in edges:
                share = 1.0 if edge.p is None else edge.p
                if edge.conditional and edge.p is None:
                    share = max(1.0 - said, 0.0) / silent
                row[edge.target] = row.get(edge.target, 0.0) + share
            ends = (1.0 - said if choice and not silent else 0.0) if edges else 1.0
            if source != END and ends > 1e-9 and len(choice) == len(edges):
                row[END] = row.get(END, 0.0) + ends
        weights.setdefault(END, {})
        for target, branches in self.joins().items() if shared else ():
            for source in branches:
                weights[source][target] /= len(branches)
        return weights

    def joins(self) -> Mapping[str, tuple[str, ...]]:
        """Nodes that wait for several branches, with the branches' last nodes."""
        if self._joins is None:
            object.__setattr__(self, "_joins", self._find_joins())
        assert self._joins is not None
        return self._joins

    def _find_joins(self) -> dict[str, tuple[str, ...]]:
        arriving: dict[str, list[str]] = {}
        for edge in self.edges:
            if not edge.conditional and edge.source != edge.target:
                arriving.setdefault(edge.target, []).append(edge.source)
        leaving = self._leaving()
        forks = any(sum(not edge.conditional for edge in edges) > 1 for edges in leaving.values())
        found = {}
        for target, sources in arriving.items():
            node = self._by_id[target]
            if len(sources) < 2 or node.join == "any" or node.kind == "end" or not (forks or node.join):
                continue
            # A source that is only reached through the target closes a loop: nothing waits for it.
            reached = self._reached(leaving, without=target)
            branches = tuple(source for source in sources if source in reached)
            if len(branches) > 1:
                found[target] = branches
        return found

    def _reached(self, leaving: Mapping[str, list[Edge]], *, without: str) -> set[str]:
        todo = [start for start in self.starts() if start != without]
        seen = set(todo)
        while todo:
            for edge in leaving.get(todo.pop(), ()):
                if edge.target not in seen and edge.target != without:
                    seen.add(edge.target)
                    todo.append(edge.target)
        return seen

    def _leaving(self) -> dict[str, list[Edge]]:
        leaving: dict[str, list[Edge]] = {}
        for edge in self.edges:
            leaving.setdefault(edge.source, []).append(edge)
        return leaving
