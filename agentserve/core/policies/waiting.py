"""The line of programs that wait for a seat: fair between tenants, by key within one.

Rule: a key is static, so that a heap holds it, until somebody ranks the program anew; joining, leaving and being ranked
cost O(log n) in the programs that wait. Who is next takes a look at each tenant that waits only once the one that had
the least service has come up to what the next had then: no one's service ever shrinks. Who may be seated where is not
known here: where different engines serve different models, those who wait for full ones hold up nobody who wants
others. Those of a pipeline stand by the role that their next step has, so that the first of each can be told. Those
that need next to nothing stand apart too: who waits for much room holds none of them up.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from agentserve.core.fairness import Account, Accounts
from agentserve.core.ids import EngineId, ProgramId, TenantId
from agentserve.core.program import Program, Step

_NONE: Mapping[TenantId, Lane] = {}
ROLES_MAX = 32  # that stand apart; those of any more stand with those of none
NO_ROLE = 0
SMALL = -1  # in place of a role: of those that need next to nothing
LEFT_MAX = 64  # entries of programs that left, beyond as many as wait, that a lane's heap keeps


Engines = tuple[EngineId, ...]
Wanted = tuple[Engines, int]  # and the role
Room = tuple[Engines, bool]  # that may be full, and whether it is that of small ones


@dataclass(slots=True, eq=False)
class Queued:
    """A program without a seat, and its waiting steps; without any it is expected, and waits until `expected_until`."""

    program: Program
    key: float
    engines: Engines = ()  # that serve the model of its steps
    role: int = NO_ROLE  # whose prompt, by its hash, its next step begins with
    lane: Lane | None = None  # that it stands in
    steps: list[Step] = field(default_factory=list)
    expected_until: float = 0.0

    @property
    def room(self) -> Room:
        """What it waits for."""
        return self.engines, self.role == SMALL


@dataclass(slots=True, eq=False)
class Lane:
    """One tenant's part of the line for some engines in some role; there is none where nobody waits."""

    tenant: TenantId
    account: Account
    heap: list[tuple[float, ProgramId]] = field(default_factory=list)
    waiting: int = 0  # programs; the heap may have more entries, of some that left
    head: Queued | None = None  # who is first in it, once that was looked up


