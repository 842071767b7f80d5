"""A decision's cost does not grow with the programs alive, and one in a gap is small: held by counts, not by clocks."""

from __future__ import annotations

import importlib.util
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

BYTES_MAX = 4_096
FEW, MANY = 400, 3_200  # both far beyond what two engines hold
# Heaps deepen by log2(3200 / 400) = 3 levels of some 10: what is allowed is a few comparisons, not a scan.
GROWTH_MAX = 1.35


@pytest.fixture(scope="module")
def decision() -> ModuleType:
    """The bench itself, which is a script."""
    spec = importlib.util.spec_from_file_location("decision", Path(__file__).parent / "decision.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines_run(decide: Callable[[], Any]) -> float:
    """How many lines of Python ran, each turn of a loop or comprehension counted."""
    count = 0

    def trace(frame: FrameType, what: str, _: object) -> Any:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        decide()
    finally:
        sys.settrace(before)
    return float(count)


def test_a_decision_costs_as_much_with_many_programs_alive_as_with_few(decision: ModuleType) -> None:
    few, many = (
        decision.measured(decision.Crowd(programs, learned=False, engines=2), 400, lines_run)
        for programs in (FEW, MANY)
    )
    # the mean: kinds of events differ much in cost, and a scan by any of them would show
    assert statistics.fmean(map(sum, many)) <= GROWTH_MAX * statistics.fmean(map(sum, few))


def test_a_program_in_a_gap_takes_a_few_kilobytes_forecasts_included(decision: ModuleType) -> None:
    assert decision.bytes_per_program(1_000) <= BYTES_MAX
