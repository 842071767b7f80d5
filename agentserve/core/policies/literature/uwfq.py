"""UWFQ, user weighted fair queuing: two levels of virtual finish times, tenants and then their programs.

Intent: fair shares between tenants and early finishes for small programs, with nothing gained by splitting one
program into many. From Spark, where it orders stages by estimated finish; here the stages are steps.
Reads: tenants' weights, and what Justitia reads for the cost of a program.

Inside a tenant a program's tag is its virtual finish under fair sharing of the tenant's service among its programs.
Between tenants each program has a deadline: in the order of those tags, `max(V, deadline of the one before) +
cost / weight`, V being the virtual time of a fair server over tenants. A tenant's many programs so line up behind each
other; a smaller newcomer moves the deadlines of its tenant's larger ones, nobody else's. The least deadline goes first.

Loses: as Justitia does, by bad forecasts and by keeping nothing for gaps; and tenants that are few and unequal in
their programs' sizes get an even share of a badly used memory.

Departs: only the abstract was at hand; the rule above is two-level virtual time as the abstract describes it. A
program's deadline is found anew only when one of its tenant's programs arrives, at a cost linear in those.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from agentserve.core.ids import ProgramId, TenantId
from agentserve.core.policies.literature.justitia import Justitia, Tagged
from agentserve.core.policies.literature.virtual_time import VirtualTime, turnover
from agentserve.core.program import Program, Step

USERS_SWEPT_FROM = 1024

Place = tuple[float, int, ProgramId]  # tag, then arrival


@dataclass(slots=True, eq=False)
class Entry:
    """A program of a tenant: live, or over before the fair server would have ended it (`program` is None)."""

    program: Program | None
    cost_s: float
    deadline: float = 0.0


@dataclass(slots=True, eq=False)
class User:
    """A tenant's programs in the order of their tags."""

    clock: VirtualTime = field(default_factory=VirtualTime)
    order: list[Place] = field(default_factory=list)
    entries: dict[ProgramId, Entry] = field(default_factory=dict)

    def forget(self, virtual: float) -> None:
        """Drop what is over, here and with the fair server."""
        gone = {n for n, e in self.entries.items() if e.program is None and e.deadline <= virtual}
        if gone:
            self.order = [o for o in self.order if o[2] not in gone]
            self.entries = {n: e for n, e in self.entries.items() if n not in gone}


class Uwfq(Justitia):
    """Two-level virtual finish times."""

    name = "uwfq"

    def setup(self) -> None:
        super().setup()
        self._users: dict[TenantId, User] = {}
        self._arrivals = 0

    def _tag(self, step: Step, now: float) -> float:
        program = step.program
        weight = self.board.share(program.tenant).weight
        cost_s = self.kv_time.of_program(step, self.board.foresight) / turnover(self.board.fleet)
        virtual = self.clock.advance(now)
        user = self._user(program.tenant, virtual)
        if user.entries.pop(program.id, None) is not None:  # the name of a program that is over, used again
            user.order = [o for o in user.order if o[2] != program.id]
        self.clock.join(cost_s, weight)
        user.clock.advance(virtual * weight)
        self._arrivals += 1
        local = (user.clock.join(cost_s), self._arrivals, program.id)
        insort(user.order, local)
        user.entries[program.id] = Entry(program, cost_s)
        self._line_up(user, local, virtual, weight, now)
        return user.entries[program.id].deadline

    def _user(self, tenant: TenantId, virtual: float) -> User:
        if len(self._users) > USERS_SWEPT_FROM:
            for other in self._users.values():
                other.forget(virtual)
            self._users = {t: u for t, u in self._users.items() if u.entries}
        user = self._users.get(tenant)
        if user is None:
            user = self._users[tenant] = User()
        user.forget(virtual)
        return user

    def _line_up(self, user: User, first: Place, virtual: float, weight: float, now: float) -> None:
        """Deadlines from `first` on, each behind the one before."""
        at = user.order.index(first)
        before = user.entries[user.order[at - 1][2]].deadline if at else virtual
        for _, _, program_id in user.order[at:]:
            entry = user.entries[program_id]
            entry.deadline = max(virtual, before) + entry.cost_s / weight
            before = entry.deadline
            if entry.program is not None and isinstance(entry.program.own, Tagged):
                entry.program.own.tag = entry.deadline
                for step in entry.program.open_steps.values():
                    if step.id in self._line_of:
                        self.rekey(step, now)

    def left(self, program: Program, now: float) -> None:
        user = self._users.get(program.tenant)
        entry = user.entries.get(program.id) if user is not None else None
        if entry is not None:
            entry.program = None  # its cost still stands in the tenant's line: ending early earns no credit
