"""Names that clients give: where in a request each known client says which program, agent and turn a call is of.

Rule: a table row per client (in `harnesses`), one reader for all rows, first match wins.
It must not know the programs that exist; what a name leads to is the resolver's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Literal

import msgspec

from agentserve.core.identity.evidence import CallEvidence
from agentserve.core.identity.harnesses import NAMINGS, Naming, Tier

CallClass = Literal["main", "subagent", "auxiliary", "compaction"]

NAME_CHARS_MAX = 256
DURATIONS_MAX = 64
PATHS_REMEMBERED = 4_096  # programs that a path named, with nothing said beside
CONFIDENCE: Mapping[Tier, float] = {"explicit": 1.0, "harness": 0.98, "generic": 0.9, "weak": 0.6}
# What clients send for want of a name; taken for one, it would make one program of all their calls.
_NAMELESS = frozenset(
    {"default", "none", "null", "nil", "undefined", "unknown", "anonymous", "test", "-", "0"}
)
_NO = frozenset({"", "0", "false", "no", "off"})


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says of itself."""

    source: str
    tier: Tier
    confidence: float
    name: str
    parent: str | None = None
    turn: str | None = None
    window: int | None = None
    call_class: CallClass | None = None
    compacted: bool = False
    durations: tuple[tuple[str, float], ...] = ()  # (tool, seconds)
    final: bool = False
    tools_always: bool = False
    names_agents: bool = False  # this client names its sub-agents, so none need be guessed


CLASS_WORDS: Mapping[str, CallClass] = {
    "main": "main",
    "turn": "main",
    "workflow": "main",
    "subagent": "subagent",
    "review": "subagent",
    "collab_spawn": "subagent",
    "auxiliary": "auxiliary",
    "prewarm": "auxiliary",
    "memory": "auxiliary",
    "memory_consolidation": "auxiliary",
    "title": "auxiliary",
    "compaction": "compaction",
    "compact": "compaction",
}


def bounded_name(value: object) -> str | None:
    """A name as a client may give one: printable, not empty, not endless."""
    if not isinstance(value, str):
        return None
    value = value.strip()
    return value if 0 < len(value) <= NAME_CHARS_MAX and value.isprintable() else None


@cache  # the table's own places, and no others
def _parts_of(place: str) -> tuple[bool, str, str]:
    """A place as (in the body?, field or header, key in a header's JSON)."""
    if place.startswith("body:"):
        return True, place[5:], ""
    header, _, key = place.partition("#")
    return False, header, key


class _Places:
    """Reads places of one request; a JSON header is parsed once."""

    __slots__ = ("_evidence", "_json")

    def __init__(self, evidence: CallEvidence) -> None:
        self._evidence = evidence
        self._json: dict[str, object] = {}

    def one(self, place: str) -> str | None:
        in_body, header, key = _parts_of(place)
        evidence = self._evidence
        value = evidence.named.get(header) if in_body else evidence.headers.get(header)
        if value is None:  # as nearly always
            return None
        if not key:
            return bounded_name(value)
        if header not in self._json:
            try:
                self._json[header] = msgspec.json.decode(value)
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                self._json[header] = None
        decoded = self._json[header]
        return bounded_name(decoded.get(key)) if isinstance(decoded, dict) else None

    def first(self, places: tuple[str, ...]) -> str | None:
        for place in places:
            if (value := self.one(place)) is not None:
                return value
        return None

    def says_yes(self, places: tuple[str, ...]) -> bool:
        value = self.first(places)
        return value is not None and value.lower() not in _NO

    def proves(self, proof: tuple[str, ...]) -> bool:
        for claim in proof:
            place, prefixed, prefix = claim.partition("^=")
            value = self.one(place)
            if value is None or (prefixed and not value.lower().startswith(prefix)):
                return False
        return True


def named_by(row: Naming, evidence: CallEvidence) -> Named | None:
    """What this row reads out of the request, if it applies."""
    places = _Places(evidence)
    program = places.first(row.program)
    if program is None or (row.proof and not places.proves(row.proof)):
        return None
    if row.tier != "explicit" and program.lower() in _NAMELESS:
        return None
    parent = places.first(row.parent) if row.parent else None
    agent = places.first(row.agent) if row.agent else None
    name = program
    if agent is not None and agent != program:
        above = places.first(row.parent_agent)
        parent = f"{program}/{above}" if above is not None and above != agent else program
        name = f"{program}/{agent}"
    call_class: CallClass | None = None
    if row.call_class:
        call_class = CLASS_WORDS.get((places.first(row.call_class) or "").lower())
    if row.compacting and places.says_yes(row.compacting):
        call_class = "compaction"
    return Named(
        source=row.name,
        tier=row.tier,
        confidence=CONFIDENCE[row.tier],
        name=name[:NAME_CHARS_MAX],
        parent=parent if parent != name else None,
        turn=places.first(row.turn) if row.turn else None,
        window=_window_of(places.first(row.window)) if row.window else None,
        call_class=call_class,
        compacted=bool(row.compacted) and places.says_yes(row.compacted),
        durations=_durations_of(places.first(row.durations)) if row.durations else (),
        final=bool(row.final) and places.says_yes(row.final),
        tools_always=row.tools_always,
        names_agents=bool(row.agent or row.parent),
    )


