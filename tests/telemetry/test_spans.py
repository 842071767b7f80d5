"""One trace for each program, whoever began it and however late its parent is written."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentserve.config import TelemetrySettings
from agentserve.core import decisions as do
from agentserve.core import facts
from agentserve.core.ids import EngineId, StepId
from agentserve.errors import ConfigError
from agentserve.ports import Try
from agentserve.telemetry import Recorder
from agentserve.telemetry.conventions import ATTRIBUTES, OPERATIONS, Conventions
from agentserve.telemetry.spans import Spans, make_spans
from agentserve.telemetry.traceparent import derived, parse_traceparent
from tests.telemetry.collector import Collector
from tests.telemetry.test_metrics import AT, E0, record
from tests.telemetry.tree import tree

S = StepId("s")
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Traced:
    """Spans into memory."""

    def __init__(self, **given: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.spans = Spans(self.exporter, batched=False, **given)

    def named(self) -> dict[str, ReadableSpan]:
        self.spans.drain()
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def close(self, program: str = "acme/p", **given: Any) -> None:
        self.spans.fact(
            facts.ProgramClosed(
                program=program, at=AT + 9, reason="final", opened_at=AT, slowdown=1.5, **given
            )
        )


def tool(**given: Any) -> facts.ToolCallOver:
    plain: dict[str, Any] = {
        "program": "acme/p",
        "id": "c",
        "name": "bash",
        "step": "s",
        "started_at": AT + 3,
        "seconds": 2.0,
    }
    return facts.ToolCallOver(**{**plain, **given})


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def test_a_program_is_one_tree_of_steps_queues_and_tools() -> None:
    traced = Traced()
    decisions = (do.Wait(step=S, reason="no_room"), do.Dispatch(step=S, engine=E0, reason="fits"))
    traced.spans.step(record(decisions=decisions, finish_reason="tool_calls"))
    traced.spans.fact(tool())
    traced.spans.fact(tool(id="d", name="search", measured=True, ok=False))
    traced.close()
    spans = traced.named()
    assert set(spans) == {
        "chat m",
        "queue",
        "execute_tool bash",
        "execute_tool search",
        "invoke_workflow coder",
    }
    root, chat = spans["invoke_workflow coder"], spans["chat m"]
    assert len({span.context.trace_id for span in spans.values() if span.context is not None}) == 1
    assert root.parent is None
    for name in ("chat m", "execute_tool bash", "execute_tool search"):
        assert parent_of(spans[name]) == id_of(root)
    assert parent_of(spans["queue"]) == id_of(chat)
    assert [event.name for event in chat.events] == ["agentserve.wait", "agentserve.dispatch"]
    assert chat.events[1].attributes is not None
    assert chat.events[1].attributes["agentserve.decision.reason"] == "fits"
    seen = dict(chat.attributes or {})
    assert seen["gen_ai.usage.cache_read.input_tokens"] == 60
    assert seen["gen_ai.response.finish_reasons"] == ("tool_calls",)
    assert (seen["openinference.span.kind"], seen["session.id"]) == ("LLM", "acme/p")
    assert (root.start_time, root.end_time) == (int(AT * 1e9), int((AT + 3) * 1e9))


def test_of_a_step_that_was_sent_twice_each_wait_and_decision_has_its_time() -> None:
    traced = Traced()
    first, second = do.Dispatch(step=S, engine=E0), do.Dispatch(step=S, engine=EngineId("e1"))
    decisions = (do.Wait(step=S), first, do.Abort(step=S, engine=E0), do.Wait(step=S), second)
    traced.spans.step(
        record(
            decisions=decisions,
            tries=(Try("e0", AT + 0.1, AT + 0.2),),
            engine="e1",
            dispatched_at=AT + 0.4,
        )
    )
    traced.spans.drain()
    spans = traced.exporter.get_finished_spans()
    waits = [(span.start_time, span.end_time) for span in spans if span.name == "queue"]
    in_ns = [int((AT + after) * 1e9) for after in (0.0, 0.1, 0.2, 0.4)]
    assert waits == [(in_ns[0], in_ns[1]), (in_ns[2], in_ns[3])]
    (chat,) = [span for span in spans if span.name == "chat m"]
    assert [event.timestamp for event in chat.events] == [in_ns[n] for n in (0, 1, 2, 2, 3)]


def test_a_step_that_was_refused_waited_until_its_refusal() -> None:
    traced = Traced()
    decisions = (do.Wait(step=S), do.Reject(step=S, status=503, retry_after_s=1.0))
    never: dict[str, Any] = {
        "dispatched_at": None,
        "first_byte_at": None,
        "outcome": "rejected",
        "engine": None,
    }
    traced.spans.step(record(decisions=decisions, queue_s=3.0, ended_at=AT + 3.0, **never))
    spans = traced.named()
    assert (spans["queue"].start_time, spans["queue"].end_time) == (int(AT * 1e9), int((AT + 3.0) * 1e9))
    assert [event.timestamp for event in spans["chat m"].events] == [int(AT * 1e9), int((AT + 3.0) * 1e9)]


def test_what_is_inferred_is_marked_and_what_was_measured_is_not() -> None:
    traced = Traced()
    traced.spans.step(record())
    traced.spans.fact(tool())
    traced.spans.fact(tool(id="d", name="search", measured=True))
    spans = traced.named()
    assert (spans["execute_tool bash"].attributes or {})["agentserve.inferred"] is True
    assert "agentserve.inferred" not in (spans["execute_tool search"].attributes or {})


def test_a_callers_trace_is_joined_and_passed_on_to_the_engine() -> None:
    traced = Traced()
    passed = traced.spans.traceparent("acme/p", "s", CALLER)
    assert passed.startswith("00-0af7651916cd43dd8448eb211c80319c-")
    trace_id = traced.spans.step(record(traceparent=CALLER))
    traced.close()
    assert trace_id == "0af7651916cd43dd8448eb211c80319c"
    spans = traced.named()
    assert parent_of(spans["invoke_workflow coder"]) == 0xB7AD6B7169203331
    told = parse_traceparent(passed)
    assert told is not None
    assert told.span_id == id_of(spans["chat m"])  # the engine's spans hang under the step


def test_a_step_of_another_trace_stays_in_its_programs_and_links_to_its_caller() -> None:
    traced = Traced()
    traced.spans.step(record(traceparent=CALLER))
    other = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    traced.spans.step(record("s2", model="m2", traceparent=other))
    spans = traced.named()
    second = spans["chat m2"]
    assert second.context is not None
    assert f"{second.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    [link] = second.links
    assert link.context.span_id == int("2" * 16, 16)
    assert not spans["chat m"].links  # the root is under that caller already


def test_gateways_that_share_nothing_derive_one_trace() -> None:
    one, other = Traced(), Traced()
    one.spans.step(record("s1"))
    other.spans.step(record("s2", model="m2"))
    first, second = one.named()["chat m"], other.named()["chat m2"]
    assert first.context is not None
    assert second.context is not None
    assert first.context.trace_id == second.context.trace_id
    assert parent_of(first) == parent_of(second) == derived("program", "acme/p", 8)


def test_a_sub_agent_hangs_under_its_parent_in_the_same_trace() -> None:
    traced = Traced()
    traced.spans.fact(facts.ProgramOpened(program="acme/child", at=AT, parent="acme/p"))
    traced.spans.traceparent(
        "acme/child", "c1", None
    )  # before its first step is over, and its parent unknown
    traced.spans.step(record("c1", program="acme/child", parent="acme/p", model="small", workflow="reader"))
    traced.spans.step(record())
    traced.close("acme/child")
    traced.close()
    spans = traced.named()
    assert parent_of(spans["invoke_agent reader"]) == id_of(spans["invoke_workflow coder"])
    assert len({span.context.trace_id for span in spans.values() if span.context is not None}) == 1


def test_a_program_is_traced_whole_or_not_at_all() -> None:
    traced = Traced(sample=0.3)
    kept = 0
    for k in range(400):
        seen = {traced.spans.step(record(f"{k}/{n}", program=f"acme/{k}")) is not None for n in range(3)}
        assert len(seen) == 1
        kept += seen.pop()
    assert 60 < kept < 180
    assert Traced(sample=0.0).spans.step(record()) is None
    unsampled = CALLER[:-2] + "00"
    assert Traced().spans.step(record(traceparent=unsampled)) is None  # its caller decided
    assert Traced().spans.traceparent("acme/p", "s", unsampled).endswith("-00")
    assert Traced(sample=0.0).spans.step(record(traceparent=CALLER)) is not None


def test_a_failed_step_is_an_error_with_its_reason() -> None:
    traced = Traced()
    traced.spans.step(record(outcome="failed", status=502, error="the engine broke", first_byte_at=None))
    span = traced.named()["chat m"]
    assert span.status.description == "the engine broke"
    assert (span.attributes or {})["error.type"] == "failed"


def test_what_cannot_be_kept_is_dropped_and_counted() -> None:
    traced = Traced(pending_max=2)
    for k in range(5):
        traced.spans.step(record(f"s{k}"))
    assert traced.spans.lost == 3
    assert len([name for name in traced.named() if name.startswith("chat")]) == 1
    recorder = Recorder(spans=traced.spans)
    assert b"agentserve_spans_lost_total 3.0" in recorder.render("")[1]


async def test_stopping_writes_the_programs_that_are_still_open() -> None:
    traced = Traced()
    recorder = Recorder(spans=traced.spans)
    await recorder.start()
    recorder.step_done(record())
    await recorder.stop()
    done = record("s2")
    recorder.step_done(done)
    assert done.trace_id == f"{derived('trace', 'acme/p', 16):032x}"  # the journal's row has it then
    root = {span.name: span for span in traced.exporter.get_finished_spans()}["invoke_workflow coder"]
    assert (root.attributes or {})["agentserve.program.end_reason"] == "open"


def test_the_older_conventions_are_one_switch_away() -> None:
    traced = Traced(conventions=Conventions("1.36"))
    traced.spans.step(record())
    traced.close()
    spans = traced.named()
    assert "invoke_agent coder" in spans  # there was no invoke_workflow
    seen = dict(spans["chat m"].attributes or {})
    assert seen["gen_ai.system"] == "openai"
    assert "gen_ai.provider.name" not in seen
    assert "gen_ai.usage.cache_read.input_tokens" not in seen


def test_each_wire_name_stands_for_one_thing() -> None:
    for column in (0, 1):
        names = [row[column] for row in ATTRIBUTES.values() if row[column] is not None]
        assert len(names) == len(set(names))
    assert all(len(row) == 2 for row in OPERATIONS.values())


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "",
        "00",
        CALLER[:-3],
        CALLER.replace("0af7", "0ag7"),
        "ff" + CALLER[2:],
        "00-" + "0" * 32 + CALLER[35:],
        "x" * 55,
    ],
)
def test_a_malformed_traceparent_is_no_caller(wrong: str | None) -> None:
    assert parse_traceparent(wrong) is None
    assert Traced().spans.traceparent("acme/p", "s", wrong).startswith("00-")


def test_off_means_off_and_the_clients_header_passes_untouched() -> None:
    assert make_spans(TelemetrySettings()) is None
    recorder = Recorder()
    assert recorder.spans is None
    assert recorder.traceparent("acme/p", "s", CALLER) == CALLER
    assert recorder.traceparent("acme/p", "s", None) is None


async def test_a_collector_receives_the_trace_over_otlp() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with Collector() as collector:
        recorder = Recorder(TelemetrySettings(traces="otlp", otlp_endpoint=collector.url))
        await recorder.start()
        recorder.step_done(record(decisions=(do.Dispatch(step=S, engine=E0, reason="kept"),)))
        await recorder.stop()
    assert tree(collector.spans).splitlines() == [
        "invoke_workflow coder  0.00 s + 3.00 s  steps=1 end=open",
        "└── chat m  0.00 s + 3.00 s  in=100 cached=60 out=7",
        "    ├── queue  0.00 s + 0.40 s  waited_s=0.4",
        "    └── · dispatch  reason=kept engine=e0",
    ]


async def test_the_console_exporter_prints_spans(capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder(TelemetrySettings(traces="console"))
    await recorder.start()
    recorder.step_done(record())
    await recorder.stop()
    assert '"chat m"' in capsys.readouterr().out


def test_without_the_exporter_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"agentserve-gateway\[otlp\]"):
        make_spans(TelemetrySettings(traces="otlp"))