class Line:
    """All of them, a lane for each tenant."""

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts
        self._queued: dict[ProgramId, Queued] = {}
        self._lanes: dict[Wanted, dict[TenantId, Lane]] = {}  # none that nobody waits for
        self._gap = 0.0  # between the tenants that waited when somebody was last asked for
        self._leads: Lane | None = None  # of whose tenant was found to have the least service
        self._level = -math.inf  # what all others have at least: service never shrinks

    def __len__(self) -> int:
        return len(self._queued)

    def __bool__(self) -> bool:
        return bool(self._queued)

    @property
    def tenants(self) -> list[TenantId]:
        """Tenants that wait."""
        return list(dict.fromkeys(tenant for lanes in self._lanes.values() for tenant in lanes))

    @property
    def rooms(self) -> int:
        """How many kinds of room are waited for: one, where all engines serve all models and nobody is small."""
        if len(self._lanes) == 1:  # nearly always
            return 1
        return len({(engines, role == SMALL) for engines, role in self._lanes})

    def join(
        self, program: Program, key: float, now: float, engines: Engines = (), role: int = NO_ROLE
    ) -> Queued:
        """The program waits, its record hung on it."""
        if program.tenant not in self._lanes.get((engines, role), _NONE):
            waiting = self.tenants
            if program.tenant not in waiting:
                self.accounts.rejoin(program.tenant, waiting, now)
        queued = program.own = self._queued[program.id] = Queued(program, key, engines, role)
        self._stand(queued, now)
        return queued

    def leave(self, program: Program) -> Queued:
        """Out of the line; its heap entry is skipped when it comes up."""
        program.own = None
        queued = self._queued.pop(program.id)
        self._step_out(queued)
        return queued

    def rank(self, queued: Queued, key: float, role: int, now: float) -> None:
        """From now on it stands elsewhere; its tenant has waited all the while."""
        self._step_out(queued)
        queued.key, queued.role = key, role
        self._stand(queued, now)

    def everyone(self) -> list[Queued]:
        """Who waits, the longest first."""
        return list(self._queued.values())

    def _stand(self, queued: Queued, now: float) -> None:
        program, engines, role = queued.program, queued.engines, queued.role
        if role != NO_ROLE and (engines, role) not in self._lanes and len(self._lanes) >= ROLES_MAX:
            role = queued.role = NO_ROLE
        lanes = self._lanes.setdefault((engines, role), {})
        lane = lanes.get(program.tenant)
        if lane is None:
            lane = lanes[program.tenant] = Lane(program.tenant, self.accounts.account(program.tenant, now))
            self._leads = None
        queued.lane = lane
        lane.waiting += 1
        entry = (queued.key, program.id)
        heapq.heappush(lane.heap, entry)
        if lane.heap[0] is entry:
            lane.head = queued

    def _step_out(self, queued: Queued) -> None:
        wanted, lane = (queued.engines, queued.role), queued.lane
        queued.lane = None
        if lane is None:
            return
        lane.waiting -= 1
        if lane.head is queued:
            lane.head = None
        if not lane.waiting:
            lanes = self._lanes[wanted]
            del lanes[lane.tenant]
            self._leads = None
            if not lanes:
                del self._lanes[wanted]
        elif len(lane.heap) > LEFT_MAX + 2 * lane.waiting:
            lane.heap = [e for e in lane.heap if self._stands(e, lane) is not None]
            heapq.heapify(lane.heap)

    def _stands(self, entry: tuple[float, ProgramId], lane: Lane) -> Queued | None:
        """Whom an entry is of, unless he left or stands elsewhere by now."""
        key, program_id = entry
        queued = self._queued.get(program_id)
        return queued if queued is not None and queued.key == key and queued.lane is lane else None

    def is_first(self, queued: Queued) -> bool:
        """Does nobody of its tenant stand before it?"""
        lane = queued.lane
        return lane is None or lane.head is queued or lane.head is None

    def next(self, now: float, full: Container[Room] = ()) -> Queued | None:
        """Who goes next: the tenant with the least service, then the smallest key; nobody who wants what is `full`."""
        if not full:
            self._gap = 0.0
        if len(self._lanes) == 1:  # nearly always
            (((engines, role), lanes),) = self._lanes.items()
            if (engines, role == SMALL) in full:
                return None
            lane = self._leads if self._leads_still(now) else self._first(lanes, now)
            return None if lane is None else lane.head
        first: Queued | None = None
        before: tuple[float, TenantId, float, ProgramId] | None = None
        for (engines, role), lanes in list(self._lanes.items()):
            if (engines, role == SMALL) in full:
                continue
            lane = self._first(lanes, now)
            if lane is None or lane.head is None:
                continue
            rank = (lane.account.now(now), lane.tenant, lane.head.key, lane.head.program.id)
            if before is None or rank < before:
                first, before = lane.head, rank
        return first

    def heads(self, queued: Queued, now: float) -> list[Queued]:
        """Of its tenant and for the same engines, who is first in each role."""
        heads = []
        for (engines, _), lanes in list(self._lanes.items()):
            lane = lanes.get(queued.program.tenant)
            if lane is None or engines != queued.engines:
                continue
            head = self._head(lane, now)
            if head is not None:
                heads.append(head)
        return heads

    def _leads_still(self, now: float) -> bool:
        """Has the tenant that had the least service when all were looked at surely the least now?"""
        lane = self._leads
        if lane is None or self._head(lane, now) is None:
            return False
        return lane.account.now(now) < self._level

    def _first(self, lanes: Mapping[TenantId, Lane], now: float) -> Lane | None:
        """The lane of the tenant with the least service, its head looked up."""
        first: Lane | None = None
        least = second = math.inf
        most = -math.inf
        for lane in list(lanes.values()):
            if self._head(lane, now) is None:
                continue
            service = lane.account.now(now)
            if service > most:
                most = service
            if service < least or (service == least and first is not None and lane.tenant < first.tenant):
                first, least, second = lane, service, least
            elif service < second:
                second = service
        if most - least > self._gap:
            self._gap = most - least
        self._leads, self._level = first, second
        return first

    def _head(self, lane: Lane, now: float) -> Queued | None:
        """Who is first in it."""
        head = lane.head
        if head is not None and (head.steps or now <= head.expected_until):
            return head
        return self._settled(lane, now)

    def _settled(self, lane: Lane, now: float) -> Queued | None:
        """The lane's first who still waits; entries of programs that do not are dropped on the way."""
        while lane.waiting:
            queued = self._stands(lane.heap[0], lane)
            if queued is not None:
                if queued.steps or now <= queued.expected_until:
                    lane.head = queued
                    return queued
                self.leave(queued.program)
            else:
                heapq.heappop(lane.heap)
        return None

    def look_again(self) -> None:
        """Whoever is asked for next, all tenants are looked at: the gap between them is known only then."""
        self._leads = None

    def note_gap(self) -> None:
        """Nobody is seated any more: keep the largest gap ever seen between tenants that wait for the same room."""
        if self._gap:
            self.accounts.note_gap(self._gap)
