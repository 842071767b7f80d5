"""`agentserve demo`: its plan, and a small one from end to end."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from agentserve.cli import main
from agentserve.cli.demo import _gain, add_arguments, plan


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(flags)


def test_the_same_seed_gives_the_same_agents_and_another_seed_others() -> None:
    assert plan(parsed("--quick")) == plan(parsed("--quick"))
    assert plan(parsed("--quick")).programs != plan(parsed("--quick", "--seed", "2")).programs


def test_every_agent_fits_an_engine_and_takes_the_same_number_of_steps() -> None:
    args = parsed("--quick", "--kv-tokens", "60000")
    made = plan(args)
    assert len(made.programs) == 48
    assert {len(p.steps) for p in made.programs} == {8}
    assert max(max(p.prompts()) for p in made.programs) < args.kv_tokens * 0.7


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--programs", "1"), "--programs"),
        (("--time-scale", "0"), "--time-scale"),
        (("--pressure", "nan"), "--pressure"),
        (("--pressure", "inf"), "--pressure"),
        (("--engine", "http://[::1"), "--engine"),
        (("--json", "/no/such/folder/x"), "--json"),
        (("--html", "/"), "--html"),
    ],
)
def test_flags_that_make_no_comparison_are_refused(
    flags: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *flags]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_both_arms_run_over_http_and_the_report_holds_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "demo.html"
    flags = ["--quick", "--programs", "6", "--kv-tokens", "60000", "--time-scale", "60", "--html", str(page)]
    assert main(["demo", *flags, "--json", "-"]) == 0
    figures = json.loads(capsys.readouterr().out)
    for arm in ("direct", "agentserve"):
        assert figures[arm]["programs"] == 6
        assert figures[arm]["steps"] == 48
        assert figures[arm]["failed"] == 0
        assert 0 < figures[arm]["fairness"] <= 1
    assert figures["jct_ratio"] == pytest.approx(
        figures["direct"]["jct_mean_s"] / figures["agentserve"]["jct_mean_s"]
    )
    html = page.read_text(encoding="utf-8")
    assert "on the same engines" in html
    assert "The engines are emulated" in html
    assert html.index("<h3>direct</h3>") < html.index("<h3>agentserve</h3>")


def test_a_loss_is_said_as_one() -> None:
    assert _gain(2.5) == "agents are done 2.50 times sooner on the same engines"
    assert _gain(0.8) == "agents take 1.25 times as long on the same engines"
