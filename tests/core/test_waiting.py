"""The line: who goes next is who a plain search over all that wait would find, and what left it is forgotten."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.core.fairness import Accounts
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId
from agentserve.core.policies.waiting import LEFT_MAX, NO_ROLE, ROLES_MAX, SMALL, Line, Queued
from agentserve.core.program import Program, Step


def program(name: str, tenant: str = "t") -> Program:
    return Program(id=ProgramId(name), tenant=TenantId(tenant), created_at=0.0)


def wait(line: Line, waiting: Program, key: float, now: float = 0.0, role: int = NO_ROLE) -> Queued:
    queued = line.join(waiting, key, now, role=role)
    step = Step(
        id=StepId(f"{waiting.id}/0"), program=waiting, arrived_at=now, prompt_tokens=1, output_tokens=1.0
    )
    queued.steps.append(step)
    return queued


def searched(waiting: Mapping[str, Queued], accounts: Accounts, now: float) -> Queued | None:
    """Who is next, by looking at all."""
    services = accounts.services(now)
    return min(
        waiting.values(),
        key=lambda q: (services[q.program.tenant], q.program.tenant, q.key, q.program.id),
        default=None,
    )


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(0, 5),
            st.integers(0, 3),
            st.booleans(),
            st.one_of(st.none(), st.integers(0, 3)),
        ),
        max_size=60,
    )
)
def test_who_is_next_is_who_a_search_over_all_would_find(
    moves: list[tuple[str, int, int, bool, int | None]],
) -> None:
    accounts = Accounts(lambda _: 1.0)
    line = Line(accounts)
    programs = {f"{t}{i}": program(f"{t}{i}", t) for t in "abc" for i in range(6)}
    waiting: dict[str, Queued] = {}
    now = 0.0
    for tenant, number, key, held, anew in moves:
        now += 1.0
        name = f"{tenant}{number}"
        if name in waiting and anew is not None:
            service = accounts.services(now)
            line.rank(waiting[name], float(key), anew, now)
            assert accounts.services(now) == service, "its tenant has waited all the while"
        elif name in waiting:
            line.leave(programs[name])
            del waiting[name]
        else:
            waiting[name] = wait(line, programs[name], float(key), now, number % 3)
        if held:
            accounts.hold(TenantId(tenant), 10 * key, now)
        assert line.next(now) is searched(waiting, accounts, now)
        assert len(line) == len(waiting)
        for queued in waiting.values():
            alike = [q for q in waiting.values() if q.program.tenant == queued.program.tenant]
            firsts = {q.role: q for q in sorted(alike, key=lambda q: (q.key, q.program.id), reverse=True)}
            assert {q.role: q for q in line.heads(queued, now)} == firsts
            assert line.is_first(queued) == (firsts[queued.role] is queued)
        assert set(line.tenants) == {q.program.tenant for q in waiting.values()}


def test_an_expected_program_waits_no_longer_than_it_said() -> None:
    line = Line(Accounts(lambda _: 1.0))
    expected, other = program("expected"), program("other")
    line.join(expected, 0.0, 0.0).expected_until = 5.0
    wait(line, other, 1.0)
    first = line.next(5.0)
    assert first is not None
    assert first.program is expected
    second = line.next(5.1)
    assert second is not None
    assert second.program is other
    assert expected.own is None


def test_who_waits_for_full_engines_holds_up_nobody_who_waits_for_others() -> None:
    line = Line(Accounts(lambda _: 1.0))
    here, there = (EngineId("here"),), (EngineId("there"), EngineId("here"))
    line.join(program("best"), 0.0, 0.0, here).expected_until = 9.0
    line.join(program("worst", "u"), 2.0, 0.0, there).expected_until = 9.0
    line.join(program("second"), 1.0, 0.0, there).expected_until = 9.0
    assert line.rooms == 2
    assert line.tenants == ["t", "u"]
    order = []
    while (queued := line.next(0.0, ((here, False),))) is not None:
        order.append(queued.program.id)
        line.leave(queued.program)
    assert order == ["second", "worst"]
    first = line.next(0.0)
    assert first is not None
    assert first.program.id == "best"


def test_who_wants_little_is_not_held_up_by_who_wants_much() -> None:
    line = Line(Accounts(lambda _: 1.0))
    here = (EngineId("here"),)
    line.join(program("much"), 0.0, 0.0, here).expected_until = 9.0
    line.join(program("little"), 1.0, 0.0, here, SMALL).expected_until = 9.0
    first, other = line.next(0.0), line.next(0.0, ((here, False),))
    assert first is not None
    assert first.program.id == "much", "where both could go, the smaller key goes first"
    assert other is not None
    assert other.program.id == "little"


def test_no_more_roles_stand_apart_than_can_be_looked_at() -> None:
    line = Line(Accounts(lambda _: 1.0))
    for i in range(1, 3 * ROLES_MAX):
        wait(line, program(f"p{i}"), float(i), role=i)
    first = line.next(0.0)
    assert first is not None
    assert len(line.heads(first, 0.0)) <= ROLES_MAX + 1
    for i in range(1, 3 * ROLES_MAX):
        queued = line.next(0.0)
        assert queued is not None
        assert queued.program.id == f"p{i}"
        line.leave(queued.program)
    assert not line


def test_of_one_tenant_the_smaller_key_goes_first_whatever_engines_it_waits_for() -> None:
    line = Line(Accounts(lambda _: 1.0))
    line.join(program("later"), 5.0, 0.0, (EngineId("a"),)).expected_until = 9.0
    line.join(program("sooner"), 4.0, 0.0, (EngineId("b"),)).expected_until = 9.0
    first = line.next(0.0)
    assert first is not None
    assert first.program.id == "sooner"


def test_a_tenant_earns_no_credit_while_none_of_its_programs_waits() -> None:
    accounts = Accounts(lambda _: 1.0)
    line = Line(accounts)
    accounts.hold(TenantId("busy"), 100, 0.0)
    first, second = program("first", "away"), program("second", "away")
    wait(line, first, 0.0, 0.0)
    line.leave(first)  # and nobody asks who is next before the tenant is back
    wait(line, second, 0.0, 50.0)
    assert accounts.services(50.0)[TenantId("away")] == 5000.0


def test_what_left_the_line_does_not_pile_up_behind_one_who_waits() -> None:
    line = Line(Accounts(lambda _: 1.0))
    wait(line, program("stays"), -1.0)
    for i in range(1000):
        passing = program(f"p{i}")
        wait(line, passing, float(i))
        line.leave(passing)
    (lane,) = line._lanes[((), NO_ROLE)].values()
    assert len(lane.heap) <= LEFT_MAX + 3
    first = line.next(0.0)
    assert first is not None
    assert first.program.id == "stays"
