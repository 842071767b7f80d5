"""What goes wrong beside lost engines, for the machine of `machine.py`: reports that come late, twice or for nobody,
figures of engines that change under way, KV events that contradict the ledger, clocks that stand still or jump.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from agentserve.core import events as ev
from agentserve.core.board import Share
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId
from agentserve.core.program import StepState
from tests.core.machine import ENGINES, KV_TOKENS, Fleet, numbers

NOBODY = ProgramId("nobody")
PRIORITIES: tuple[Any, ...] = ("interactive", "standard", "batch", None)
TOOLS = (
    ev.PendingTool(id="c", name="bash", pipes=True, timeout_s=5.0),
    ev.PendingTool(id="d", name="search", background=True),
    ev.PendingTool(id="e", name="ask", kind="human"),
)


class Mishaps(Fleet):
    """As many kinds of them as events there are."""

    def anyone(self, number: int) -> ProgramId:
        """A program: live, over, or one that nobody ever heard of."""
        names = [*self.sent, NOBODY]
        return names[number % len(names)]

    # -- clients

    @rule(number=numbers, tokens=st.sampled_from([0, 1, KV_TOKENS, 3 * KV_TOKENS]))
    def a_program_opens_with_a_prompt_of_an_odd_size(self, number: int, tokens: int) -> None:
        name = ProgramId(f"p{len(self.sent)}")
        self.sent[name] = 0
        self.send(name, number, prompt_tokens=tokens, prefix=(), output_tokens_max=number % 3)

    @rule(number=numbers, parent=numbers)
    def a_sub_agent_opens(self, number: int, parent: int) -> None:
        name = ProgramId(f"p{len(self.sent)}")
        above = self.anyone(parent)
        self.sent[name] = 0
        self.send(name, number, parent=above, relation="subagent", priority=PRIORITIES[number % 4])

    @precondition(lambda self: self.resting())
    @rule(number=numbers, relation=st.sampled_from(["continues", "compaction", "retry"]))
    def a_program_returns_with_another_past(self, number: int, relation: Any) -> None:
        resting = self.resting()
        path = (
            ev.Segment(number % 2 + 1, 500),
            ev.Segment(number % 5 + 10, 300),
            ev.Segment(number + 99, 200),
        )
        self.send(
            resting[number % len(resting)],
            number,
            relation=relation,
            prefix=path[: number % 4],
            undivided=number % 3 == 0,
            priority=PRIORITIES[number % 4],
            deadline_s=float(number % 50) if number % 3 == 0 else None,
            returned=("c",),
            human=number % 5 == 0,
        )

    @precondition(lambda self: self.over)
    @rule(number=numbers)
    def a_program_goes_on_after_its_end(self, number: int) -> None:
        name = sorted(self.over)[number % len(self.over)]
        self.over.discard(name)
        self.send(name, number)

    @rule(number=numbers, fresh=st.booleans())
    def a_program_is_declared(self, number: int, fresh: bool) -> None:
        name = (
            ProgramId(f"p{len(self.sent)}")
            if fresh or not self.sent
            else list(self.sent)[number % len(self.sent)]
        )
        self.sent.setdefault(name, 0)
        self.over.discard(name)
        self.tell(
            ev.ProgramDeclared(
                program=name,
                tenant=self.tenant_of(name),
                parent=self.anyone(number),
                priority=PRIORITIES[number % 4],
                deadline_s=float(number % 90) if number % 2 else None,
                steps_expected=float(number % 9) if number % 3 else None,
            )
        )

    @rule(number=numbers, tool=st.sampled_from(TOOLS))
    def a_tool_is_said_to_begin(self, number: int, tool: ev.PendingTool) -> None:
        self.tell(ev.ToolStarted(program=self.anyone(number), tool=tool))

    @rule(number=numbers, tool=st.sampled_from(["c", "d", "unheard of"]))
    def a_tool_is_said_to_end(self, number: int, tool: str) -> None:
        self.tell(ev.ToolEnded(program=self.anyone(number), tool_id=tool, duration_s=float(number % 3)))

    @rule(number=numbers, compacted=st.booleans())
    def a_program_says_how_much_is_left(self, number: int, compacted: bool) -> None:
        left = float(number % 7) if number % 2 else None
        self.tell(ev.HintGiven(program=self.anyone(number), steps_left=left, compacted=compacted))

    @precondition(lambda self: self.flying())
    @rule(number=numbers, count=st.integers(0, 3))
    def a_step_finishes_as_nobody_foresaw(self, number: int, count: int) -> None:
        flying = self.flying()
        step = flying[number % len(flying)]
        self.given_up(step.id)
        if number % 7 == 0:
            self.over.add(step.program.id)
        self.tell(
            ev.StepFinished(
                step=step.id,
                prompt_tokens=number if number % 2 else 0,
                output_tokens=number % 2 * 4_000,
                cached_tokens=(None, 0, number, 10 * KV_TOKENS)[number % 4],
                tools=TOOLS[:count],
                turn_done=not count,
                final=number % 7 == 0,  # others of its steps may be under way
            )
        )

    # -- reports

    @rule(number=numbers, kind=st.sampled_from(["started", "finished", "failed", "busy", "gone"]))
    def a_report_comes_late_or_for_nobody(self, number: int, kind: str) -> None:
        steps = [*self.gone, StepId("unheard of")]
        self._report(steps[number % len(steps)], kind)

    @precondition(lambda self: self.board.waiting)
    @rule(number=numbers, kind=st.sampled_from(["started", "finished", "busy"]))
    def a_report_comes_for_a_step_that_was_not_sent(self, number: int, kind: str) -> None:
        waiting = list(self.board.waiting)
        self._report(waiting[number % len(waiting)], kind)

    @precondition(lambda self: any(s.state is StepState.STARTED for s in self.flying()))
    @rule(number=numbers)
    def a_first_byte_comes_twice(self, number: int) -> None:
        started = [s for s in self.flying() if s.state is StepState.STARTED]
        step = started[number % len(started)]
        at = step.started_at
        self._report(step.id, "started")
        assert step.started_at == at

    def _report(self, step: StepId, kind: str) -> None:
        reports: dict[str, ev.AnyEvent] = {
            "started": ev.StepStarted(step=step),
            "finished": ev.StepFinished(step=step, prompt_tokens=10, output_tokens=10),
            "failed": ev.StepFailed(step=step, reason="late"),
            "busy": ev.StepFailed(step=step, reason="late", retryable=True),
            "gone": ev.ClientGone(step=step),
        }
        self.tell(reports[kind])

    @rule(
        number=numbers,
        decision=st.sampled_from(["Pin", "Unpin", "Warm"]),
        outcome=st.sampled_from(["accepted", "clipped", "refused", "unknown"]),
    )
    def an_engine_says_what_became_of_a_decision(self, number: int, decision: str, outcome: Any) -> None:
        self.tell(
            ev.DecisionDone(
                decision=decision,
                program=self.anyone(number),
                engine=(*ENGINES, EngineId("unheard of"))[number % 3],
                outcome=outcome,
                prompt_tokens=number if number % 2 else None,
                cached_tokens=number // 2 if number % 3 else None,
            )
        )

    @rule(number=numbers, tokens=st.sampled_from([0, 700, 5_000, 10 * KV_TOKENS]), stored=st.booleans())
    def an_engine_tells_of_kv_that_nobody_sent_it(self, number: int, tokens: int, stored: bool) -> None:
        engine, program = (*ENGINES, EngineId("unheard of"))[number % 3], self.anyone(number)
        if stored:
            self.tell(ev.KvStored(engine=engine, program=program, tokens=tokens))
        else:
            self.tell(ev.KvRemoved(engine=engine, program=program, tokens_left=tokens))

    # -- engines and tenants

    @rule(number=numbers, kv_tokens=st.sampled_from([1, 6_000, KV_TOKENS, 3 * KV_TOKENS, None]))
    def an_engine_says_something_new_of_itself(self, number: int, kv_tokens: int | None) -> None:
        name = ENGINES[number % 2]
        if kv_tokens is not None:
            self.will_hold(name, kv_tokens)
        self.tell(
            ev.EngineReported(
                engine=name,
                kv_tokens=kv_tokens,
                seqs_max=(None, 1, 8)[number % 3],
                block_tokens=(None, 1, 16)[number // 3 % 3],
                pins_natively=(None, False, True)[number // 9 % 3],
                prefill_tokens_per_s=100.0 * (number % 90 + 1) if number % 4 == 0 else None,
                draining=number % 11 == 0 or None,
            )
        )

    @rule(number=numbers)
    def an_engine_begins_anew_before_anyone_saw_it_fall(self, number: int) -> None:
        name = ENGINES[number % 2]
        if name in self.up:
            self.tell(ev.EngineBack(engine=name))

    @rule(number=numbers)
    def an_engine_is_lost_that_is_lost_or_unheard_of(self, number: int) -> None:
        away = [e for e in (*ENGINES, EngineId("unheard of")) if e not in self.up]
        self.tell(ev.EngineLost(engine=away[number % len(away)]))

    @rule(number=numbers, weight=st.sampled_from([0.1, 1.0, 20.0]), pins=st.sampled_from([0.0, 0.1, 1.0]))
    def a_tenant_gets_another_share(self, number: int, weight: float, pins: float) -> None:
        tenant: TenantId = self.tenant_of(ProgramId(f"p{number % 9}"))
        self.board.shares[tenant] = Share(
            weight=weight, priority_max=PRIORITIES[number % 3], pin_share_max=pins
        )
        self.scheduler.policy.reshared(tenant, self.now)
        self.scheduler.check()

    # -- clocks

    @rule(runs=st.booleans())
    def the_clock_stands_still_or_goes_on(self, runs: bool) -> None:
        self.clock_runs = runs

    @rule(seconds=st.sampled_from([5.0, 100.0, 4_000.0]))
    def the_clock_jumps(self, seconds: float) -> None:
        self.now += seconds
