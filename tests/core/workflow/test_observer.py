"""Graphs learned from the scheduler's own events."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from agentserve.core import events as ev
from agentserve.core.ids import ProgramId, StepId, TenantId, WorkflowId
from agentserve.core.workflow import StepGraphs, WorkflowGraph

SERIAL = itertools.count()


class Run:
    """One program's events."""

    def __init__(self, graphs: StepGraphs, *, workflow: str | None = "w", tenant: str = "acme") -> None:
        self.graphs, self.workflow, self.tenant = graphs, workflow, tenant
        self.program = f"p{next(SERIAL)}"
        self.now = 0.0

    def arrive(self, node: str | None, *, role: int = 1, **more: Any) -> str:
        step = f"s{next(SERIAL)}"
        workflow = WorkflowId(self.workflow) if self.workflow is not None else None
        self.graphs.tell(
            ev.StepArrived(
                step=StepId(step), program=ProgramId(self.program), tenant=TenantId(self.tenant), prompt_tokens=100,
                workflow=workflow, node=node, role=role, **more,
            ),
            self.now,
        )  # fmt: skip
        return step

    def finish(self, step: str, *tools: str, seconds: float = 2.0, final: bool = False) -> None:
        self.now += seconds
        asked = tuple(ev.PendingTool(id=f"{step}.{tool}", name=tool) for tool in tools)
        self.graphs.tell(
            ev.StepFinished(step=StepId(step), prompt_tokens=100, output_tokens=50, tools=asked, final=final),
            self.now,
        )

    def end(self) -> None:
        self.graphs.tell(ev.ProgramEnded(program=ProgramId(self.program)), self.now)


def test_a_chain_is_learned_with_its_gaps_and_ends() -> None:
    graphs = StepGraphs()
    for _ in range(10):
        run = Run(graphs)
        run.finish(run.arrive("plan"))
        run.now += 3.0
        run.finish(run.arrive("write"))
        run.end()
    graph = graphs.graph("acme", "w")
    assert graph is not None
    graph.check()
    assert graph.weights() == {"plan": {"write": pytest.approx(1.0)}, "write": {}}
    assert graph.next_nodes("plan")[0].gap_s == pytest.approx(3.0)
    assert graph.ends_after("write") == pytest.approx(1.0)
    assert graph.whole().steps == pytest.approx(2.0)


def test_a_program_that_falls_silent_is_not_followed_for_ever() -> None:
    graphs = StepGraphs(program_idle_s=60.0)
    silent, running, later = Run(graphs), Run(graphs), Run(graphs)
    silent.finish(silent.arrive("plan"))
    running.arrive("plan")
    later.now = 50.0
    later.finish(later.arrive("plan"))
    graphs.tell(ev.TimerFired(), 70.0)
    assert graphs.standing(silent.program) == ()
    assert graphs.standing(running.program) == graphs.standing(later.program) == ("plan",)
    silent.now = 71.0
    silent.finish(silent.arrive("write"))  # it was only slow
    assert graphs.standing(silent.program) == ("write",)


def test_without_names_nodes_are_roles_and_the_tools_that_returned() -> None:
    graphs = StepGraphs()
    for _ in range(5):
        run = Run(graphs, workflow=None)
        first = run.arrive(None, role=0xABC)
        run.finish(first, "bash", "read")
        run.finish(run.arrive(None, role=0xABC, returned=(f"{first}.read", f"{first}.bash")))
        run.end()
    [key] = graphs.workflows()
    assert key == ("acme", "role-00000abc")
    graph = graphs.graph(*key)
    assert graph is not None
    assert graph.weights()["00000abc"] == {"00000abc after bash,read": pytest.approx(1.0)}


def test_a_fan_out_and_its_join_are_learned_from_overlapping_steps() -> None:
    graphs = StepGraphs()
    for _ in range(20):
        run = Run(graphs)
        run.finish(run.arrive("plan"))
        steps = [run.arrive("work", relation="continues" if at == 0 else "fork") for at in range(3)]
        for step in steps:
            run.finish(step)
        run.finish(run.arrive("gather"))
        run.end()
    graph = graphs.graph("acme", "w")
    assert graph is not None
    graph.check()
    assert graph.weights()["plan"]["work"] == pytest.approx(3.0)
    assert graph.weights()["work"]["gather"] == pytest.approx(1 / 3)
    assert graph.whole().steps == pytest.approx(5.0)
    run = Run(graphs)
    run.finish(run.arrive("plan"))
    left = graphs.remaining(run.program)
    assert left is not None
    assert left.steps == pytest.approx(4.0, abs=0.1)
    assert [n.node for n in graphs.next_nodes(run.program)] == ["work"]
    assert graphs.standing(run.program) == ("plan",)


