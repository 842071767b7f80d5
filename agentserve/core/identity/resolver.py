"""Says which program, which step of it, and how sure: the first kind of evidence that matches wins.

Explicit names, then the names that known clients send, then generic session ids, then what was said before: the
chain of message hashes, results of tool calls, an argument or a reply that the call opens with.

Rule: a name or a hash means something only within its tenant; whatever a client sends, it cannot reach another
tenant's program. Reading the call must not fail for lack of evidence: then the call begins a program of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from agentserve.core.events import Relation
from agentserve.core.identity.evidence import CallEvidence, ReplyEvidence, ToolUse, chain_of, digest_of
from agentserve.core.identity.harnesses import SPAWN_TOOLS, TERMINAL_TOOLS, WORK_TOOLS, plain_name
from agentserve.core.identity.known import OPENERS_MAX, ROLES_MAX, Program, Tenant, Tip, Traced
from agentserve.core.identity.matching import Found, Seeking, by_tool_results, find, opened_by, trailing
from agentserve.core.identity.naming import Named, identify
from agentserve.core.identity.resolved import TEXT_TOOL, Outcome, Resolved, scoped, unscoped
from agentserve.core.ids import ProgramId
from agentserve.errors import InvariantBroken

PROGRAMS_MAX = 200_000
IDLE_S = 1800.0
LOST_CALL_S = 7200.0  # a call whose end nobody reported keeps its program alive no longer than this
JOIN_S = 30.0  # another role with the same opening is the same program within this time
JOIN_CHARS_MIN = 32  # a shorter opening ("hi") is shared by strangers

Sure = tuple[str, float]  # source and confidence
BY_REPLY: Sure = ("content:reply", 0.95)
BY_RESULTS: Sure = ("content:tool-results", 0.85)
BY_REQUEST: Sure = ("content:request", 0.75)
BY_SPAWN: Sure = ("content:spawn", 0.8)
BY_QUOTE: Sure = ("content:quoted-reply", 0.6)
BY_OPENER: Sure = ("content:opener", 0.5)
BY_NOTHING: Sure = ("content:new", 0.7)


class _Verdict:
    """What was decided of a call, before it is carried out."""

    __slots__ = ("program", "relation", "sure", "tip")

    def __init__(self, program: Program, relation: Relation, sure: Sure, tip: Tip | None = None) -> None:
        self.program = program
        self.relation: Relation = relation
        self.sure = sure
        self.tip = tip  # the conversation that goes on; None for a new one


class Resolver:
    """Programs, recognised. `resolve` each call, then `replied` or `failed`; `expire` from time to time."""

    def __init__(self, *, programs_max: int = PROGRAMS_MAX, idle_s: float = IDLE_S) -> None:
        self._programs_max = programs_max
        self._idle_s = idle_s
        self._tenants: dict[str, Tenant] = {}
        self._count = 0
        self._tickets = 0
        self._flying: dict[int, Tip] = {}

    def __len__(self) -> int:
        return self._count

    # -- a call -----------------------------------------------------------------------------------------------

    def resolve(self, evidence: CallEvidence, *, tenant: str, now: float) -> Resolved:
        """Which program the call is of. It is in flight until `replied` or `failed`."""
        home = self._tenant(tenant)
        named = identify(evidence)
        tail = trailing(evidence.items)
        returns = tuple(call_id for item in tail for call_id in item.returns)
        seeking = self._seek(home, evidence, returns, named)
        if named is None:
            verdict = self._by_content(home, evidence, seeking, now)
        elif named.tier == "weak":
            verdict = self._by_weak_name(home, evidence, seeking, named, now)
        else:
            verdict = self._by_name(home, evidence, seeking, named, now)
        return self._carry_out(home, evidence, seeking, named, verdict, now)

    def _seek(
        self, home: Tenant, evidence: CallEvidence, returns: tuple[str, ...], named: Named | None
    ) -> Seeking:
        start, delta = home.seed, False
        previous = evidence.named.get("previous_response_id")
        if previous is not None and (owner := home.responses.get(previous)) is not None:
            start, delta = owner.responses[previous], True
        elif named is not None and named.source == "conversation":
            known = home.programs.get(named.name)
            if known is not None and known.main is not None:
                start, delta = known.main.before if known.main.after is None else known.main.after, True
        return Seeking(
            start=start,
            delta=delta,
            chain=chain_of(start, evidence.items),
            items=evidence.items,
            returns=returns,
            role=evidence.role,
        )

    # -- calls whose program is named -------------------------------------------------------------------------

    def _by_name(
        self, home: Tenant, evidence: CallEvidence, seeking: Seeking, named: Named, now: float
    ) -> _Verdict:
        sure: Sure = (f"{named.tier}:{named.source}", named.confidence)
        program = home.programs.get(named.name)
        if program is None:
            program = self._begin(home, named.name, parent=named.parent, source=sure[0], named=True, now=now)
            if named.call_class == "auxiliary" or (named.tools_always and not evidence.tools_offered):
                return _Verdict(program, "auxiliary", sure)
            return _Verdict(program, "new" if program.parent is None else "subagent", sure)
        if named.call_class == "auxiliary" or not evidence.conversational:
            return _Verdict(program, "auxiliary", sure)
        found = find(home, seeking, program.root)
        if found is not None and found.program is not program and found.how == "request":
            found = None  # an agent below shares no more than an opening
        if found is not None:
            return self._along(home, evidence, seeking, found, named, sure)
        return self._beside(home, evidence, seeking, program, named, sure, now)

    def _along(
        self, home: Tenant, evidence: CallEvidence, seeking: Seeking, found: Found, named: Named, sure: Sure
    ) -> _Verdict:
        """The call shares a prefix with what its program said before."""
        program, tip = found.program, found.tip
        if found.how == "again":
            again = _is_retry(evidence, tip) or (
                tip is not None and tip.state == "ready" and tip.role == evidence.role
            )
            return _Verdict(program, "retry" if again else "fork", sure, tip if again else None)
        if found.how in ("reply", "request"):
            return _Verdict(program, "continues", sure, tip)
        if _cut_down(program, named):
            return _Verdict(program, "compaction", sure)
        return self._rewritten(program, seeking, sure) or _Verdict(program, "fork", sure)

    def _beside(
        self,
        home: Tenant,
        evidence: CallEvidence,
        seeking: Seeking,
        program: Program,
        named: Named,
        sure: Sure,
        now: float,
    ) -> _Verdict:
        """The call begins with something that its program never said."""
        if program.main is None:
            if named.tools_always and not evidence.tools_offered:
                return _Verdict(program, "auxiliary", sure)
            first: Relation = "new" if program.parent is None else "subagent"
            return _Verdict(program, "continues" if program.steps else first, sure)
        if _cut_down(program, named):
            return _Verdict(program, "compaction", sure)
        if rewritten := self._rewritten(program, seeking, sure):
            return rewritten
        same_role = evidence.system == program.main_system
        if named.tier != "explicit" and not same_role and program.main_tools and not evidence.tools_offered:
            return _Verdict(program, "auxiliary", sure)
        idle, shorter = program.main.state != "flying", len(seeking.items) < program.main.depth
        if same_role and idle and shorter and (program.summarising or named.tier != "explicit"):
            return _Verdict(program, "compaction", sure)
        if not named.names_agents:
            spawned, _ = opened_by(home, seeking, evidence, program.root)
            if spawned is not None:
                return self._child(home, spawned, seeking, (sure[0], BY_SPAWN[1]), now)
        return _Verdict(program, "continues", sure)

    def _rewritten(self, program: Program, seeking: Seeking, sure: Sure) -> _Verdict | None:
        """Results of the program's open calls on top of another past: its history was edited, not branched."""
        main = program.main
        if main is None or main.state == "flying" or not any(c in program.calls for c in seeking.returns):
            return None
        shorter = len(seeking.items) < main.depth and not seeking.delta
        return _Verdict(program, "compaction" if shorter else "continues", sure, main)

    def _by_weak_name(
        self, home: Tenant, evidence: CallEvidence, seeking: Seeking, named: Named, now: float
    ) -> _Verdict:
        """A trace id groups what content does not tell; where content is certain, a new trace is a new turn."""
        found = find(home, seeking)
        if found is not None and found.how == "reply":
            return _Verdict(found.program, "continues", BY_REPLY, found.tip)
        return self._by_name(home, evidence, seeking, named, now)

    # -- calls without a name ---------------------------------------------------------------------------------

    def _by_content(self, home: Tenant, evidence: CallEvidence, seeking: Seeking, now: float) -> _Verdict:
        if not evidence.conversational or not (seeking.items or seeking.delta):
            return self._fresh(home, seeking, now)
        found = find(home, seeking)
        if found is not None:
            verdict = self._from_prefix(evidence, seeking, found, now)
            if verdict is not None:
                return verdict
        waiting = by_tool_results(home, seeking)
        if waiting is not None and (rewritten := self._rewritten(waiting, seeking, BY_RESULTS)) is not None:
            return rewritten
        spawned, told = opened_by(home, seeking, evidence)
        if spawned is not None and not _opened(seeking):
            return self._child(home, spawned, seeking, BY_SPAWN, now)
        if told is not None:
            return self._told(evidence, seeking, told.program)
        return self._fresh(home, seeking, now)

    def _from_prefix(
        self, evidence: CallEvidence, seeking: Seeking, found: Found, now: float
    ) -> _Verdict | None:
        program, tip = found.program, found.tip
        if found.how == "reply":
            return _Verdict(program, "continues", BY_REPLY, tip)
        if found.how == "request":
            return _Verdict(program, "continues", BY_REQUEST, tip)
        sure = BY_REPLY if program.marks.get(seeking.hash_at(found.at)) else BY_REQUEST
        if found.how == "moved" and found.at < len(seeking.items):
            return self._rewritten(program, seeking, sure) or _Verdict(program, "fork", sure)
        if _is_retry(evidence, tip):
            return _Verdict(program, "retry", sure, tip)
        if _opened(
            seeking
        ):  # the conversation is under way: one more sample of a step, or the step made anew
            again = tip is not None and tip.state == "ready" and tip.role == evidence.role
            return _Verdict(program, "retry" if again else "fork", sure, tip if again else None)
        return self._same_opening(evidence, seeking, program, now)

    def _same_opening(
        self, evidence: CallEvidence, seeking: Seeking, program: Program, now: float
    ) -> _Verdict | None:
        """Equal openings are different programs, unless another role of the same program speaks to the same words."""
        joins = (
            evidence.role not in program.roles
            and now - program.started_at <= JOIN_S
            and evidence.person == program.person
            and sum(item.size for item in seeking.items) >= JOIN_CHARS_MIN
        )
        if not joins:
            return None
        if program.main_tools and not evidence.tools_offered:
            return _Verdict(program, "auxiliary", BY_OPENER)
        beside = program.main is not None and program.main.state == "flying"
        return _Verdict(program, "fork" if beside else "continues", BY_OPENER)

    def _told(self, evidence: CallEvidence, seeking: Seeking, program: Program) -> _Verdict:
        """The call opens with what the program's model said: the next stage of a pipeline, or a summary."""
        main = program.main
        cut = (
            main is not None
            and main.state != "flying"
            and evidence.system == program.main_system
            and len(seeking.items) < main.depth
        )
        return _Verdict(program, "compaction" if cut else "continues", BY_QUOTE)

    def _child(self, home: Tenant, spawned: Traced, seeking: Seeking, sure: Sure, now: float) -> _Verdict:
        above = spawned.program
        home.untrace(spawned)  # a sibling that was asked the same takes the next call
        name = self._mint(home, seeking, now)
        program = self._begin(home, name, parent=above.name, source=sure[0], named=False, now=now)
        return _Verdict(program, "subagent", sure)

    def _fresh(self, home: Tenant, seeking: Seeking, now: float) -> _Verdict:
        name = self._mint(home, seeking, now)
        return _Verdict(
            self._begin(home, name, parent=None, source=BY_NOTHING[0], named=False, now=now),
            "new",
            BY_NOTHING,
        )

    def _mint(self, home: Tenant, seeking: Seeking, now: float) -> str:
        """A name that nobody has: the same for the same traffic, so that a journal replays to it."""
        self._tickets += 1
        last = seeking.chain[-1] if seeking.chain else seeking.start
        return (
            f"p-{digest_of(last.to_bytes(8, 'little'), repr(now).encode(), str(self._tickets).encode()):016x}"
        )

    # -- carrying out -----------------------------------------------------------------------------------------

    def _carry_out(
        self,
        home: Tenant,
        evidence: CallEvidence,
        seeking: Seeking,
        named: Named | None,
        verdict: _Verdict,
        now: float,
    ) -> Resolved:
        program, relation = verdict.program, verdict.relation
        tail = trailing(seeking.items)
        returns = seeking.returns
        human = False
        if relation not in ("auxiliary", "retry"):
            wrote = any(item.role == "user" and not item.observation for item in tail)
            human = bool(program.steps) and wrote and not returns and not program.calls
            if not returns and any(item.observation for item in tail):
                program.text_tools = True
                human, returns = False, (TEXT_TOOL,) if TEXT_TOOL in program.calls else ()
            _turn_over(program, named, human)
            for call_id in returns:
                home.close_call(program, call_id)
        tip = self._take_off(home, evidence, seeking, verdict, now)
        if relation == "compaction":
            program.window += 1
        if named is not None and named.window is not None:
            program.window = max(program.window, named.window)
        if relation not in ("auxiliary", "retry"):
            program.summarising = (named is not None and named.call_class == "compaction") or (
                program.main_tools and not evidence.tools_offered and tip is program.main
            )
            self._touch(home, program, now)
        return Resolved(
            program_id=scoped(home.id, program.name),
            name=program.name,
            tenant=home.id,
            parent_id=scoped(home.id, program.parent) if program.parent is not None else None,
            step_index=tip.step,
            turn=program.turn,
            window=program.window,
            source=verdict.sure[0],
            confidence=verdict.sure[1],
            role_fingerprint=evidence.role,
            relation=relation,
            returns=returns if relation != "auxiliary" else (),
            human=human,
            call_class=named.call_class if named is not None else None,
            tool_seconds=named.durations if named is not None else (),
            final=named is not None and named.final,
            ticket=tip.ticket,
        )

    def _take_off(
        self, home: Tenant, evidence: CallEvidence, seeking: Seeking, verdict: _Verdict, now: float
    ) -> Tip:
        """Put the call's conversation in flight and remember where it stands."""
        program, relation, tip = verdict.program, verdict.relation, verdict.tip
        if tip is None or relation == "auxiliary":
            tip = home.new_tip(program, role=evidence.role)
            program.flying += 1
        elif tip.state != "flying":
            home.unready(tip)
            program.flying += 1
        tip.state = "flying"
        tip.auxiliary = relation == "auxiliary"
        tip.role = evidence.role
        tip.before, tip.after = seeking.hash_at(len(seeking.items)), None
        tip.depth = len(seeking.items) + (tip.depth if seeking.delta else 0)
        if relation == "auxiliary":
            tip.step = max(program.steps - 1, 0)
        elif relation != "retry":
            tip.step = program.steps
            program.steps += 1
            home.mark(program, tip.before, reply=False)
            self._lead(program, evidence, seeking, tip)
        self._flying.pop(tip.ticket, None)
        self._tickets += 1
        tip.ticket = self._tickets
        self._flying[tip.ticket] = tip
        return tip

    def _lead(self, program: Program, evidence: CallEvidence, seeking: Seeking, tip: Tip) -> None:
        """Is this the conversation that counts? The one with tools, or whose role led so far."""
        if program.main is None or evidence.tools_offered or tip is program.main:
            program.main = tip
            if evidence.tools_offered or not program.main_tools:
                program.main_system = evidence.system
            program.main_tools = program.main_tools or evidence.tools_offered > 0
        if program.steps == 1:
            program.person = evidence.person
        if seeking.chain and len(program.openers) < OPENERS_MAX:
            program.openers[seeking.chain[0]] = None
        if len(program.roles) < ROLES_MAX:
            program.roles[evidence.role] = None

    # -- what became of it ------------------------------------------------------------------------------------

    def replied(self, resolved: Resolved, reply: ReplyEvidence, now: float) -> Outcome:
        """The reply is whole: remember what its client will send back. A broken one counts as failed."""
        tip = self._land(resolved)
        if tip is None:
            return Outcome(final=resolved.final)
        program, home = tip.program, tip.program.tenant
        if not reply.whole:
            self._fell(home, tip)
            return Outcome()
        tip.state = "ready"
        program.flying -= 1
        if tip.auxiliary:
            self._retire(home, tip)
            return Outcome(turn_done=not reply.tools)
        if reply.items:
            tip.after = chain_of(tip.before, reply.items)[-1]
            home.mark(program, tip.after, reply=True)
        home.make_ready(tip)
        if reply.response_id is not None:
            home.respond(program, reply.response_id, tip.before if tip.after is None else tip.after)
        tools = self._open_calls(home, program, reply)
        final = resolved.final or any(plain_name(tool.name) in TERMINAL_TOOLS for tool in reply.tools)
        program.turn_done = not tools and reply.finish != "length"
        self._touch(home, program, now)
        return Outcome(
            tools=tools,
            turn_done=program.turn_done and not final,
            final=final,
            ended=final or (program.turn_done and program.parent is not None),
        )

    def _open_calls(self, home: Tenant, program: Program, reply: ReplyEvidence) -> tuple[ToolUse, ...]:
        for tool in reply.tools:
            home.open_call(program, tool.id, tool.name)
            plain = plain_name(tool.name)
            if plain in WORK_TOOLS:
                continue
            for trace in tool.traces:
                home.trace(Traced(program, trace, call_id=tool.id, spawns=plain in SPAWN_TOOLS))
        if reply.tools:
            return reply.tools
        if reply.trace is not None:
            home.trace(Traced(program, reply.trace, call_id=None, spawns=False))
        if program.text_tools:
            home.open_call(program, TEXT_TOOL, TEXT_TOOL)
            return (ToolUse(id=TEXT_TOOL, name=TEXT_TOOL),)
        return ()

    def failed(self, resolved: Resolved, now: float) -> None:
        """No reply, or not all of it: the same request again is the same step again."""
        tip = self._land(resolved)
        if tip is not None:
            self._fell(tip.program.tenant, tip)

    def _fell(self, home: Tenant, tip: Tip) -> None:
        tip.state = "failed"
        tip.program.flying -= 1
        if tip.auxiliary:
            self._retire(home, tip)
        else:
            home.make_ready(tip)

    def _retire(self, home: Tenant, tip: Tip) -> None:
        home.unready(tip)
        tip.program.tips.remove(tip)

    def _land(self, resolved: Resolved) -> Tip | None:
        tip = self._flying.pop(resolved.ticket, None)
        return tip if tip is not None and tip.ticket == resolved.ticket and not tip.program.ended else None

    # -- programs ---------------------------------------------------------------------------------------------

    def declare(self, *, tenant: str, name: str, parent: str | None = None, now: float) -> ProgramId:
        """A client told of a program before its first call; declaring one that is known changes nothing."""
        home = self._tenant(tenant)
        if name not in home.programs:
            self._begin(home, name, parent=parent, source="explicit:agentserve", named=True, now=now)
        return scoped(tenant, name)

    def opens_tool(self, program_id: ProgramId, tool_id: str, tool: str) -> None:
        """The SDK announced a tool call that no reply asked for."""
        program = self.find(program_id)
        if program is not None:
            program.tenant.open_call(program, tool_id, tool)

    def ended(self, program_id: ProgramId, now: float) -> bool:
        """The program is over: told so, or by a terminal tool. False when it is not known."""
        program = self.find(program_id)
        if program is None:
            return False
        self._forget(program)
        return True

    def expire(self, now: float) -> list[ProgramId]:
        """Forget programs unheard of for too long, and say which."""
        gone = []
        for home in list(self._tenants.values()):
            while home.programs:
                program = next(iter(home.programs.values()))
                idle_s = now - program.last_at
                if idle_s <= self._idle_s:
                    break
                if program.flying and idle_s <= LOST_CALL_S:
                    home.programs.move_to_end(program.name)
                    if all(p.flying for p in home.programs.values()):
                        break
                    continue
                gone.append(scoped(home.id, program.name))
                self._forget(program)
        return gone

    def find(self, program_id: str) -> Program | None:
        """The program's state, for those who persist or show it."""
        tenant, name = unscoped(program_id)
        home = self._tenants.get(tenant)
        return home.programs.get(name) if home is not None else None

    def programs(self) -> Iterable[Program]:
        """All programs."""
        for home in self._tenants.values():
            yield from home.programs.values()

    def _tenant(self, tenant: str) -> Tenant:
        home = self._tenants.get(tenant)
        if home is None:
            home = self._tenants[tenant] = Tenant(tenant)
        return home

    def _begin(
        self, home: Tenant, name: str, *, parent: str | None, source: str, named: bool, now: float
    ) -> Program:
        if self._count >= self._programs_max:
            self._make_room(home)
            self._tenants[home.id] = home  # it may have given up its last program
        program = Program(home, name, parent=parent, source=source, named=named, now=now)
        home.add(program)
        self._count += 1
        return program

    def _make_room(self, home: Tenant) -> None:
        """A tenant with more than its share gives up its own oldest program, else the fullest tenant does."""
        if len(home.programs) * len(self._tenants) < self._programs_max:
            home = max(self._tenants.values(), key=lambda tenant: (len(tenant.programs), tenant.id))
        self._forget(next(iter(home.programs.values())))

    def _forget(self, program: Program) -> None:
        for tip in program.tips:
            self._flying.pop(tip.ticket, None)
        program.tenant.remove(program)
        self._count -= 1
        if not program.tenant.programs:
            self._tenants.pop(program.tenant.id, None)

    def _touch(self, home: Tenant, program: Program, now: float) -> None:
        program.last_at = now
        home.programs.move_to_end(program.name)

    def check(self) -> None:
        """Every index is consistent and every bound holds."""
        total = sum(len(home.programs) for home in self._tenants.values())
        if total != self._count or total > self._programs_max:
            raise InvariantBroken(f"{total} programs are remembered and {self._count} were counted")
        for home in self._tenants.values():
            home.check()
        for ticket, tip in self._flying.items():
            if tip.ticket != ticket or tip.state != "flying" or tip not in tip.program.tips:
                raise InvariantBroken(f"the call with ticket {ticket} is in flight without a conversation")


def _opened(seeking: Seeking) -> bool:
    """Has the assistant spoken in this conversation?"""
    return seeking.delta or any(item.role in ("assistant", "tool") for item in seeking.items)


def _is_retry(evidence: CallEvidence, tip: Tip | None) -> bool:
    count = evidence.headers.get("x-stainless-retry-count", "0")
    return tip is not None and (tip.state == "failed" or count not in ("", "0"))


def _cut_down(program: Program, named: Named) -> bool:
    """Does the client itself say that the old context is gone?"""
    return named.compacted or (named.window is not None and named.window > program.window)


def _turn_over(program: Program, named: Named | None, human: bool) -> None:
    name: str | Literal[False] | None = named.turn if named is not None else None
    if name:
        if program.turn_name is not None and name != program.turn_name:
            program.turn += 1
        program.turn_name = name
    elif human and program.turn_done:
        program.turn += 1
    program.turn_done = False
