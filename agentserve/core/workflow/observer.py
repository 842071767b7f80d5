"""Learns every workflow's step graph from the scheduler's events.

    graphs = StepGraphs()
    graphs.tell(event, now)                  each event, in order
    graphs.remaining(program)                what is still to come of it
    graphs.graph(tenant, workflow)           the learned graph, to show or to keep

Rule: it only looks. A workflow is a tenant's: its name, or, where none was given, the role that its programs begin
with. Memory is bounded in workflows, programs, and steps of each; what is forgotten is only known less well.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from agentserve.core import events as ev
from agentserve.core.audience import Hears
from agentserve.core.workflow.declared import WorkflowGraph
from agentserve.core.workflow.learned import LearnedGraph, Next, Remaining, node_name

WORKFLOWS_MAX = 2_000
PROGRAMS_MAX = 200_000
PROGRAM_IDLE_S = 1800.0  # a program unheard of for so long is not followed any more
EXPIRED_AT_ONCE_MAX = 1_000
FRONTIER_MAX = 64  # steps of one program that ended and of which none followed yet
PENDING_MAX = 256  # tool calls of one program whose results are awaited
RUNNING_MAX = 256  # steps of one program at once

Key = tuple[str, str]  # tenant, workflow


@dataclass(slots=True)
class _Step:
    """A step that runs."""

    node: str
    previous: tuple[str, ...]
    beside: bool
    arrived_at: float
    gap_s: float | None
    prefix: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class _Program:
    """Where one program stands in its graph."""

    key: Key
    seen_at: float
    frontier: dict[str, int] = field(
        default_factory=dict
    )  # node -> steps of it that ended, with none after them yet
    origin: tuple[str, ...] = ()  # where the steps that run now came from
    running: dict[str, _Step] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)  # id of an awaited call -> its tool
    last_at: float | None = None
    context_tokens: int = 0
    begun: bool = False
    over: bool = False  # its last step ended, though others of it may run still


def workflow_key(tenant: str, workflow: str | None, role: int) -> Key:
    """Whose graph a program's steps teach."""
    return tenant, workflow if workflow is not None else f"role-{role & 0xFFFFFFFF:08x}"


