"""What recording costs a step: journal, metrics and spans, on the requests' path and behind it.

    python -m tests.bench.record_cost [--steps 20000] [--trace-sample 0.01] [--json]

Measures, in one process and in rounds that take turns, the time that a request's path spends on recording a step (three
events with their decisions, a tool call, a finished step) beyond building those values, as CPU time of its thread, and
the time until the journal's thread has written it to a SQLite file. The budget on the path is 30 µs a step.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from agentserve.config import StoreSettings
from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId, WorkflowId
from agentserve.ports import StepRecord
from agentserve.store.journal import WriteBehind
from agentserve.telemetry import Recorder
from agentserve.telemetry.spans import Spans

BUDGET_US = 30.0
ROUNDS = 7
Told = tuple[ev.AnyEvent, float, list[do.AnyDecision]]


class Nowhere(SpanExporter):
    """Takes spans and forgets them."""

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to close."""


def steps(count: int, first: int) -> list[tuple[list[Told], StepRecord]]:
    """What a gateway tells of each step, ready made, so that only telling it is timed."""
    out = []
    acme, coder, e0 = TenantId("acme"), WorkflowId("coder"), EngineId("e0")
    now = time.time()
    for k in range(first, first + count):
        step, program, at = StepId(f"s{k}"), ProgramId(f"acme/p{k % 200}"), now + k * 1e-3
        tool = ev.PendingTool(id="c", name="bash", argument_class="git diff")
        told: list[Told] = [
            (
                ev.StepArrived(
                    step=step,
                    program=program,
                    tenant=acme,
                    prompt_tokens=4000,
                    returned=("c",),
                    workflow=coder,
                ),
                at,
                [do.Dispatch(step=step, engine=e0, reason="kept", cause="StepArrived#1")],
            ),
            (ev.StepStarted(step=step), at + 0.2, []),
            (
                ev.StepFinished(
                    step=step, prompt_tokens=4000, output_tokens=90, cached_tokens=3600, tools=(tool,)
                ),
                at + 1.0,
                [],
            ),
        ]
        record = StepRecord(
            step=step, program=program, tenant="acme", protocol="chat", model="m", arrived_at=at,
            dispatched_at=at + 0.01, first_byte_at=at + 0.2, ended_at=at + 1.0, engine="e0", status=200,
            outcome="finished", prompt_tokens=4000, output_tokens=90, cached_tokens=3600, workflow="coder",
            tools=("bash",), overhead_s=0.0002,
        )  # fmt: skip
        out.append((told, record))
    return out


async def timed(count: int, first: int, journal: WriteBehind | None, telemetry: Recorder | None) -> float:
    """Microseconds a step on the path, at a pace that leaves the journal's thread no backlog to fight over."""
    work = steps(count, first)
    chunk = 100
    spent = 0.0
    for start in range(0, count, chunk):
        began = time.thread_time()
        for told, record in work[start : start + chunk]:
            for event, now, decisions in told:
                if journal is not None:
                    journal.event(event, now, decisions)
                if telemetry is not None:
                    telemetry.watch(event, now, decisions)
            if telemetry is not None:
                telemetry.step_done(record)
            if journal is not None:
                journal.step(record)
        spent += time.thread_time() - began
        await asyncio.sleep(0.002)
    return spent / count * 1e6


async def measure(count: int, sample: float) -> dict[str, float]:
    """The figures, each the least of its rounds, because the rest is the machine's other work."""
    per_round = count // ROUNDS
    on_path: dict[str, list[float]] = {
        "loop": [],
        "journal": [],
        "metrics": [],
        "metrics_spans": [],
        "all": [],
    }
    behind: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        journal = WriteBehind(StoreSettings(url=f"sqlite:///{folder}/bench.db"))
        journal.start()
        while not journal.up:
            await asyncio.sleep(0.01)
        metrics = Recorder()
        spans = Spans(Nowhere(), sample=sample)
        traced = Recorder(spans=spans)
        await traced.start()
        teller, told_all = Recorder(), Recorder(spans=spans)
        teller.on_fact(journal.known)
        told_all.on_fact(journal.known)
        arms: dict[str, Callable[[], tuple[WriteBehind | None, Recorder | None]]] = {
            "loop": lambda: (None, None),
            "journal": lambda: (journal, None),
            "metrics": lambda: (None, metrics),
            "metrics_spans": lambda: (None, traced),
            "all": lambda: (journal, told_all),
        }
        first = 0
        for _ in range(ROUNDS):
            for name, arm in arms.items():
                on_path[name].append(await timed(per_round, first, *arm()))
                first += per_round
                await journal.flushed(60)
        for _ in range(3):
            work = steps(per_round, first)
            first += per_round
            for told, record in work:
                for event in told:
                    journal.event(*event)
                    teller.watch(*event)
                journal.step(record)
            began = time.perf_counter()
            await journal.flushed(60)
            behind.append((time.perf_counter() - began) / per_round * 1e6)
        await traced.stop()
        await journal.stop()
        assert not journal.lost
    base = min(on_path.pop("loop"))
    figures = {f"{name}_us": min(values) - base for name, values in on_path.items()}
    return {**figures, "written_behind_us": min(behind), "budget_us": BUDGET_US}


def main() -> int:
    """Measure and print; 1 when the path is over budget."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=14_000)
    parser.add_argument("--trace-sample", type=float, default=0.01)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = asyncio.run(measure(args.steps, args.trace_sample))
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:22}{value:8.1f}")
    return 0 if figures["all_us"] <= BUDGET_US else 1


if __name__ == "__main__":
    raise SystemExit(main())
