"""Decides what a call is to which program, from the evidence and what is remembered.

Rule: it looks and changes nothing; the resolver carries the verdict out. Order of evidence: a name that a client
gave, then the longest known prefix, results of open tool calls, an argument or a reply that the call opens with,
an opening that another role of the program was given too.
"""

from __future__ import annotations

import msgspec

from agentserve.core.events import Relation
from agentserve.core.identity.evidence import CallEvidence
from agentserve.core.identity.known import Program, Tenant, Tip, Traced
from agentserve.core.identity.matching import Found, Seeking, by_last_words, by_tool_results, find
from agentserve.core.identity.naming import Named
from agentserve.core.identity.quoting import opened_by

JOIN_S = 30.0  # another role with the same opening is the same program within this time
JOIN_CHARS_MIN = 32  # a shorter opening ("hi") is shared by strangers
JOIN_ROLES_MAX = 6  # more roles with one opening are programs that are told their task in the system text
JOIN_SYSTEM_CHARS_MAX = 4_096  # and so is a role with a longer text
EDITED_STEPS_MIN = 3  # a program of fewer steps has no context to cut down

Sure = tuple[str, float]  # source and confidence
BY_REPLY: Sure = ("content:reply", 0.95)
BY_RESULTS: Sure = ("content:tool-results", 0.85)
BY_SPAWN: Sure = ("content:spawn", 0.8)
BY_REQUEST: Sure = ("content:request", 0.75)
BY_LAST_WORDS: Sure = ("content:last-words", 0.7)
BY_NOTHING: Sure = ("content:new", 0.7)
BY_QUOTE: Sure = ("content:quoted-reply", 0.6)
BY_OPENER: Sure = ("content:opener", 0.5)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a call is."""

    relation: Relation
    sure: Sure
    program: Program | None = None  # None: a new one begins
    name: str | None = None  # of the new one; None: a name is made up for it
    parent: str | None = None
    tip: Tip | None = None  # the conversation that goes on; None for one more
    claims: Traced | None = None  # the tool call that this sub-agent answers


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """All that there is to decide from."""

    home: Tenant
    evidence: CallEvidence
    seeking: Seeking
    named: Named | None
    now: float

    @property
    def begun(self) -> bool:
        """Has the assistant spoken in this conversation?"""
        seeking = self.seeking
        return seeking.delta or any(item.role in ("assistant", "tool") for item in seeking.items)

    def retries(self, tip: Tip | None) -> bool:
        """Is this the same call again because its first try came to nothing?"""
        count = self.evidence.headers.get("x-stainless-retry-count", "0")
        return tip is not None and (tip.state == "failed" or count not in ("", "0"))

    def repeats(self, tip: Tip | None) -> bool:
        """Is this a step that was answered and is now made anew?"""
        return tip is not None and tip.state == "ready" and tip.role == self.evidence.role


def decide(case: Case) -> Verdict:
    """What the call is."""
    named = case.named
    if named is None:
        return _by_content(case)
    return _by_weak_name(case, named) if named.tier == "weak" else _by_name(case, named)


def _by_weak_name(case: Case, named: Named) -> Verdict:
    """A trace id groups what content does not tell. Some applications begin a trace a turn, and some a request: so a
    trace that is new names only what is new, and where content is certain it goes before a known one."""
    if named.name not in case.home.programs:
        verdict = _by_content(case)
        return verdict if verdict.relation != "new" else _by_name(case, named)
    found = find(case.home, case.seeking)
    if found is not None and found.how == "reply":
        return Verdict(relation="continues", sure=BY_REPLY, program=found.program, tip=found.tip)
    return _by_name(case, named)


# -- calls whose program is named -----------------------------------------------------------------------------


def _by_name(case: Case, named: Named) -> Verdict:
    sure: Sure = (f"{named.tier}:{named.source}", named.confidence)
    program = case.home.programs.get(named.name)
    aside = named.tools_always and not case.evidence.tools_offered and named.call_class is None
    if program is None:
        relation: Relation = "new" if named.parent is None else "subagent"
        if named.call_class == "auxiliary" or aside:
            relation = "auxiliary"
        return Verdict(relation=relation, sure=sure, name=named.name, parent=named.parent)
    if named.call_class == "auxiliary" or not case.evidence.conversational:
        return Verdict(relation="auxiliary", sure=sure, program=program)
    found = find(case.home, case.seeking, program.root)
    if found is not None and (found.program is program or found.how == "reply"):
        return _along(case, found, named, sure)
    return _beside(case, program, named, sure, aside=aside)


def _along(case: Case, found: Found, named: Named, sure: Sure) -> Verdict:
    """The call shares a prefix with what its program said before."""
    program, tip = found.program, found.tip
    if _aside(case, program, named) and not case.retries(tip):
        return Verdict(relation="auxiliary", sure=sure, program=program)
    if found.how == "again":
        if case.retries(tip) or case.repeats(tip):
            return Verdict(relation="retry", sure=sure, program=program, tip=tip)
        return Verdict(relation="fork", sure=sure, program=program)
    if found.how in ("reply", "request"):
        return Verdict(relation="continues", sure=sure, program=program, tip=tip)
    if _cut_down(program, named) or _thinned(case, found):
        return Verdict(relation="compaction", sure=sure, program=program)
    return _rewritten(case, program, sure) or Verdict(relation="fork", sure=sure, program=program)


def _beside(case: Case, program: Program, named: Named, sure: Sure, *, aside: bool) -> Verdict:
    """The call begins with something that its program never said."""
    main = program.main
    if main is None:
        first: Relation = "new" if program.parent is None else "subagent"
        return Verdict(relation="auxiliary" if aside else first, sure=sure, program=program)
    if _cut_down(program, named):
        return Verdict(relation="compaction", sure=sure, program=program)
    if rewritten := _rewritten(case, program, sure):
        return rewritten
    if _aside(case, program, named):
        return Verdict(relation="auxiliary", sure=sure, program=program)
    same_role = case.evidence.system == program.main_system
    shorter = main.state != "flying" and len(case.seeking.items) < main.depth
    if same_role and shorter and (program.summarising or named.tier in ("harness", "generic")):
        return Verdict(relation="compaction", sure=sure, program=program)
    if not named.names_agents:
        spawned, _ = opened_by(case.home, case.seeking, case.evidence, case.now, program.root)
        if spawned is not None:
            return _child(spawned, (sure[0], BY_SPAWN[1]))
    return Verdict(relation="fork" if program.busy else "continues", sure=sure, program=program)


def _aside(case: Case, program: Program, named: Named) -> bool:
    """Another voice without tools, in a session whose own steps offer tools: a title, a suggestion, a topic check.
    Where a program was named on purpose, every call under that name is one of its steps."""
    return (
        named.tier in ("harness", "generic")
        and named.call_class is None
        and program.main_tools
        and not case.evidence.tools_offered
        and case.evidence.system != program.main_system
    )


def _rewritten(case: Case, program: Program, sure: Sure) -> Verdict | None:
    """Results of the program's open calls on top of another past: its history was edited, not branched."""
    main, seeking = program.main, case.seeking
    if main is None or main.state == "flying" or not any(c in program.calls for c in seeking.returns):
        return None
    return _edited(case, main, sure)


