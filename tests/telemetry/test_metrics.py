"""Figures: named once, bounded, and right."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from agentserve.config import TelemetrySettings
from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core import facts
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId, WorkflowId
from agentserve.ports import StepRecord
from agentserve.telemetry import Recorder
from agentserve.telemetry.meters import CHILDREN_MAX, Meters, Spread
from agentserve.telemetry.metrics import BY_NAME, PREFIX, TABLE, Metric, queryable
from agentserve.telemetry.spans import Spans
from agentserve.telemetry.tally import NOTED_MAX

AT = 1_700_000_000.0
ACME, CODER, P, E0 = TenantId("acme"), WorkflowId("coder"), ProgramId("acme/p"), EngineId("e0")
A, B = StepId("a"), StepId("b")


def record(step: str = "s", **given: Any) -> StepRecord:
    plain: dict[str, Any] = {
        "step": step, "program": "acme/p", "tenant": "acme", "protocol": "chat", "model": "m", "arrived_at": AT,
        "dispatched_at": AT + 0.4, "first_byte_at": AT + 0.9, "ended_at": AT + 3.0, "engine": "e0", "status": 200,
        "outcome": "finished", "prompt_tokens": 100, "output_tokens": 7, "cached_tokens": 60, "workflow": "coder",
        "queue_s": 0.3999, "overhead_s": 0.0001, "identity_source": "content", "relation": "continues",
    }  # fmt: skip
    return StepRecord(**{**plain, **given})


def figures(recorder: Recorder) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample that a scraper reads, by name and labels."""
    out = {}
    _, text = recorder.render("")
    for family in parse_plain(text.decode()):
        for sample in family.samples:
            out[sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))] = sample.value
    return out


def value(recorder: Recorder, name: str, **labels: str) -> float:
    return figures(recorder)[name, tuple(sorted(labels.items()))]


def test_each_metric_has_one_row_a_help_and_a_name_that_prometheus_takes() -> None:
    assert len(BY_NAME) == len(TABLE)
    assert len(set(queryable())) == len(list(queryable()))
    for metric in TABLE:
        assert metric.name.isidentifier()
        assert metric.help.endswith(".")
        assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket"))
        assert (metric.kind == "histogram") == bool(metric.buckets)
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert not {"program", "step", "session"} & set(metric.labels)  # unbounded: exemplars carry the trace


def test_a_step_counts_once_everywhere() -> None:
    recorder = Recorder()
    recorder.step_done(record())
    nothing = {"prompt_tokens": 0, "output_tokens": 0, "cached_tokens": None}
    recorder.step_done(record("gone", outcome="gone", first_byte_at=None, **nothing))
    never = {"dispatched_at": None, "first_byte_at": None, "outcome": "rejected", **nothing}
    recorder.step_done(record("waited in vain", queue_s=5.0, **never))
    recorder.step_done(record("one too many", queue_s=0.0, **never))
    who = {"tenant": "acme", "workflow": "coder"}
    assert value(recorder, "steps_total", **who, outcome="finished") == 1
    assert value(recorder, "steps_total", **who, outcome="gone") == 1
    assert value(recorder, "prompt_tokens_total", tenant="acme", engine="e0") == 100
    assert value(recorder, "cached_tokens_total", tenant="acme", engine="e0") == 60
    assert value(recorder, "ttft_seconds_count", **who) == 1
    assert value(recorder, "ttft_seconds_sum", **who) == pytest.approx(0.9)
    assert value(recorder, "ttft_seconds_bucket", **who, le="0.5") == 0
    assert value(recorder, "ttft_seconds_bucket", **who, le="1.0") == 1
    assert value(recorder, "queue_seconds_sum", tenant="acme") == pytest.approx(2 * 0.3999 + 5.0)
    assert value(recorder, "queue_seconds_count", tenant="acme") == 3
    assert value(recorder, "overhead_seconds_count") == 2
    assert value(recorder, "steps_identified_total", source="content", relation="continues") == 4


def test_a_stream_that_ended_in_the_engines_error_counts_the_tokens_that_its_row_has() -> None:
    recorder = Recorder()
    recorder.step_done(record())
    recorder.step_done(record("broke", outcome="failed", error="out of memory", output_tokens=3))
    for what, tokens in (("prompt", 200), ("output", 10), ("cached", 120)):
        assert value(recorder, f"{what}_tokens_total", tenant="acme", engine="e0") == tokens
    assert value(recorder, "step_seconds_count", workflow="coder") == 1


