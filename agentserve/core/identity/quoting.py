"""Finds whose words a call was given: the tool call whose argument it opens with, and the program whose reply it holds.

Rule: words tell only while one program alone said them. Where a call holds the replies of several programs it is a step
of none of them: they cannot become one any more, and to judge or to gather them is work of its own. It changes
nothing, and it is asked only where no prefix and no result said whose a call is.

A reply is handed on whole or in good part, soon, and by the person who asked for it: then the call is its program's
next step. A document that two calls read says nothing (two users may send it), nor does what a reply repeats of one.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from agentserve.core.identity.evidence import CallEvidence
from agentserve.core.identity.known import Program, Tenant, Traced
from agentserve.core.identity.matching import CANDIDATES_MAX, Seeking

HANDED_S = 300.0  # after so long in silence, who quotes a program is not its next step
PARTS_MIN = 3  # windows of a longer reply, or lines of a list, that must be found again
PARTS_SHARE = 1 / 6  # and of all its windows: a phrase of a few words is anybody's
LINES_SHARE = 1 / 2  # and of all its lines
REMARK_SHARE = 1 / 4  # of what is held of one program's reply; less of another's is a remark beside it
PHRASES_MAX = 4  # different arguments that may share a window of words before it counts as a phrase

Hits = dict[Traced, set[int]]  # of each text, the prints that were found and that nobody else's text has


def opened_by(
    tenant: Tenant, seeking: Seeking, evidence: CallEvidence, now: float, scope: Program | None = None
) -> tuple[Traced | None, Traced | None]:
    """The tool call whose argument this call opens with, and the reply that it was given on; either may be None.

    With a scope it is known whose the call is, so that only the program's own texts are asked and their age is nothing.
    """
    prints = evidence.prints() if tenant.traced else frozenset()
    hits = _hits(tenant, prints)
    opener = seeking.chain[0] if seeking.chain else 0
    spawned: Traced | None = None
    told: list[Traced] = []
    for traced, found in hits.items():
        program = traced.program
        if scope is not None and program.root is not scope:
            continue
        if traced.call_id is None:
            if (scope is not None or _near(program, evidence, now)) and _tells(
                traced, found, evidence, prints
            ):
                told.append(traced)
        elif (
            (spawned is None or _sooner(traced, spawned))
            and traced.trace.inside(prints)
            and (traced.spawns or opener not in program.openers)
        ):
            spawned = traced
    return spawned, _whose(told, opener, seeking.hash_at(len(seeking.chain)), hits)


def _sooner(one: Traced, other: Traced) -> bool:
    """Of calls with the same words, those of a tool that starts agents, that are still out, and were asked first."""
    first, second = ((t.spawns, t.call_id in t.program.calls, -t.order) for t in (one, other))
    return first > second


def _hits(tenant: Tenant, prints: frozenset[int]) -> Hits:
    hits: Hits = {}
    for key, owners in tenant.traced.among(prints):
        telling: Iterable[Traced] = owners if len(owners) == 1 else _telling(owners)
        for traced in telling:
            hits.setdefault(traced, set()).add(key)
    return hits


def _telling(owners: Iterable[Traced]) -> list[Traced]:
    """Of the texts that share a print, those that it still tells of."""
    some = list(islice(reversed(list(owners)), CANDIDATES_MAX))
    asked = [traced for traced in some if traced.call_id is not None]
    said = [traced for traced in some if traced.call_id is None]
    if len(asked) > PHRASES_MAX and len({traced.trace.whole for traced in asked}) > PHRASES_MAX:
        asked = []
    if said and not all(_alike(said[0], other) for other in said):
        said = []
    return asked + said


def _alike(one: Traced, other: Traced) -> bool:
    """Of one program, or the same words of twins: programs that were asked the same, which all go on from there."""
    if one.program.root is other.program.root:
        return True
    return one.trace.whole == other.trace.whole and not one.program.openers.keys().isdisjoint(
        other.program.openers
    )


def _near(program: Program, evidence: CallEvidence, now: float) -> bool:
    """Was the program heard of lately, and is this not somebody else?"""
    stranger = evidence.person and program.person and evidence.person != program.person
    return not stranger and now - program.last_at <= HANDED_S


def _tells(told: Traced, found: set[int], evidence: CallEvidence, prints: frozenset[int]) -> bool:
    """Is what was found of a reply enough to say where it came from? All of it, a paragraph, or several parts of a
    longer one; or a line, where the same role goes on: some agents write all that happened into one growing message."""
    trace = told.trace
    if trace.inside(prints) or not found.isdisjoint(trace.lines[: trace.paragraphs]):
        return True
    if evidence.role in told.program.roles and not found.isdisjoint(trace.lines):
        return True
    lines, parts = len(found.intersection(trace.lines)), len(found.intersection(trace.windows))
    if lines >= max(PARTS_MIN, LINES_SHARE * len(trace.lines)):
        return True
    return not trace.short and parts >= max(PARTS_MIN, PARTS_SHARE * len(trace.windows))


def _whose(told: list[Traced], opener: int, stage: int, hits: Hits) -> Traced | None:
    """The reply that the call goes on from: none where it gathers those of several programs. Of equal replies one whose
    program has no such stage yet, and of those the newest."""

    def rank(traced: Traced) -> tuple[bool, bool, int, int]:
        program = traced.program
        return stage not in program.marks, opener not in program.openers, len(hits[traced]), traced.order

    ranked = sorted(told, key=rank, reverse=True)
    said: dict[Program, set[int]] = {}
    held: set[int] = set()  # what it holds beyond remarks
    for traced in ranked:
        said.setdefault(traced.program.root, set()).add(traced.trace.whole)
        if len(hits[traced]) >= REMARK_SHARE * len(hits[ranked[0]]):
            held.add(traced.trace.whole)
    # twins say the same: a program that said it all may go on, whoever else said it too
    return next((traced for traced in ranked if held <= said[traced.program.root]), None)