def _window_of(value: str | None) -> int | None:
    digits = value.rpartition(":")[2] if value else ""
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else None


def _durations_of(value: str | None) -> tuple[tuple[str, float], ...]:
    """`Bash=69, Read=4` as seconds; what cannot be read is left out."""
    if not value:
        return ()
    found = []
    for pair in value.replace(";", ",").split(",")[:DURATIONS_MAX]:
        tool, equals, digits = pair.strip().rpartition("=")
        try:
            milliseconds = float(digits)
        except ValueError:
            continue
        if equals and tool and 0 <= milliseconds < 1e10:
            found.append((tool, milliseconds / 1000.0))
    return tuple(found)


def _rows_by_place() -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Which rows a header or a body field may prove: most requests hold none of either, and no row is then read."""
    headers: dict[str, list[int]] = {}
    fields: dict[str, list[int]] = {}
    for index, row in enumerate(NAMINGS):
        for place in row.program:
            if place.startswith("body:"):
                fields.setdefault(place[5:], []).append(index)
            else:
                headers.setdefault(place.partition("#")[0], []).append(index)
    return headers, fields


_BY_HEADER, _BY_FIELD = _rows_by_place()
_FIRST = NAMINGS[0]  # ours: a program's name in the path is one of its places
_BESIDE_PATH = frozenset(_FIRST.program + _FIRST.parent + _FIRST.final)


def named_by_header(headers: Mapping[str, str]) -> str | None:
    """What stands in a header that may name a program: enough to tell clients apart before their bodies are read."""
    return next((headers[name] for name in _BY_HEADER.keys() & headers.keys()), None)


@lru_cache(PATHS_REMEMBERED)
def _named_by_path(path: str) -> Named | None:
    """What the first row makes of a path, where nothing else that it reads is there."""
    return named_by(_FIRST, CallEvidence(named={"path": path}))


def identify(evidence: CallEvidence) -> Named | None:
    """The first row that applies, in the table's order; then ids under names nobody foresaw; then the trace."""
    path = evidence.named.get("path")
    if path is not None and _BESIDE_PATH.isdisjoint(evidence.headers):
        named = _named_by_path(path)
        if named is not None:
            return named
    rows: set[int] = set()
    for name in _BY_HEADER.keys() & evidence.headers.keys():
        rows.update(_BY_HEADER[name])
    for name in evidence.named:
        if name in _BY_FIELD:
            rows.update(_BY_FIELD[name])
    for index in sorted(rows) if len(rows) > 1 else rows:
        if (named := named_by(NAMINGS[index], evidence)) is not None:
            return named
    return _vendor_session(evidence) or _baggage(evidence) or _trace(evidence)


def _vendor_session(evidence: CallEvidence) -> Named | None:
    """Any `x-<name>-session-id`."""
    for header, value in evidence.headers.items():
        if not header.endswith("-session-id"):
            continue
        vendor = header.removeprefix("x-").removesuffix("-session-id")
        if len(vendor) + 13 != len(header) or not vendor or "parent" in vendor:
            continue
        name = bounded_name(value)
        if name is not None and name.lower() not in _NAMELESS:
            return Named(source="x-*-session-id", tier="generic", confidence=CONFIDENCE["generic"], name=name)
    return None


def _baggage(evidence: CallEvidence) -> Named | None:
    """W3C baggage with the GenAI convention's conversation id."""
    told = evidence.headers.get("baggage")
    for member in told.split(",") if told else ():
        key, _, value = member.strip().partition("=")
        if key.strip() == "gen_ai.conversation.id" and (name := bounded_name(value.partition(";")[0])):
            return Named(source="baggage", tier="generic", confidence=CONFIDENCE["generic"], name=name)
    return None


def _trace(evidence: CallEvidence) -> Named | None:
    """The trace id of `traceparent`: weak, because some applications begin a trace a turn, or a request."""
    told = evidence.headers.get("traceparent")
    fields = told.strip().split("-") if told else ()
    if len(fields) < 4 or len(fields[1]) != 32 or not fields[1].strip("0"):
        return None
    if not all(c in "0123456789abcdef" for c in fields[1]):
        return None
    return Named(source="traceparent", tier="weak", confidence=CONFIDENCE["weak"], name=f"trace-{fields[1]}")
