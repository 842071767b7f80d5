"""Finds the conversation that a chain of message hashes continues, and the program that waits for a call's results.

Rule: the longest known prefix wins, and a prefix that includes our own reply is the strongest evidence there is.
Identical conversations are kept apart: of several that stand at the same hash, a call takes one that waits for it.
It changes nothing; the resolver acts on what is found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal

import msgspec

from agentserve.core.identity.evidence import Item, chain_of, recent_of
from agentserve.core.identity.known import Program, Tenant, Tip, first_of

How = Literal["reply", "request", "again", "moved"]

FEW_ITEMS = 3
RECENT_CHARS_MIN = 32  # less than this, said last, may be said by anybody
CANDIDATES_MAX = 64  # conversations at one hash that are compared, those that wait longest


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A known prefix of the call."""

    program: Program
    tip: Tip | None
    at: int  # items of the call that the prefix covers
    # reply: it ends with our reply, and the conversation stands there. request: it ends with the last request.
    # again: it is the whole call, seen before. moved: the conversation has gone on from there.
    how: How


class Seeking(msgspec.Struct, frozen=True, kw_only=True):
    """A call, prepared for the search."""

    start: int  # where its chain begins: the tenant's seed, or a stored reply that it refers to
    delta: bool  # its items follow something that is kept on our side
    chain: Sequence[int]
    items: Sequence[Item]
    returns: tuple[str, ...]  # tool results at its end
    role: int

    def hash_at(self, at: int) -> int:
        return self.chain[at - 1] if at else self.start


def trailing(items: Sequence[Item]) -> list[Item]:
    """What came since the assistant last spoke."""
    tail: list[Item] = []
    for item in reversed(items):
        if item.role == "assistant":
            break
        tail.append(item)
    tail.reverse()
    return tail


def last_heard(items: Sequence[Item], at: int) -> str | None:
    """The tool call whose result came last of so many items."""
    return next((item.returns[-1] for item in reversed(items[:at]) if item.returns), None)


def find(tenant: Tenant, seeking: Seeking, scope: Program | None = None) -> Found | None:
    """The longest known prefix of the call, in the scope's programs or in all of the tenant's."""
    count = len(seeking.items)
    whole = _whole(tenant, seeking, scope) if count else None
    if whole is not None and whole.tip is not None and whole.tip.state == "failed":
        return whole
    for at in range(count - 1 if count else 0, -1 if seeking.delta else 0, -1):
        value = seeking.hash_at(at)
        tips = tenant.ready.get(value)
        tip = _choose(tenant, tips, seeking, at, scope) if tips else None
        if tip is not None:
            how: How = "reply" if tip.after == value else "request"
            # The whole call is known, but perhaps from a twin: then a conversation that waits further back goes on.
            # That it stands at no more than the same request tells little, unless replies come back rewritten.
            if whole is None or how == "reply" or whole.program.rewrites:
                return Found(program=tip.program, tip=tip, at=at, how=how)
        elif whole is None and (owners := tenant.known.get(value)):
            owner = first_of(owners, scope)
            if owner is not None:
                return Found(program=owner, tip=None, at=at, how="moved")
    return whole


def _whole(tenant: Tenant, seeking: Seeking, scope: Program | None) -> Found | None:
    """The whole call as one seen before: a retry, another sample, or a twin's."""
    count = len(seeking.items)
    value = seeking.hash_at(count)
    tips = tenant.ready.get(value)
    heard = last_heard(seeking.items, count) if len(tips) > 1 else None
    tip, most = None, -1
    for one in _some(tips, scope):
        score = 2 * (one.state == "failed") + (heard is not None and one.heard == heard)
        if score > most:
            tip, most = one, score
    if tip is not None:
        return Found(program=tip.program, tip=tip, at=count, how="again")
    owner = first_of(tenant.known.get(value), scope)
    if owner is None:
        return None
    flying = next((tip for tip in owner.tips if tip.state == "flying" and tip.before == value), None)
    return Found(program=owner, tip=flying, at=count, how="again" if flying is not None else "moved")


def _choose(
    tenant: Tenant, tips: Collection[Tip], seeking: Seeking, at: int, scope: Program | None
) -> Tip | None:
    """Of the conversations that stand at one hash, the one that this call most likely continues: that which waits for
    its results, else that which was brought the same ones before."""
    if len(tips) == 1:
        tip = next(iter(tips))
        return tip if scope is None or tip.program.root is scope else None
    asked = dict.fromkeys(p for call_id in seeking.returns[:1] for p in tenant.calls.get(call_id))
    waiting = (
        tip for program in asked for tip in program.tips if tip in tips
    )  # however many stand before them
    heard = last_heard(seeking.items, at)
    best, most = None, -1
    for tip in (*_some(waiting, scope), *_some(tips, scope)):
        score = 4 * (tip.program in asked) + 2 * (heard is not None and tip.heard == heard)
        score += tip.role == seeking.role
        if score > most:
            best, most = tip, score
    return best


def _some(tips: Iterable[Tip], scope: Program | None) -> Iterator[Tip]:
    """Those in scope, the first of them where there are very many."""
    return islice((t for t in tips if scope is None or t.program.root is scope), CANDIDATES_MAX)


def by_tool_results(tenant: Tenant, seeking: Seeking, scope: Program | None = None) -> Program | None:
    """The one program that waits for the results which this call brings; None when several do, or none."""
    for call_id in seeking.returns:
        owners = [p for p in tenant.calls.get(call_id) if scope is None or p.root is scope]
        if len(owners) == 1:
            return owners[0]
    return None


def asked_last(role: int, items: Sequence[Item]) -> int:
    """What the conversation is found by once its client forgets its beginning; 0 where nothing is before the last.
    A client that sends three messages shows but one of these again, with its reply."""
    return recent_of(role, items, 2 if len(items) > FEW_ITEMS else 1) if len(items) > 1 else 0


def by_last_words(tenant: Tenant, seeking: Seeking) -> Tip | None:
    """The one conversation of the call's role whose last messages and reply the call ends with, before what is new:
    its client dropped what was before them. None when several stand there, which are kept apart."""
    items = seeking.items
    end = len(items) - len(trailing(items))
    begin = end
    while begin and items[begin - 1].role == "assistant":
        begin -= 1
    if not begin or begin == end or sum(i.size for i in items[max(begin - 2, 0) : end]) < RECENT_CHARS_MIN:
        return None
    for asked in (recent_of(seeking.role, items[:begin], last) for last in (2, 1)[begin == 1 :]):
        tips = tenant.said.get(chain_of(asked, items[begin:end])[-1])
        if tips:
            return next(iter(tips)) if len(tips) == 1 else None
    return None