def test_the_story_of_a_program_is_counted() -> None:
    recorder = Recorder()
    tool = ev.PendingTool(id="c", name="bash")
    pin = do.Pin(program=P, engine=E0, tokens=500, until=AT + 60)
    told: list[tuple[ev.AnyEvent, float, list[do.AnyDecision]]] = [
        (ev.EngineBack(engine=E0), 0, []),
        (ev.EngineReported(engine=E0, kv_tokens=9000, running=2, prefill_tokens_per_s=1000.0), 0, []),
        (
            ev.StepArrived(
                step=A, program=P, tenant=ACME, prompt_tokens=400, workflow=CODER, relation="new"
            ),
            1, [do.Dispatch(step=A, engine=E0)],
        ),
        (ev.StepFinished(step=A, prompt_tokens=400, output_tokens=100, tools=(tool,)), 3, [pin]),
        (
            ev.StepArrived(step=B, program=P, tenant=ACME, prompt_tokens=600, returned=("c",)),
            8, [do.Dispatch(step=B, engine=E0, reason="kept")],
        ),
        (ev.StepFinished(step=B, prompt_tokens=600, output_tokens=1, cached_tokens=200, final=True), 9, []),
        (ev.EngineLost(engine=E0), 10, []),
    ]  # fmt: skip
    for event, now, decisions in told[:4]:
        recorder.watch(event, AT + now, decisions)
    assert value(recorder, "programs_live") == 1
    assert value(recorder, "pins_live") == 1
    assert value(recorder, "pinned_tokens", engine="e0") == 500
    for event, now, decisions in told[4:]:
        recorder.watch(event, AT + now, decisions)
    assert value(recorder, "programs_live") == value(recorder, "pins_live") == 0
    assert value(recorder, "pinned_tokens", engine="e0") == 0
    assert value(recorder, "programs_total", tenant="acme", workflow="coder", reason="final") == 1
    assert value(recorder, "program_seconds_sum", workflow="coder") == 8
    assert value(recorder, "pins_total", tenant="acme", mode="reserved", end="hit") == 1
    assert value(recorder, "pin_saved_seconds_total", engine="e0") == 0.2  # of 500 tokens, 200 were found
    assert value(recorder, "pin_token_seconds_total", tenant="acme", end="hit") == 2500
    assert value(recorder, "refilled_tokens_total", tenant="acme", engine="e0") == 300
    assert value(recorder, "saved_prefill_seconds_total", engine="e0") == 0.2
    assert value(recorder, "tool_calls_total", tool="bash", timing="inferred", outcome="ok") == 1
    assert value(recorder, "tool_seconds_sum", tool="bash") == 5
    assert value(recorder, "engine_kv_tokens", engine="e0") == 9000
    assert (
        value(recorder, "engine_up", engine="e0"),
        value(recorder, "engine_losses_total", engine="e0"),
    ) == (0, 1)


def test_a_label_takes_no_more_values_than_it_may_and_the_rest_is_other() -> None:
    recorder = Recorder(TelemetrySettings(label_values_max=3))
    for k in range(50):
        recorder.step_done(record(tenant=f"t{k}"))
    steps = {labels: n for (name, labels), n in figures(recorder).items() if name == "steps_total"}
    assert len(steps) == 4
    assert steps[("outcome", "finished"), ("tenant", "other"), ("workflow", "coder")] == 47