class StepGraphs:
    """All workflows' graphs."""

    def __init__(
        self,
        *,
        workflows_max: int = WORKFLOWS_MAX,
        programs_max: int = PROGRAMS_MAX,
        program_idle_s: float = PROGRAM_IDLE_S,
    ) -> None:
        self._workflows_max = workflows_max
        self._programs_max = programs_max
        self._idle_s = program_idle_s
        self._graphs: OrderedDict[Key, LearnedGraph] = OrderedDict()
        self._programs: OrderedDict[str, _Program] = OrderedDict()
        self._steps: dict[str, str] = {}  # running step -> its program
        self._changed: dict[Key, None] = {}
        self.hears: Hears = {
            ev.StepArrived: self._arrived,
            ev.StepFinished: self._finished,
            ev.StepFailed: self._dropped,
            ev.ClientGone: self._dropped,
            ev.ProgramDeclared: self._declared,
            ev.ProgramEnded: self._ended,
            ev.TimerFired: self._expire,
        }

    # -- looking ----------------------------------------------------------------------------------------------

    def tell(self, event: ev.Event, now: float) -> None:
        """One event of the scheduler's."""
        told = self.hears.get(type(event))
        if told is not None:
            told(event, now)

    def _declared(self, event: ev.ProgramDeclared, now: float) -> None:
        if event.program not in self._programs and event.workflow is not None:
            self._begin(event.program, workflow_key(event.tenant, event.workflow, 0), now)

    def _begin(self, program: str, key: Key, now: float) -> _Program:
        if len(self._programs) >= self._programs_max:
            self._forget(next(iter(self._programs)))
        state = self._programs[program] = _Program(key=key, seen_at=now)
        return state

    def _expire(self, event: ev.TimerFired, now: float) -> None:
        """Forget programs of which nothing was heard for long; how they ended is not known, and teaches nothing."""
        for _ in range(min(EXPIRED_AT_ONCE_MAX, len(self._programs))):
            program, state = next(iter(self._programs.items()))
            if state.seen_at + self._idle_s > now:
                return
            if state.running:
                self._seen(program, state, now)
            else:
                self._forget(program)

    def _seen(self, program: str, state: _Program, now: float) -> None:
        state.seen_at = now
        self._programs.move_to_end(program)

    def _forget(self, program: str) -> _Program:
        state = self._programs.pop(program)
        for step in state.running:
            self._steps.pop(step, None)
        return state

    def _arrived(self, event: ev.StepArrived, now: float) -> None:
        if event.relation in ("auxiliary", "retry") or event.step in self._steps:
            return
        state = self._programs.get(event.program)
        if state is None:
            state = self._begin(event.program, workflow_key(event.tenant, event.workflow, event.role), now)
        self._seen(event.program, state, now)
        returned = [state.tools.pop(call) for call in event.returned if call in state.tools]
        node = node_name(role=event.role, tools=returned, declared=event.node)
        beside = bool(state.running) and (event.relation == "fork" or not state.frontier)
        if not beside:
            state.origin = tuple(node for node, count in state.frontier.items() for _ in range(count))
            state.frontier.clear()
        if len(state.running) >= RUNNING_MAX:
            return
        gap_s = now - state.last_at if state.last_at is not None and not event.human else None
        prefix = tuple((part.hash, part.tokens) for part in event.prefix)
        state.running[event.step] = _Step(
            node, state.origin, beside and bool(state.origin), now, gap_s, prefix
        )
        self._steps[event.step] = event.program

    def _finished(self, event: ev.StepFinished, now: float) -> None:
        program = self._steps.pop(event.step, None)
        if program is None:
            return
        state = self._programs[program]
        self._seen(program, state, now)
        step = state.running.pop(event.step)
        context = event.prompt_tokens + event.output_tokens
        self._graph(state.key).observe_step(
            step.node,
            previous=step.previous,
            begins=not state.begun,
            output_tokens=event.output_tokens,
            context_tokens=max(context - state.context_tokens, 0),
            seconds=now - step.arrived_at,
            gap_s=step.gap_s,
            beside=step.beside,
            prefix=step.prefix,
        )
        state.begun = True
        state.last_at, state.context_tokens = now, context
        if sum(state.frontier.values()) < FRONTIER_MAX:
            state.frontier[step.node] = state.frontier.get(step.node, 0) + 1
        for tool in event.tools:
            if len(state.tools) < PENDING_MAX:
                state.tools[tool.id] = tool.name
        state.over = state.over or event.final
        self._close_if_over(program, state)

    def _dropped(self, event: ev.StepFailed | ev.ClientGone, now: float) -> None:
        """A step that failed was none, unless it is tried again, which is told as a retry of the same step."""
        if isinstance(event, ev.StepFailed) and event.retryable:
            return
        program = self._steps.pop(event.step, None)
        if program is None:
            return
        state = self._programs[program]
        step = state.running.pop(event.step)
        if not state.running and not step.beside:
            for node in step.previous:  # the program stands where it stood before
                state.frontier[node] = state.frontier.get(node, 0) + 1
        self._close_if_over(program, state)

    def _ended(self, event: ev.ProgramEnded, now: float) -> None:
        if event.program in self._programs:
            self._close(event.program)

    def _close_if_over(self, program: str, state: _Program) -> None:
        if state.over and not state.running:
            self._close(program)

    def _close(self, program: str) -> None:
        """Where it stood is where its like end."""
        state = self._forget(program)
        graph = self._graph(state.key)
        for node, count in state.frontier.items():
            for _ in range(count):
                graph.observe_end(node)

    def _graph(self, key: Key) -> LearnedGraph:
        graph = self._graphs.get(key)
        if graph is None:
            if len(self._graphs) >= self._workflows_max:
                oldest, _ = self._graphs.popitem(last=False)
                self._changed.pop(oldest, None)
            graph = self._graphs[key] = LearnedGraph()
        self._graphs.move_to_end(key)
        self._changed[key] = None
        return graph

    # -- asking -----------------------------------------------------------------------------------------------

    def graph(self, tenant: str, workflow: str) -> LearnedGraph | None:
        """A workflow's graph."""
        return self._graphs.get((tenant, workflow))

    def workflows(self) -> list[Key]:
        """All workflows with a graph, the least recently seen first."""
        return list(self._graphs)

    def standing(self, program: str) -> tuple[str, ...]:
        """The nodes at which the program stands: its running steps, and those that ended with none after them."""
        state = self._programs.get(program)
        if state is None:
            return ()
        ended = [node for node, count in state.frontier.items() for _ in range(count)]
        return (*(step.node for step in state.running.values()), *ended)

    def remaining(self, program: str) -> Remaining | None:
        """What is still to come of the program after the steps that run; None when its workflow is not known."""
        state = self._programs.get(program)
        graph = self._graphs.get(state.key) if state is not None else None
        if state is None or graph is None:
            return None
        standing = self.standing(program)
        return graph.remaining(*standing) if standing else graph.whole()

    def next_nodes(self, program: str) -> list[Next]:
        """What may come next in the program, the likeliest first."""
        state = self._programs.get(program)
        graph = self._graphs.get(state.key) if state is not None else None
        if graph is None:
            return []
        best: dict[str, Next] = {}
        for node in dict.fromkeys(self.standing(program)):
            for after in graph.next_nodes(node):
                if after.node not in best or best[after.node].weight < after.weight:
                    best[after.node] = after
        return sorted(best.values(), key=lambda n: (-n.weight, n.node))

    # -- keeping ----------------------------------------------------------------------------------------------

    def declare(self, tenant: str, workflow: str, graph: WorkflowGraph) -> None:
        """A client declared the workflow's graph: it serves until traffic teaches better."""
        self._graph((tenant, workflow)).declare(graph)

    def take_changed(self) -> list[tuple[str, str, bytes]]:
        """The graphs that changed since this was last asked: tenant, workflow, and the bytes to keep."""
        changed, self._changed = self._changed, {}
        return [(*key, self._graphs[key].to_bytes()) for key in changed if key in self._graphs]

    def restore(
        self, tenant: str, workflow: str, kept: bytes, *, declared: WorkflowGraph | None = None
    ) -> bool:
        """Take a kept graph in again; False when it cannot be read."""
        graph = LearnedGraph.from_bytes(kept, declared=declared)
        if graph is None:
            return False
        self._graphs[tenant, workflow] = graph
        return True
