import random
from statistics import fmean

import pytest

from agentserve.core.forecast import Progress, RemainingForecaster, StepFacts, Todo, ToolCall, read_todo
from agentserve.core.forecast.neighbours import MILESTONES, SAMPLES_PER_MILESTONE
from agentserve.core.forecast.progress import FEATURES, purpose

READ, EDIT = ToolCall(name="Read"), ToolCall(name="Edit")


def run(
    forecaster: RemainingForecaster,
    name: str,
    length: int,
    *,
    opening: int = 1_000,
    workflow: str | None = None,
    stop_at: int | None = None,
    call: ToolCall = READ,
) -> None:
    """A program of `length` steps, told from its first to its last (or to `stop_at`, and left open there)."""
    forecaster.begin(tenant="t", program=name, workflow=workflow)
    for i in range(min(length, stop_at or length)):
        facts = StepFacts(
            input_tokens=opening + 300 * i, output_tokens=100, started_s=4.0 * i, llm_s=3.0, calls=(call,)
        )
        forecaster.step(tenant="t", program=name, facts=facts)
    if stop_at is None:
        forecaster.finish(tenant="t", program=name)


def steps_left(forecaster: RemainingForecaster, name: str, q: float = 0.5) -> float:
    said = forecaster.predict(tenant="t", program=name)
    assert said is not None
    return said.steps.quantile(q)


def test_nothing_is_said_before_the_first_step() -> None:
    forecaster = RemainingForecaster()
    assert forecaster.predict(tenant="t", program="p") is None
    forecaster.begin(tenant="t", program="p")
    assert forecaster.predict(tenant="t", program="p") is None


def test_a_workflow_that_always_takes_twelve_steps_is_known_to() -> None:
    forecaster = RemainingForecaster()
    for i in range(40):
        run(forecaster, f"p{i}", 12, workflow="report")
    for done in (1, 5, 7, 10):
        run(forecaster, f"q{done}", 12, workflow="report", stop_at=done)
        assert steps_left(forecaster, f"q{done}") == pytest.approx(12 - done, rel=0.3, abs=0.6)


def test_tokens_and_seconds_left_follow_the_steps() -> None:
    forecaster = RemainingForecaster()
    for i in range(40):
        run(forecaster, f"p{i}", 21, workflow="report")
    run(forecaster, "q", 21, workflow="report", stop_at=1)
    said = forecaster.predict(tenant="t", program="q")
    assert said is not None
    assert said.tokens.quantile(0.5) == pytest.approx(2_000, rel=0.3)
    assert said.seconds.quantile(0.5) == pytest.approx(80.0, rel=0.3)


def test_the_size_of_the_opening_request_tells_long_programs_from_short_ones() -> None:
    rng = random.Random(5)
    forecaster = RemainingForecaster()
    for i in range(150):
        long = rng.random() < 0.5
        length = round((40 if long else 6) * rng.uniform(0.7, 1.4))
        run(forecaster, f"p{i}", length, opening=60_000 if long else 2_000)
    run(forecaster, "long", 40, opening=55_000, stop_at=1)
    run(forecaster, "short", 40, opening=2_500, stop_at=1)
    assert steps_left(forecaster, "long") > 25
    assert steps_left(forecaster, "short") < 10


def test_what_the_tools_are_for_matters_whatever_they_are_called() -> None:
    rng = random.Random(6)
    forecaster = RemainingForecaster()
    for i in range(150):
        edits = rng.random() < 0.5
        tool = rng.choice(("str_replace_editor", "apply_patch", "WriteFile")) if edits else "view_file"
        run(
            forecaster, f"p{i}", round((8 if edits else 50) * rng.uniform(0.7, 1.4)), call=ToolCall(name=tool)
        )
    run(forecaster, "editing", 60, stop_at=5, call=ToolCall(name="edit_block"))
    run(forecaster, "reading", 60, stop_at=5, call=ToolCall(name="open_file"))
    assert steps_left(forecaster, "reading") > 4 * steps_left(forecaster, "editing")


def test_quantiles_of_remaining_steps_keep_their_word() -> None:
    rng = random.Random(8)
    forecaster = RemainingForecaster()
    kept = {0.1: [], 0.5: [], 0.9: []}  # type: dict[float, list[bool]]
    for i in range(260):
        length = max(2, round(rng.lognormvariate(2.7, 0.7)))
        name = f"p{i}"
        run(forecaster, name, length, opening=rng.randrange(500, 50_000), stop_at=1)
        if i >= 80:
            for q, met in kept.items():
                met.append(length - 1 <= round(steps_left(forecaster, name, q)))
        forecaster.forget(tenant="t", program=name)
        run(forecaster, name, length, opening=rng.randrange(500, 50_000))
    assert fmean(kept[0.1]) == pytest.approx(0.1, abs=0.12)
    assert fmean(kept[0.5]) == pytest.approx(0.5, abs=0.15)
    assert fmean(kept[0.9]) == pytest.approx(0.9, abs=0.08)


def test_between_milestones_the_forecast_shrinks_with_each_step() -> None:
    forecaster = RemainingForecaster()
    for i in range(40):
        run(forecaster, f"p{i}", 40, workflow="w")
    run(forecaster, "at", 40, workflow="w", stop_at=20)
    run(forecaster, "later", 40, workflow="w", stop_at=26)
    assert 20 not in range(21, 27) or 26 not in MILESTONES
    assert steps_left(forecaster, "at") - steps_left(forecaster, "later") == pytest.approx(6, abs=3)


