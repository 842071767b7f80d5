"""Recorded traffic: each format by a small file of its shape, and what is wrong with a line by number."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from agentserve.errors import UsageError
from agentserve.sim.importers import read
from agentserve.sim.run import Trial, run


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


PROGRAM = {
    "id": "s1",
    "source": "made-up",
    "turns": [
        {
            "in": 9000,
            "out": 100,
            "tools": [["Bash", "ls", 0.5, 0.7, "wall", "clean"]],
            "gap": 0.9,
            "gap_k": "tool",
        },
        {"in": 9500, "out": 50, "gap": 60.0, "gap_k": "human"},
        {"in": 4000, "out": 20, "gap": None},
    ],
}


def test_agent_programs_keep_prompts_gaps_tools_and_compaction(tmp_path: Path) -> None:
    found = read(jsonl(tmp_path / "p.jsonl", [{"schema": "agent_programs/1"}, PROGRAM]))
    (plan,) = found.workload.programs
    assert found.format == "agent_programs"
    assert plan.prompts() == [9000, 9500, 4000]
    assert [s.gap_s for s in plan.steps] == pytest.approx([0.9, 60.0, 0.0])
    assert (plan.steps[0].tools[0].name, plan.steps[0].tools[0].argument_class) == ("Bash", "ls")
    assert plan.steps[1].human
    assert plan.steps[2].compact_to is not None
    assert plan.tools_offered == 1, "that it called"


def test_mooncake_requests_that_extend_another_are_its_next_step(tmp_path: Path) -> None:
    def row(at: int, ids: list[int], length: int) -> dict[str, Any]:
        return {"timestamp": at, "input_length": length, "output_length": 10, "hash_ids": ids}

    path = tmp_path / "m.jsonl.gz"
    rows = [row(0, [0, 1, 2, 3], 2000), row(500, [0, 9, 8], 1500), row(9000, [0, 1, 2, 4, 5], 2500)]
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    found = read(path)
    assert [len(p.steps) for p in found.workload.programs] == [2, 1]
    assert [p.arrives_s for p in found.workload.programs] == [0.0, 0.5]
    _, _, result = run(Trial(workload=found.workload, engines=1, policy="affinity", forecast="naive"))
    second = next(s for s in result.steps if s.program == 0 and s.index == 1)
    assert second.cached == 1536, "three whole blocks of 512 are the same"


def test_kv_cache_tester_traces_keep_their_sub_agents(tmp_path: Path) -> None:
    def request(at: float, tokens: int, runs: list[list[int]], **more: Any) -> dict[str, Any]:
        return {"t": at, "type": "n", "in": tokens, "out": 5, "h": runs, "api_time": 1.0, **more}

    inner = [request(0.0, 640, [[500, 10]]), request(3.0, 960, [[500, 15]])]
    trace = {
        "id": "t1",
        "block_size": 64,
        "requests": [
            request(0.0, 1280, [[1, 20]]),
            {"t": 2.0, "type": "subagent", "agent_id": "a1", "subagent_type": "Explore", "requests": inner},
            request(9.0, 1920, [[1, 30]], stop="end_turn"),
        ],
    }
    found = read(jsonl(tmp_path / "w.jsonl", [trace]))
    lead, child = found.workload.programs
    assert lead.steps[0].children == (1,)
    assert child.parent == 0
    assert child.steps[0].gap_s == pytest.approx(2.0)
    _, _, result = run(Trial(workload=found.workload, engines=1, policy="affinity", forecast="naive"))
    assert next(s for s in result.steps if s.program == 0 and s.index == 1).cached == 1280


def test_kv_cache_tester_traces_say_which_replies_asked_for_tools(tmp_path: Path) -> None:
    def request(at: float, stop: str, **more: Any) -> dict[str, Any]:
        return {"t": at, "type": "n", "in": 1280, "out": 100, "h": [[1, 20]], "stop": stop, **more}

    inner = [request(0.0, "tool_use", api_time=1.0), request(3.0, "end_turn", api_time=1.0)]
    agent = {"t": 50.0, "type": "subagent", "agent_id": "a", "tool_tokens": 0, "requests": inner}
    requests = [
        request(0.0, "tool_use", api_time=1.0),
        request(5.0, "end_turn", api_time=1.0),
        request(40.0, ""),  # a stream whose end was not recorded
        request(45.0, "tool_use", api_time=1.0),
        agent,
        request(60.0, "tool_use", api_time=1.0),
    ]
    trace = {"id": "t", "block_size": 64, "tool_tokens": 12_500, "requests": requests}
    lead, child = read(jsonl(tmp_path / "w.jsonl", [trace])).workload.programs
    assert [[t.name for t in s.tools] for s in lead.steps] == [["tool"], [], ["tool"], ["Task"], []]
    assert [s.gap_s for s in lead.steps] == pytest.approx([4.0, 34.0, 3.0, 0.0, 0.0])
    assert [s.human for s in lead.steps] == [False, True, False, False, False]
    assert lead.steps[3].tools[0].kind == "subagent"
    assert (lead.tools_offered, child.tools_offered) == (21, 0)
    assert [s.tools for s in child.steps] == [(), ()], "which was offered none"


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        (
            "azure.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9,4808,10\n2023-11-16 18:17:05.4,100,8\n",
            "azure",
        ),
        (
            "burst.csv",
            "Timestamp,Model,Request tokens,Response tokens,Total tokens\n5,ChatGPT,472,18,490\n6.5,m,5,7,12\n",
            "burstgpt",
        ),
    ],
)  # fmt: skip
def test_arrivals_with_token_counts_are_one_shot_programs(
    tmp_path: Path, name: str, text: str, kind: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    found = read(path)
    assert found.format == kind
    assert [p.arrives_s for p in found.workload.programs] == pytest.approx([0.0, 1.5])
    assert all(len(p.steps) == 1 for p in found.workload.programs)


def test_a_malformed_line_is_named_counted_and_skipped_unless_strict(tmp_path: Path) -> None:
    bad = {"id": "s2", "turns": [{"in": "many", "out": 1}]}
    path = jsonl(tmp_path / "p.jsonl", [{"schema": "x"}, PROGRAM, "{oops", bad, PROGRAM | {"id": "s3"}])
    found = read(path)
    assert len(found.workload.programs) == 2
    assert found.bad == 2
    assert found.problems[0].startswith("p.jsonl:3: ")
    assert "in is 'many', not a number" in found.problems[1]
    with pytest.raises(UsageError, match=r"p\.jsonl:3"):
        read(path, strict=True)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"n": ' + "1" * 5_000 + "}"])
def test_a_line_that_no_reader_of_json_takes_is_malformed(tmp_path: Path, line: str) -> None:
    found = read(jsonl(tmp_path / "p.jsonl", [PROGRAM, line]))
    assert (found.bad, len(found.workload.programs)) == (1, 1)


INF, NAN = float("inf"), float("nan")
NO_REQUEST: list[Any] = [None, 1, "x", [], {"in": 9, "h": [[INF, 1]]}]


@pytest.mark.parametrize(
    ("whole", "wrong"),
    [
        (PROGRAM | {"start_epoch": 1e9}, [{"start_epoch": w} for w in ("noon", -1, INF, NAN, True)]),
        (
            {"timestamp": 1, "input_length": 9, "output_length": 1, "hash_ids": [1]},
            [{"timestamp": w} for w in (INF, NAN, -1, "x", 1e400)],
        ),
        (
            {"id": "t", "requests": [{"type": "n", "in": 9, "t": 0}]},
            [{"requests": [w]} for w in NO_REQUEST],
        ),
    ],
)
def test_a_value_of_any_kind_costs_its_line_only(
    tmp_path: Path, whole: dict[str, Any], wrong: list[dict[str, Any]]
) -> None:
    found = read(jsonl(tmp_path / "p.jsonl", [whole, *(whole | one for one in wrong), whole]))
    assert (found.bad, len(found.workload.programs)) == (len(wrong), 2)


def test_a_spreadsheets_mark_and_a_field_without_end_cost_no_more_than_a_line(tmp_path: Path) -> None:
    rows = ["Timestamp,ContextTokens,GeneratedTokens", "2023-11-16 18:15:46.68,100,10"]
    rows += ["2023-11-16 18:15:47.00," + "1" * 200_000 + ",10", "2023-11-16 18:15:48.18,200,20"]
    path = tmp_path / "a.csv"
    path.write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")
    found = read(path)
    assert ([p.arrives_s for p in found.workload.programs], found.bad) == ([0.0, 1.5], 1)


def test_a_broken_archive_is_said_in_a_line(tmp_path: Path) -> None:
    whole = gzip.compress("".join(json.dumps(PROGRAM | {"id": str(i)}) + "\n" for i in range(99)).encode())
    for at in range(12, len(whole) - 9, 7):
        (tmp_path / "p.jsonl.gz").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with pytest.raises(UsageError):
            read(tmp_path / "p.jsonl.gz", strict=True)


def test_agent_programs_begin_when_they_began(tmp_path: Path) -> None:
    rows = [PROGRAM | {"id": f"s{at}", "start_epoch": 1_795_348_649.0 + at} for at in (30, 0, 7)]
    found = read(jsonl(tmp_path / "p.jsonl", rows))
    assert [p.arrives_s for p in found.workload.programs] == [30.0, 0.0, 7.0], "counted from the first"


@pytest.mark.parametrize("text", ["", "hello\n", '{"a": 1}\n', "[1]\n"])
def test_what_is_no_trace_is_refused_with_the_known_formats(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x"
    path.write_text(text)
    with pytest.raises(UsageError, match="known are"):
        read(path)


def test_a_limit_keeps_whole_families(tmp_path: Path) -> None:
    rows = [PROGRAM | {"id": f"s{i}"} for i in range(5)]
    assert len(read(jsonl(tmp_path / "p.jsonl", rows), limit=3).workload.programs) == 3
