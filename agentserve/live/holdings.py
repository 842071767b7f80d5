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
from agentserve.core.board import Board
from agentserve.core.identity import unscoped
from agentserve.core.program import Program

PINS_MAX = 200_000  # as many as there may be programs

Holding = Literal["running", "pinned", "resting", "none"]


class Pins:
    """The pins that stand, by program."""

    def __init__(self) -> None:
        self._pins: OrderedDict[str, do.Pin] = OrderedDict()

    def heard(self, event: ev.AnyEvent, now: float, decisions: list[do.AnyDecision]) -> None:
        """The driver's listener."""
        if self._pins:
            if isinstance(event, (ev.StepArrived, ev.ProgramEnded)):
                self._pins.pop(event.program, None)
            elif isinstance(event, ev.EngineLost):
                for program in [p for p, pin in self._pins.items() if pin.engine == event.engine]:
                    del self._pins[program]
            elif isinstance(event, ev.DecisionDone) and (event.decision, event.outcome) == ("Pin", "refused"):
                self._pins.pop(event.program, None)
        for decision in decisions:
            if isinstance(decision, do.Pin):
                self._pins[decision.program] = decision
                if len(self._pins) > PINS_MAX:
                    self._pins.popitem(last=False)
            elif isinstance(decision, do.Unpin):
                self._pins.pop(decision.program, None)

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
