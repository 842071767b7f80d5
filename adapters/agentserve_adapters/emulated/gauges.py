"""The Prometheus page of an emulated engine, under vLLM's names, labels and order of braces."""

from __future__ import annotations

from agentserve_adapters.emulated.host import Host


def page(host: Host, model: str, *, old_names: bool) -> str:
    """The text of `/metrics`."""
    engine = host.engine
    stats = engine.stats(host.now())
    use = engine.kv_use()
    label = f'{{engine="0",model_name="{model}"}}'
    capacity = max(engine.kv_tokens, 1)
    # idle cached blocks count as free, as they do in vLLM
    used = use.running_tokens / capacity
    lines: list[str] = []

    def put(name: str, kind: str, value: float, text: str) -> None:
        base = name.removesuffix("_total") if kind == "counter" else name
        lines.extend((f"# HELP {base} {text}", f"# TYPE {base} {kind}", f"{name}{label} {float(value)}"))

    put("vllm:num_requests_running", "gauge", engine.running(), "Requests in execution batches.")
    put("vllm:num_requests_waiting", "gauge", engine.waiting(), "Requests waiting to be processed.")
    put("vllm:kv_cache_usage_perc", "gauge", used, "KV-cache usage. 1 means 100 percent usage.")
    if old_names:
        put("vllm:gpu_cache_usage_perc", "gauge", used, "Old name of vllm:kv_cache_usage_perc.")
    queries, hits = stats.query_tokens, stats.hit_tokens
    put("vllm:prefix_cache_queries_total", "counter", queries, "Prefix cache queries, in tokens.")
    put("vllm:prefix_cache_hits_total", "counter", hits, "Prefix cache hits, in tokens.")
    if old_names:
        put("vllm:gpu_prefix_cache_queries_total", "counter", queries, "Old name.")
        put("vllm:gpu_prefix_cache_hits_total", "counter", hits, "Old name.")
    put("vllm:num_preemptions_total", "counter", stats.preemptions, "Preemptions.")
    put("vllm:prompt_tokens_total", "counter", stats.query_tokens, "Prefill tokens processed.")
    put("vllm:prompt_tokens_cached_total", "counter", hits, "Prompt tokens served from cache.")
    put("vllm:generation_tokens_total", "counter", stats.decoded_tokens, "Generation tokens processed.")
    lines += ["# HELP vllm:request_success Requests that ended.", "# TYPE vllm:request_success counter"]
    lines += [
        f'vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="{model}"}} {float(count)}'
        for reason, count in sorted(host.finished.items())
    ]
    block = engine.config.block_size
    lines += [
        "# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig",
        "# TYPE vllm:cache_config_info gauge",
        f'vllm:cache_config_info{{block_size="{block}",cache_dtype="auto",enable_prefix_caching="True",engine="0",'
        f'kv_cache_size_tokens="{engine.kv_tokens}",num_gpu_blocks="{engine.pool.total}"}} 1.0',
    ]
    return "\n".join(lines) + "\n"