def _edited(case: Case, tip: Tip, sure: Sure) -> Verdict:
    """The conversation goes on with another past; a shorter one was cut down."""
    shorter = len(case.seeking.items) < tip.depth and not case.seeking.delta
    relation: Relation = "compaction" if shorter else "continues"
    return Verdict(relation=relation, sure=sure, program=tip.program, tip=tip)


def _thinned(case: Case, found: Found) -> bool:
    """Only the opening is left of what went before: the rest was summed up. Going back to an earlier message would
    have kept the reply before it."""
    program, main = found.program, found.program.main
    return (
        main is not None
        and main.state != "flying"
        and program.steps >= EDITED_STEPS_MIN
        and found.at < len(case.seeking.items) < main.depth
        and not program.marks.get(case.seeking.hash_at(found.at), True)
        and case.evidence.system == program.main_system
    )


def _cut_down(program: Program, named: Named) -> bool:
    """Does the client itself say that the old context is gone?"""
    return named.compacted or (named.window is not None and named.window > program.window)


# -- calls without a name -------------------------------------------------------------------------------------


def _by_content(case: Case) -> Verdict:
    fresh = Verdict(relation="new", sure=BY_NOTHING)
    seeking = case.seeking
    if not case.evidence.conversational or not (seeking.items or seeking.delta):
        return fresh
    found = find(case.home, seeking)
    waiting = None
    if found is None or found.how != "reply":
        waiting = by_tool_results(case.home, seeking)
        if found is not None and waiting is not None and _is_anothers(found, waiting, seeking.returns[-1]):
            found = find(case.home, seeking, waiting.root)
    if found is not None and (verdict := _from_prefix(case, found)) is not None:
        return verdict
    if waiting is not None and (rewritten := _rewritten(case, waiting, BY_RESULTS)) is not None:
        return rewritten
    slid = by_last_words(case.home, seeking)
    if slid is not None and slid.program.person == case.evidence.person:
        return _edited(case, slid, BY_LAST_WORDS)
    spawned, told = opened_by(case.home, seeking, case.evidence, case.now)
    if spawned is not None and not case.begun:
        return _child(spawned, BY_SPAWN)
    return fresh if told is None else _told(case, told.program)


