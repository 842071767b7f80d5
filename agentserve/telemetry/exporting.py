"""What became of spans once they were built: an exporter that counts those which nobody took.

Rule: a collector that is away costs spans and nothing else. It is said once that it is, with the reason, and once that
it is back; when the gateway stops, nobody waits for it longer than was agreed.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)

log = logging.getLogger("agentserve.traces")

QUEUE_MAX = 2048  # spans that wait for the exporter


class Outbox:
    """Takes spans, hands them to an exporter by a thread of its own, and knows how many were lost."""

    def __init__(
        self,
        exporter: SpanExporter,
        *,
        batched: bool,
        reason: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`reason` tells why the exporter failed last."""
        self._counting = _Counting(exporter, reason, clock)
        self._processor: BatchSpanProcessor | SimpleSpanProcessor = (
            BatchSpanProcessor(self._counting, max_queue_size=QUEUE_MAX)
            if batched
            else SimpleSpanProcessor(self._counting)
        )
        self._given = self._dropped = 0

    @property
    def lost(self) -> int:
        """Spans that nobody took, or for which there was no room."""
        return self._dropped + self._counting.failed

    def put(self, span: ReadableSpan) -> None:
        """When the queue is full, its oldest goes."""
        self._processor.on_end(span)
        self._given += 1
        self._dropped = max(self._dropped, self._given - self._counting.taken - QUEUE_MAX)

    def close(self, within_s: float) -> None:
        """Export what is left."""
        self._counting.close_in(within_s)
        self._processor.force_flush(int(within_s * 1000))
        self._processor.shutdown()


class _Counting(SpanExporter):
    """Stands before an exporter."""

    def __init__(self, exporter: SpanExporter, reason: Callable[[], str], clock: Callable[[], float]) -> None:
        self._exporter = exporter
        self._reason = reason
        self._clock = clock
        self._until = math.inf
        self._failing = False
        self.taken = 0  # from the queue
        self.failed = 0

    def close_in(self, within_s: float) -> None:
        """From then on nothing is tried any more."""
        self._until = self._clock() + within_s

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        result, why = SpanExportResult.FAILURE, "there was no time left"
        if self._clock() < self._until:
            try:
                result, why = self._exporter.export(spans), ""
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
        if result is SpanExportResult.SUCCESS:
            if self._failing:
                log.warning("spans are taken again; %d were lost", self.failed)
            self._failing = False
            return result
        self.failed += len(spans)
        if not self._failing:
            log.warning(
                "spans are not taken, and lost until they are: %s", why or self._reason() or "no reason told"
            )
        self._failing = True
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class LastWords(logging.Handler):
    """Keeps what a library's loggers said last, in place of a line in our log for each try."""

    def __init__(self) -> None:
        super().__init__()
        self.said = ""

    def emit(self, record: logging.LogRecord) -> None:
        said = " ".join(record.getMessage().split())[:300]
        if "max retries" not in said or not self.said:  # what each try met tells more than that they are over
            self.said = said

    def listen(self, name: str) -> None:
        """Take this logger's words, and those of the ones below it."""
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.handlers = [self]
