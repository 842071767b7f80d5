"""Says which program, which step of it, and how sure: the first kind of evidence that matches wins.

Explicit names, then the names that known clients send, then generic session ids, then what was said before: the
chain of message hashes, results of tool calls, an argument or a reply that the call opens with.

Rule: a name or a hash means something only within its tenant; whatever a client sends, it cannot reach another
tenant's program. Reading the call must not fail for lack of evidence: then the call begins a program of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from agentserve.core.identity import record
from agentserve.core.identity.deciding import Case, Verdict, decide
from agentserve.core.identity.evidence import (
    CallEvidence,
    ReplyEvidence,
    ToolUse,
    chain_of,
    digest_of,
)
from agentserve.core.identity.harnesses import SPAWN_TOOLS, TERMINAL_TOOLS, WORK_TOOLS, plain_name
from agentserve.core.identity.known import OPENERS_MAX, ROLES_MAX, Program, Tenant, Tip, Traced
from agentserve.core.identity.matching import Seeking, asked_last, last_heard, trailing
from agentserve.core.identity.naming import Named, identify
from agentserve.core.identity.resolved import TEXT_TOOL, Outcome, Resolved, scoped, unscoped
from agentserve.core.ids import ProgramId
from agentserve.errors import InvariantBroken

PROGRAMS_MAX = 200_000
IDLE_S = 1800.0
# of one tenant; the rest is next time's, a second later: more than one gateway can serve
EXPIRED_AT_ONCE_MAX = 1_000
NAMED_SURELY = ("explicit:", "harness:")  # sources of programs whose every call says whose it is
LOST_CALL_S = 7200.0  # a call whose end nobody reported keeps its program alive no longer than this


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
        returns = tuple([call_id for item in tail for call_id in item.returns])
        if not returns and tail and tail[0].observation and len(tail) < len(evidence.items):
            returns = evidence.items[-len(tail) - 1].calls  # results as text, of calls that were told as text
        seeking = self._seek(home, evidence, returns, named)
        case = Case(home=home, evidence=evidence, seeking=seeking, named=named, now=now)
        return self._carry_out(case, decide(case))

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

    # -- carrying out -----------------------------------------------------------------------------------------

    def _carry_out(self, case: Case, verdict: Verdict) -> Resolved:
        home, evidence, named, relation = case.home, case.evidence, case.named, verdict.relation
        if verdict.claims is not None:
            home.untrace(verdict.claims)  # a sibling that was asked the same takes the next call
        program = verdict.program or self._begin_as(case, verdict)
        counts = relation not in ("auxiliary", "retry")
        returns, human = self._turn(case, program, verdict.tip) if counts else ((), False)
        tip = self._take_off(case, program, verdict)
        if relation == "compaction":
            program.window += 1
        if named is not None and named.window is not None:
            program.window = max(program.window, named.window)
        if counts:
            program.summarising = (named is not None and named.call_class == "compaction") or (
                program.main_tools and not evidence.tools_offered and tip is program.main
            )
            self._touch(home, program, case.now)
        return Resolved(
            program_id=program.id,
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
            returns=returns,
            human=human,
            call_class=named.call_class if named is not None else None,
            tool_seconds=named.durations if named is not None else (),
            final=named is not None and named.final,
            ticket=tip.ticket,
        )

    def _begin_as(self, case: Case, verdict: Verdict) -> Program:
        return self._begin(
            case.home,
            verdict.name if verdict.name is not None else self._mint(case),
            parent=verdict.parent,
            source=verdict.sure[0],
            now=case.now,
        )

    def _mint(self, case: Case) -> str:
        """A name that nobody has: the same for the same traffic, so that a journal replays to it."""
        self._tickets += 1
        last = case.seeking.hash_at(len(case.seeking.items)).to_bytes(8, "little")
        return f"p-{digest_of(last, repr(case.now).encode(), str(self._tickets).encode()):016x}"

    def _turn(self, case: Case, program: Program, tip: Tip | None) -> tuple[tuple[str, ...], bool]:
        """What came back to the program with this call: results of tools, or a person's words."""
        returns, tail = case.seeking.returns, trailing(case.seeking.items)
        if tail and not returns and tip is not None:
            # Results without ids, as text or from a tool without one: of what the step before had asked for.
            returns = tuple(call_id for call_id, step in program.calls.items() if step == tip.step)
        observed = any(item.observation for item in tail)
        program.text_tools = program.text_tools or (observed and not returns)
        wrote = any(item.role == "user" and not item.observation for item in tail)
        human = bool(program.steps) and wrote and not returns and not observed
        turn = case.named.turn if case.named is not None else None
        if turn is not None:
            if program.turn_name is not None and turn != program.turn_name:
                program.turn += 1
            program.turn_name = turn
        elif human and program.turn_done:
            program.turn += 1
        program.turn_done = False
        for call_id in returns:
            case.home.close_call(program, call_id)
        return returns, human

    def _take_off(self, case: Case, program: Program, verdict: Verdict) -> Tip:
        """Put the call's conversation in flight and remember where it stands."""
        home, evidence, seeking, relation, tip = (
            case.home, case.evidence, case.seeking, verdict.relation, verdict.tip,
        )  # fmt: skip
        if tip is None or relation == "auxiliary":
            tip = home.new_tip(program, role=evidence.role)
            program.flying += 1
        elif tip.state != "flying":
            if relation == "continues" and tip.after is not None and tip.depth < len(seeking.items):
                program.rewrites = tip.after not in seeking.chain and not seeking.delta
            home.unready(tip)
            program.flying += 1
        tip.state = "flying"
        tip.auxiliary = relation == "auxiliary"
        tip.role = evidence.role
        tip.before, tip.after = seeking.hash_at(len(seeking.items)), None
        unnamed = case.named is None or case.named.tier == "weak"
        tip.asked = asked_last(evidence.role, seeking.items) if unnamed else 0
        if seeking.returns:
            tip.heard = seeking.returns[-1]
        elif verdict.tip is None:
            tip.heard = last_heard(seeking.items, len(seeking.items))
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
            if tip.asked:
                tip.said = chain_of(tip.asked, reply.items)[-1]
        home.make_ready(tip)
        if reply.response_id is not None:
            home.respond(program, reply.response_id, tip.before if tip.after is None else tip.after)
        tools = self._open_calls(home, tip, reply)
        final = resolved.final or not TERMINAL_TOOLS.isdisjoint(
            [plain_name(tool.name) for tool in reply.tools]
        )
        program.turn_done = not tools and reply.finish != "length"
        self._touch(home, program, now)
        return Outcome(
            tools=tools,
            turn_done=program.turn_done and not final,
            final=final,
            ended=final or (program.turn_done and program.parent is not None),
        )

    def _open_calls(self, home: Tenant, tip: Tip, reply: ReplyEvidence) -> tuple[ToolUse, ...]:
        program = tip.program
        for tool in reply.tools:
            home.open_call(program, tool.id, tip.step)
            plain = plain_name(tool.name)
            if plain in WORK_TOOLS:
                continue
            for trace in tool.traces:
                home.trace(Traced(program, trace, call_id=tool.id, spawns=plain in SPAWN_TOOLS))
        if reply.tools:
            return reply.tools
        # whose client names its programs has no need to be found by what it was told
        if not program.source.startswith(NAMED_SURELY) and (told := reply.trace()) is not None:
            home.trace(Traced(program, told, call_id=None, spawns=False))
        if program.text_tools:
            home.open_call(program, TEXT_TOOL, tip.step)
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
            self._begin(home, name, parent=parent, source="explicit:agentserve", now=now)
        return scoped(tenant, name)

    def opens_tool(self, program_id: ProgramId, tool_id: str, tool: str) -> None:
        """The SDK announced a tool call that no reply asked for; an agent's opening is not looked for in it."""
        program = self.find(program_id)
        if program is not None:
            program.tenant.open_call(program, tool_id, program.steps - 1)

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
            for program in list(islice(home.programs.values(), EXPIRED_AT_ONCE_MAX)):
                idle_s = now - program.last_at
                if idle_s <= self._idle_s:
                    break
                if program.flying and idle_s <= LOST_CALL_S:
                    home.programs.move_to_end(program.name)
                    continue
                gone.append(program.id)
                self._forget(program)
        return gone

    # -- across restarts --------------------------------------------------------------------------------------

    def record(self, program_id: ProgramId) -> bytes | None:
        """All that is known of one program, to be kept and given to `restore`; None when there is none."""
        program = self.find(program_id)
        return record.to_bytes(program) if program is not None else None

    def snapshot(self) -> list[bytes]:
        """The records of all programs, the least recently active first."""
        return [record.to_bytes(p) for p in sorted(self.programs(), key=lambda p: (p.last_at, p.name))]

    def restore(self, records: Iterable[bytes]) -> int:
        """Take kept programs in again, in the order given; how many could be read and were not known."""
        revived = []
        for kept in records:
            decoded = record.from_bytes(kept)
            if decoded is None or self._count >= self._programs_max:
                continue
            home = self._tenant(decoded.tenant)
            if decoded.name not in home.programs:
                revived.append(record.revive(home, decoded))
                self._count += 1
        for program in revived:
            program.tenant.find_root(program)
        return len(revived)

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

    def _begin(self, home: Tenant, name: str, *, parent: str | None, source: str, now: float) -> Program:
        if self._count >= self._programs_max:
            self._make_room(home)
            self._tenants[home.id] = home  # it may have given up its last program
        program = Program(home, name, parent=parent, source=source, now=now)
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
            if not home.programs:
                raise InvariantBroken(f"tenant {home.id} is remembered without any program")
            home.check()
        for ticket, tip in self._flying.items():
            if tip.ticket != ticket or tip.state != "flying" or tip not in tip.program.tips:
                raise InvariantBroken(f"the call with ticket {ticket} is in flight without a conversation")
