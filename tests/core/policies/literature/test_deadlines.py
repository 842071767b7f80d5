"""HexGen-Flow and JITServe: shares of a deadline, and who is urgent."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core.foresight import Naive


class Left(Naive):
    """Four steps left, a hundred tokens each: 1.5 s of decoding on the desk's engines."""

    def steps_left(self, program: Any) -> float:
        return 4.0

    def output_tokens(self, step: Any) -> float:
        return 100.0


def test_a_stage_gets_its_share_of_the_time_left(desk: Any) -> None:
    d = desk("hexgen", foresight=Left())
    d.arrive("a", tokens=2000, deadline_s=40.0, after=1.0)
    step = d.board.steps["a/0"]
    policy = d.scheduler.policy
    assert policy.objective_s(step) == pytest.approx(40.0 / 4)
    assert policy.key(step, d.now) == (0, pytest.approx(d.now + 10.0 - (2.0 + 1.5)))


@pytest.mark.parametrize("policy", ["hexgen", "jitserve"])
def test_the_tighter_deadline_goes_first(desk: Any, policy: str) -> None:
    d = desk(policy, foresight=Left())
    d.arrive("wall", tokens=9000)
    d.arrive("loose", tokens=5000, deadline_s=400.0)
    d.arrive("tight", tokens=5000, deadline_s=100.0, after=1.0)
    d.finish("wall", tokens=9000, final=True)
    assert d.sent("tight") == "e0"
    assert d.sent("loose") is None


@pytest.mark.parametrize(("alpha", "chosen"), [(0.9, "e0"), (0.1, "e1")])
def test_alpha_weighs_speed_against_load(desk: Any, alpha: float, chosen: str) -> None:
    d = desk("hexgen", engines=2, foresight=Left(), alpha=alpha)
    d.board.fleet["e0"].speed = 2.0
    d.arrive("a", tokens=1000)
    assert d.sent("a") == "e0"
    d.arrive("b", tokens=1000)
    assert d.sent("b") == chosen


def test_what_can_no_longer_make_it_waits_behind_what_can_until_its_patience_is_out(desk: Any) -> None:
    d = desk("jitserve", foresight=Left(), patience_s=50.0)
    d.arrive("wall", tokens=9000)
    d.arrive("late", tokens=5000, deadline_s=8.0)  # its share is 2 s, and it takes 7.25
    d.arrive("fine", tokens=5000, deadline_s=4000.0, after=1.0)
    d.finish("wall", tokens=9000, final=True)
    assert d.sent("fine") == "e0"
    d.arrive("fine2", tokens=5000, deadline_s=4000.0)
    d.timer()
    assert d.now == pytest.approx(50.0, abs=0.01)
    d.finish("fine", tokens=5000, final=True)
    assert d.sent("late") == "e0"


def test_slack_is_counted_by_an_upper_bound_of_the_output(desk: Any) -> None:
    d = desk("jitserve", foresight=Left(), bound_factor=2.0)
    d.arrive("a", tokens=1000, deadline_s=40.0)
    policy, steps = d.scheduler.policy, d.board.steps
    assert policy.latest_start(steps["a/0"]) == pytest.approx(10.0 - (1.0 + 200 * 0.015))
    d.arrive("b", tokens=1000, deadline_s=40.0, output_tokens_max=100)
    assert policy.latest_start(steps["b/0"]) == pytest.approx(10.0 - (1.0 + 100 * 0.015))


def test_of_the_first_few_the_one_most_like_the_running_goes(desk: Any) -> None:
    d = desk("jitserve", foresight=Left(), group=3)
    d.arrive("run", tokens=2000)
    d.arrive("wall", tokens=7000)
    for name, tokens in (("long", 6000), ("alike", 2000), ("short", 200)):
        d.arrive(name, tokens=tokens)
    d.finish("wall", tokens=7000, final=True)
    order = [n for n in d.dispatched if n.split("/")[0] in ("long", "alike", "short")]
    assert order[0] == "alike/0"
