"""What the comparison rests on: the same programs for every arm, ids where a router asks for them, honest tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentserve.sim.programs import OWN_KEYS, ProgramPlan, StepPlan
from tests.bench.peers import install
from tests.bench.peers.arms import ARMS, Place, emulated
from tests.bench.peers.doors import AgenticContext, AgentserveHeaders, Plain, ThunderAgentIds
from tests.bench.peers.programs import SETTINGS, concurrency, programs
from tests.bench.peers.report import grid, markdown, plain, plot, workloads
from tests.bench.peers.run import cpu_s

LEAD = ProgramPlan(id="lead", steps=(StepPlan(new_tokens=1, output_tokens=1),) * 2, own=OWN_KEYS)


def trace(tmp_path: Path, sessions: int = 60) -> Path:
    """Recorded sessions in kv-cache-tester's format: nine requests each, one with a sub-agent."""
    lines = []
    for i in range(sessions):
        requests: list[dict[str, Any]] = []
        for k in range(9):
            blocks = 600 + 20 * k
            requests.append(
                {
                    "t": 400.0 * k,
                    "type": "n",
                    "in": 64 * blocks,
                    "out": 200,
                    "api_time": 5.0,
                    "stop": "tool_use",
                    "h": [[1, blocks]],
                }
            )
        inner = [{"t": 0.0, "type": "n", "in": 6400, "out": 100, "h": [[5000, 100]]}]
        requests.insert(5, {"t": 1600.0, "type": "subagent", "agent_id": f"s{i}", "requests": inner})
        lines.append(
            json.dumps({"id": f"t{i}", "block_size": 64, "tool_tokens": 12_500, "requests": requests})
        )
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["coding", "chains"])
def test_equal_seeds_give_equal_programs_of_the_stated_size(name: str) -> None:
    setting = SETTINGS[name]
    work = programs(name, setting, seed=5)
    assert work == programs(name, setting, seed=5)
    assert len(work.roots) == setting.programs
    assert {len(p.steps) for p in work.programs} == {setting.steps_max}
    assert max(max(p.prompts()) for p in work.programs) <= setting.kv_tokens // 3
    assert setting.programs / 2 < concurrency(work, setting) <= setting.programs


def test_recorded_sessions_keep_their_sub_agents_and_are_cut_alike(tmp_path: Path) -> None:
    setting = SETTINGS["weka"]
    work = programs("weka", setting, seed=1, file=trace(tmp_path))
    assert len(work.roots) == setting.programs
    children = [p for p in work.programs if p.parent is not None]
    assert len(children) == setting.programs
    for i in work.roots:
        plan = work.programs[i]
        assert [work.programs[c].parent for s in plan.steps for c in s.children] == [i]
        assert max(s.gap_s for s in plan.steps) <= setting.gap_s_max
        assert [bool(s.tools) for s in plan.steps] == [True] * 7 + [False], "the last reply asks for nothing"
        assert max(plan.prompts()) <= 64 * 760 // setting.shrink
    assert programs("weka", setting, seed=2, file=tmp_path / "trace.jsonl") != work


def test_routers_are_told_what_they_ask_for_and_the_others_nothing() -> None:
    assert set(Plain(["u"]).headers(LEAD, 0, None)) == {"authorization"}
    assert Plain(["u"]).body(LEAD, 0, None) == {}
    assert ThunderAgentIds(["u"]).body(LEAD, 0, None) == {"program_id": "lead"}
    last = AgentserveHeaders(["u"]).headers(LEAD, 1, LEAD)
    assert last["x-agentserve-final"] == "true"
    assert last["x-agentserve-parent-id"] == "lead"
    assert "x-agentserve-final" not in AgentserveHeaders(["u"]).headers(LEAD, 0, None)
    context = AgenticContext(["u"]).body(LEAD, 1, None)["vllm_xargs"]["agentic_context"]
    assert (context["program_id"], context["step_id"], context["expected_resume"]) == ("lead", 1, False)


async def test_thunderagent_is_told_when_a_program_is_over() -> None:
    posted: list[tuple[str, str, Any]] = []

    async def post(url: str, path: str, body: Any) -> int:
        posted.append((url, path, body))
        return 200

    await ThunderAgentIds(["http://t"]).ended(post, LEAD)
    assert posted == [("http://t", "/programs/release", {"program_id": "lead"})]


def test_every_router_is_started_before_all_engines_and_on_loopback(tmp_path: Path) -> None:
    engines = ["http://127.0.0.1:7001", "http://127.0.0.1:7002"]
    for arm in ARMS.values():
        if arm.command is None or not arm.installed(tmp_path):
            continue
        place = Place(
            peers=tmp_path, folder=tmp_path, engines=engines, port=7000, pace=emulated(SETTINGS["coding"])
        )
        said = " ".join(arm.command(place)) + "".join(
            p.read_text(encoding="utf-8") for p in tmp_path.glob("*.conf")
        )
        assert all(url.removeprefix("http://") in said for url in engines)
        assert "0.0.0.0" not in said


def test_peers_that_are_not_there_are_known_to_be_missing(tmp_path: Path) -> None:
    missing = [a.name for a in ARMS.values() if not a.installed(tmp_path)]
    assert {"litellm", "vllm-router", "sglang-router", "thunderagent"} <= set(missing)
    assert set(install.PEERS) == {
        "litellm", "vllm-router", "sglang-router", "thunderagent", "production-stack",
    }  # fmt: skip


def cell(arm: str, seed: int, jct: float, **more: Any) -> dict[str, Any]:
    figures = dict.fromkeys(("jct_p95_s", "steps_per_min", "ttft_mean_s", "cached_share", "failed"), 0.5)
    figures |= {"jct_mean_s": jct, "failed": 0.0}
    return {
        "workload": "coding",
        "seed": seed,
        "arm": arm,
        "figures": figures,
        "cpu": {"client": 0.1},
        **more,
    }


def test_the_table_shows_means_spreads_failures_and_who_was_short_of_processor_time() -> None:
    cells = [cell("agentserve", 1, 100.0), cell("agentserve", 2, 120.0), cell("nginx", 1, 220.0)]
    cells.append(cell("litellm", 1, 330.0, cpu={"router": 0.95}))
    cells.append({"workload": "coding", "seed": 1, "arm": "thunderagent", "error": "not installed"})
    lines = {line[0]: line for line in grid(workloads(cells)["coding"])}
    assert lines["agentserve"][2:4] == ["2", "110 [100-120]"]
    assert lines["agentserve"][-1] == "1.00"
    assert lines["nginx"][-1] == "2.20", "beside the seed that both have"
    assert lines["litellm"][-1] == "3.30 (short of CPU)"
    assert lines["thunderagent"][-1] == "not installed"
    assert "seeds 1, 2" in plain(cells)
    assert "| **agentserve** |" in markdown(cells)


def test_the_plot_orders_routers_by_completion_time() -> None:
    drawn = plot([cell("nginx", 1, 220.0), cell("agentserve", 1, 100.0), cell("agentserve", 2, 120.0)])
    assert drawn.index(">agentserve<") < drawn.index(">nginx<")
    assert drawn.count('class="seed"') == 2, "the seed that nginx has not stands beside nothing"
    assert drawn.startswith("<svg")


def test_processor_time_is_read_of_a_process_and_its_descendants() -> None:
    import os

    own = cpu_s(os.getpid())
    sum(msgspec.json.decode(msgspec.json.encode(list(range(2000))))[0] for _ in range(2000))
    assert cpu_s(os.getpid()) >= own > 0
