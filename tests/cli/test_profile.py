"""`agentserve profile`: listed, shown, written, fitted; and a file in place of a name elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentserve.cli import main
from agentserve.cli.shapes import profile_of, read_samples, to_plain, write_samples
from agentserve.engine import PROFILES, Sample, profile
from agentserve.errors import UsageError

NAME = "llama-3.1-8b-h100"
REAL = {"base": NAME, "name": "mine", "mfu": 0.35, "mfu_attention": 0.3, "mbu": 0.6, "overhead_s": 0.003}
SHAPES = [
    *((n, before, 0, 0) for n in (512, 2048, 8192) for before in (0, 16_000)),
    *((0, 0, batch, batch * context) for batch in (1, 8, 64, 256) for context in (200, 4000)),
]


def written(path: Path, said: Any) -> str:
    path.write_text(json.dumps(said))
    return str(path)


def test_every_profile_is_listed_and_shown_as_a_file_that_gives_it_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in PROFILES)
    for name in PROFILES:
        assert main(["profile", name]) == 0
        path = tmp_path / f"{name}.json"
        path.write_text(capsys.readouterr().out)
        assert profile_of(str(path)) == PROFILES[name]


def test_the_factors_of_a_real_engine_are_found_from_its_timings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = profile(profile_of(written(tmp_path / "real.json", REAL)))
    samples = []
    for n, before, decodes, context in SHAPES:
        shape: dict[str, int] = {
            "prefill_tokens": n, "prefill_context": before, "decodes": decodes, "decode_context": context,
        }  # fmt: skip
        samples.append(Sample(**shape, seconds=Sample(**shape, seconds=1.0).predicted_s(real)))
    table, fitted = str(tmp_path / "s.csv"), str(tmp_path / "fitted.json")
    write_samples(table, samples)
    assert read_samples(table) == samples
    assert main(["profile", NAME, "--samples", table, "--fit", "--out", fitted]) == 0
    assert "mean error 0.0%" in capsys.readouterr().err
    found = profile(profile_of(fitted))
    for factor in ("mfu", "mfu_attention", "mbu", "overhead_s"):
        assert getattr(found, factor) == pytest.approx(getattr(real, factor), rel=1e-3)


def test_a_file_stands_wherever_a_name_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = written(tmp_path / "slow.json", {"base": NAME, "name": "slow", "mfu": 0.1, "mbu": 0.2})
    run = ["simulate", "--workload", "text2sql", "--policy", "fifo", "--programs", "4", "--engines", "1"]
    figures = []
    for which in (NAME, slow):
        assert main([*run, "--profile", which, "--json", "-"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["runs"]
        figures.append(row["figures"])
    assert row["trial"]["profile"] == "slow"
    assert figures[1]["ttft_mean_s"] > 3 * figures[0]["ttft_mean_s"]


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"base": NAME, "mfuu": 0.3}, "mfuu"),
        ({"base": NAME, "model": {"layer": 3}}, "layer"),
        ({"base": NAME, "mbu": 0}, "mbu"),
        ({"base": NAME, "mbu": "fast"}, "mbu"),
        ({"base": NAME, "model": {"parameters": 8e12}}, "no KV"),
        ({"base": "llama-9"}, "llama-9"),
        ({"name": "half", "model": {}}, "required field"),
        ([1], "object"),
    ],
)
def test_a_profile_that_is_wrong_is_refused_by_the_place(tmp_path: Path, said: Any, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        profile_of(written(tmp_path / "p.json", said))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "columns"),
        ("tokens,time\n1,2\n", "columns"),
        ("prefill_tokens,seconds\n512,0.1\nmany,0.2\n", "line 3"),
        ("prefill_tokens,seconds\n512,\n", "line 2"),
    ],
)
def test_samples_that_are_wrong_are_refused_by_the_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=complaint):
        read_samples(str(path))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--fit"],
        [NAME, "--fit"],
        ["no-such-profile"],
        ["missing.json"],
        [NAME, "--samples", "missing.csv", "--fit"],
    ],
)
def test_what_cannot_be_done_ends_in_status_2(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["profile", *arguments]) == 2


def test_plain_values_of_a_profile_are_its_own() -> None:
    assert to_plain(PROFILES[NAME])["model"]["layers"] == 32
