import csv
import gzip
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from agentserve.cli import main
from agentserve.core.forecast import Survival
from agentserve.core.forecast.evaluation import call_row, evaluate_calls, evaluate_programs, program_row
from agentserve.core.forecast.evaluation.baselines import Continuum, LogNormal, Mean, Quantiles
from agentserve.core.forecast.evaluation.rows import BadRow, CallRow
from agentserve.core.forecast.evaluation.scores import Accuracy, Cost, Frontier, crps
from agentserve.core.forecast.grid import TOOL_SECONDS

COLUMNS = (
    "tool arg arg_hash has_pipe n_chain timeout_ms background emit_epoch_s wall_s exec_s"
    " program_id k n_par quality"
)


def table_of(rows: list[CallRow], path: Path) -> Path:
    with gzip.open(path, "wt", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS.split())
        writer.writeheader()
        for i, row in enumerate(rows):
            writer.writerow(
                {
                    "tool": row.call.name,
                    "arg": row.call.argument_class,
                    "arg_hash": row.call.exact_hash,
                    "n_chain": 0,
                    "emit_epoch_s": row.at,
                    "wall_s": row.seconds,
                    "exec_s": row.seconds,
                    "program_id": row.program,
                    "k": 0,
                    "n_par": 1,
                    "quality": "permwait" if i % 50 == 7 else "clean",
                }
            )
    return path


def program(length: int, name: str, source: str = "made") -> dict[str, object]:
    turns = [
        {"t": 5.0 * i, "llm": 2.0, "in": 1000 + 100 * i, "out": 50, "hit": 900, "k": "tool"}
        for i in range(length)
    ]
    return {"id": name, "source": source, "turns": turns}


def exact(seconds: float, spread: float) -> Survival:
    """A log-normal forecast, finely cut."""
    below = [
        0.5 * (1 + math.erf((edge - math.log(seconds)) / (spread * 2**0.5)))
        for edge in TOOL_SECONDS.log_edges
    ]
    below[0], below[-1] = 0.0, 1.0
    return Survival(TOOL_SECONDS, [b - a for a, b in pairwise(below)])


def test_the_score_of_a_log_normal_forecast_is_the_textbook_one() -> None:
    spread = 1.0
    for outcome in (0.3, 2.0, 9.0):
        z = math.log(outcome / 2.0) / spread
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        known = spread * (z * math.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))
        assert crps(exact(2.0, spread), outcome) == pytest.approx(known, abs=0.01)


def test_the_score_prefers_the_truth() -> None:
    rng = random.Random(1)
    outcomes = [rng.lognormvariate(0.7, 0.8) for _ in range(400)]
    true, narrow, shifted = exact(2.01, 0.8), exact(2.01, 0.2), exact(6.0, 0.8)
    scores = [sum(crps(forecast, y) for y in outcomes) for forecast in (true, narrow, shifted)]
    assert scores[0] == min(scores)


def test_coverage_counts_outcomes_at_or_below_each_quantile() -> None:
    accuracy = Accuracy(TOOL_SECONDS)
    for outcome in (1.0, 2.5, 3.0, 1_000.0):
        accuracy.add(exact(2.0, 0.5), outcome)
    numbers = accuracy.numbers()
    assert (numbers["coverage_p50"], numbers["coverage_p99"]) == (0.25, 0.75)
    accuracy.add_point(4.0, 4.0)
    assert accuracy.outcomes == 5


def test_the_cost_of_a_ttl_is_time_held_plus_misses_over_the_clairvoyant_cost() -> None:
    cost = Cost(5.0)
    cost.add(2.0, 1.0)  # held one second, hit; nobody does better
    cost.add(2.0, 30.0)  # held two seconds, then missed: 7 where 5 would have done
    assert cost.regret == pytest.approx((1 + 2 + 5) / (1 + 5) - 1)
    assert cost.hit_rate == 0.5
    frontier = Frontier()
    frontier.add(exact(1.0, 0.1), 1.0)
    assert frontier.hit_rate(0.0) == 0.0
    assert frontier.hit_rate(100.0) == 1.0


def test_continuum_follows_its_published_rule() -> None:
    rule = Continuum()
    assert rule.ttl("x", 8.0) == pytest.approx(math.log(8.0))
    assert rule.ttl("x", 0.5) == 0.0
    for i in range(300):
        rule.learn("x", 1.0 if i % 2 else 100.0)
    # F(1) x 8 - 1 = 3 is the best; F(1) x 1.5 - 1 < 0 keeps nothing
    assert rule.ttl("x", 8.0) == 1.0
    assert rule.ttl("x", 1.5) == 0.0


