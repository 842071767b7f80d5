"""Plans: what may be asked, that the answer is minimal, and that the load does not change with the fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentserve.cli import main
from agentserve.errors import UsageError
from agentserve.sim.plan import Planner, parse_objective
from agentserve.sim.report import Figures
from agentserve.sim.run import Trial, build, run

PROFILE = "llama-3.1-8b-h100"
SMALL = Trial(workload="chains", programs=40, at_once=40, pressure=None, kv_tokens=90_000)


def answering(jct: dict[int, float], asked: list[int], programs: int = 1000) -> Any:
    """A runner whose completion time depends on the fleet alone; past the last entry it no longer falls."""

    def runner(trial: Trial) -> Figures:
        asked.append(trial.engines)
        at = max(n for n in jct if n <= trial.engines)
        return {"jct_p95_s": jct[at], "steps_per_min": 10.0 * trial.engines, "programs": programs}

    return runner


@pytest.mark.parametrize(
    ("text", "name", "bound", "figure"),
    [
        ("jct_p95<600", "jct_p95", 600.0, "jct_p95_s"),
        (" ttft_p99 <= 800ms ", "ttft_p99", 0.8, "ttft_p99_s"),
        ("JCT_mean<1.5h", "jct_mean", 5400.0, "jct_mean_s"),
        ("jct_p95_s<10min", "jct_p95", 600.0, "jct_p95_s"),
        ("slowdown_p95<3", "slowdown_p95", 3.0, "slowdown_p95"),
        ("steps_per_min>120", "steps_per_min", 120.0, "steps_per_min"),
    ],
)
def test_an_objective_is_a_figure_a_sign_and_a_bound(text: str, name: str, bound: float, figure: str) -> None:
    objective = parse_objective(text)
    assert (objective.name, objective.bound, objective.figure) == (name, bound, figure)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("jct_p95", "not an objective"),
        ("jct_p95=600", "not an objective"),
        ("latency<3", "no figure"),
        ("jct_p95>600", "the worse"),
        ("steps_per_min<10", "the worse"),
        ("ttft_p99<5kb", "no unit"),
        ("slowdown_p95<3s", "no unit"),
        ("jct_p95<0", "not positive"),
    ],
)
def test_what_is_no_objective_is_refused_with_what_would_be_one(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        parse_objective(text)
    assert caught.value.remedy


def test_the_answer_is_the_smallest_fleet_and_the_next_smaller_was_tried() -> None:
    asked: list[int] = []
    jct = {n: 1000.0 / n for n in range(1, 65)}
    planner = Planner(objective=parse_objective("jct_p95<91"), load=Trial(), run=answering(jct, asked))
    answer = planner.answer(PROFILE, "agentserve")
    assert answer.engines == 11
    assert answer.value == pytest.approx(1000 / 11)
    assert answer.value_below == pytest.approx(100.0)
    assert {10, 11} <= set(asked)
    assert len(asked) == len(set(asked)) == answer.runs <= 9


def test_one_engine_is_enough_where_it_is() -> None:
    planner = Planner(objective=parse_objective("jct_p95<10"), load=Trial(), run=answering({1: 9.0}, []))
    answer = planner.answer(PROFILE, "fifo")
    assert (answer.engines, answer.value_below) == (1, None)


def test_an_objective_below_what_any_fleet_gives_ends_at_the_largest_that_makes_sense() -> None:
    asked: list[int] = []
    planner = Planner(
        objective=parse_objective("jct_p95<5"),
        load=Trial(at_once=12, pressure=None),
        run=answering({1: 50.0, 4: 20.0}, asked),
    )
    answer = planner.answer(PROFILE, "fifo")
    assert answer.engines is None
    assert answer.best == 20.0
    assert max(asked) == 16, "an engine for each of the twelve, and no more"


def test_a_bound_from_below_is_met_by_more() -> None:
    planner = Planner(
        objective=parse_objective("steps_per_min>=45"), load=Trial(), run=answering({1: 1.0}, [])
    )
    assert planner.answer(PROFILE, "fifo").engines == 5


def test_an_objective_is_met_on_the_mean_over_seeds() -> None:
    def runner(trial: Trial) -> Figures:
        return {"jct_p95_s": 100.0 / trial.engines + 10.0 * trial.seed, "programs": 100}

    planner = Planner(objective=parse_objective("jct_p95<40"), load=Trial(), seeds=(1, 2, 3), run=runner)
    assert planner.answer(PROFILE, "fifo").engines == 5  # 100 / n + 20


def test_a_simulated_answer_holds_and_one_engine_fewer_does_not() -> None:
    objective = parse_objective("jct_mean<34")
    answer = Planner(objective=objective, load=SMALL).answer(PROFILE, "fifo")
    assert answer.engines is not None
    assert answer.engines > 1
    means = [
        run(Trial(**{**fields(SMALL), "policy": "fifo", "engines": n}))[0]["jct_mean_s"]
        for n in (answer.engines - 1, answer.engines)
    ]
    assert means[0] > 34 >= means[1]


def fields(trial: Trial) -> dict[str, Any]:
    return {name: getattr(trial, name) for name in trial.__dataclass_fields__}


@pytest.mark.parametrize("engines", [1, 3])
def test_as_many_programs_are_under_way_on_any_fleet(engines: int) -> None:
    assert build(Trial(**{**fields(SMALL), "at_once": 7, "engines": engines})).concurrency == 7


def test_without_rate_pressure_or_number_programs_start_as_recorded() -> None:
    assert build(Trial(programs=3, pressure=None)).concurrency is None


def test_a_plan_is_printed_and_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ["--workload", "chains", "--programs", "20", "--at-once", "10", "--kv-tokens", "90000"]
    assert main(["simulate", "--plan", "jct_mean<60", *flags, "--json", str(tmp_path / "plan.json")]) == 0
    out = capsys.readouterr().out
    assert "10 programs at once" in out
    assert f"{PROFILE}: " in out
    assert '"answers"' in (tmp_path / "plan.json").read_text(encoding="utf-8")


def test_a_plan_that_cannot_be_met_says_what_is_best_and_ends_with_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--workload", "chains", "--programs", "4", "--at-once", "2", "--policy", "fifo"]
    assert main(["simulate", "--plan", "jct_mean<0.1", *flags]) == 1
    assert "at best" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--rate", "1", "--at-once", "3"),
        ("--pressure", "2", "--rate", "1"),
        ("--at-once", "0"),
        ("--as-recorded",),
        ("--rate", "1", "--engines-max", "0"),
        ("--rate", "1", "--profile", "llama-3.1-8b-h100,nothing"),
    ],
)
def test_a_plan_without_one_clear_load_is_refused(
    flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--plan", "jct_p95<600", *flags]) == 2
    assert ";" in capsys.readouterr().err, "with what to do instead"


def test_flags_of_a_plan_alone_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--at-once", "3"]) == 2
    assert "--plan" in capsys.readouterr().err