def test_a_program_with_a_call_out_has_at_least_a_step_to_come() -> None:
    forecaster = RemainingForecaster()
    for i in range(40):
        run(forecaster, f"p{i}", 1 if i % 4 else 9, workflow="w")
    run(forecaster, "q", 9, workflow="w", stop_at=1)
    may_end = forecaster.predict(tenant="t", program="q")
    goes_on = forecaster.predict(tenant="t", program="q", continues=True)
    assert may_end is not None
    assert goes_on is not None
    assert may_end.steps.quantile(0.5) < 1.0 < goes_on.steps.quantile(0.5)


def test_a_program_that_outlasted_all_others_is_still_forecast() -> None:
    forecaster = RemainingForecaster()
    for i in range(20):
        run(forecaster, f"p{i}", 5)
    run(forecaster, "endless", 500, stop_at=450)
    assert steps_left(forecaster, "endless") >= 0.0
    said = forecaster.predict(tenant="t", program="endless")
    assert said is not None
    assert said.tokens.mean() >= 0.0


def test_what_is_kept_is_bounded() -> None:
    forecaster = RemainingForecaster(programs_max=50)
    for i in range(SAMPLES_PER_MILESTONE + 60):
        run(forecaster, f"p{i}", 3)
    for i in range(200):
        run(forecaster, f"open{i}", 9, stop_at=2)
    assert len(forecaster._neighbours) <= SAMPLES_PER_MILESTONE * len(MILESTONES)
    assert len(forecaster._open) <= 50


def test_it_is_restored_as_it_was_stored_and_merges() -> None:
    one, two = RemainingForecaster(), RemainingForecaster()
    for i in range(30):
        run(one, f"p{i}", 12, workflow="a")
        run(two, f"p{i}", 60, workflow="b")
    again = RemainingForecaster.from_bytes(one.to_bytes())
    again.merge(two)
    run(again, "a", 12, workflow="a", stop_at=1)
    run(again, "b", 60, workflow="b", stop_at=1)
    assert steps_left(again, "a") == pytest.approx(11, rel=0.4)
    assert steps_left(again, "b") == pytest.approx(59, rel=0.4)
    with pytest.raises(ValueError):
        RemainingForecaster.from_bytes(b"\x80")


def test_the_agents_own_list_is_read_in_its_common_shapes() -> None:
    shapes: list[dict[str, object]] = [
        {"todos": [{"content": "x", "status": "completed"}, {"content": "y", "status": "pending"}]},
        {"plan": [{"step": "x", "status": "completed"}, {"step": "y", "status": "in_progress"}]},
        {"items": [{"text": "x", "done": True}, {"text": "y", "done": False}]},
        {"todo_list": "- [x] x\n- [ ] y\n"},
    ]
    for arguments in shapes:
        assert read_todo(arguments) == Todo(open=1, done=1), arguments
    others: list[dict[str, object]] = [
        {},
        {"todos": []},
        {"items": [1, 2]},
        {"plan": "first this"},
        {"todos": [{"status": "odd"}]},
    ]
    for other in others:
        assert read_todo(other) is None


def test_an_open_list_forecasts_more_to_come_than_a_finished_one() -> None:
    rng = random.Random(9)
    forecaster = RemainingForecaster()

    def play(name: str, left: int, upto: int | None = None) -> None:
        forecaster.begin(tenant="t", program=name)
        for i in range(min(5 + 3 * left, upto or 10_000)):
            facts = StepFacts(
                input_tokens=1_000, output_tokens=50, started_s=float(i), calls=(READ,), todo=Todo(left, 3)
            )
            forecaster.step(tenant="t", program=name, facts=facts)
        if upto is None:
            forecaster.finish(tenant="t", program=name)

    for i in range(120):
        play(f"p{i}", rng.randrange(0, 12))
    play("much", 11, upto=5)
    play("little", 1, upto=5)
    assert steps_left(forecaster, "much") > 2 * steps_left(forecaster, "little")


def test_progress_counts_people_compactions_and_purposes() -> None:
    progress = Progress()
    for i, (tokens, human) in enumerate([(1_000, True), (90_000, False), (20_000, True)]):
        progress.add(
            StepFacts(input_tokens=tokens, output_tokens=10, started_s=i * 9.0, human=human, calls=(EDIT,))
        )
    features = progress.features()
    assert len(features) == FEATURES
    assert progress.steps == 3
    assert progress._compactions == 1
    assert progress._humans == 2
    assert purpose("mcp__files__write_file") == purpose("Edit") == 2
    assert purpose("zog") == purpose("frobnicate")


def test_before_any_program_ended_none_is_taken_for_an_endless_one() -> None:
    forecaster = RemainingForecaster()
    for step in range(8):
        forecaster.step(
            tenant="t", program="p", facts=StepFacts(input_tokens=8000 + 500 * step, output_tokens=150)
        )
        left = forecaster.predict(tenant="t", program="p", continues=True)
        assert left is not None
        assert 4.0 < left.steps.quantile(0.5) < 40.0
