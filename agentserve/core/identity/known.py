"""What the resolver remembers: programs, their conversations' tips, and the indexes that lead from a hash to them.

Rule: everything here belongs to a program and leaves with it; a program's own parts are bounded and programs are
counted, so the whole is bounded. These classes keep the indexes consistent; which entry to follow is the
resolver's to decide.

A *tip* is where one conversation of a program stands: the hash after its last request and, once the reply came,
the hash after that. A *mark* is a hash that a program's conversation passed through.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Literal

from agentserve.core.identity.evidence import Trace, digest_of
from agentserve.core.identity.index import Index
from agentserve.core.identity.resolved import scoped
from agentserve.errors import InvariantBroken

TIPS_MAX = 24  # conversations of one program
MARKS_MAX = 64  # hashes by which one program's past is found
CALLS_MAX = 128  # tool calls of one program without a result
TRACES_MAX = 24  # arguments and replies of one program that another call may open with
REPLIES_TRACED_MAX = 6  # of which this many are replies
TRACE_KEYS_MAX = 200_000  # of one tenant; beyond it the oldest texts are forgotten
RESPONSES_MAX = 8  # response ids of one program that a call may refer to
OPENERS_MAX = 64
ROLES_MAX = 32
OWNERS_MAX = 8  # programs remembered for one mark; a text that more of them share tells nothing

TipState = Literal["flying", "ready", "failed"]


class Tip:
    """Where one conversation stands."""

    __slots__ = (
        "after", "asked", "auxiliary", "before", "depth", "heard", "program", "role", "said", "state", "step", "ticket",
    )  # fmt: skip

    def __init__(self, program: Program, *, role: int) -> None:
        self.program = program
        self.role = role
        self.before = 0  # hash after the last request
        self.after: int | None = None  # hash after its reply
        self.depth = 0  # items in the last request
        self.asked = 0  # hash of the last request's last items alone; 0 where nothing is looked for by it
        self.said = 0  # the same with the reply: all that a client shows who forgot what was before
        self.heard: str | None = None  # the tool call whose result came last: what twins do not share
        self.step = 0
        self.ticket = 0  # of the call that is in flight; an older call of a retried step has an older one
        self.auxiliary = False
        self.state: TipState = "flying"


class Traced:
    """A text that may turn up in another call: an argument of an open call, or a reply."""

    __slots__ = ("call_id", "order", "program", "spawns", "trace")

    def __init__(self, program: Program, trace: Trace, *, call_id: str | None, spawns: bool) -> None:
        self.program = program
        self.trace = trace
        self.call_id = call_id  # None for a reply's own text
        self.spawns = spawns  # the tool is known to start agents
        self.order = 0  # the newer, the higher

    def found_by(self) -> tuple[int, ...]:
        """Under which prints it is found: a reply by any of its windows, since only a part may be passed on."""
        trace = self.trace
        return (trace.whole, *trace.windows[:1]) if self.call_id is not None else (
            trace.whole, *trace.windows, *trace.lines
        )  # fmt: skip


class Program:
    """One run of an agent, as far as identity goes."""

    __slots__ = (
        "calls", "ended", "flying", "id", "last_at", "main", "main_system", "main_tools", "marks", "name", "openers",
        "parent", "person", "responses", "rewrites", "roles", "source", "started_at", "steps", "summarising",
        "tenant", "text_tools", "tips", "top", "traced", "turn", "turn_done", "turn_name", "window",
    )  # fmt: skip

    def __init__(self, tenant: Tenant, name: str, *, parent: str | None, source: str, now: float) -> None:
        self.tenant = tenant
        self.name = name
        self.id = scoped(tenant.id, name)
        self.parent = parent
        self.top: Program | None = None  # of all that stand above it
        self.source = source
        self.person = 0
        self.started_at = now
        self.last_at = now
        self.steps = 0
        self.turn = 0
        self.turn_name: str | None = None
        self.turn_done = False
        self.window = 0
        self.main: Tip | None = None  # the conversation that counts, of those it holds
        self.main_system = 0
        self.main_tools = False
        self.summarising = False  # the last step of the main conversation offered no tools any more
        self.rewrites = False  # its client sends replies back in words of its own
        self.text_tools = False  # its tools' results come as users' texts
        self.flying = 0
        self.ended = False
        self.tips: list[Tip] = []
        self.marks: dict[int, bool] = {}  # hash -> after a reply (else after a request)
        self.calls: dict[str, int] = {}  # id of an open call -> the step that asked for it
        self.traced: list[Traced] = []
        self.responses: dict[str, int] = {}
        self.openers: dict[int, None] = {}
        self.roles: dict[int, None] = {}

    @property
    def root(self) -> Program:
        """The program that it serves in the end: itself, where none stands above it."""
        return self.top or self

    @property
    def busy(self) -> bool:
        """Is a step of it in flight?"""
        return any(tip.state == "flying" and not tip.auxiliary for tip in self.tips)


class Tenant:
    """One tenant's programs and indexes. Nothing leads from here to another tenant's."""

    __slots__ = (
        "_order",
        "_texts",
        "calls",
        "id",
        "known",
        "programs",
        "ready",
        "responses",
        "said",
        "seed",
        "traced",
    )

    def __init__(self, tenant_id: str) -> None:
        self.id = tenant_id
        self.seed = digest_of(b"tenant", tenant_id.encode("utf-8", "surrogatepass"))
        self.programs: OrderedDict[str, Program] = OrderedDict()  # least recently active first
        self.ready: Index[int, Tip] = Index()
        self.said: Index[int, Tip] = Index()
        self.known: Index[int, Program] = Index()
        self.calls: Index[str, Program] = Index()
        self.responses: dict[str, Program] = {}
        self.traced: Index[int, Traced] = Index()
        self._texts: dict[Traced, None] = {}  # all of them, the oldest first
        self._order = 0

    # -- programs ---------------------------------------------------------------------------------------------

    def add(self, program: Program) -> None:
        """Take in a new program; if its parent is known, it belongs to that one's root."""
        self.programs[program.name] = program
        self.find_root(program)

    def find_root(self, program: Program) -> None:
        """The program at the top of this one's line, as far as it is known; a circle of parents ends itself."""
        seen = {program.name}
        top = program
        while top.parent is not None and top.parent not in seen and top.parent in self.programs:
            seen.add(top.parent)
            top = self.programs[top.parent]
        program.top = top if top is not program else None

    def remove(self, program: Program) -> None:
        """Forget the program and all that leads to it."""
        for tip in program.tips:
            self.unready(tip)
        for mark in program.marks:
            self.known.drop(mark, program)
        for call_id in program.calls:
            self.calls.drop(call_id, program)
        for traced in program.traced:
            self._untrace(traced)
        for response_id in program.responses:
            if self.responses.get(response_id) is program:
                del self.responses[response_id]
        # nothing may lead round in a circle: the collector looks at what is old so seldom that it would stay for good
        program.main = program.top = None
        program.tips.clear()
        program.marks.clear()
        program.calls.clear()
        program.traced.clear()
        program.responses.clear()
        program.ended = True
        self.programs.pop(program.name, None)

    # -- tips -------------------------------------------------------------------------------------------------

    def new_tip(self, program: Program, *, role: int) -> Tip:
        """A new conversation; the program's oldest idle one makes room."""
        if len(program.tips) >= TIPS_MAX:
            idle = next((t for t in program.tips if t.state != "flying" and t is not program.main), None)
            if idle is not None:
                self.unready(idle)
                program.tips.remove(idle)
        tip = Tip(program, role=role)
        program.tips.append(tip)
        return tip

    def make_ready(self, tip: Tip) -> None:
        """The conversation can be continued from where it stands."""
        self.ready.add(tip.before, tip)
        if tip.after is not None:
            self.ready.add(tip.after, tip)
        if tip.said:
            self.said.add(tip.said, tip)

    def unready(self, tip: Tip) -> None:
        """The conversation goes on, or is gone."""
        self.ready.drop(tip.before, tip)
        if tip.after is not None:
            self.ready.drop(tip.after, tip)
        if tip.said:
            self.said.drop(tip.said, tip)
            tip.said = 0

    # -- what else leads to a program -------------------------------------------------------------------------

    def mark(self, program: Program, value: int, *, reply: bool) -> None:
        """Remember that the program's conversation passed this hash."""
        program.marks[value] = reply or program.marks.get(value, False)
        self.known.add(value, program)
        owners = self.known.get(value)
        if len(owners) > OWNERS_MAX:
            eldest = next(iter(owners))
            self.known.drop(value, eldest)
            eldest.marks.pop(value, None)
        if len(program.marks) > MARKS_MAX:
            self._thin(program)

    def _thin(self, program: Program) -> None:
        """Forget every second mark of the older half, so that the distant past stays findable, ever more coarsely."""
        older = list(program.marks)[1 : MARKS_MAX // 2]
        for value in older[::2]:
            del program.marks[value]
            self.known.drop(value, program)

    def open_call(self, program: Program, call_id: str, step: int) -> None:
        """A tool call was asked for. Some engines count their ids anew each turn: the newest call has the id."""
        program.calls.pop(call_id, None)
        if len(program.calls) >= CALLS_MAX:
            self.close_call(program, next(iter(program.calls)))
        program.calls[call_id] = step
        self.calls.add(call_id, program)

    def close_call(self, program: Program, call_id: str) -> None:
        """Its result came back. What a spawning tool was asked stays known: its agent may only now begin."""
        if program.calls.pop(call_id, None) is None:
            return
        self.calls.drop(call_id, program)
        for traced in [t for t in program.traced if t.call_id == call_id and not t.spawns]:
            self.untrace(traced)

    def trace(self, traced: Traced) -> None:
        """Remember a text that another call may open with."""
        program = traced.program
        replies = [t for t in program.traced if t.call_id is None] if traced.call_id is None else []
        if len(replies) >= REPLIES_TRACED_MAX:
            self.untrace(replies[0])
        if len(program.traced) >= TRACES_MAX:
            self.untrace(program.traced[0])
        while len(self.traced) >= TRACE_KEYS_MAX:
            self.untrace(next(iter(self._texts)))
        self._order += 1
        traced.order = self._order
        program.traced.append(traced)
        self._texts[traced] = None
        self.traced.add_all(traced.found_by(), traced)

    def untrace(self, traced: Traced) -> None:
        """Forget such a text."""
        self._untrace(traced)
        traced.program.traced.remove(traced)

    def _untrace(self, traced: Traced) -> None:
        self._texts.pop(traced, None)
        self.traced.drop_all(traced.found_by(), traced)

    def respond(self, program: Program, response_id: str, after: int) -> None:
        """A reply got an id that a later call may refer to."""
        if len(program.responses) >= RESPONSES_MAX:
            oldest = next(iter(program.responses))
            del program.responses[oldest]
            if self.responses.get(oldest) is program:
                del self.responses[oldest]
        program.responses[response_id] = after
        self.responses[response_id] = program

    def check(self) -> None:
        """Every entry leads to a program that knows of it, and every program is found by what it knows."""
        for value, tips in self.ready.items():
            _hold(bool(tips), "an index entry without a conversation")
            for tip in tips:
                _hold(
                    tip in tip.program.tips and tip.state != "flying", "a ready tip that is not its program's"
                )
                _hold(value in (tip.before, tip.after), "a tip under a hash where it does not stand")
        for value, tips in self.said.items():
            _hold(
                all(tip in tip.program.tips and tip.state == "ready" and tip.said == value for tip in tips),
                "a tip under words that are not its last",
            )
        for value, owners in self.known.items():
            _hold(0 < len(owners) <= OWNERS_MAX, "a mark without an owner, or with too many")
            _hold(all(value in owner.marks for owner in owners), "a mark that its owner does not know")
        for call_id, owners in self.calls.items():
            _hold(all(call_id in owner.calls for owner in owners), "a call that its program does not know")
        for traces in self.traced.values():
            _hold(all(t in t.program.traced for t in traces), "a trace that its program does not know")
        _hold(
            len(self._texts) == sum(len(p.traced) for p in self.programs.values()), "a text that nobody wrote"
        )
        for program in self.programs.values():
            _hold(len(program.marks) <= MARKS_MAX, "a program with too many marks")
            _hold(len(program.calls) <= CALLS_MAX, "a program with too many open calls")
            _hold(len(program.traced) <= TRACES_MAX, "a program with too many traces")
            replies = sum(t.call_id is None for t in program.traced)
            _hold(replies <= REPLIES_TRACED_MAX, "a program with too many traces of replies")
            _hold(program.flying == sum(t.state == "flying" for t in program.tips), "a miscounted flight")
            _hold(program.main is None or program.main in program.tips, "a main conversation that is gone")
            _hold(
                all(program in self.known.get(m) for m in program.marks),
                "a mark that does not lead to its program",
            )


def first_of(owners: Iterable[Program], scope: Program | None) -> Program | None:
    """The newest owner in scope: any when there is none, else of that program and the agents below it."""
    found = None
    for owner in owners:
        if scope is None or owner.root is scope:
            found = owner
    return found


def _hold(truth: bool, else_: str) -> None:
    if not truth:
        raise InvariantBroken(else_)
