"""Bounds, life and death of programs, and many of them at once in any order."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.core.identity import (
    CallEvidence,
    Item,
    ReplyEvidence,
    Resolved,
    Resolver,
    ToolUse,
    scoped,
    unscoped,
)
from agentserve.core.identity.evidence import Role, Trace, digest_of
from agentserve.core.identity.known import CALLS_MAX, MARKS_MAX, TIPS_MAX, TRACES_MAX


def item(role: Role, words: str, *, calls: tuple[str, ...] = (), returns: tuple[str, ...] = ()) -> Item:
    digest = digest_of(role.encode(), words.encode())
    return Item(role=role, digest=digest, size=len(words), calls=calls, returns=returns)


@dataclass
class Agent:
    """A client that loops: it asks, gets a tool call, brings its result."""

    words: str
    seed: int
    tenant: str = "acme"
    steps: int = 4
    items: list[Item] = field(default_factory=list)
    flying: Resolved | None = None
    seen: list[Resolved] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.items.append(item("user", self.words))

    def act(self, resolver: Resolver, now: float, rng: random.Random) -> bool:
        """One event of its life; False when it is done."""
        if self.flying is None:
            self.flying = resolver.resolve(
                CallEvidence(items=tuple(self.items), role=7, system=7, tools_offered=2),
                tenant=self.tenant,
                now=now,
            )
            if self.flying.relation != "retry":
                self.seen.append(self.flying)
            return True
        resolved, self.flying = self.flying, None
        if rng.random() < 0.15:
            resolver.failed(resolved, now)
            return True
        call_id = f"call_{self.seed}_{len(self.items)}"
        done = len(self.seen) >= self.steps
        reply = item("assistant", f"{self.seed} {len(self.items)}", calls=() if done else (call_id,))
        tools = () if done else (ToolUse(id=call_id, name="search"),)
        resolver.replied(
            resolved, ReplyEvidence(items=(reply,), tools=tools, finish="stop" if done else "tool_calls"), now
        )
        self.items += [reply, item("tool", f"result {len(self.items)}", returns=(call_id,))]
        return not done


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000))
def test_agents_that_overlap_in_any_order_are_each_one_program(seed: int) -> None:
    rng, resolver, now = random.Random(seed), Resolver(), 0.0
    openings = ["the same question for several agents", "another one", "a third"]
    agents = [
        Agent(
            words=rng.choice(openings), seed=at, tenant=rng.choice(["acme", "beta"]), steps=rng.randint(1, 5)
        )
        for at in range(8)
    ]
    running = list(agents)
    while running:
        agent = rng.choice(running)
        now += rng.random()
        if not agent.act(resolver, now, rng):
            running.remove(agent)
        resolver.check()
    for agent in agents:
        # A failed first try of one twin may be taken up by another, so names may be exchanged at the opening;
        # from the first reply on, the content is the agent's own.
        own = {resolved.program_id for resolved in agent.seen if resolved.step_index}
        assert len(own) <= 1, [(r.program_id, r.relation, r.source) for r in agent.seen]
        assert all(unscoped(resolved.program_id)[0] == agent.tenant for resolved in agent.seen)
    for tenant in ("acme", "beta"):
        of_tenant = [a for a in agents if a.tenant == tenant]
        named = {r.program_id for a in of_tenant for r in a.seen if r.step_index}
        assert len(named) == sum(any(r.step_index for r in a.seen) for a in of_tenant)


def opening(words: str, **more: Any) -> CallEvidence:
    return CallEvidence(items=(item("user", words),), **more)


def test_idle_programs_are_forgotten_with_all_that_led_to_them() -> None:
    resolver = Resolver(idle_s=60.0)
    flying = resolver.resolve(opening("slow"), tenant="a", now=0.0)
    done = resolver.resolve(opening("quick"), tenant="a", now=0.0)
    resolver.replied(done, ReplyEvidence(items=(item("assistant", "x"),), finish="stop"), 1.0)
    assert resolver.expire(61.0) == []
    assert resolver.expire(62.0) == [done.program_id]
    assert resolver.expire(7_000.0) == []  # a call in flight keeps its program
    assert resolver.expire(8_000.0) == [flying.program_id]  # but not for ever
    assert len(resolver) == 0
    assert resolver.resolve(opening("quick"), tenant="a", now=9_000.0).relation == "new"
    resolver.check()


def test_an_auxiliary_call_does_not_keep_its_program_alive() -> None:
    resolver = Resolver(idle_s=60.0)
    headers = {"x-claude-code-session-id": "s"}
    main = resolver.resolve(opening("x", headers=headers, tools_offered=1), tenant="a", now=0.0)
    resolver.replied(main, ReplyEvidence(finish="stop"), 1.0)
    side = resolver.resolve(
        opening("title", headers={**headers, "x-claude-code-request-class": "auxiliary"}),
        tenant="a",
        now=50.0,
    )
    assert side.relation == "auxiliary"
    resolver.replied(side, ReplyEvidence(finish="stop"), 51.0)
    assert resolver.expire(62.0) == [main.program_id]


def test_a_program_that_was_ended_is_gone_and_its_late_reply_harmless() -> None:
    resolver = Resolver()
    resolved = resolver.resolve(opening("x"), tenant="a", now=0.0)
    assert resolver.ended(resolved.program_id, 1.0)
    assert not resolver.ended(resolved.program_id, 1.0)
    assert resolver.replied(resolved, ReplyEvidence(finish="stop"), 2.0).tools == ()
    resolver.failed(resolved, 2.0)
    resolver.check()
    assert len(resolver) == 0


def test_a_declared_program_is_known_before_its_first_call() -> None:
    resolver = Resolver()
    parent = resolver.declare(tenant="a", name="lead", now=0.0)
    child = resolver.declare(tenant="a", name="helper", parent="lead", now=0.0)
    assert resolver.declare(tenant="a", name="lead", now=1.0) == parent == scoped("a", "lead")
    first = resolver.resolve(opening("x", headers={"x-agentserve-program-id": "helper"}), tenant="a", now=1.0)
    assert (first.program_id, first.relation, first.parent_id) == (child, "subagent", parent)
    assert first.begins


def test_a_tenant_that_fills_the_memory_gives_up_its_own() -> None:
    resolver = Resolver(programs_max=20)
    quiet = resolver.resolve(opening("quiet", headers={"x-session-id": "q"}), tenant="quiet", now=0.0)
    for at in range(100):
        resolver.resolve(opening("x", headers={"x-session-id": str(at)}), tenant="noisy", now=1.0 + at)
        resolver.check()
    assert len(resolver) == 20
    assert resolver.find(quiet.program_id) is not None


def test_one_program_cannot_grow_without_end() -> None:
    resolver = Resolver()
    headers = {"x-agentserve-program-id": "long"}
    for at in range(400):
        resolved = resolver.resolve(opening(f"prompt {at}", headers=headers), tenant="a", now=float(at))
        tools = tuple(ToolUse(id=f"c{at}.{k}", name="t") for k in range(3))
        resolver.replied(
            resolved,
            ReplyEvidence(items=(item("assistant", str(at)),), tools=tools, response_id=f"r{at}"),
            at,
        )
        resolver.check()
    program = resolver.find(resolved.program_id)
    assert program is not None
    assert len(program.tips) <= TIPS_MAX
    assert len(program.marks) <= MARKS_MAX
    assert len(program.calls) <= CALLS_MAX
    record = resolver.record(resolved.program_id)
    assert record is not None
    assert len(record) < 16_384


def test_a_long_conversations_early_turns_stay_findable() -> None:
    resolver, items = Resolver(), [item("user", "x")]
    for at in range(120):
        resolved = resolver.resolve(CallEvidence(items=tuple(items)), tenant="a", now=float(at))
        reply = item("assistant", str(at))
        resolver.replied(resolved, ReplyEvidence(items=(reply,), finish="stop"), at)
        items += [reply, item("user", f"next {at}")]
    rewound = resolver.resolve(
        CallEvidence(items=(*items[:31], item("user", "instead"))), tenant="a", now=200.0
    )
    assert (rewound.program_id, rewound.relation) == (resolved.program_id, "fork")


def test_a_call_whose_end_was_told_twice_counts_once() -> None:
    resolver = Resolver()
    resolved = resolver.resolve(opening("x"), tenant="a", now=0.0)
    resolver.replied(resolved, ReplyEvidence(items=(item("assistant", "a"),), finish="stop"), 1.0)
    resolver.replied(resolved, ReplyEvidence(items=(item("assistant", "b"),), finish="stop"), 1.0)
    resolver.failed(resolved, 1.0)
    resolver.check()


def test_a_broken_reply_counts_as_none() -> None:
    resolver = Resolver()
    resolved = resolver.resolve(opening("x"), tenant="a", now=0.0)
    outcome = resolver.replied(resolved, ReplyEvidence(items=(item("assistant", "ha"),), whole=False), 1.0)
    assert not outcome.turn_done
    again = resolver.resolve(opening("x"), tenant="a", now=2.0)
    assert (again.program_id, again.relation) == (resolved.program_id, "retry")


@pytest.mark.parametrize(("tenant", "name"), [("a", "b"), ("a/b", "c"), ("a%2Fb", "c/d"), ("", "x")])
def test_a_scoped_name_can_be_taken_apart_again(tenant: str, name: str) -> None:
    assert unscoped(scoped(tenant, name)) == (tenant, name)


def test_the_same_traffic_gives_the_same_names() -> None:
    def names() -> list[str]:
        resolver = Resolver()
        return [resolver.resolve(opening(f"w{at % 3}"), tenant="a", now=float(at)).name for at in range(9)]

    assert names() == names()
    assert len(set(names())) == 9


def test_who_was_active_lately_is_kept_before_who_came_later() -> None:
    resolver = Resolver(idle_s=60.0)
    first, second = (
        resolver.resolve(opening(name, headers={"x-session-id": name}), tenant="a", now=0.0)
        for name in ("first", "second")
    )
    for resolved in (first, second):
        resolver.replied(resolved, ReplyEvidence(items=(item("assistant", "x"),), finish="stop"), 1.0)
    again = resolver.resolve(opening("more", headers={"x-session-id": "first"}), tenant="a", now=50.0)
    resolver.replied(again, ReplyEvidence(items=(item("assistant", "y"),), finish="stop"), 51.0)
    assert resolver.expire(70.0) == [second.program_id]
    resolver.check()


def test_what_is_forgotten_leaves_nothing_behind() -> None:
    resolver = Resolver()
    text = Trace(whole=1, windows=(2, 3))
    resolved = resolver.resolve(opening("x"), tenant="a", now=0.0)
    tool = ToolUse(id="c", name="ask", traces=(text,))
    resolver.replied(
        resolved, ReplyEvidence(items=(item("assistant", "y"),), tools=(tool,), response_id="r"), 1.0
    )
    beside = resolver.resolve(opening("other"), tenant="a", now=1.0)
    assert resolver.ended(resolved.program_id, 2.0)
    resolver.check()
    on = (item("user", "x"), item("assistant", "y"), item("user", "go on"))
    assert resolver.resolve(CallEvidence(items=on), tenant="a", now=3.0).relation == "new"
    assert resolver.ended(beside.program_id, 4.0)
    resolver.check()


def test_a_text_is_looked_for_while_its_call_is_open_and_then_no_more() -> None:
    resolver = Resolver()
    text = Trace(whole=1)
    first = resolver.resolve(opening("x"), tenant="a", now=0.0)
    asked = item("assistant", "y", calls=("c",))
    resolver.replied(
        first, ReplyEvidence(items=(asked,), tools=(ToolUse(id="c", name="ask", traces=(text,)),)), 1.0
    )
    program = resolver.find(first.program_id)
    assert program is not None
    assert [t.trace for t in program.traced] == [text]
    back = (item("user", "x"), asked, item("tool", "done", returns=("c",)))
    resolver.resolve(CallEvidence(items=back), tenant="a", now=2.0)
    assert program.traced == []
    resolver.check()


def test_many_texts_of_one_program_push_out_its_oldest() -> None:
    resolver = Resolver()
    headers = {"x-session-id": "s"}
    for at in range(2 * TRACES_MAX):
        resolved = resolver.resolve(opening(f"{at}", headers=headers), tenant="a", now=float(at))
        tools = (ToolUse(id=f"c{at}", name="ask", traces=(Trace(whole=at),)),) if at % 2 else ()
        reply = ReplyEvidence(
            items=(item("assistant", f"{at}"),),
            tools=tools,
            trace=functools.partial(Trace, whole=10_000 + at),
        )
        resolver.replied(resolved, reply, at + 0.5)
        resolver.check()
    program = resolver.find(resolved.program_id)
    assert program is not None
    kept = [t.trace.whole for t in program.traced]
    assert len(kept) == TRACES_MAX
    assert kept[-1] == 2 * TRACES_MAX - 1, "the newest is there"


def test_parents_that_stand_in_a_circle_above_a_program_end_nowhere() -> None:
    resolver = Resolver()
    for name, parent in (("a", "b"), ("b", "a"), ("below", "a")):
        resolver.declare(tenant="t", name=name, parent=parent, now=0.0)
    first = resolver.resolve(opening("x", headers={"x-agentserve-program-id": "below"}), tenant="t", now=1.0)
    assert first.parent_id == scoped("t", "a")


def test_more_calls_at_once_than_conversations_are_kept_are_all_served() -> None:
    resolver = Resolver()
    headers = {"x-agentserve-program-id": "wide"}
    calls = [
        resolver.resolve(opening(f"{at}", headers=headers), tenant="a", now=float(at))
        for at in range(TIPS_MAX + 5)
    ]
    resolver.check()
    for call in calls:
        resolver.replied(call, ReplyEvidence(items=(item("assistant", "x"),), finish="stop"), 100.0)
    resolver.check()


def test_a_tool_of_a_program_that_nobody_knows_opens_nothing() -> None:
    resolver = Resolver()
    resolver.opens_tool(scoped("a", "nobody"), "c", "bash")
    assert len(resolver) == 0


def test_who_stands_above_a_program_is_known_again_after_a_restart() -> None:
    resolver = Resolver()
    for name, parent in (("helper", "lead"), ("lead", None)):
        resolver.declare(tenant="a", name=name, parent=parent, now=0.0)
    words = (item("user", "x"),)
    asked = {"x-agentserve-program-id": "helper"}
    call = resolver.resolve(CallEvidence(items=words, headers=asked), tenant="a", now=1.0)
    said = item("assistant", "y")
    resolver.replied(call, ReplyEvidence(items=(said,), finish="stop"), 2.0)
    resolver.resolve(opening("z", headers={"x-agentserve-program-id": "lead"}), tenant="a", now=3.0)
    later = Resolver()
    assert later.restore(resolver.snapshot()) == 2
    lead = later.resolve(
        CallEvidence(
            items=(*words, said, item("user", "go on")), headers={"x-agentserve-program-id": "lead"}
        ),
        tenant="a",
        now=10.0,
    )
    assert lead.name == "helper", "its sub-agent's talk goes on under its name"
