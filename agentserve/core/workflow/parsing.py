"""Reads a step graph out of decoded JSON.

Accepted: `{"nodes": [...], "edges": [...]}` as in `POST /v1/programs`, what LangGraph's `get_graph().to_json()`
gives, unchanged, and `{"steps": [...]}` for a line of steps.

Rule: what is wrong is named by its field, with what to do about it, and so is a key that is not known: what is
misspelt would be ignored in silence. `metadata` is the client's own. Prompts are not kept: a declared prefix becomes a
hash and a length.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

import msgspec

from agentserve.core.workflow.declared import (
    END,
    NODES_MAX,
    START,
    Edge,
    Join,
    Kind,
    Node,
    Prefix,
    WorkflowGraph,
)
from agentserve.errors import BadRequest, TooLarge

GRAPH_BYTES_MAX = 64 * 1024
EDGES_MAX = 4_096
ID_CHARS_MAX = 256
DURATION_S_MAX = 7 * 86_400.0
OUTPUT_TOKENS_MAX = 1_000_000

_KINDS: Mapping[str, Kind] = {
    "llm": "llm", "model": "llm", "agent": "llm", "step": "llm", "tool": "tool", "human": "human",
    "code": "code", "function": "code", "start": "start", "end": "end",
}  # fmt: skip
_GRAPH = ("nodes", "edges", "steps", "name", "metadata")
_NODE = (
    "id", "kind", "role", "label", "model", "tool", "join", "expect", "duration_ms", "prefix", "annotations",
    "type", "data", "metadata",
)  # fmt: skip
_EXPECT, _PREFIX = ("output_tokens", "calls"), ("system", "tools_hash")
_EDGE = ("source", "target", "conditional", "p", "data", "metadata")
_FIGURES = ("p50", "mean", "p90", "p95")  # of a duration, the first that is there counts


def _bad(field_name: str, message: str, remedy: str) -> BadRequest:
    place = "graph" if field_name == "graph" else f"graph: {field_name}"
    return BadRequest(f"{place}: {message}", remedy=remedy, field=field_name)


class Parser:
    """Reads one graph; `where` is always the field that is looked at."""

    def __init__(self, given: Any, *, kept: bool) -> None:
        self._given, self._kept = given, kept

    def graph(self) -> WorkflowGraph:
        given = self._given
        if not isinstance(given, Mapping):
            raise _bad(
                "graph", "is not an object", 'send {"nodes": [...], "edges": [...]} or {"steps": [...]}'
            )
        try:
            size = len(msgspec.json.encode(given))
        except (TypeError, ValueError, RecursionError) as error:
            raise _bad("graph", "is not plain JSON", "send objects, lists, strings and numbers") from error
        if size > GRAPH_BYTES_MAX:
            raise TooLarge(
                f"graph: {size:,} bytes, of which {GRAPH_BYTES_MAX:,} are allowed",
                remedy="leave out prompts and metadata; a prefix may be given by its hash",
                field="graph",
            )
        self._check_keys(given, _GRAPH, "")
        if "steps" in given and "nodes" not in given:
            return self._line(given["steps"])
        nodes = self._nodes(self._list(given, "nodes"))
        if not nodes:
            raise _bad("nodes", "is empty", "name at least one step")
        return WorkflowGraph(nodes=nodes, edges=self._edges(self._list(given, "edges"), nodes))

    def _check_keys(self, given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
        unknown = next((str(key) for key in given if key not in known), None)
        if unknown is None or self._kept:
            return
        near = difflib.get_close_matches(unknown, known, n=1)
        said = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        raise _bad(f"{where}.{unknown}" if where else unknown, "is not a key that is known", said)

    def _list(self, given: Mapping[str, Any], name: str) -> list[Any]:
        value = given.get(name, [])
        if not isinstance(value, list):
            raise _bad(name, "is not a list", f'send "{name}": [...]')
        limit = NODES_MAX if name != "edges" else EDGES_MAX
        if len(value) > limit:
            raise TooLarge(
                f"graph: {name}: {len(value):,} entries, of which {limit:,} are allowed",
                remedy="declare the LLM steps and the tools between them, and leave out the rest",
                field=name,
            )
        return value

    def _line(self, steps: Any) -> WorkflowGraph:
        steps = self._list({"steps": steps}, "steps")
        if not steps:
            raise _bad("steps", "is empty", "name at least one step")
        nodes = self._nodes(steps, where="steps")
        edges = tuple(Edge(source=a.id, target=b.id) for a, b in itertools.pairwise(nodes))
        return WorkflowGraph(nodes=nodes, edges=edges)

    def _nodes(self, given: list[Any], where: str = "nodes") -> tuple[Node, ...]:
        nodes: dict[str, Node] = {}
        for index, one in enumerate(given):
            node = self._node(one, f"{where}[{index}]")
            if node.id in nodes:
                raise _bad(
                    f"{where}[{index}].id", f"{node.id!r} is there twice", "give each node an id of its own"
                )
            nodes[node.id] = node
        return tuple(nodes.values())

    def _node(self, given: Any, where: str) -> Node:
        if isinstance(given, str):
            given = {"id": given}
        if not isinstance(given, Mapping):
            raise _bad(where, "is neither an object nor a name", 'send {"id": "...", ...}')
        self._check_keys(given, _NODE, where)
        node_id = self._id(given.get("id"), f"{where}.id")
        expect = self._mapping(given.get("expect"), f"{where}.expect")
        self._check_keys(expect, _EXPECT, f"{where}.expect")
        kind, label = self._kind(given, node_id, where)
        return Node(
            id=node_id,
            kind=kind,
            label=label,
            model=_text(given.get("model")),
            tool=_text(given.get("tool")) or (label if kind == "tool" else None),
            join=self._join(given.get("join"), f"{where}.join"),
            output_tokens=self._number(expect, "output_tokens", f"{where}.expect", OUTPUT_TOKENS_MAX),
            calls=_or(self._number(expect, "calls", f"{where}.expect", 1_000), 1.0),
            duration_s=self._duration(given.get("duration_ms"), f"{where}.duration_ms"),
            prefix=self._prefix(given.get("prefix"), f"{where}.prefix"),
        )

    def _kind(self, given: Mapping[str, Any], node_id: str, where: str) -> tuple[Kind, str]:
        """The kind of a node and its name for people. LangGraph says neither: its names and classes hint at it."""
        data = given.get("data")
        name = _text(given.get("role")) or _text(given.get("label"))
        path = data.get("id") if isinstance(data, Mapping) else None
        if name is None and isinstance(data, Mapping):
            name = _text(data.get("name"))
        label = name or node_id
        if node_id in (START, END):
            return ("start" if node_id == START else "end"), node_id
        said = given.get("kind")
        if said is None:
            last = str(path[-1]) if isinstance(path, list) and path else ""
            is_tool = given.get("tool") is not None or last == "ToolNode" or node_id.split(":")[-1] == "tools"
            return ("tool" if is_tool else "llm"), label
        kind = _KINDS.get(said) if isinstance(said, str) else None
        if kind is None:
            raise _bad(f"{where}.kind", f"{said!r} is not a kind of node", "use llm, tool, human or code")
        return kind, label

    def _id(self, value: Any, where: str) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not 0 < len(value) <= ID_CHARS_MAX or not value.isprintable():
            raise _bad(
                where, "is missing or no printable name", f"give a name of 1 to {ID_CHARS_MAX} characters"
            )
        return value

    def _mapping(self, value: Any, where: str) -> Mapping[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise _bad(where, "is not an object", "send an object or leave it out")
        return value

    def _number(self, given: Mapping[str, Any], name: str, where: str, most: float) -> float | None:
        value = given.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
            raise _bad(
                f"{where}.{name}",
                f"{value!r} is not a number from 0 to {most:,.0f}",
                "correct it or leave it out",
            )
        return float(value)

    def _duration(self, value: Any, where: str) -> float | None:
        """One figure, or quantiles of which the median counts."""
        if isinstance(value, Mapping):
            name = next((key for key in _FIGURES if key in value), None)
            if name is None:
                if self._kept:
                    return None
                raise _bad(where, f"holds none of {', '.join(_FIGURES)}", "send the median as p50")
            milliseconds = self._number(value, name, where, DURATION_S_MAX * 1000)
        else:
            parent, _, last = where.rpartition(".")
            milliseconds = self._number({last: value}, last, parent, DURATION_S_MAX * 1000)
        return None if milliseconds is None else milliseconds / 1000.0

    def _join(self, value: Any, where: str) -> Join | None:
        if value is None or value in ("all", "any"):
            return value  # type: ignore[no-any-return]
        raise _bad(where, f"{value!r} is not a way to join", "use all (wait for every branch) or any")

    def _prefix(self, value: Any, where: str) -> Prefix | None:
        given = self._mapping(value, where)
        if not given:
            return None
        self._check_keys(given, _PREFIX, where)
        system, tools = _text(given.get("system")) or "", _text(given.get("tools_hash")) or ""
        state = hashlib.blake2b(f"{tools}\0{system}".encode("utf-8", "surrogatepass"), digest_size=8)
        return Prefix(hash=int.from_bytes(state.digest(), "little") >> 1, chars=len(system))

    def _edges(self, given: list[Any], nodes: tuple[Node, ...]) -> tuple[Edge, ...]:
        known = {node.id for node in nodes}
        edges = []
        for index, one in enumerate(given):
            where = f"edges[{index}]"
            edge = self._mapping(one, where)
            self._check_keys(edge, _EDGE, where)
            p = self._number(edge, "p", where, 1)
            edges.append(
                Edge(
                    source=self._end(edge.get("source"), f"{where}.source", known),
                    target=self._end(edge.get("target"), f"{where}.target", known),
                    conditional=edge.get("conditional") is True or (p is not None and p < 1),
                    p=p,
                    label=_text(edge.get("data")) or "",
                )
            )
        self._check_choices(edges)
        return tuple(edges)

    def _end(self, value: Any, where: str, known: set[str]) -> str:
        name = self._id(value, where)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise _bad(
                where,
                f"there is no node {name!r}",
                f"did you mean {near[0]!r}?" if near else "add it to nodes",
            )
        return name

    def _check_choices(self, edges: list[Edge]) -> None:
        sums: dict[str, float] = {}
        for index, edge in enumerate(edges):
            if edge.conditional and edge.p is not None:
                sums[edge.source] = sums.get(edge.source, 0.0) + edge.p
                if sums[edge.source] > 1.000_001:
                    raise _bad(
                        f"edges[{index}].p",
                        f"the choices at {edge.source!r} add up to {sums[edge.source]:.3g}",
                        "let the probabilities of one node's conditional edges sum to at most 1",
                    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
