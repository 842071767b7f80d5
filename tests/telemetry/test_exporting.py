"""Spans that nobody takes are counted, told once, and hold nobody up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, TraceFlags

from agentserve.telemetry.exporting import QUEUE_MAX, LastWords, Outbox

SPAN = ReadableSpan("a step", SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)))


class Collector(SpanExporter):
    """Takes spans, or does not; waits to be let on while it is slow."""

    def __init__(self) -> None:
        self.takes = True
        self.breaks = False
        self.asked = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.got = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        assert self.go_on.wait(30)
        if self.breaks:
            raise OSError("out of order")
        self.got += len(spans) if self.takes else 0
        return SpanExportResult.SUCCESS if self.takes else SpanExportResult.FAILURE


def test_a_collector_that_is_away_is_told_of_once_and_so_is_its_return(
    caplog: pytest.LogCaptureFixture,
) -> None:
    collector = Collector()
    outbox = Outbox(collector, batched=False, reason=lambda: "connection refused")
    with caplog.at_level(logging.INFO):
        outbox.put(SPAN)
        collector.takes = False
        for _ in range(5):
            outbox.put(SPAN)
        collector.breaks = True
        outbox.put(SPAN)
        collector.takes, collector.breaks = True, False
        outbox.put(SPAN)
        outbox.put(SPAN)
    assert (collector.got, outbox.lost) == (3, 6)
    assert [r.getMessage() for r in caplog.records] == [
        "spans are not taken, and lost until they are: connection refused",
        "spans are taken again; 6 were lost",
    ]


def test_every_span_is_either_taken_or_counted_as_lost_when_the_collector_is_slow() -> None:
    collector = Collector()
    collector.go_on.clear()
    outbox = Outbox(collector, batched=True)
    spans = QUEUE_MAX
    for _ in range(QUEUE_MAX):
        outbox.put(SPAN)
    assert collector.asked.wait(30), "the first batch is on its way, and stays there"
    for _ in range(2 * QUEUE_MAX):
        outbox.put(SPAN)
        spans += 1
    assert outbox.lost >= QUEUE_MAX
    collector.go_on.set()
    outbox.close(30)
    assert collector.got + outbox.lost == spans


def test_a_stop_waits_for_a_collector_no_longer_than_agreed() -> None:
    now = 0.0
    collector = Collector()
    outbox = Outbox(collector, batched=True, clock=lambda: now)
    for _ in range(100):
        outbox.put(SPAN)
    outbox.close(-1.0)
    assert (collector.got, outbox.lost) == (0, 100)


def test_what_a_library_says_of_each_try_is_kept_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    words = LastWords()
    words.listen("a.library")
    try:
        logging.getLogger("a.library.part").warning("no\nconnection to %s", "there")
    finally:
        logging.getLogger("a.library").propagate = True
    assert words.said == "no connection to there"
    assert not caplog.records
