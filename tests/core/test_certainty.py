"""Kinds of gaps that cannot be foretold are asked about ever less, and again as soon as one can be."""

from __future__ import annotations

from agentserve.core.events import PendingTool
from agentserve.core.ids import ProgramId, TenantId
from agentserve.core.policies.certainty import KINDS_MAX, PASSED_MAX, TRIES, Certainty
from agentserve.core.program import Program


def in_a_gap(tool: str, tenant: str = "t") -> Program:
    program = Program(id=ProgramId("p"), tenant=TenantId(tenant), created_at=0.0)
    program.calls = {"c": PendingTool(id="c", name=tool)}
    return program


def asked(certainty: Certainty, program: Program, gaps: int, *, certain: bool = False) -> list[bool]:
    """Of so many gaps, which were asked about."""
    was = []
    for _ in range(gaps):
        was.append(certainty.worth_asking(program))
        if was[-1]:
            certainty.found(program, certain=certain)
    return was


def test_a_kind_that_is_never_certain_is_asked_about_ever_less() -> None:
    certainty = Certainty()
    was = asked(certainty, in_a_gap("bash"), 1_000)
    assert all(was[:TRIES])
    assert sum(was[500:]) <= 500 // PASSED_MAX + 1
    assert sum(was[500:]) >= 500 // (PASSED_MAX + 1), "once in a while it is"


def test_one_that_was_certain_makes_its_kind_worth_asking_about() -> None:
    certainty, program = Certainty(), in_a_gap("bash")
    asked(certainty, program, 200)
    while not certainty.worth_asking(program):
        pass
    certainty.found(program, certain=True)
    assert all(asked(certainty, program, 100, certain=True))


def test_kinds_and_tenants_are_told_apart_and_bounded() -> None:
    certainty = Certainty()
    asked(certainty, in_a_gap("bash"), 200)
    assert asked(certainty, in_a_gap("read"), 1) == [True]
    assert asked(certainty, in_a_gap("bash", "u"), 1) == [True]
    for i in range(KINDS_MAX):
        certainty.found(in_a_gap(f"tool{i}"), certain=False)
    assert len(certainty._kinds) == KINDS_MAX