def _is_anothers(found: Found, waiting: Program, brought: str) -> bool:
    """Was a twin found, where the results that the call brings are what another program waits for? Not where the one
    that was found had results of that id itself: some engines count ids anew."""
    program = found.program
    return waiting.root is not program.root and all(tip.heard != brought for tip in program.tips)


def _from_prefix(case: Case, found: Found) -> Verdict | None:
    program, tip, seeking = found.program, found.tip, case.seeking
    if found.how in ("reply", "request"):
        sure = BY_REPLY if found.how == "reply" else BY_REQUEST
        if sure is BY_REQUEST and tip is not None and tip.role != seeking.role:
            other = _handed_by(case)
            if other is not None:
                return _told(case, other)
        return Verdict(relation="continues", sure=sure, program=program, tip=tip)
    sure = BY_REPLY if program.marks.get(seeking.hash_at(found.at)) else BY_REQUEST
    if found.how == "moved" and found.at < len(seeking.items):
        if _thinned(case, found) and _quotes(case, program):
            return Verdict(relation="compaction", sure=BY_QUOTE, program=program)
        if rewritten := _rewritten(case, program, sure):
            return rewritten
        other = _handed_by(case) if sure is BY_REQUEST else None
        return Verdict(relation="fork", sure=sure, program=program) if other is None else _told(case, other)
    if case.retries(tip):
        return Verdict(relation="retry", sure=sure, program=program, tip=tip)
    if case.begun:  # one more sample of a step, or the step made anew
        if case.repeats(tip):
            return Verdict(relation="retry", sure=sure, program=program, tip=tip)
        return Verdict(relation="fork", sure=sure, program=program)
    return _same_opening(case, program)


def _same_opening(case: Case, program: Program) -> Verdict | None:
    """Equal openings are different programs, unless another role of the same program is given the same words."""
    evidence = case.evidence
    if (
        evidence.role in program.roles
        or case.now - program.started_at > JOIN_S
        or evidence.person != program.person
        or sum(item.size for item in case.seeking.items) < JOIN_CHARS_MIN
        or len(program.roles) >= JOIN_ROLES_MAX
        or evidence.system_size > JOIN_SYSTEM_CHARS_MAX
    ):
        return None
    if program.main_tools:
        # With tools it is a program of its own; without, it is a title or the like.
        aside = Verdict(relation="auxiliary", sure=BY_OPENER, program=program)
        return None if evidence.tools_offered else aside
    return Verdict(relation="fork" if program.busy else "continues", sure=BY_OPENER, program=program)


def _quotes(case: Case, program: Program) -> bool:
    """Does the call hold what the program's model said?"""
    _, told = opened_by(case.home, case.seeking, case.evidence, case.now, program.root)
    return told is not None and told.program is program


def _handed_by(case: Case) -> Program | None:
    """Whose reply the call holds, where it shares no more with a program than what that was asked: a team's members
    are all given the question, and so is every run of the team."""
    _, told = opened_by(case.home, case.seeking, case.evidence, case.now)
    return told.program if told is not None else None


def _told(case: Case, program: Program) -> Verdict:
    """The call opens with what the program's model said: the next stage of a pipeline, or a summary."""
    main = program.main
    if program.busy or main is None:
        return Verdict(relation="fork" if program.busy else "continues", sure=BY_QUOTE, program=program)
    cut = case.evidence.system == program.main_system and len(case.seeking.items) < main.depth
    return Verdict(relation="compaction" if cut else "continues", sure=BY_QUOTE, program=program)


def _child(spawned: Traced, sure: Sure) -> Verdict:
    return Verdict(relation="subagent", sure=sure, parent=spawned.program.name, claims=spawned)
