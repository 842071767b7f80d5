"""Bays: what the literature's queueing policies have charged to each engine, in flight and reserved.

Rule: a bay only adds up. A charge stands from when it is taken until it is given back; segments that programs share are
charged once, whoever brought them. Who goes where, and what is reserved for how long, is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from agentserve.core.events import Segment
from agentserve.core.fleet import Engine
from agentserve.core.ids import EngineId, ProgramId
from agentserve.core.program import Program, Step
from agentserve.errors import InvariantBroken


@dataclass(slots=True, eq=False)
class Charge:
    """What a step in flight, or an idle program's KV, takes of a bay beyond what others share with it."""

    bay: Bay
    path: tuple[Segment, ...]
    tokens: int


@dataclass(slots=True, eq=False)
class Kept(Charge):
    """A reservation for an idle program."""

    since: float
    until: float


@dataclass(slots=True, eq=False)
class Standing:
    """What a queueing policy notes of a program; it hangs on `program.own`. Policies may extend it."""

    engine: EngineId | None = None
    kept: Kept | None = None
    gap_since: float | None = None  # its latest gap, until `returned` was told of the end
    tool: str = ""  # what it waits for in it


@dataclass(slots=True, eq=False)
class Bay:
    """One engine's ledger."""

    engine: Engine
    load: int = 0  # tokens in flight and reserved, shared prefixes once
    residents: int = 0  # live programs that call it home
    kept: dict[ProgramId, Program] = field(default_factory=dict)  # the oldest reservation first

    def fits(self, step: Step, kept: Kept | None, room: float) -> bool:
        """Has the engine a place, and this share of its KV room for the step, in what is `kept` for its program too?"""
        if self.engine.seqs_free() <= 0:
            return False
        need = self.own_need(step) + self.engine.prefixes.missing(step.program.prefix)
        spared = kept.tokens if kept is not None and kept.bay is self else 0
        return self.load + need - spared <= room * self.engine.kv_tokens

    def own_need(self, step: Step) -> int:
        """KV tokens of the step beyond those that its program may share."""
        return max(step.prompt_tokens + int(step.output_tokens) - step.program.shared_tokens, 0)

    def take(self, step: Step) -> Charge:
        """The step is here now."""
        charge = Charge(self, step.program.prefix, self.own_need(step))
        self._add(charge)
        return charge

    def keep(self, program: Program, since: float, until: float) -> Kept:
        """What the program left stays here for so long."""
        tokens = max(program.context_tokens - program.shared_tokens, 0)
        kept = Kept(self, program.prefix, tokens, since=since, until=until)
        self._add(kept)
        self.kept[program.id] = program
        return kept

    def release(self, program: Program, kept: Kept) -> None:
        """It need not stay."""
        self.give_back(kept)
        del self.kept[program.id]

    def give_back(self, charge: Charge) -> None:
        """The charge is over."""
        self.load -= charge.tokens + self.engine.prefixes.drop(charge.path)

    def _add(self, charge: Charge) -> None:
        self.load += charge.tokens + self.engine.prefixes.take(charge.path)

    def check(self, charges: Iterable[Charge]) -> None:
        """What stands in the ledger is what these add up to."""
        charges = list(charges)
        shared = {s.hash: s.tokens for c in charges for s in c.path}
        total = sum(c.tokens for c in charges) + sum(shared.values())
        if total != self.load:
            raise InvariantBroken(f"{self.engine.id}: charges add up to {total}, its ledger says {self.load}")
