"""What a policy is: hooks that the scheduler calls after it changed its records, and moves made on the board.

Rule: a policy never changes a step or an engine itself; it calls the board. Its own records hang on
`program.own` or in the policy. A hook returns nothing: what it decided stands on the board.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from agentserve.core.board import Board
from agentserve.core.fleet import Engine
from agentserve.core.ids import TenantId
from agentserve.core.program import Program, Step
from agentserve.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NoParams:
    """A policy without constants."""


def _unlike(default: Any, value: Any) -> str:
    """What a constant should be that is given in another kind than its default; of flags and numbers alone."""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if not isinstance(default, (int, float)):
        return ""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return "" if number else "a number"


class Policy:
    """The root of all policies. Every hook may be left out."""

    name: ClassVar[str]
    Params: ClassVar[type] = NoParams

    def __init__(self, board: Board, params: Mapping[str, Any] | None = None) -> None:
        self.board = board
        self.params: Any = self._read(params or {})
        self.setup()

    @classmethod
    def _read(cls, given: Mapping[str, Any]) -> Any:
        known = {f.name: f.default for f in dataclasses.fields(cls.Params)}
        for key, value in given.items():
            if key in known:
                if wanted := _unlike(known[key], value):
                    raise ConfigError(f"policy {cls.name}: {key} is {value!r}", remedy=f"give it {wanted}")
            else:
                near = difflib.get_close_matches(key, known, n=1)
                remedy = f"did you mean `{near[0]}`?" if near else f"it knows {', '.join(known) or 'none'}"
                raise ConfigError(f"policy {cls.name} has no parameter `{key}`", remedy=remedy)
        return cls.Params(**given)

    def setup(self) -> None:
        """Make the policy's own records."""

    def arrived(self, step: Step, now: float) -> None:
        """A step waits: new, or back from a lost engine."""

    def started(self, step: Step, now: float) -> None:
        """The first byte came."""

    def closed(self, step: Step, now: float, *, finished: bool, engine: Engine | None) -> None:
        """A step is over; `engine` is where it was, None if it was still waiting."""

    def ended(self, program: Program, now: float) -> None:
        """A program is over; it is dropped after this."""

    def hinted(self, program: Program, now: float) -> None:
        """A tool of it started or ended, or it said when it will be back."""

    def reshared(self, tenant: TenantId, now: float) -> None:
        """What a tenant is entitled to has changed."""

    def engine_changed(self, engine: Engine, now: float) -> None:
        """An engine came, went, or said something new of itself."""

    def tick(self, now: float) -> None:
        """The time that `deadline` named has come."""

    def deadline(self) -> float | None:
        """When `tick` wants to be called at the latest."""
        return None

    def check(self) -> None:
        """Raise `InvariantBroken` when the policy's own records contradict themselves or the board."""

    def figures(self) -> dict[str, float]:
        """Counters for the report: pins kept, hits, releases, touches and the like."""
        return {}


def least_loaded(engines: list[Engine]) -> Engine:
    """The engine with the fewest steps in flight for its speed; ties by tokens, then by name."""
    return min(engines, key=lambda e: (len(e.steps) / e.speed, e.in_flight_tokens / e.speed, e.id))


class Placing(Policy):
    """A policy that never holds a step back: it only says where. The engines queue."""

    reason: ClassVar[str] = "placed"

    def place(self, step: Step, engines: list[Engine], now: float) -> Engine:
        raise NotImplementedError

    def arrived(self, step: Step, now: float) -> None:
        engines = self.board.fleet.usable(step.model)
        if not engines:
            self.board.wait(step, "no_engine")
            return
        self.board.dispatch(
            step, self.place(step, engines, now), now, self.reason, priority=self.priority(step, now)
        )

    def priority(self, step: Step, now: float) -> int:
        return 0

    def engine_changed(self, engine: Engine, now: float) -> None:
        for step in list(self.board.waiting.values()):
            engines = self.board.fleet.usable(step.model)
            if engines:
                chosen = self.place(step, engines, now)
                self.board.dispatch(step, chosen, now, self.reason, priority=self.priority(step, now))
