"""Step graphs learned from traffic: which step follows which, what each costs, and so how much is left.

A node is a kind of LLM step: its declared name, else its role's fingerprint with the tools whose results it got. Each
departure from a node is counted, as are programs that end there; a fan-out is one departure with several arrivals,
and a join's arrival is shared among its branches. So `weight` is how often a node is visited next, on average.

Rule: online, bounded and decayed: old programs count ever less, rare nodes make room. A declared graph is a prior of
a few pretended programs, which observation soon outweighs. Pure state: no clock, no ids of programs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentserve.core.workflow import records
from agentserve.core.workflow.algebra import (
    PARALLEL_MIN,
    collapsed,
    critical_path,
    hops,
    seconds_left,
    steps_to_execution,
    totals,
)
from agentserve.core.workflow.declared import END, NODES_MAX, WorkflowGraph
from agentserve.core.workflow.records import EDGES_OF_NODE_MAX, EdgeRecord, GraphRecord, NodeRecord
from agentserve.errors import InvariantBroken

MEMORY_PROGRAMS = 1_000.0  # a program this many programs ago counts 1/e
PRIOR_PROGRAMS = 4.0  # what a declaration is worth
UNIT_MAX = 1e9  # counts are brought back to size beyond it
STALE_SHARE = 0.05  # the solution is computed anew when this much was observed since
OUTPUT_TOKENS_GUESS = 200.0
STEP_SECONDS_GUESS = 5.0


def node_name(*, role: int, tools: Iterable[str] = (), declared: str | None = None) -> str:
    """The node that a step belongs to: by its declared name, else by who speaks and what was just done."""
    if declared is not None:
        return declared
    done = ",".join(sorted(set(tools)))
    return f"{role & 0xFFFFFFFF:08x}" + (f" after {done}" if done else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remaining:
    """What is expected still to come."""

    steps: float = 0.0
    output_tokens: float = 0.0
    seconds: float = 0.0
    context_tokens: float = 0.0  # by which the context will grow

    def plus(self, other: Remaining) -> Remaining:
        """Both, as for two steps of a program that run beside each other."""
        return Remaining(
            steps=self.steps + other.steps,
            output_tokens=self.output_tokens + other.output_tokens,
            seconds=max(self.seconds, other.seconds),
            context_tokens=self.context_tokens + other.context_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """A node that may come next."""

    node: str
    weight: float  # expected visits: the probability, where there is no fan-out
    gap_s: float | None  # from one step's end to the next one's start
    prefix: tuple[
        tuple[int, int], ...
    ] = ()  # (hash, tokens) of the prompt's beginning that all its calls share


class LearnedGraph:
    """One workflow's graph, as its programs show it."""

    def __init__(
        self,
        *,
        declared: WorkflowGraph | None = None,
        memory_programs: float = MEMORY_PROGRAMS,
        prior_programs: float = PRIOR_PROGRAMS,
        nodes_max: int = NODES_MAX,
    ) -> None:
        self._growth = 1.0 + 1.0 / memory_programs
        self._nodes_max = nodes_max
        self._prior_programs = prior_programs
        self._unit = 1.0  # what one observation counts now; it grows, and so the old ones fade
        self._programs = 0.0  # in units
        self._nodes: dict[str, NodeRecord] = {}
        self._starts: dict[str, float] = {}
        self._declared: WorkflowGraph | None = None
        self._prior: dict[str, dict[str, float]] = {}  # declared weights between LLM steps, and to the end
        self._prior_times: dict[str, dict[str, float]] = {}  # the same with a join's arrivals in full
        self._solution: dict[str, list[float]] = {}
        self._solved_at = 0
        self._observed = 0
        if declared is not None:
            self.declare(declared)

    # -- observing --------------------------------------------------------------------------------------------

    def declare(self, graph: WorkflowGraph) -> None:
        """Take a declaration as the prior, in place of any earlier one."""
        self._declared = graph
        steps = [node.id for node in graph.nodes if node.kind == "llm"]
        self._prior = _without_end(collapsed(graph.weights(), [*steps, END]))
        self._prior_times = _without_end(collapsed(graph.weights(shared=False), [*steps, END]))
        self._solution = {}

    def observe_step(
        self,
        node: str,
        *,
        previous: Sequence[str] = (),
        output_tokens: float,
        context_tokens: float = 0.0,
        seconds: float = 0.0,
        gap_s: float | None = None,
        begins: bool | None = None,
        beside: bool = False,
        prefix: Sequence[tuple[int, int]] = (),
    ) -> None:
        """A step ended. `previous`: the node it came from, none for a program's first, several at a join.
        `beside`: another step came from the same visit of `previous` already (a fan-out's second branch).
        `begins`: it is its program's first, which is taken for granted where nothing was before it."""
        if begins if begins is not None else not previous:
            self._unit *= self._growth
            self._programs += self._unit
            self._starts[node] = self._starts.get(node, 0.0) + self._unit
            if len(self._starts) > self._nodes_max:
                del self._starts[min(self._starts, key=lambda n: (self._starts[n], n))]
        record = self._record(node)
        record.visits += self._unit
        record.output_tokens += output_tokens * self._unit
        record.context_tokens += context_tokens * self._unit
        record.seconds += seconds * self._unit
        records.share_prefix(record, prefix)
        for before in previous:
            self._arrive(self._record(before), node, 1.0 / len(previous), gap_s, departs=not beside)
        self._noted()

    def observe_end(self, node: str) -> None:
        """A program ended after this node."""
        record = self._record(node)
        record.departures += self._unit
        record.ends += self._unit
        self._noted()

    def _arrive(
        self, before: NodeRecord, node: str, share: float, gap_s: float | None, *, departs: bool
    ) -> None:
        if departs:
            before.departures += self._unit
        edge = before.edges.get(node)
        if edge is None:
            if len(before.edges) >= EDGES_OF_NODE_MAX:
                rarest = min(before.edges, key=lambda n: (before.edges[n].count, n))
                del before.edges[rarest]
            edge = before.edges[node] = EdgeRecord()
        edge.count += share * self._unit
        edge.arrivals += self._unit
        if gap_s is not None:
            edge.gap_s += gap_s * self._unit
            edge.gaps += self._unit

    def _record(self, node: str) -> NodeRecord:
        record = self._nodes.get(node)
        if record is None:
            if len(self._nodes) >= self._nodes_max:
                self._forget(min(self._nodes, key=lambda n: (self._nodes[n].visits, n)))
            record = self._nodes[node] = NodeRecord()
        return record

    def _forget(self, node: str) -> None:
        del self._nodes[node]
        self._starts.pop(node, None)
        for record in self._nodes.values():
            record.edges.pop(node, None)

    def _noted(self) -> None:
        self._observed += 1
        if self._unit > UNIT_MAX:
            self._scale(1.0 / self._unit)

    def _scale(self, factor: float) -> None:
        self._unit *= factor
        self._programs *= factor
        self._starts = {node: count * factor for node, count in self._starts.items()}
        for record in self._nodes.values():
            records.scale(record, factor)

    # -- asking -----------------------------------------------------------------------------------------------

    def nodes(self) -> list[str]:
        """All nodes, declared or seen, the most visited first."""
        names = self._nodes.keys() | self._prior.keys()
        return sorted(names, key=lambda n: (-self.visits(n), n))

    def in_order(self) -> list[str]:
        """All nodes, from where programs begin onwards."""
        starts = sorted(self._starts, key=lambda n: (-self._starts[n], n))
        far = self.steps_to(
            *(starts[:1] or (list(self._first_declared()) if self._declared is not None else []))
        )
        return sorted(self.nodes(), key=lambda n: (far.get(n, NODES_MAX), -self.visits(n), n))

    def visits(self, node: str) -> float:
        """How often the node was visited lately, in programs' worth of today's weight."""
        record = self._nodes.get(node)
        return record.visits / self._unit if record is not None else 0.0

    def weights(self) -> dict[str, dict[str, float]]:
        """How often each node is visited after each other one, on average."""
        return {node: self._weights_of(node) for node in self.nodes()}

    def _weights_of(self, node: str, *, shared: bool = True) -> dict[str, float]:
        record = self._nodes.get(node) or NodeRecord()
        prior = (self._prior if shared else self._prior_times).get(node)
        pretended = self._prior_programs * self._unit if prior is not None else 0.0
        total = record.departures + pretended
        if total <= 0:
            return {}
        row = {b: pretended * w / total for b, w in (prior or {}).items() if b != END}
        for b, edge in record.edges.items():
            row[b] = row.get(b, 0.0) + (edge.count if shared else edge.arrivals) / total
        return row

    def ends_after(self, node: str) -> float:
        """The chance that a program ends after this node."""
        record = self._nodes.get(node) or NodeRecord()
        prior = self._prior.get(node)
        pretended = self._prior_programs * self._unit if prior is not None else 0.0
        total = record.departures + pretended
        return (record.ends + pretended * (prior or {}).get(END, 0.0)) / total if total > 0 else 0.0

    def next_nodes(self, node: str) -> list[Next]:
        """What may come next, the likeliest first."""
        record = self._nodes.get(node)
        found = []
        for after, weight in self._weights_of(node).items():
            edge = record.edges.get(after) if record is not None else None
            gap_s = edge.gap_s / edge.gaps if edge is not None and edge.gaps > 0 else None
            found.append(Next(node=after, weight=weight, gap_s=gap_s, prefix=self.prefix(after)))
        return sorted(found, key=lambda n: (-n.weight, n.node))

    def prefix(self, node: str) -> tuple[tuple[int, int], ...]:
        """The beginning of the prompt that the node's calls share: (hash, tokens) parts; empty until it is certain."""
        record = self._nodes.get(node)
        return tuple(record.prefix) if record is not None and record.prefix_seen >= 2 else ()

    def remaining(self, *active: str) -> Remaining:
        """What is still to come after these nodes, which are running or have just ended, beside each other."""
        solution = self._solved()
        sum_of = Remaining()
        for node in active:
            if (total := solution.get(node)) is not None:
                own = self._own(node)
                steps, tokens, seconds, context = (max(t - o, 0.0) for t, o in zip(total, own, strict=True))
                sum_of = sum_of.plus(
                    Remaining(steps=steps, output_tokens=tokens, seconds=seconds, context_tokens=context)
                )
        return sum_of

    def whole(self) -> Remaining:
        """What a program is expected to take from its first step on."""
        solution, begun = self._solved(), sum(self._starts.values())
        starts: Mapping[str, float] = {n: c / begun for n, c in self._starts.items()} if begun > 0 else {}
        if not starts and self._declared is not None:
            first = self._first_declared()
            starts = {node: share / (sum(first.values()) or 1.0) for node, share in first.items()}
        figures = [
            sum(share * solution[n][k] for n, share in starts.items() if n in solution) for k in range(4)
        ]
        return Remaining(
            steps=figures[0], output_tokens=figures[1], seconds=figures[2], context_tokens=figures[3]
        )

    def _first_declared(self) -> dict[str, float]:
        assert self._declared is not None
        starts = self._declared.starts()
        weights = {**self._declared.weights(), "": dict.fromkeys(starts, 1.0)}
        return collapsed(weights, [*self._prior, ""])[""]

    def steps_to(self, *now: str) -> dict[str, int]:
        """In how many steps each node can run, at the earliest, if these run now; joins wait for all branches."""
        joins = self._declared.joins() if self._declared is not None else {}
        return steps_to_execution(self.weights(), now, joins)

    def hops(self, source: str, target: str) -> tuple[float, float]:
        """The chance to come to the target after the source, and in how many steps then."""
        return hops(self.weights(), source, target)

    def critical_path(self, start: str) -> tuple[list[str], float]:
        """The nodes that decide when a program ends which is now at `start`, and the seconds along them."""
        times = self._times()
        return critical_path(times, {node: self._own(node)[2] for node in times}, start)

    def _times(self) -> dict[str, dict[str, float]]:
        """Weights for time: what is waited for counts in full, however many wait for it."""
        return {node: self._weights_of(node, shared=False) for node in self.nodes()}

    def _own(self, node: str) -> tuple[float, float, float, float]:
        """A visit's own steps, output tokens, seconds with the gap after it, and growth."""
        record = self._nodes.get(node)
        said = self._declared.node(node) if self._declared is not None else None
        pretended = self._prior_programs * self._unit if said is not None or record is None else 0.0
        prior_tokens = (
            said.output_tokens if said is not None and said.output_tokens is not None else OUTPUT_TOKENS_GUESS
        )
        prior_seconds = (
            said.duration_s if said is not None and said.duration_s is not None else STEP_SECONDS_GUESS
        )
        record = record or NodeRecord()
        count = record.visits + pretended or 1.0
        gaps_s = sum(edge.gap_s / edge.gaps * edge.count for edge in record.edges.values() if edge.gaps > 0)
        after_s = gaps_s / record.departures if record.departures > 0 else 0.0
        calls = said.calls if said is not None and record.visits < pretended else 1.0
        return (
            calls,
            (record.output_tokens + pretended * prior_tokens) / count,
            (record.seconds + pretended * prior_seconds) / count + after_s,
            record.context_tokens / count,
        )

    def _solved(self) -> dict[str, list[float]]:
        """The expected totals from each node on; computed anew when enough has been observed since."""
        since = self._observed - self._solved_at
        if not self._solution or since > 1 + STALE_SHARE * min(self._observed, 4 * MEMORY_PROGRAMS):
            weights, own = self.weights(), {node: self._own(node) for node in self.nodes()}
            self._solution = totals(weights, own)
            if any(sum(row.values()) > PARALLEL_MIN for row in weights.values()):  # steps beside each other
                for node, left_s in seconds_left(self._times(), {n: o[2] for n, o in own.items()}).items():
                    self._solution[node][2] = left_s
            self._solved_at = self._observed
        return self._solution

    # -- keeping ----------------------------------------------------------------------------------------------

    def merge(self, other: LearnedGraph) -> None:
        """Add what another gateway saw of the same workflow; each side's newest programs count the same."""
        factor = self._unit / other._unit
        self._programs += other._programs * factor
        for node, count in other._starts.items():
            self._starts[node] = self._starts.get(node, 0.0) + count * factor
        for node, theirs in other._nodes.items():
            scaled = records.copied(theirs)
            records.scale(scaled, factor)
            records.add(self._record(node), scaled)
        if self._declared is None and other._declared is not None:
            self.declare(other._declared)
        self._solution = {}

    def to_bytes(self) -> bytes:
        """What was learned; the declaration is kept by whoever made it."""
        return records.to_bytes(
            GraphRecord(
                version=records.RECORD_VERSION,
                unit=self._unit,
                programs=self._programs,
                nodes=self._nodes,
                starts=self._starts,
            )
        )

    @classmethod
    def from_bytes(cls, kept: bytes, *, declared: WorkflowGraph | None = None) -> LearnedGraph | None:
        """What `to_bytes` gave, or None when it is damaged or of another version."""
        record = records.from_bytes(kept)
        if record is None:
            return None
        graph = cls(declared=declared)
        graph._unit, graph._programs = record.unit, record.programs
        graph._nodes, graph._starts = record.nodes, record.starts
        return graph

    def check(self) -> None:
        """Counts are sound and bounds hold."""
        if len(self._nodes) > self._nodes_max or len(self._starts) > self._nodes_max:
            raise InvariantBroken("a learned graph has more nodes than it may")
        for name, record in self._nodes.items():
            if (
                len(record.edges) > EDGES_OF_NODE_MAX
                or min(record.visits, record.departures, record.ends) < 0
            ):
                raise InvariantBroken(f"node {name!r} has too many edges or a negative count")
            if record.ends > record.departures * (1 + 1e-9):
                raise InvariantBroken(f"more programs ended after {name!r} than left it")


def _without_end(prior: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    prior.pop(END, None)
    return prior