def test_the_baselines_learn() -> None:
    for forecaster in (Quantiles(by_tool=True), LogNormal()):
        for _ in range(60):
            forecaster.learn("a", 0.1)
            forecaster.learn("b", 10.0)
        assert forecaster.predict("a").quantile(0.5) == pytest.approx(0.1, rel=0.3)
        assert forecaster.predict("b").quantile(0.5) == pytest.approx(10.0, rel=0.3)
    mean = Mean()
    mean.learn("a", 1.0)
    mean.learn("a", 3.0)
    assert (mean.predict("a"), mean.predict("new")) == (2.0, 2.0)


def test_nothing_is_known_of_a_call_before_it_ended(calls_of: Callable[..., list[CallRow]]) -> None:
    """Calls that all overlap can teach nothing: each is forecast as the first one was."""
    rows = [
        CallRow(
            call=row.call, tenant="t", program="p", at=float(i) / 1e3, seconds=5.0, ended_at=1e6,
            group=(0, 1), censored=False, clean=True,
        )
        for i, row in enumerate(calls_of(40))
    ]  # fmt: skip
    report = evaluate_calls(rows, score_last=1.0)
    assert report.accuracy["agentserve"].numbers()["median_ln_error"] > 0.5
    assert report.accuracy["mean per tool"].numbers()["median_ln_error"] == pytest.approx(math.log(5.0))


def test_the_columns_of_data_sets_and_of_our_export_are_both_read() -> None:
    theirs = call_row(
        {"tool": "Bash", "arg": "git log", "arg_hash": "ab", "has_pipe": "1", "n_chain": "2", "timeout_ms": "60000",
         "emit_epoch_s": "5.5", "wall_s": "3", "exec_s": "2", "program_id": "p", "k": "1", "n_par": "3",
         "quality": "permwait", "background": "0"}
    )  # fmt: skip
    assert (theirs.seconds, theirs.ended_at, theirs.group, theirs.clean) == (2.0, 8.5, (1, 3), False)
    assert (theirs.call.pipes, theirs.call.chain, theirs.call.timeout_s) == (True, 3, 60.0)
    ours = call_row(
        {"tool": "Bash", "argument_class": "git log", "seconds": 2.5, "t": 7, "censored": True, "program": "p",
         "tenant": "acme"}
    )  # fmt: skip
    assert (ours.seconds, ours.censored, ours.tenant, ours.call.chain, ours.clean) == (
        2.5,
        True,
        "acme",
        1,
        True,
    )
    raw = call_row({"tool": "sh", "arguments": {"command": "make all"}, "seconds": 1, "t": 0})
    assert raw.call.argument_class == "make all"


def test_programs_without_a_clock_are_replayed_one_after_the_other(
    calls_of: Callable[..., list[CallRow]],
) -> None:
    clocked = sorted(calls_of(300), key=lambda row: (row.program, row.at))
    start = {row.program: row.at for row in reversed(clocked)}
    relative = [
        replace(
            row, at=row.at - start[row.program], ended_at=row.ended_at - start[row.program], relative=True
        )
        for row in clocked
    ]
    told = evaluate_calls(relative).accuracy["agentserve"].numbers()
    assert told["crps"] < 0.7 * evaluate_calls(relative).accuracy["quantiles, all calls"].numbers()["crps"]
    assert call_row({"tool": "x", "exec_s": 1, "t_rel_s": 3, "emit_epoch_s": ""}).relative


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"exec_s": 1, "t": 0}, "no tool"),
        ({"tool": "x", "t": 0}, "no exec_s"),
        ({"tool": "x", "exec_s": 1}, "no emit_epoch_s"),
        ({"tool": "x", "exec_s": "fast", "t": 0}, "exec_s is 'fast'"),
        ({"tool": "x", "exec_s": -3, "t": 0}, "not a time"),
        ({"tool": "x", "exec_s": 1, "t": 0, "n_chain": "many"}, "'many' is not a number"),
    ],
)
def test_a_bad_record_names_its_field(record: dict[str, object], says: str) -> None:
    with pytest.raises(BadRow, match=says):
        call_row(record)


def test_programs_are_split_by_time_and_scored_against_the_median() -> None:
    rng = random.Random(3)
    rows = [
        program_row({**program(rng.choice((4, 30)), f"p{i}"), "start_epoch": float(100 - i)})
        for i in range(60)
    ]
    report = evaluate_programs(rows)
    assert (report.learned, report.forecast) == (36, 24)
    assert report.at[1].errors
    assert len(report.at[10].errors) == len(report.at[5].errors) < len(report.at[1].errors)
    child = program_row({**program(9, "child"), "parent": "p1"})
    assert evaluate_programs([*rows, child]).forecast == 24


