"""`/metrics` of the emulated server: vLLM's names, and figures that fit each other."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from agentserve_adapters.emulated.record import Record, Submission
from prometheus_client.parser import text_string_to_metric_families

from agentserve.engine import EmulatedEngine, EngineConfig, EngineRequest, profile

Page = dict[str, dict[tuple[tuple[str, str], ...], float]]

# What a vLLM server of this version shows without options (its v1/metrics/loggers.py), LoRA and speculation aside.
STOCK = (
    "num_requests_running", "num_requests_waiting", "num_requests_waiting_by_reason", "engine_sleep_state",
    "kv_cache_usage_perc", "prefix_cache_queries_total", "prefix_cache_hits_total",
    "external_prefix_cache_queries_total", "external_prefix_cache_hits_total", "mm_cache_queries_total",
    "mm_cache_hits_total", "num_preemptions_total", "prompt_tokens_total", "prompt_tokens_by_source_total",
    "prompt_tokens_cached_total", "prompt_tokens_cached_by_source_total", "generation_tokens_total",
    "request_success_total", "admission_rejections_total", "cache_config_info",
)  # fmt: skip
HISTOGRAMS = (
    "request_prompt_tokens", "request_generation_tokens", "iteration_tokens_total",
    "request_max_num_generation_tokens", "request_params_n", "request_params_max_tokens",
    "time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds", "request_queue_time_seconds", "request_inference_time_seconds",
    "request_prefill_time_seconds", "request_decode_time_seconds", "request_num_preemptions",
    "request_prefill_kv_computed_tokens",
)  # fmt: skip


def parse(text: str) -> Page:
    out: Page = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            out.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return out


def one(page: Page, name: str) -> float:
    (value,) = page[f"vllm:{name}"].values()
    return value


def by(page: Page, name: str, label: str) -> dict[str, float]:
    return {dict(labels)[label]: value for labels, value in page[f"vllm:{name}"].items()}


async def complete(h: httpx.AsyncClient, prompt: str, tokens: int, **more: Any) -> httpx.Response:
    body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, **more}
    return await h.post("/v1/completions", json=body)


async def scraped(serve: Any, **options: Any) -> Page:
    async with serve(kv_tokens=16_000, **options) as (url, _), httpx.AsyncClient(base_url=url) as h:
        for prompt, tokens in (("a" * 4000, 40), ("b" * 400, 1), ("a" * 4000, 7)):
            assert (await complete(h, prompt, tokens)).is_success
        assert (await complete(h, "c" * 80, 5, n=3)).is_success
        return parse((await h.get("/metrics")).text)


async def test_every_name_of_a_stock_server_is_there(serve: Any) -> None:
    page = await scraped(serve)
    assert {f"vllm:{name}" for name in STOCK} <= page.keys()
    for name in HISTOGRAMS:
        assert {f"vllm:{name}_{part}" for part in ("bucket", "count", "sum")} <= page.keys(), name
    assert "process_start_time_seconds" in page
    for name, samples in page.items():
        if name.startswith("vllm:") and name != "vllm:cache_config_info":
            assert all(dict(labels)["model_name"] == "emulated" for labels in samples)


async def test_the_parts_of_a_requests_time_add_up(serve: Any) -> None:
    page = await scraped(serve)
    assert one(page, "e2e_request_latency_seconds_count") == 6
    parts = ("queue", "prefill", "decode")
    total = sum(one(page, f"request_{part}_time_seconds_sum") for part in parts)
    assert total == pytest.approx(one(page, "e2e_request_latency_seconds_sum"))
    inference = one(page, "request_inference_time_seconds_sum")
    assert total - one(page, "request_queue_time_seconds_sum") == pytest.approx(inference)
    # the decode phase is the sum of all gaps between tokens
    assert one(page, "inter_token_latency_seconds_sum") == pytest.approx(
        one(page, "request_decode_time_seconds_sum")
    )
    made = one(page, "generation_tokens_total")
    assert made == 40 + 1 + 7 + 15
    assert one(page, "inter_token_latency_seconds_count") == made - 6
    assert one(page, "request_generation_tokens_sum") == made


async def test_tokens_are_counted_once_and_by_their_source(serve: Any) -> None:
    page = await scraped(serve)
    prompts = one(page, "prompt_tokens_total")
    assert prompts == one(page, "request_prompt_tokens_sum") == 1000 + 100 + 1000 + 3 * 20
    sources = by(page, "prompt_tokens_by_source_total", "source")
    assert sum(sources.values()) == prompts
    assert sources["local_cache_hit"] == one(page, "prompt_tokens_cached_total") >= 984
    computed = one(page, "request_prefill_kv_computed_tokens_sum")
    assert computed == sources["local_compute"]
    # each iteration's tokens: what was prefilled, and what came out
    assert one(page, "iteration_tokens_total_sum") == computed + one(page, "generation_tokens_total")
    assert one(page, "request_params_n_sum") == 1 + 1 + 1 + 3
    assert by(page, "request_success_total", "finished_reason")["length"] == 6


async def test_buckets_grow_to_the_count(serve: Any) -> None:
    page = await scraped(serve)
    for name in HISTOGRAMS:
        buckets = by(page, f"{name}_bucket", "le")
        assert list(buckets.values()) == sorted(buckets.values())
        assert buckets["+Inf"] == one(page, f"{name}_count")


async def test_seconds_are_those_of_the_client_whatever_the_time_scale(serve: Any) -> None:
    took = []
    for scale in (20.0, 2000.0):
        async with serve(time_scale=scale) as (url, _), httpx.AsyncClient(base_url=url) as h:
            await complete(h, "a" * 400, 100)
            page = parse((await h.get("/metrics")).text)
        # of a request that is alone, decode is the engine's business only
        took.append(one(page, "request_decode_time_seconds_sum"))
    assert took[0] == pytest.approx(100.0 * took[1])


async def test_who_waits_waits_for_capacity_and_who_is_refused_is_counted(serve: Any) -> None:
    async with (
        serve(kv_tokens=16_000, time_scale=0.01, max_num_seqs=1, max_num_queued_reqs=1) as (url, app),
        httpx.AsyncClient(base_url=url) as h,
    ):
        running = [asyncio.create_task(complete(h, prompt * 400, 50)) for prompt in "ab"]
        async with asyncio.timeout(30):
            while app.host.engine.running() + app.host.engine.waiting() < 2:
                await asyncio.sleep(0.01)
        assert (await complete(h, "c" * 400, 50)).status_code == 503
        page = parse((await h.get("/metrics")).text)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        async with asyncio.timeout(30):
            while len(app.host):
                await asyncio.sleep(0.01)
    assert by(page, "num_requests_waiting_by_reason", "reason") == {"capacity": 1, "deferred": 0}
    assert by(page, "admission_rejections_total", "reason")["max_num_queued_reqs"] == 1


def test_preemptions_are_seen_by_request() -> None:
    engine = EmulatedEngine(
        profile=profile("llama-3.1-8b-h100"), config=EngineConfig(kv_tokens=640, iteration_events=True)
    )
    record = Record(time_scale=2.0, context_max=1000)
    for name, first in (("a", 0), ("b", 100)):
        hashes = list(range(first, first + 25))
        record.submitted(name, Submission(hashes=hashes, prompt_tokens=100, output_tokens=300), 0.0)
        engine.submit(EngineRequest(id=name, hashes=hashes, prompt_tokens=100, output_tokens=300), 0.0)
    for event in engine.advance(1e6):
        record.note(event)
    assert record.preemptions.sum == engine.stats(1e6).preemptions > 0
    assert record.inter_token_s.sum == pytest.approx(record.decode_s.sum), "its gap is counted as well"
    assert not record.open


async def test_a_tier_in_host_memory_shows_itself(serve: Any) -> None:
    async with (
        serve(kv_tokens=1600, host_kv_tokens=16_000) as (url, _),
        httpx.AsyncClient(base_url=url) as h,
    ):
        for c in "abca":
            answer = (await complete(h, c * 4000, 8)).json()
        page = parse((await h.get("/metrics")).text)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 900
    assert one(page, "external_prefix_cache_hits_total") > 900
    assert by(page, "prompt_tokens_cached_by_source_total", "source")["host"] > 900
    assert 0 < one(page, "kv_offload_cpu_cache_usage_perc") <= 1
    assert one(page, "kv_offload_load_bytes_total") > 0
    ((labels, _),) = page["vllm:cache_config_info"].items()
    assert dict(labels)["num_cpu_blocks"] == "1000"
