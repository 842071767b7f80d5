"""A gateway under load, scraped by a real Prometheus: every panel and every rule has data, or a reason to have none.

Rule: nothing is waited for by the clock; agents run until the figures are there.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from agentserve.telemetry.metrics import TABLE
from tests.dashboards import load, scraping
from tests.dashboards.queries import Asked, of_panels, of_rules, rules, series_in
from tests.scenarios import stage
from tests.telemetry.collector import Collector

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(scraping.BINARY is None, reason="prometheus is not installed (Debian: prometheus)"),
]

PATIENCE_S = 120.0  # until the load must have shown everything
AGENTS, WORDS, KV_TOKENS, TIME_SCALE = 10, 700, 16_000, 8

# Series that are 0, or absent, while all is well: what asks for one of them may be 0 or empty.
QUIET = {
    "agentserve_store_lost_rows_total": "the database is well",
    "agentserve_spans_lost_total": "the collector is well",
    "agentserve_telemetry_errors_total": "no figure is broken",
    "agentserve_fallbacks_total": "nothing of ours fails",
    "agentserve_pins_made_total": "the emulated engine has no native pin: gaps are kept by leaving them their room",
    "agentserve_pins_live": "as above",
    "agentserve_pinned_tokens": "as above",
    "agentserve_actions_total": "what engines answer to pins and warms, of which there are none",
    "agentserve_refusals_total": "clients are refused only when engines or quotas fail them",
    "agentserve_retries_total": "a step is sent again only if it was under way without a byte as its engine died",
    "agentserve_engine_losses_total": "its series appears with its first loss, and a rate does not see that",
    "agentserve_engine_preemptions": "admission keeps engines from having to preempt",
    "agentserve_engine_waiting": "steps wait in the proxy",
    "agentserve_steps_waiting": "they may all be on engines at the moment of asking",
    "agentserve_oldest_wait_seconds": "as above",
    "agentserve_programs_queued": "as above",
    "agentserve_fairness_gap_token_seconds": "two tenants must wait together",
    "agentserve_store_queue_rows": "all may be written at the moment of asking",
    "agentserve_store_lag_seconds": "as above",
    "agentserve_engine_kv_used_share": "engines may be idle at the moment of asking",
    "agentserve_engine_running": "as above",
    "agentserve_steps_running": "as above",
    "agentserve_requests_open": "as above",
}

# Expressions that must answer, and may answer 0.
ZERO = {
    "agentserve:steps_failed:ratio5m": "no step fails while both engines live",
    "agentserve-forecasts.json: Gaps that were waited for in vain A": "here every program comes back",
    "agentserve-forecasts.json: Outcomes seen B": "no workflow here takes hundreds of steps a second",
    "agentserve-forecasts.json: Warms that came in time A": "gaps are so short that few prefetches are made, or none",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What the tests look at."""

    asking: scraping.Asking
    began_at: float
    traces: set[str]
    silent: dict[str, list[float]]  # expressions that never answered as they should, and their last answer


