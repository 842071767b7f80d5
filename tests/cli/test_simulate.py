"""`agentserve simulate` beyond plain runs: tuning, ablations and rate sweeps as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentserve.cli import main

SMALL = ["--programs", "5", "--engines", "1", "--kv-tokens", "130000"]


def test_a_search_writes_what_it_tried_and_a_line_to_paste(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    told: list[Any] = []
    for name in ("first.json", "second.json"):
        file = tmp_path / name
        tuning = ["--tune", "2", "--policy", "agentserve:beta=3", "--knob", "gamma=1..100"]
        seeds = ["--seed", "1", "--test-seed", "2", "--json", str(file)]
        assert main(["simulate", *SMALL, *tuning, *seeds]) == 0
        told.append(json.loads(file.read_text()))
    assert told[0] == told[1], "the same search finds the same"
    assert len(told[0]["history"]) == 3
    assert told[0]["paste"].startswith("--policy agentserve:beta=3")
    assert told[0]["paste"] in capsys.readouterr().out


def test_seeds_that_are_learnt_from_may_not_judge(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *SMALL, "--tune", "2", "--seed", "1", "--test-seed", "1"]) == 2
    assert "keep --seed and --test-seed apart" in capsys.readouterr().err


@pytest.mark.parametrize(
    "twice",
    [
        ["--seed", "1"],
        ["--policy", "affinity"],
        ["--pressure", "2"],
        ["--rate", "0.01"],
        ["--workload", "chains"],
        ["--tune", "2", "--test-seed", "4"],
        ["--plan", "slowdown_mean<2", "--at-once", "4", "--seed", "1"],
    ],
)
def test_the_same_run_twice_is_refused_and_counts_for_no_second_one(
    twice: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *SMALL, *twice, *twice[-2:]]) == 2
    said = capsys.readouterr().err
    assert f"{' '.join(twice[-2:])} stands twice" in said
    assert "give each once" in said


def test_a_sweep_of_rates_draws_a_curve_and_says_what_is_sustained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = tmp_path / "curve.svg"
    assert main(["simulate", *SMALL, "--rate", "0.01", "--rate", "0.02", "--curve", str(curve)]) == 0
    assert curve.read_text().startswith("<svg")
    assert "0.020 or more" in capsys.readouterr().out


def test_ablations_are_told_as_ratios_to_all_mechanisms_on(tmp_path: Path) -> None:
    file = tmp_path / "ablations.json"
    assert main(["simulate", *SMALL, "--ablate", "--json", str(file)]) == 0
    told = json.loads(file.read_text())
    assert told[0]["jct_mean_s_ratio"] == 1.0
    assert len({row["arm"] for row in told}) == len(told) == 8


@pytest.mark.parametrize("flag", ["--pressure", "--rate", "--burst"])
@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf"])
def test_a_load_that_is_no_number_above_zero_is_refused(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--programs", "2", f"{flag}={value}"]) == 2
    assert flag in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--json", "/no/such/folder/x"), "--json: cannot write"),
        (("--html", "/"), "--html: cannot write"),
        (("--html", "-"), "--html cannot go to standard output"),
        (
            ("--tune", "2", "--knob", "admit=0.7..0.9", "--knob", "admit=0.8..0.9"),
            "--knob admit stands twice",
        ),
        (("--rate", "1", "--curve", "c.svg"), "several rates"),
        (("--plan", "jct_p95<600", "--at-once", "2", "--json", "/"), "--json: cannot write"),
    ],
)
def test_what_could_not_be_written_is_refused_before_the_work(
    flags: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--programs", "3", *flags]) == 2
    assert words in capsys.readouterr().err


def test_a_recording_is_replayed_at_its_own_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"in": 900, "out": 10, "gap": 1.0, "gap_k": "tool"}, {"in": 1000, "out": 10, "gap": None}]
    rows = [{"id": f"p{at}", "start_epoch": 1.7e9 + at, "turns": turns} for at in (0, 50)]
    file = tmp_path / "traffic.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["replay", str(file), "--as-recorded", "--json", str(tmp_path / "out.json")]) == 0
    assert "as recorded" in capsys.readouterr().out
    (run,) = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert 50 < run["figures"]["makespan_s"] < 60
    assert main(["replay", str(file), "--as-recorded", "--rate", "1"]) == 2
    assert "--rate" in capsys.readouterr().err
    plan = ["simulate", "--plan", "jct_p95<600", "--from", str(file), "--as-recorded"]
    assert main([*plan, "--policy", "fifo"]) == 0


def test_a_pressure_that_all_programs_do_not_make_is_said_and_takes_no_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["simulate", *SMALL, "--pressure", "0.5", "--pressure", "1e12"]) == 0
    said = capsys.readouterr().err
    assert said.count("is not reached") == 1
    assert "coding @ pressure 1e+12 is not reached" in said
    assert "and there are 5" in said
