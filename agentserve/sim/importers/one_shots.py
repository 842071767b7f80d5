"""Arrivals with token counts, Azure's and BurstGPT's: requests that nothing follows."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator

from agentserve.sim.importers.reading import UNFIT, Reader, count, fault
from agentserve.sim.programs import OWN_KEYS, ProgramPlan, StepPlan


def _csv_rows(reader: Reader) -> Iterator[dict[str, str]]:
    rows = csv.DictReader(reader.text())
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:  # of a field without end
            reader.complain(str(error))
            continue
        yield {(k or "").strip().lower(): (v or "").strip() for k, v in row.items() if isinstance(v, str)}


def one_shots(reader: Reader, prompt: str, output: str, at: Callable[[str], float]) -> Iterator[ProgramPlan]:
    first: float | None = None
    index = 0
    for row in _csv_rows(reader):
        try:
            arrives = at(row["timestamp"])
            first = arrives if first is None else first
            step = StepPlan(
                new_tokens=count(float(row[prompt]), prompt, least=1),
                output_tokens=max(count(float(row[output]), output), 1),
            )
        except UNFIT as error:
            reader.complain(fault(error))
            continue
        yield ProgramPlan(
            id=f"request-{index}",
            steps=(step,),
            workflow="request",
            own=OWN_KEYS + index,
            arrives_s=max(arrives - first, 0.0),
            kind="chat",
        )
        index += 1


def clock(text: str) -> float:
    """Seconds of a `YYYY-MM-DD HH:MM:SS.fffffff` stamp; only differences matter."""
    day, _, clock = text.partition(" ")
    year, month, date = (int(p) for p in day.split("-"))
    hours, minutes, seconds = clock.split(":")
    return ((year * 372 + month * 31 + date) * 24 + int(hours)) * 3600.0 + int(minutes) * 60 + float(seconds)
