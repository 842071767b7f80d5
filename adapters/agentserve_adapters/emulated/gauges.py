"""The Prometheus page of an emulated engine, under vLLM's names, labels and order of braces.

Rule: every name that a vLLM server of this version shows without options is here, with its meaning; names that only an
option brings (the host tier, the names of old versions) come with that option.
"""

from __future__ import annotations

from agentserve_adapters.emulated.histograms import Histogram
from agentserve_adapters.emulated.host import Host

HIT_SOURCES = ("device", "host", "disk", "p2p", "external_unspecified")


class Page:
    """Lines of one exposition."""

    def __init__(self, model: str) -> None:
        self.model = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        self.lines: list[str] = []

    def labels(self, **more: str) -> str:
        """Every sample names engine and model; labels stand in alphabetical order."""
        named = {"engine": "0", "model_name": self.model, **more}
        return "{" + ",".join(f'{key}="{named[key]}"' for key in sorted(named)) + "}"

    def head(self, name: str, kind: str, text: str) -> None:
        self.lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]

    def gauge(self, name: str, value: float, text: str) -> None:
        self.head(name, "gauge", text)
        self.lines.append(f"{name}{self.labels()} {float(value)}")

    def counter(self, name: str, value: float, text: str) -> None:
        self.head(f"{name}_total", "counter", text)
        self.lines.append(f"{name}_total{self.labels()} {float(value)}")

    def by(self, name: str, kind: str, text: str, label: str, values: dict[str, float]) -> None:
        """One sample for each value of a label."""
        self.head(name, kind, text)
        self.lines += [f"{name}{self.labels(**{label: key})} {float(v)}" for key, v in values.items()]

    def histogram(self, name: str, histogram: Histogram, text: str) -> None:
        self.head(name, "histogram", text)
        self.lines += [
            f"{name}_bucket{self.labels(le=bound)} {float(within)}" for bound, within in histogram.rows()
        ]
        self.lines.append(f"{name}_count{self.labels()} {float(histogram.count)}")
        self.lines.append(f"{name}_sum{self.labels()} {histogram.sum}")


def page(host: Host, model: str, *, old_names: bool, started_at: float) -> str:
    """The text of `/metrics`."""
    out = Page(model)
    _state(out, host, old_names=old_names)
    _prefix_cache(out, host, old_names=old_names)
    _counters(out, host)
    _requests(out, host)
    if old_names:
        out.histogram("vllm:time_per_output_token_seconds", host.record.inter_token_s, "Old name.")
    if host.engine.tier.total:
        _host_tier(out, host)
    _configuration(out, host)
    out.head("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.")
    out.lines.append(f"process_start_time_seconds {started_at}")
    return "\n".join(out.lines) + "\n"


def _state(out: Page, host: Host, *, old_names: bool) -> None:
    engine = host.engine
    # idle cached blocks count as free, as they do in vLLM
    used = engine.kv_use().running_tokens / max(engine.kv_tokens, 1)
    waiting = engine.waiting()
    out.gauge("vllm:num_requests_running", engine.running(), "Number of requests in model execution batches.")
    out.gauge("vllm:num_requests_waiting", waiting, "Number of requests waiting to be processed.")
    reasons = {"capacity": float(waiting), "deferred": 0.0}
    text = "Number of waiting requests by reason."
    out.by("vllm:num_requests_waiting_by_reason", "gauge", text, "reason", reasons)
    states = {"awake": 1.0, "weights_offloaded": 0.0, "discard_all": 0.0}
    out.by("vllm:engine_sleep_state", "gauge", "Engine sleep state.", "sleep_state", states)
    out.gauge("vllm:kv_cache_usage_perc", used, "KV-cache usage. 1 means 100 percent usage.")
    if old_names:
        out.gauge("vllm:gpu_cache_usage_perc", used, "Old name of vllm:kv_cache_usage_perc.")
        out.gauge("vllm:num_requests_swapped", 0, "Old name: nothing is swapped.")


def _prefix_cache(out: Page, host: Host, *, old_names: bool) -> None:
    stats = host.engine.stats(host.now())
    queries, hits, from_host = stats.query_tokens, stats.hit_tokens, stats.host_hit_tokens
    further = queries - hits if host.engine.tier.total else 0
    out.counter("vllm:prefix_cache_queries", queries, "Prefix cache queries, in tokens.")
    out.counter("vllm:prefix_cache_hits", hits, "Prefix cache hits, in tokens.")
    if old_names:
        out.counter("vllm:gpu_prefix_cache_queries", queries, "Old name.")
        out.counter("vllm:gpu_prefix_cache_hits", hits, "Old name.")
        out.gauge("vllm:gpu_prefix_cache_hit_rate", hits / queries if queries else 0.0, "Old name.")
    out.counter("vllm:external_prefix_cache_queries", further, "Queries of the host tier, in tokens.")
    out.counter("vllm:external_prefix_cache_hits", from_host, "Hits of the host tier, in tokens.")
    out.counter("vllm:mm_cache_queries", 0, "Multi-modal cache queries.")
    out.counter("vllm:mm_cache_hits", 0, "Multi-modal cache hits.")
    found = dict.fromkeys(HIT_SOURCES, 0.0) | {"device": float(hits), "host": float(from_host)}
    text = "Prefix-cache hit tokens by the cache tier that supplied them."
    out.by("vllm:prompt_tokens_cached_by_source_total", "counter", text, "source", found)


