"""The clients of a simulated world: they send the steps of their programs, run tools, and try again after errors.

Rule: a client knows its own plan and what it was answered; of engines and policies it knows nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agentserve.core import events as ev
from agentserve.core.ids import ProgramId, StepId, TenantId, WorkflowId
from agentserve.sim.agenda import Agenda, Network
from agentserve.sim.contents import Text, common_tokens
from agentserve.sim.programs import ProgramPlan, StepPlan, Workload
from agentserve.sim.traces import ProgramTrace, Result, StepTrace

RETRY_S = 1.0  # after an error, as SDKs wait


@dataclass(slots=True, kw_only=True, eq=False)
class Live:
    """A program under way."""

    index: int
    plan: ProgramPlan
    text: Text
    started_at: float
    next_step: int = 0
    open_children: int = 0
    waiting_parent: int | None = None
    ready_at: float = 0.0  # when its tools and thinking are done
    returned: tuple[str, ...] = ()
    attempt: int = 0


class Clients:
    """Every client of a world; `tell` is the way to the gateway."""

    def __init__(
        self,
        *,
        workload: Workload,
        agenda: Agenda,
        network: Network,
        tell: Callable[[ev.AnyEvent], None],
        result: Result,
        concurrency: int | None,
        block: int,
        ends_told: bool,
    ) -> None:
        self.workload = workload
        self.agenda = agenda
        self.network = network
        self.tell = tell
        self.result = result
        self.concurrency = concurrency
        self.block = block
        self.ends_told = ends_told
        self.live: dict[int, Live] = {}
        self.steps: dict[str, tuple[Live, StepPlan, StepTrace]] = {}
        self._index_of = {p.id: i for i, p in enumerate(workload.programs)}
        self._roots = iter(workload.roots)

    def program(self, name: str) -> Live | None:
        """The program of this id, if it is under way."""
        return self.live.get(self._index_of.get(name, -1))

    # -- programs begin and end

    def start_roots(self) -> None:
        """Enter the first programs: all with their arrival times, or as many as are to be under way at once."""
        if self.concurrency is None:
            for index in self._roots:
                plan = self.workload.programs[index]
                self.agenda.at(plan.arrives_s or 0.0, self._start, index, None)
            return
        for _ in range(min(self.concurrency, len(self.workload.roots))):
            self._start_next_root()

    def _start_next_root(self) -> None:
        index = next(self._roots, None)
        if index is not None:
            self.agenda.at(self.agenda.now, self._start, index, None)

    def _start(self, index: int, parent: int | None) -> None:
        plan = self.workload.programs[index]
        live = Live(
            index=index,
            plan=plan,
            text=Text(plan, self.block),
            started_at=self.agenda.now,
            waiting_parent=parent,
        )
        self.live[index] = live
        self._send(live)

    def _finish(self, live: Live) -> None:
        now = self.agenda.now
        del self.live[live.index]
        self.result.programs.append(ProgramTrace(index=live.index, started_at=live.started_at, ended_at=now))
        if live.waiting_parent is not None:
            parent = self.live[live.waiting_parent]
            parent.open_children -= 1
            if parent.open_children == 0:
                self._go_on(parent)
        elif self.concurrency is not None:
            self._start_next_root()

    # -- steps

    def _send(self, live: Live) -> None:
        """The client sends the program's next step."""
        plan = live.plan
        step = plan.steps[live.next_step]
        before = live.text.tokens
        if live.attempt == 0:
            live.text.prompt(step)
        if step.contents is not None and live.next_step:
            before = common_tokens(plan.steps[live.next_step - 1].contents or (), step.contents)
        fresh = live.text.tokens - before if live.next_step else live.text.tokens
        step_id = StepId(f"{plan.id}/{live.next_step}" + (f"r{live.attempt}" if live.attempt else ""))
        trace = StepTrace(program=live.index, index=live.next_step, sent_at=self.agenda.now)
        trace.prompt = live.text.tokens
        trace.fresh = max(fresh, 0)
        self.steps[step_id] = (live, step, trace)
        event = ev.StepArrived(
            step=step_id,
            program=ProgramId(plan.id),
            tenant=TenantId(plan.tenant),
            prompt_tokens=live.text.tokens,
            prefix=live.text.segments(step),
            workflow=WorkflowId(plan.workflow) if plan.workflow else None,
            role=step.role or plan.role,
            parent=None if plan.parent is None else ProgramId(self.workload.programs[plan.parent].id),
            relation="compaction" if step.compact_to is not None else "continues",
            node=step.node,
            priority=plan.priority,
            deadline_s=plan.deadline_s if live.next_step == 0 else None,
            tools_offered=plan.tools_offered,
            returned=live.returned,
            human=live.next_step > 0 and plan.steps[live.next_step - 1].human,
        )
        self.agenda.at(self.agenda.now + self.network.to_client_s, self.tell, event)

    def answered(self, step_id: str) -> None:
        """The client has the whole reply: it runs its tools, or is done."""
        now = self.agenda.now
        live, step, trace = self.steps.pop(step_id)
        self.result.steps.append(trace)
        live.attempt = 0
        if step.contents is None:
            live.text.answered(step)
        live.next_step += 1
        live.returned = tuple(f"{step_id}.{k}" for k in range(len(step.tools)))
        live.ready_at = now + step.gap_s
        live.open_children = len(step.children)
        for child in step.children:
            self.agenda.at(now, self._start, child, live.index)
        if not step.children:
            self._go_on(live)

    def _go_on(self, live: Live) -> None:
        """Nothing is open any more: the next step when tools and thinking are done, or the end."""
        if live.next_step < len(live.plan.steps):
            self.agenda.at(max(self.agenda.now, live.ready_at), self._send, live)
            return
        if live.plan.steps[-1].children and self.ends_told:
            # its last step was not told to be the last, since it still waited for them
            self.tell(ev.ProgramEnded(program=ProgramId(live.plan.id)))
        self._finish(live)

    def again(self, step_id: str) -> None:
        """The client got an error: it sends the step anew."""
        live = self._lost(step_id)
        live.attempt += 1
        self.agenda.at(self.agenda.now + RETRY_S, self._send, live)

    def give_up(self, step_id: str) -> None:
        """No engine can hold it: sending it again is of no use, so the program ends here."""
        live = self._lost(step_id)
        self.result.unservable += 1
        self.tell(ev.StepFailed(step=StepId(step_id), reason="too_long"))
        self.tell(ev.ProgramEnded(program=ProgramId(live.plan.id)))
        self._finish(live)

    def _lost(self, step_id: str) -> Live:
        live, _, trace = self.steps.pop(step_id)
        trace.ok = False
        trace.ended_at = self.agenda.now
        self.result.steps.append(trace)
        return live

    # -- what an oracle may be told

    def true_gap(self, program: str, step: int) -> float:
        """How long the gap behind that step of it lasts. It may be asked for at any time in the gap."""
        live = self.live.get(self._index_of[program])
        if live is None:
            return 0.0
        return live.plan.steps[min(step, len(live.plan.steps) - 1)].gap_s

    def true_steps_left(self, program: str) -> float:
        live = self.live.get(self._index_of[program])
        return 1.0 if live is None else float(len(live.plan.steps) - live.next_step)

    def true_output(self, step: str) -> float:
        return float(self.steps[step][1].output_tokens)