def test_retries_side_calls_and_failures_are_no_steps() -> None:
    graphs = StepGraphs()
    for _ in range(5):
        run = Run(graphs)
        run.finish(run.arrive("a"))
        run.finish(run.arrive("title", relation="auxiliary"))
        lost = run.arrive("b")
        graphs.tell(ev.StepFailed(step=StepId(lost), reason="x"), run.now)
        gone = run.arrive("b")
        graphs.tell(ev.ClientGone(step=StepId(gone)), run.now)
        run.finish(run.arrive("b"))
        run.end()
    graph = graphs.graph("acme", "w")
    assert graph is not None
    assert graph.nodes() == ["a", "b"]
    assert graph.weights()["a"] == {"b": pytest.approx(1.0)}


def test_tenants_learn_apart() -> None:
    graphs = StepGraphs()
    for tenant in ("acme", "beta"):
        run = Run(graphs, tenant=tenant)
        run.finish(run.arrive(f"node of {tenant}"))
    acme = graphs.graph("acme", "w")
    assert acme is not None
    assert acme.nodes() == ["node of acme"]


def test_a_declaration_is_the_prior_and_learning_survives_a_restart() -> None:
    declared = WorkflowGraph.parse({"steps": ["a", "b", "c"]})
    graphs = StepGraphs()
    graphs.declare("acme", "w", declared)
    run = Run(graphs)
    step = run.arrive("a")
    left = graphs.remaining(run.program)
    assert left is not None
    assert left.steps == pytest.approx(2.0)
    run.finish(step)
    [(tenant, workflow, kept)] = graphs.take_changed()
    assert graphs.take_changed() == []
    again = StepGraphs()
    assert again.restore(tenant, workflow, kept, declared=declared)
    assert not again.restore(tenant, workflow, kept[:-1])
    one, two = graphs.graph("acme", "w"), again.graph("acme", "w")
    assert one is not None
    assert two is not None
    assert one.weights() == two.weights()


def test_memory_is_bounded_whatever_comes() -> None:
    rng = random.Random(3)
    graphs = StepGraphs(workflows_max=5, programs_max=20)
    running: list[tuple[Run, str]] = []
    for _ in range(2_000):
        if running and rng.random() < 0.4:
            run, step = running.pop(rng.randrange(len(running)))
            run.finish(step, *rng.sample(["x", "y"], rng.randint(0, 2)))
            if rng.random() < 0.3:
                run.end()
        else:
            run = (
                running[0][0]
                if running and rng.random() < 0.5
                else Run(graphs, workflow=f"w{rng.randrange(9)}")
            )
            relation = rng.choice(["new", "continues", "fork", "retry", "auxiliary", "compaction"])
            running.append((run, run.arrive(rng.choice("abc"), relation=relation)))
    assert len(graphs.workflows()) <= 5
    for key in graphs.workflows():
        graph = graphs.graph(*key)
        assert graph is not None
        graph.check()


def test_a_last_step_that_says_so_is_learned_as_an_end() -> None:
    graphs = StepGraphs()
    for _ in range(10):
        run = Run(graphs)
        run.finish(run.arrive("work"))
        run.finish(run.arrive("work"), final=True)
        assert graphs.standing(run.program) == ()
    graph = graphs.graph("acme", "w")
    assert graph is not None
    graph.check()
    assert graph.ends_after("work") == pytest.approx(0.5, rel=0.02)


def test_a_program_that_is_over_ends_where_the_last_step_beside_it_does() -> None:
    graphs = StepGraphs()
    run = Run(graphs)
    run.finish(run.arrive("plan"))
    one, other, failing = (run.arrive(node) for node in ("a", "b", "c"))
    run.finish(one, final=True)
    run.finish(other)
    assert "c" in graphs.standing(run.program)
    graphs.tell(ev.StepFailed(step=StepId(failing), reason="broke"), run.now)
    assert graphs.standing(run.program) == ()
    graph = graphs.graph("acme", "w")
    assert graph is not None
    assert (graph.ends_after("a"), graph.ends_after("b")) == (1.0, 1.0)
