"""Every metric, once: its name, kind, help, labels and buckets.

Rule: a metric that is not in this table does not exist; dashboards, alerts and documentation take names from here.
Labels are bounded (see `meters`), and no label ever holds a program: exemplars carry the trace instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from agentserve.core.facts import WarmEnd

PREFIX = "agentserve_"

# From a lean hop to a long agent: each about twice to three times the one before.
OVERHEAD_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0)
STEP_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0, 600.0)
TOOL_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
PROGRAM_S = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0, 14400.0)
SLOWDOWN = (1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 25.0, 100.0)
STEPS = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row of the table. `name` is what our code calls it; `exposed` is what Prometheus sees."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    # label values that are shown as 0 from the start, so that a rate sees the first of what should never happen
    seeds: tuple[tuple[str, ...], ...] = ()

    @property
    def exposed(self) -> str:
        """The name without the suffixes that its kind adds."""
        return PREFIX + self.name

    def series(self) -> tuple[str, ...]:
        """The names that can be queried."""
        if self.kind == "counter":
            return (self.exposed + "_total",)
        if self.kind == "histogram":
            return tuple(self.exposed + suffix for suffix in ("_bucket", "_count", "_sum"))
        return (self.exposed,)


def _counter(name: str, text: str, *labels: str, seeds: tuple[tuple[str, ...], ...] = ()) -> Metric:
    return Metric(name=name, kind="counter", help=text, labels=labels, seeds=seeds)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name=name, kind="gauge", help=text, labels=labels)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(name=name, kind="histogram", help=text, labels=labels, buckets=buckets)


TABLE: tuple[Metric, ...] = (
    # programs
    _counter("programs_opened", "Programs heard of for the first time.", "tenant"),
    _counter("programs", "Programs that are over, by how they ended.", "tenant", "workflow", "reason"),
    _gauge("programs_live", "Programs that are not over."),
    _histogram(
        "program_seconds",
        "Completion time of a program, waits for a person excluded.",
        PROGRAM_S,
        "workflow",
    ),
    _histogram(
        "program_slowdown",
        "Completion time over what it would have been without queueing.",
        SLOWDOWN,
        "workflow",
    ),
    _histogram("program_steps", "Steps of a program.", STEPS, "workflow"),
    _counter(
        "program_part_seconds",
        "Where the time of finished programs went: queue, tools, person, or model for the rest.",
        "workflow",
        "part",
    ),
    # steps
    _counter("steps", "Steps, by what became of them.", "tenant", "workflow", "outcome"),
    _counter("steps_identified", "Steps by how their program was recognised.", "source", "relation"),
    _gauge("steps_waiting", "Steps that wait in the proxy."),
    _gauge("oldest_wait_seconds", "How long the step that waits longest has waited."),
    _gauge("steps_running", "Steps on an engine.", "engine"),
    _histogram(
        "queue_seconds", "Time a step waited in the proxy before it was sent, or in vain.", STEP_S, "tenant"
    ),
    _histogram("ttft_seconds", "Time from a step's arrival to its first byte.", STEP_S, "tenant", "workflow"),
    _histogram("step_seconds", "Time from a step's arrival to its last byte.", STEP_S, "workflow"),
    _histogram("overhead_seconds", "Our own time on a step's path, waiting for room excluded.", OVERHEAD_S),
    _counter("refusals", "Requests answered with an error of ours.", "status", "reason"),
    _counter("retries", "Steps sent again elsewhere before their first byte.", "engine"),
    _counter(
        "fallbacks",
        "Times a part of ours failed and requests went on without it.",
        "reason",
        seeds=(("scheduler",), ("identity",), ("reply",), ("worker",)),
    ),
    # tokens
    _counter("prompt_tokens", "Prompt tokens of finished steps.", "tenant", "engine"),
    _counter("cached_tokens", "Prompt tokens that the engine had in its cache.", "tenant", "engine"),
    _counter("output_tokens", "Tokens written.", "tenant", "engine"),
    _counter(
        "refilled_tokens", "Prompt tokens computed before and computed again: evicted.", "tenant", "engine"
    ),
    _counter("saved_prefill_seconds", "Prefill time that cached tokens spared.", "engine"),
    # decisions
    _counter("decisions", "Decisions of the scheduler, by kind and reason.", "decision", "reason"),
    _counter("actions", "What engines made of pins, unpins and warms.", "decision", "outcome"),
    # seats, where the policy admits programs by their working set
    _counter("seat_events", "What the policy did with seats, by what it was.", "event"),
    _gauge("programs_seated", "Programs that have a seat.", "engine"),
    _gauge("seated_tokens", "KV tokens of all seats, shared prefixes once.", "engine"),
    _gauge("programs_queued", "Programs that wait for a seat."),
    # pins and warms
    _counter("pins_made", "Pins decided on; a gap kept by leaving its room alone is none.", "tenant", "mode"),
    _counter(
        "pins",
        "Pins that are over, and gaps kept by leaving their room alone, by what became of them.",
        "tenant",
        "mode",
        "end",
    ),
    _gauge("pins_live", "Pins that stand."),
    _gauge("pinned_tokens", "KV tokens under pins that stand.", "engine"),
    _counter(
        "pin_saved_seconds",
        "Prefill time that hit pins spared, of what engines said that they found.",
        "engine",
    ),
    _counter("pin_token_seconds", "KV token-seconds that pins held.", "tenant", "end"),
    _histogram("pin_seconds", "How long a pin stood.", TOOL_S, "end"),
    _counter(
        "warms",
        "Warms that are over, by what became of them; a touch refreshes what is still there.",
        "end",
        "refresh",
        seeds=tuple((end, what) for end in get_args(WarmEnd) for what in ("warm", "touch")),
    ),
    # tools
    _counter("tool_calls", "Tool calls that are over.", "tool", "timing", "outcome"),
    _histogram("tool_seconds", "Duration of tool calls, measured or seen as the gap.", TOOL_S, "tool"),
    # forecasts
    _gauge(
        "forecast_coverage", "Share of outcomes at or below the forecast's quantile.", "forecast", "level"
    ),
    _gauge("forecast_loss", "Mean quantile loss, ours and the baselines'.", "forecast", "model"),
    _gauge("forecast_ln_error", "Mean absolute error of the median, in natural logarithms.", "forecast"),
    _gauge("forecast_samples", "Outcomes that the calibration rests on.", "forecast"),
    _counter("forecast_steps_left_out", "Steps of busy workflows that taught the forecasts nothing."),
    # fairness
    _gauge(
        "fairness_gap_token_seconds",
        "Largest gap of weighted service between tenants that waited together, since the start.",
    ),
    _gauge("tenant_service_token_seconds", "Weighted service that a tenant has had.", "tenant"),
    # engines
    _gauge("engine_up", "1 while the engine answers.", "engine"),
    _counter("engine_losses", "Times an engine was lost.", "engine"),
    _gauge("engine_running", "Requests that the engine says it runs.", "engine"),
    _gauge("engine_waiting", "Requests that wait inside the engine.", "engine"),
    _gauge("engine_kv_used_share", "Share of its KV that the engine says is in use.", "engine"),
    _gauge("engine_kv_tokens", "KV capacity of the engine.", "engine"),
    _gauge("engine_preemptions", "Preemptions that the engine has counted.", "engine"),
    # the gateway itself
    _gauge("build_info", "1; the version is in the label.", "version"),
    _gauge("requests_open", "Requests that are under way."),
    _gauge("scheduler_healthy", "0 once the scheduler failed and steps are placed plainly."),
    _gauge("store_up", "1 while the database answers."),
    _gauge("store_queue_rows", "Rows that wait to be written."),
    _gauge("store_lag_seconds", "Age of the oldest row that waits to be written."),
    _gauge("store_bytes", "Size of the database."),
    _counter("store_rows", "Rows written.", "kind"),
    _counter(
        "store_lost_rows",
        "Rows that were dropped, never a request.",
        "kind",
        "why",
        seeds=(("event", "overflow"), ("step", "overflow"), ("row", "stopped")),
    ),
    _counter("spans_lost", "Spans that the collector did not take, or not fast enough."),
    _counter(
        "telemetry_errors",
        "Figures that could not be had or recorded.",
        "where",
        seeds=(("record",), ("watch",)),
    ),
)

BY_NAME: dict[str, Metric] = {metric.name: metric for metric in TABLE}


# Of the process, under the names that the whole of Prometheus knows; absent where there is no /proc.
PROCESS = (
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
)


def queryable() -> Iterator[str]:
    """Every series name that a dashboard may ask for."""
    for metric in TABLE:
        yield from metric.series()
    yield from PROCESS
