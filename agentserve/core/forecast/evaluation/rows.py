"""Reads one record of a tool call, or of a program, whatever its columns are called.

One rule: a record is taken whole or refused with the name of the field that is wrong. It reads mappings; where
they came from is its caller's affair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentserve.core.forecast.calls import ToolCall, classify, text_hash
from agentserve.core.forecast.progress import StepFacts

# The names under which a field may come: a published data set's first, then our own export's.
_NAMES = {
    "tool": ("tool", "name"),
    "seconds": ("exec_s", "seconds", "duration_s", "wall_s"),
    "at": ("emit_epoch_s", "t", "at", "started_at", "t_rel_s"),
    "epoch": ("emit_epoch_s", "t", "at", "started_at"),
    "program": ("program_id", "program"),
    "tenant": ("tenant",),
    "argument": ("arg", "argument_class"),
    "exact": ("arg_hash", "exact_hash"),
    "pipes": ("has_pipe", "pipes"),
    "timeout_ms": ("timeout_ms",),
    "timeout_s": ("timeout_s",),
    "background": ("background",),
    "position": ("k", "position"),
    "size": ("n_par", "size"),
    "censored": ("censored",),
    "quality": ("quality",),
    "wall": ("wall_s",),
    "kind": ("kind",),
}
REQUIRED = ("tool", "seconds", "at")


class BadRow(ValueError):
    """A record that cannot be used; the message names the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRow:
    """One recorded tool call."""

    call: ToolCall
    tenant: str
    program: str | None
    at: float  # when it was emitted
    relative: bool = False  # `at` counts from the program's own start
    seconds: float
    ended_at: float  # when its outcome was known
    group: tuple[int, int]
    censored: bool
    clean: bool  # its duration is the tool's own, no person's


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramRow:
    """One recorded program: its steps in order."""

    id: str
    source: str
    model: str
    at: float | None
    child: bool
    system_tokens: int
    steps: tuple[StepFacts, ...]


def missing_columns(columns: Sequence[str]) -> list[str]:
    """What a table with these columns lacks to be evaluated, by the first name of each field."""
    return [_NAMES[field][0] for field in REQUIRED if not any(name in columns for name in _NAMES[field])]


def call_row(record: Mapping[str, Any]) -> CallRow:
    """A tool call from a record; raises BadRow."""
    tool = _get(record, "tool")
    if not isinstance(tool, str) or not tool:
        raise BadRow("no tool name")
    seconds = _number(record, "seconds")
    at = _number(record, "at")
    wall = _get(record, "wall")
    ended_at = at + max(seconds, float(wall) if wall not in (None, "") else seconds)
    size = int(_optional(record, "size", 1.0))
    program = _get(record, "program")
    quality = _get(record, "quality")
    return CallRow(
        call=_call(record, tool),
        tenant=str(_get(record, "tenant") or "-"),
        program=str(program) if program else None,
        at=at,
        relative=_get(record, "epoch") is None,
        seconds=seconds,
        ended_at=ended_at,
        group=(int(_optional(record, "position", 0.0)), max(1, size)),
        censored=_flag(record, "censored"),
        clean=quality in (None, "", "clean"),
    )


def _call(record: Mapping[str, Any], tool: str) -> ToolCall:
    arguments = record.get("arguments")
    if isinstance(arguments, (Mapping, str)) and arguments:
        return classify(tool, arguments)
    exact = _get(record, "exact")
    timeout_ms, timeout_s = _get(record, "timeout_ms"), _get(record, "timeout_s")
    # `n_chain` counts the joints of a chain, `chain` its commands.
    chain = (
        int(_plain(record.get("n_chain"), 0.0)) + 1
        if "n_chain" in record
        else int(_plain(record.get("chain"), 1.0))
    )
    kind = _get(record, "kind")
    return ToolCall(
        name=tool,
        argument_class=str(_get(record, "argument") or ""),
        exact_hash=None
        if exact in (None, "")
        else exact
        if isinstance(exact, int)
        else text_hash(str(exact)),
        pipes=_flag(record, "pipes"),
        chain=max(1, chain),
        timeout_s=float(timeout_ms) / 1e3 if timeout_ms else float(timeout_s) if timeout_s else None,
        background=_flag(record, "background"),
        kind=kind if kind in ("human", "permission", "subagent") else "tool",
    )


def _get(record: Mapping[str, Any], field: str) -> Any:
    for name in _NAMES[field]:
        value = record.get(name)
        if value is not None and value != "":
            return value
    return None


def _plain(value: Any, default: float) -> float:
    if value is None or value == "":
        return default
    try:
        return float(value)
    except (TypeError, ValueError):
        raise BadRow(f"{value!r} is not a number") from None


def _optional(record: Mapping[str, Any], field: str, default: float) -> float:
    return _plain(_get(record, field), default)


def _number(record: Mapping[str, Any], field: str) -> float:
    value = _get(record, field)
    name = _NAMES[field][0]
    if value is None:
        raise BadRow(f"no {name}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadRow(f"{name} is {value!r}, not a number") from None
    if not math.isfinite(number) or number < 0.0:
        raise BadRow(f"{name} is {value!r}, not a time")
    return number


def _flag(record: Mapping[str, Any], field: str) -> bool:
    return str(_get(record, field)).lower() in ("1", "true", "yes")


def program_row(record: Mapping[str, Any]) -> ProgramRow:
    """A program from a record of the `agent_programs` shape; raises BadRow."""
    turns = record.get("turns")
    if not isinstance(turns, list) or not isinstance(record.get("id"), str):
        raise BadRow("no id, or no list of turns")
    steps: list[StepFacts] = []
    subagents = 0
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise BadRow("a turn is not an object")
        if "in" not in turn:  # a sub-agent's run, between two steps
            subagents += 1
            continue
        tools = [str(tool[0]) for tool in turn.get("tools") or [] if tool]
        try:
            facts = StepFacts(
                input_tokens=int(turn["in"]),
                output_tokens=int(turn.get("out") or 0),
                cached_tokens=int(turn.get("hit") or 0),
                started_s=float(turn.get("t") or 0.0),
                llm_s=float(turn.get("llm") or 0.0),
                calls=tuple(ToolCall(name=tool) for tool in tools),
                calls_count=int(turn.get("tc", len(tools))),
                human=turn.get("k") == "human",
                subagents=subagents,
            )
        except (TypeError, ValueError) as error:
            raise BadRow(f"turn {len(steps) + 1}: {error}") from None
        steps.append(facts)
        subagents = 0
    at = record.get("start_epoch")
    return ProgramRow(
        id=record["id"],
        source=str(record.get("source", "")),
        model=str(record.get("model", "")),
        at=float(at) if isinstance(at, (int, float)) else None,
        child=bool(record.get("parent")),
        system_tokens=int(record.get("system_tokens") or 0) + int(record.get("tool_tokens") or 0),
        steps=tuple(steps),
    )