def test_the_command_prints_scores_beside_baselines(
    calls_of: Callable[..., list[CallRow]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = table_of(calls_of(300), tmp_path / "calls.csv.gz")
    page = tmp_path / "plots.html"
    assert main(["forecast", "evaluate", str(file), "--plot", str(page)]) == 0
    out, err = capsys.readouterr()
    for name in ("agentserve", "Continuum's rule", "log-normal per tool", "fixed, the break-even", "Shell"):
        assert name in out
    assert err == ""
    html = page.read_text()
    assert html.count("<svg") >= 5
    assert "http" not in html.replace("http-equiv", "")


def test_the_command_prints_json(
    calls_of: Callable[..., list[CallRow]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = table_of(calls_of(200), tmp_path / "calls.csv.gz")
    assert main(["forecast", "evaluate", str(file), "--json", "--score-last", "0.5"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert (numbers["rows"], numbers["unclean"], numbers["scored"]) == (196, 4, 98)
    assert set(numbers["ttl"]["agentserve"]) == {"0.5", "2", "5", "15", "60"}
    assert main(["forecast", "evaluate", str(file), "--json", "--all-rows"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 200


def test_the_command_scores_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "programs.jsonl"
    lines = [json.dumps({"schema": "agent_programs/1"})]
    lines += [json.dumps(program(10 + i % 7, f"p{i}", source=f"s{i % 2}")) for i in range(40)]
    file.write_text("\n".join(lines))
    assert main(["forecast", "evaluate", "--programs", str(file)]) == 0
    out = capsys.readouterr().out
    assert "s0: remaining steps of 8 programs from 12 earlier ones" in out
    assert main(["forecast", "evaluate", "--programs", "--json", str(file)]) == 0
    assert set(json.loads(capsys.readouterr().out)["sources"]) == {"s0", "s1"}


def test_malformed_rows_are_counted_and_named_unless_strict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "calls.jsonl"
    good = [json.dumps({"tool": "x", "seconds": 1.0, "t": i}) for i in range(20)]
    file.write_text("\n".join([*good, "{broken", '{"tool": "x", "t": 1}', '{"tool": ' + "[" * 100_000]))
    assert main(["forecast", "evaluate", str(file), "--json"]) == 0
    malformed = json.loads(capsys.readouterr().out)["malformed"]
    assert [row.split(":")[0] for row in malformed] == ["line 21", "line 22", "line 23"]
    assert main(["forecast", "evaluate", str(file)]) == 0
    assert "3 malformed rows skipped: line 21" in capsys.readouterr().err
    assert main(["forecast", "evaluate", str(file), "--strict"]) == 2
    assert "line 21" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [[], ["--programs"]])
def test_a_mark_that_a_spreadsheet_writes_first_is_no_part_of_the_file(
    kind: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [program(10, f"p{i}") if kind else {"tool": "x", "seconds": 1.0, "t": i} for i in range(20)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\ufeff" + "\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert main(["forecast", "evaluate", *kind, str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["malformed"] == []


def test_what_programs_need_is_said_of_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": 1}\n')
    assert main(["forecast", "evaluate", "--programs", str(file)]) == 2
    assert "an id and a list of turns" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"", "no column"),
        (b"a,b\n1,2\n", "no column tool"),
        (b"tool,exec_s,emit_epoch_s\n", "none of its 0 rows"),
        (b"tool,exec_s,emit_epoch_s\nx,soon,1\n", "exec_s is 'soon'"),
        (b"tool,exec_s,emit_epoch_s\nx,1\n", "too few or too many fields"),
        (b"\x1f\x8bnot gzip at all", "gzip"),
        (b"\xff\xfe\x00\x01", "UTF-8"),
    ],
)
def test_input_that_cannot_be_used_ends_in_one_line_and_status_two(
    content: bytes | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "odd.csv"
    if content is not None:
        file.write_bytes(content)
    assert main(["forecast", "evaluate", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


def test_arguments_that_make_no_sense_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["forecast", "evaluate", "x.csv", "--score-last", "7"])
    assert refused.value.code == 2
    assert "share between 0 and 1" in capsys.readouterr().err
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(program(3, "p")))
    assert main(["forecast", "evaluate", "--programs", str(file), "--plot", str(tmp_path / "x.html")]) == 2
    with pytest.raises(BadRow, match="turn 1"):
        program_row({"id": "p", "turns": [{"in": "many"}]})
