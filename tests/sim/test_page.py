"""The page shows what was measured, at round numbers, and says nothing of what was not."""

from __future__ import annotations

import re

import pytest

from agentserve.sim.page import Arm, _marks, page
from agentserve.sim.run import Trial, run


@pytest.fixture(scope="module")
def arm() -> Arm:
    figures, world, result = run(Trial(workload="coding", programs=8, engines=1))
    return Arm("ours", figures, world.workload, result)


def test_a_figure_that_was_not_measured_has_no_row(arm: Arm) -> None:
    assert "deadlines met" not in page([arm], "a run")
    told = Arm("told", {**arm.figures, "deadlines_met": 0.5}, arm.workload, arm.result)
    assert "<td>deadlines met</td><td>–</td><td>0.5</td>" in page([arm, told], "two runs")


def test_a_figure_that_says_nothing_of_any_arm_has_no_row_and_what_came_of_it_stands_first(arm: Arm) -> None:
    alike = Arm("alike", {**arm.figures, "jain_slowdown": 1.0}, arm.workload, arm.result)
    assert "between tenants (Jain" not in page([alike], "a run")
    unlike = Arm("unlike", {**arm.figures, "jain_slowdown": 0.5}, arm.workload, arm.result)
    shown = page([alike, unlike], "two runs", ["sooner & later"])
    assert "between tenants (Jain, of slowdowns)</td><td>1</td><td>0.5</td>" in shown
    assert shown.index("<p>sooner &amp; later</p>") < shown.index("<table>")


def test_every_program_has_its_steps_and_its_gaps_on_one_line(arm: Arm) -> None:
    timeline = page([arm], "a run").split("<h2>Timelines</h2>")[1]
    at = {int(y) - 3 for y in re.findall(r'y1="(\d+)" y2="\1" stroke', timeline)}
    boxes = {int(y) for y in re.findall(r'<rect x="[\d.]+" y="(\d+)"', timeline)}
    assert len(boxes) == 8
    assert at <= boxes


@pytest.mark.parametrize("most", [0.7, 1.0, 17.0, 328.0, 6.6e6])
def test_marks_are_round_and_reach_far_enough(most: float) -> None:
    marks = _marks(most)
    assert marks[0] == 0.0
    assert 4 <= len(marks) <= 6
    assert most - (marks[1] - marks[0]) < marks[-1] <= most * 1.0001
    assert all(float(f"{mark:.2g}") == pytest.approx(mark) for mark in marks)