def _counters(out: Page, host: Host) -> None:
    stats = host.engine.stats(host.now())
    record = host.record
    local = record.cached_tokens - record.cached_host_tokens
    out.counter("vllm:num_preemptions", stats.preemptions, "Cumulative number of preemption from the engine.")
    out.counter("vllm:prompt_tokens", record.prompt_tokens, "Number of prefill tokens processed.")
    by_source = {
        "local_compute": float(record.prompt_tokens - record.cached_tokens),
        "local_cache_hit": float(local),
        "external_kv_transfer": float(record.cached_host_tokens),
    }
    out.by(
        "vllm:prompt_tokens_by_source_total",
        "counter",
        "Number of prompt tokens by source.",
        "source",
        by_source,
    )
    out.counter("vllm:prompt_tokens_cached", record.cached_tokens, "Number of cached prompt tokens.")
    out.counter("vllm:generation_tokens", stats.decoded_tokens, "Number of generation tokens processed.")
    finished = {reason: float(count) for reason, count in record.finished.items()}
    text = "Count of successfully processed requests."
    out.by("vllm:request_success_total", "counter", text, "finished_reason", finished)
    out.head("vllm:admission_rejections_total", "counter", "Admission attempts rejected by a queue limit.")
    out.lines += [
        f'vllm:admission_rejections_total{{model_name="{out.model}",reason="{reason}"}} {float(count)}'
        for reason, count in record.refused.items()
    ]


def _requests(out: Page, host: Host) -> None:
    record = host.record
    for name, histogram, text in (
        ("request_prompt_tokens", record.request_prompt_tokens, "Number of prefill tokens processed."),
        ("request_generation_tokens", record.request_output_tokens, "Number of generation tokens processed."),
        ("iteration_tokens_total", record.iteration_tokens, "Histogram of number of tokens per engine_step."),
        (
            "request_max_num_generation_tokens",
            record.longest_output_tokens,
            "Histogram of maximum number of requested generation tokens.",
        ),
        ("request_params_n", record.copies, "Histogram of the n request parameter."),
        (
            "request_params_max_tokens",
            record.output_tokens_max,
            "Histogram of the max_tokens request parameter.",
        ),
        ("time_to_first_token_seconds", record.first_token_s, "Histogram of time to first token in seconds."),
        ("inter_token_latency_seconds", record.inter_token_s, "Histogram of inter-token latency in seconds."),
        (
            "request_time_per_output_token_seconds",
            record.per_output_token_s,
            "Histogram of time_per_output_token_seconds per request.",
        ),
        ("e2e_request_latency_seconds", record.whole_s, "Histogram of e2e request latency in seconds."),
        ("request_queue_time_seconds", record.queue_s, "Histogram of time spent in WAITING phase."),
        ("request_inference_time_seconds", record.inference_s, "Histogram of time spent in RUNNING phase."),
        ("request_prefill_time_seconds", record.prefill_s, "Histogram of time spent in PREFILL phase."),
        ("request_decode_time_seconds", record.decode_s, "Histogram of time spent in DECODE phase."),
        ("request_num_preemptions", record.preemptions, "Histogram of preemptions of a request."),
        (
            "request_prefill_kv_computed_tokens",
            record.request_prefill_tokens,
            "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
        ),
    ):
        out.histogram(f"vllm:{name}", histogram, text)


def _host_tier(out: Page, host: Host) -> None:
    engine = host.engine
    token_bytes = engine.profile.model.kv_bytes_per_token
    stats = engine.stats(host.now())
    share = len(engine.tier) / engine.tier.total
    out.gauge("vllm:kv_offload_cpu_cache_usage_perc", share, "KV usage of host memory.")
    out.counter("vllm:kv_offload_load_bytes", stats.host_hit_tokens * token_bytes, "Bytes from host memory.")
    out.counter("vllm:kv_offload_store_bytes", stats.evicted_tokens * token_bytes, "Bytes to host memory.")


def _configuration(out: Page, host: Host) -> None:
    """A label for each field of vLLM's CacheConfig that says something of an engine without weights."""
    engine = host.engine
    block, blocks = engine.config.block_size, engine.pool.total
    tier_gib = engine.config.host_kv_tokens * engine.profile.model.kv_bytes_per_token / 2**30
    told = {
        "block_size": str(block),
        "cache_dtype": "auto",
        "calculate_kv_scales": "False",
        "enable_prefix_caching": "True",
        "engine": "0",
        "gpu_memory_utilization": str(engine.profile.memory_utilisation),
        "hash_block_size": str(block),
        "is_attention_free": "False",
        "kv_cache_max_concurrency": str(engine.kv_tokens / engine.profile.model.context_max),
        "kv_cache_memory_bytes": "None",
        "kv_cache_size_tokens": str(engine.kv_tokens),
        "kv_offloading_backend": "native",
        "kv_offloading_size": f"{tier_gib:.6g}" if engine.tier.total else "None",
        "num_cpu_blocks": str(engine.tier.total or None),
        "num_gpu_blocks": str(blocks),
        "num_gpu_blocks_override": "None",
        "prefix_caching_hash_algo": "sha256",
        "sliding_window": "None",
        "user_specified_block_size": "True",
    }
    out.head("vllm:cache_config_info", "gauge", "Information of the LLMEngine CacheConfig")
    labels = ",".join(f'{key}="{value}"' for key, value in sorted(told.items()))
    out.lines.append(f"vllm:cache_config_info{{{labels}}} 1.0")