def key(folder: Path, tenant: str) -> str:
    command = [stage.AGENTSERVE, "keys", "create", "--tenant", tenant, "--json"]
    command += ["--store", f"sqlite+aiosqlite:///{folder}/scenario.db"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    made: str = json.loads(done.stdout)["key"]
    return made


def expected() -> list[Asked]:
    """What should answer: panels and recording rules, but for those that ask for what is quiet."""
    asked = [*of_panels(), *(a for a in of_rules() if a.where.startswith("agentserve:"))]
    return [a for a in asked if not series_in(a.expr) & QUIET.keys()]


async def still_silent(asking: scraping.Asking, pending: list[Asked]) -> dict[Asked, list[float]]:
    """Of these, those that do not answer yet."""
    out = {}
    for asked in pending:
        values = await asking.values(asked.filled)
        if not any(values) and not (values and asked.where in ZERO):
            out[asked] = values
    return out


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """Agents of two tenants on two engines, one of which dies on the way, until every figure has shown itself."""
    folder = tmp_path_factory.mktemp("live")
    began_at = time.time()
    keys = [key(folder, tenant) for tenant in ("research", "support")]
    flags = ("--kv-tokens", str(KV_TOKENS), "--time-scale", str(TIME_SCALE))
    with Collector() as collector:
        tracing = ("telemetry.traces=otlp", f"telemetry.otlp_endpoint={collector.url}")
        async with (
            stage.emulated(folder, *flags) as engine,
            stage.emulated(folder, *flags) as dying,
            stage.gateway(
                [f"http://127.0.0.1:{e.port}" for e in (engine, dying)], folder, *tracing
            ) as gateway,
            scraping.prometheus(folder, gateway.port) as asking,
        ):
            enough = asyncio.Event()
            url = f"http://127.0.0.1:{gateway.port}"
            crowd = asyncio.create_task(load.crowd(url, keys, agents=AGENTS, words=WORDS, enough=enough))
            until = time.monotonic() + PATIENCE_S
            silent = await still_silent(asking, expected())
            while silent and time.monotonic() < until and not crowd.done():
                await asyncio.sleep(1.0)
                silent = await still_silent(asking, list(silent))
            dying.popen.kill()
            while (
                not await asking.values('ALERTS{alertname="AgentserveEngineAway"}')
                and time.monotonic() < until
            ):
                await asyncio.sleep(0.5)
            enough.set()
            await asyncio.wait_for(crowd, PATIENCE_S)
            yield Scene(
                asking=asking,
                began_at=began_at,
                traces={span.trace for span in collector.spans},
                silent={f"{asked.where}: {asked.filled}": values for asked, values in silent.items()},
            )


@pytest.mark.asyncio(loop_scope="module")
async def test_every_panel_and_every_recording_rule_has_data_or_a_justified_zero(scene: Scene) -> None:
    assert len(expected()) > 80
    assert not scene.silent


@pytest.mark.asyncio(loop_scope="module")
async def test_even_a_justified_zero_is_a_zero_where_something_could_be_lost(scene: Scene) -> None:
    # an empty answer would look the same as a figure that nobody records
    for name in (
        "agentserve_store_lost_rows_total", "agentserve_spans_lost_total", "agentserve_telemetry_errors_total",
        'agentserve_fallbacks_total{reason="scheduler"}',
    ):  # fmt: skip
        values = await scene.asking.values(name)
        assert values, name
        assert not any(values), f"{name} should be 0 here: {values}"


@pytest.mark.asyncio(loop_scope="module")
async def test_every_metric_of_the_table_is_really_fed(scene: Scene) -> None:
    unseen = []
    for metric in TABLE:
        name = metric.series()[0]
        if not await scene.asking.values(f"count({name})"):
            unseen.append(name)
    # those that appear with what did not happen here
    assert set(unseen) <= QUIET.keys()


@pytest.mark.asyncio(loop_scope="module")
async def test_every_rule_is_evaluated_and_the_dead_engine_is_told(scene: Scene) -> None:
    found = {rule["name"]: rule for rule in await scene.asking.rules()}
    assert set(found) == {rule.get("record") or rule["alert"] for rule in rules()}
    for name, rule in found.items():
        assert rule["health"] == "ok", f"{name}: {rule.get('lastError')}"
    assert await scene.asking.values('ALERTS{alertname="AgentserveEngineAway"}') == [1.0]
    alarms = (
        "AgentserveSchedulerFailed",
        "AgentserveStoreDown",
        "AgentserveStoreLoses",
        "AgentserveSpansLost",
    )
    assert not await scene.asking.values(f'ALERTS{{alertname=~"{"|".join(alarms)}"}}')


@pytest.mark.asyncio(loop_scope="module")
async def test_exemplars_lead_from_a_slow_bucket_to_its_trace(scene: Scene) -> None:
    for name in ("ttft_seconds", "queue_seconds", "program_seconds"):
        labels = await scene.asking.exemplars(f"agentserve_{name}_bucket", scene.began_at, time.time() + 1)
        assert labels, name
        assert {exemplar["trace_id"] for exemplar in labels} & scene.traces, "the collector knows the trace"