def test_a_metric_has_no_more_children_than_it_may() -> None:
    table = (Metric(name="x", kind="counter", help="X.", labels=("a", "b")),)
    meters = Meters(values_max=1000, table=table)
    for k in range(CHILDREN_MAX + 500):
        meters.child("x", str(k % 1000), str(k // 1000)).value += 1
    children = meters.families["x"].children
    assert len(children) <= CHILDREN_MAX + 1
    assert children["other", "other"].value == 500
    assert sum(child.value for child in children.values()) == CHILDREN_MAX + 500


def test_strange_label_values_do_not_break_the_text() -> None:
    recorder = Recorder()
    recorder.step_done(record(tenant='a"b\\c\nd', workflow="é" * 500, engine=None, identity_source=""))
    names = {labels for (name, labels) in figures(recorder) if name == "steps_total"}
    [labels] = names
    assert dict(labels)["tenant"] == 'a"b\\c\nd'
    assert len(dict(labels)["workflow"]) == 120


def test_exemplars_name_the_trace_where_the_scraper_asks_for_openmetrics() -> None:
    recorder = Recorder()
    recorder.meters.child("ttft_seconds", "acme", "coder").observe_traced(0.9, "ab" * 16, AT)
    kind, text = recorder.render("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    found = [
        sample.exemplar.labels["trace_id"]
        for family in parse_openmetrics(text.decode())
        for sample in family.samples
        if sample.exemplar is not None
    ]
    assert found == ["ab" * 16]
    assert b"trace_id" not in recorder.render("text/plain")[1]


def test_every_metric_of_the_table_is_shown_under_its_queryable_names() -> None:
    recorder = Recorder()
    for metric in TABLE:
        child = recorder.meters.child(metric.name, *["x"] * len(metric.labels))
        if metric.kind == "histogram":
            child.observe(1.0)
    shown = {name if name.startswith("process_") else PREFIX + name for name, _ in figures(recorder)}
    assert shown == set(queryable())


def test_what_should_never_happen_is_shown_as_zero_before_it_does() -> None:
    # else the first loss would make its series appear with 1, and no rate would ever see it
    got = figures(Recorder())
    for name in ("store_lost_rows_total", "fallbacks_total", "spans_lost_total", "telemetry_errors_total"):
        assert [value for (found, _), value in got.items() if found == name], name
    for reason in ("scheduler", "identity", "reply", "worker"):
        assert got["fallbacks_total", (("reason", reason),)] == 0.0
    for metric in TABLE:
        for values in metric.seeds:
            assert got[metric.name + "_total", tuple(sorted(zip(metric.labels, values, strict=True)))] == 0.0


def test_an_engine_that_answers_shows_that_it_was_never_lost() -> None:
    recorder = Recorder()
    recorder.watch(ev.EngineBack(engine=E0), AT, [])
    assert figures(recorder)["engine_losses_total", (("engine", "e0"),)] == 0.0


def test_an_engine_that_was_taken_out_is_not_shown_as_one_that_is_away() -> None:
    recorder = Recorder()
    recorder.watch(ev.EngineBack(engine=E0), AT, [])
    recorder.watch(ev.EngineReported(engine=E0, running=3), AT, [])
    shown = ("engine_up", "engine_running")
    assert {name for name, _ in figures(recorder)} >= set(shown)
    recorder.watch(ev.EngineLost(engine=E0, reason=ev.REMOVED), AT, [])
    got = figures(recorder)
    assert not [name for name, _ in got if name in shown]
    assert got["engine_losses_total", (("engine", "e0"),)] == 0.0
    recorder.watch(ev.EngineBack(engine=E0), AT, [])
    assert figures(recorder)["engine_up", (("engine", "e0"),)] == 1.0


def test_a_finished_program_carries_its_trace_and_says_where_its_time_went() -> None:
    exporter = InMemorySpanExporter()
    recorder = Recorder(spans=Spans(exporter, batched=False))
    tool = ev.PendingTool(id="c", name="bash")
    arrived = ev.StepArrived(step=A, program=P, tenant=ACME, prompt_tokens=400, workflow=CODER)
    back = ev.StepArrived(step=B, program=P, tenant=ACME, prompt_tokens=600, returned=("c",))
    recorder.watch(ev.EngineBack(engine=E0), AT, [])
    recorder.watch(arrived, AT, [do.Wait(step=A)])
    recorder.step_done(record("a"))
    recorder.watch(ev.TimerFired(), AT + 2, [do.Dispatch(step=A, engine=E0)])
    recorder.watch(ev.StepFinished(step=A, prompt_tokens=400, output_tokens=100, tools=(tool,)), AT + 3, [])
    recorder.watch(back, AT + 7, [do.Dispatch(step=B, engine=E0)])
    recorder.watch(ev.StepFinished(step=B, prompt_tokens=600, output_tokens=1, final=True), AT + 9, [])
    parts = {
        part: value(recorder, "program_part_seconds_total", workflow="coder", part=part)
        for part in ("queue", "tools", "person", "model")
    }
    assert parts == {"queue": 2.0, "tools": 4.0, "person": 0.0, "model": 3.0}
    _, text = recorder.render("application/openmetrics-text; version=1.0.0")
    carried = {
        sample.name
        for family in parse_openmetrics(text.decode())
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert {PREFIX + n for n in ("program_seconds_bucket", "program_slowdown_bucket")} <= carried
    assert {PREFIX + n for n in ("queue_seconds_bucket", "ttft_seconds_bucket")} <= carried


def test_a_figure_that_cannot_be_had_does_not_cost_the_others() -> None:
    def broken() -> float:
        raise RuntimeError("not now")

    recorder = Recorder()
    recorder.pull("fairness_gap_token_seconds", broken)
    recorder.pull("tenant_service_token_seconds", lambda: {("acme",): 5.0})
    recorder.pull("store_lag_seconds", lambda: math.nan)
    got = figures(recorder)
    assert got["tenant_service_token_seconds", (("tenant", "acme"),)] == 5.0
    assert got["telemetry_errors_total", (("where", "fairness_gap_token_seconds"),)] >= 1


def test_a_name_or_label_that_is_not_in_the_table_is_said_once_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder()
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            recorder.count("no_such_metric")
            recorder.count("retries", motor="e0")
    assert len(caplog.records) == 2
    assert value(recorder, "telemetry_errors_total", where="record") == 6


def test_counting_observing_and_setting_reach_the_metric() -> None:
    recorder = Recorder()
    recorder.count("decisions", decision="Pin", reason="worth")
    recorder.count("decisions", 2.0, reason="worth", decision="Pin")
    recorder.gauge("engine_up", 1.0, engine="e0")
    recorder.observe("overhead_seconds", 0.001)
    assert value(recorder, "decisions_total", decision="Pin", reason="worth") == 3
    assert value(recorder, "engine_up", engine="e0") == 1
    assert value(recorder, "overhead_seconds_count") == 1


def test_switched_off_it_records_nothing() -> None:
    recorder = Recorder(TelemetrySettings(metrics=False))
    recorder.step_done(record())
    recorder.watch(ev.EngineLost(engine=E0), AT, [])
    recorder.count("retries", engine="e0")
    assert not any(
        name.startswith(("steps_total", "engine_losses", "retries")) for name, _ in figures(recorder)
    )


def test_switched_off_it_tells_the_story_all_the_same() -> None:
    recorder = Recorder(TelemetrySettings(metrics=False))
    told: list[facts.AnyFact] = []
    recorder.on_fact(told.append)
    recorder.watch(ev.StepArrived(step=A, program=P, tenant=ACME, prompt_tokens=4), AT, [])
    recorder.watch(ev.StepFinished(step=A, prompt_tokens=4, output_tokens=1, final=True), AT + 1, [])
    assert [type(fact) for fact in told] == [facts.ProgramOpened, facts.ProgramClosed]


def test_decisions_are_counted_by_kind_and_reason() -> None:
    recorder = Recorder()
    sent = [do.Dispatch(step=A, engine=E0, reason="free")]
    for _ in range(NOTED_MAX + 5):
        recorder.watch(ev.TimerFired(), AT, sent)
    recorder.watch(
        ev.TimerFired(), AT, [do.Wait(step=A, reason="free"), do.Dispatch(step=A, engine=E0, reason="kept")]
    )
    assert value(recorder, "decisions_total", decision="Dispatch", reason="free") == NOTED_MAX + 5
    assert value(recorder, "decisions_total", decision="Dispatch", reason="kept") == 1
    assert value(recorder, "decisions_total", decision="Wait", reason="free") == 1


def test_a_step_is_in_the_bucket_that_it_would_be_in_by_itself() -> None:
    spread, alone = Spread((0.5, 1.0, 2.0)), Spread((0.5, 1.0, 2.0))
    values = [3.0, 0.1, 1.0, 0.5, 0.51, 2.0, 9.0, 0.0]
    for one in values:
        alone.observe(one)
    spread.observe_all(values[:3])
    spread.observe_all([])
    spread.observe_all(values[3:])
    assert spread.counts == alone.counts == [3, 2, 1, 2]
    assert spread.sum == pytest.approx(alone.sum)


def test_an_event_that_cannot_be_followed_is_counted_and_never_raised() -> None:
    recorder = Recorder()
    recorder.watch(ev.StepStarted(step=A), AT, [object()])  # type: ignore[list-item]  # no decision
    recorder.watch(None, AT, [])  # type: ignore[arg-type]  # no event
    recorder.watch(ev.EngineReported(engine=None, running=1), AT, [])  # type: ignore[arg-type]  # no engine
    recorder.step_done(record())
    assert value(recorder, "steps_total", tenant="acme", workflow="coder", outcome="finished") == 1
