"""Whose KV is on which engine, and why: what runs, what a pin protects, what merely rests there.

Rule: a pin stands from its `Pin` decision until an `Unpin`, the program's return or end, its own end, or the loss of
its engine; the console's timelines read the same decisions by the same rule, so that the two cannot disagree. It reads
the scheduler's records and changes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.audience import Hears
from agentserve.core.board import Board
from agentserve.core.identity import unscoped
from agentserve.core.program import Program

PINS_MAX = 200_000  # as many as there may be programs

Holding = Literal["running", "pinned", "resting", "none"]


class Pins:
    """The pins that stand, by program."""

    def __init__(self) -> None:
        self._pins: OrderedDict[str, do.Pin] = OrderedDict()
        self.hears: Hears = {
            ev.StepArrived: self._over,
            ev.ProgramEnded: self._over,
            ev.EngineLost: self._lost,
            ev.DecisionDone: self._done,
            do.Pin: self._pinned,
            do.Unpin: self._over,
        }

    def _over(self, told: ev.StepArrived | ev.ProgramEnded | do.Unpin, now: float) -> None:
        self._pins.pop(told.program, None)

    def _lost(self, event: ev.EngineLost, now: float) -> None:
        for program in [p for p, pin in self._pins.items() if pin.engine == event.engine]:
            del self._pins[program]

    def _done(self, event: ev.DecisionDone, now: float) -> None:
        if (event.decision, event.outcome) == ("Pin", "refused"):
            self._pins.pop(event.program, None)

    def _pinned(self, decision: do.Pin, now: float) -> None:
        self._pins[decision.program] = decision
        if len(self._pins) > PINS_MAX:
            self._pins.popitem(last=False)

    def of(self, program: Program, now: float) -> do.Pin | None:
        """The pin that protects the program's KV now."""
        pin = self._pins.get(program.id)
        return pin if pin is not None and program.idle and pin.until > now else None


def holding(program: Program, board: Board, pins: Pins, now: float) -> tuple[Holding, str | None, int]:
    """What the program's KV is to its engine, where it is, and how many tokens that are."""
    running = [step for step in program.open_steps.values() if step.in_flight]
    if running:
        step = max(running, key=lambda s: s.prompt_tokens)
        kept = program.home_tokens if program.home == step.engine else 0
        return "running", step.engine, max(kept, step.prompt_tokens)
    engine = board.fleet.get(program.home)
    if engine is None or not program.home_tokens or not engine.keeps(program):
        return "none", None, 0
    return "pinned" if pins.of(program, now) else "resting", engine.id, program.home_tokens


def by_engine(board: Board, pins: Pins, now: float) -> dict[str, dict[str, int]]:
    """KV tokens on each engine by what they are; leading segments that programs share are counted once, as `shared`."""
    sums: dict[str, dict[str, int]] = {}
    segments: dict[str, dict[int, int]] = {}
    for program in board.programs.values():
        what, where, tokens = holding(program, board, pins, now)
        if where is None:
            continue
        there = sums.setdefault(where, {"running": 0, "pinned": 0, "resting": 0})
        shared = segments.setdefault(where, {})
        for segment in program.prefix:
            shared[segment.hash] = segment.tokens
        there[what] += max(tokens - program.shared_tokens, 0)
    for where, there in sums.items():
        there["shared"] = sum(segments[where].values())
    return sums


def kept(board: Board, pins: Pins, now: float) -> list[dict[str, Any]]:
    """Programs in a gap whose KV is thought to be kept, and whether a pin protects it."""
    rows: list[dict[str, Any]] = []
    for found in board.programs.values():
        what, where, tokens = holding(found, board, pins, now) if found.idle else ("none", None, 0)
        if where is not None:
            tenant, name = unscoped(found.id)
            pin = pins.of(found, now)
            rows.append(
                {
                    "program": name,
                    "tenant": tenant,
                    "engine": where,
                    "tokens": tokens,
                    "pinned": what == "pinned",
                    "ends_in_s": round(pin.until - now, 3) if pin is not None else None,
                }
            )
    return rows
