"""The tuner: what it turns, that it finds, that it repeats, and that the seeds it is judged by stay unseen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from agentserve.errors import AgentServeError, UsageError
from agentserve.sim.report import Figures
from agentserve.sim.run import Trial
from agentserve.sim.tune import RATIO_MAX, Tuning, knobs_of, tune

pytest.importorskip("optuna")


class Bowl:
    """Runs that cost nothing: mean completion is least where `gamma` is 20, and worse on every other seed by 10%."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def __call__(self, trials: Sequence[Trial]) -> list[Figures]:
        self.seeds += [t.seed for t in trials]
        return [
            {"jct_mean_s": (10 + math.log(t.params.get("gamma", 50.0) / 20.0) ** 2) * t.seed} for t in trials
        ]


def search(**changes: Any) -> Tuning:
    given: dict[str, Any] = {
        "cells": (Trial(pressure=2.0), Trial(pressure=4.0)),
        "policy": "agentserve",
        "knobs": knobs_of("agentserve", {"gamma": "1..100"}),
        "train_seeds": (1, 2),
        "test_seeds": (11,),
        "trials": 25,
    }
    return Tuning(**{**given, **changes})


def test_a_search_finds_a_better_setting_than_the_defaults() -> None:
    tuned = tune(search(), Bowl())
    assert tuned.train_ratio < 0.95
    assert tuned.test_ratio == pytest.approx(tuned.train_ratio), "the bowl is the same on every seed"
    assert 10 < tuned.best["gamma"] < 40
    assert tuned.line.startswith("--policy agentserve:gamma=")
    assert len(tuned.history) == 26, "the defaults, and every setting tried"


def test_the_same_seed_finds_the_same_and_another_looks_elsewhere() -> None:
    first, second, other = (tune(search(seed=s), Bowl()) for s in (1, 1, 2))
    assert first == second
    assert [t.params for t in first.history] != [t.params for t in other.history]


def test_test_seeds_are_not_run_before_the_search_is_over() -> None:
    bowl = Bowl()
    tune(search(trials=5), bowl)
    assert set(bowl.seeds[: bowl.seeds.index(11)]) == {1, 2}
    assert set(bowl.seeds[bowl.seeds.index(11) :]) == {11}


def test_a_seed_that_is_learnt_from_may_not_judge() -> None:
    with pytest.raises(UsageError, match="seed 2 is both"):
        search(test_seeds=(2, 11))


def test_a_setting_under_which_programs_never_end_is_the_worst_and_does_not_end_the_search() -> None:
    def stuck(trials: Sequence[Trial]) -> list[Figures]:
        if trials[0].params:
            raise AgentServeError("the world stopped")
        return [{"jct_mean_s": 1.0} for _ in trials]

    tuned = tune(search(trials=3), stuck)
    assert [t.ratio for t in tuned.history] == [1.0, *[RATIO_MAX] * 3]
    assert tuned.best == {}
    assert tuned.line == "--policy agentserve"


def test_every_constant_with_a_number_or_a_choice_is_a_knob_unless_it_is_fixed_or_off() -> None:
    knobs = {k.name: k for k in knobs_of("thunderagent", {}, fixed=("tick_s",))}
    assert "tick_s" not in knobs
    assert "half_life_s" not in knobs, "off by default: turned only when asked for"
    assert knobs["marking_bug"].choices == (False, True)
    assert knobs["buffer_tokens"].whole
    assert (knobs["lambda_pause"].low, knobs["lambda_pause"].high) == (0.25, 4.0)


def test_named_knobs_are_turned_alone_within_their_range() -> None:
    (knob,) = knobs_of("thunderagent", {"half_life_s": "0..60"})
    assert (knob.low, knob.high, knob.log) == (0.0, 60.0, False)
    (choice,) = knobs_of("continuum", {"wait_s": "null|1|2.5"})
    assert choice.choices == (None, 1, 2.5)


@pytest.mark.parametrize(
    ("ranges", "said"), [({"gama": "1..2"}, "no parameter `gama`"), ({"gamma": "2..1"}, "no range")]
)
def test_a_knob_that_cannot_be_turned_is_refused(ranges: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        knobs_of("agentserve", ranges)


def test_constants_that_were_fixed_stand_in_every_run_and_in_the_line() -> None:
    tuning = search(fixed={"beta": 3.0}, trials=2)
    assert all(t.params["beta"] == 3.0 for t in tuning.runs((1,), {"gamma": 7.0}))
    assert "beta=3" in tune(tuning, Bowl()).line
