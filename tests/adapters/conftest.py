"""Engines as they answer: recorded shapes with invented values, served without a network.

Each shape is `"METHOD /path": answer`, where an answer is a JSON value, text, or `(status, value)`. A path that a
shape lacks is answered with 404, as every one of these servers does.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
from agentserve_adapters.detect import installed

from agentserve.ports import EngineOptions, Hints, Outgoing, ProgramPrefix

USAGE = {"prompt_tokens": 40, "completion_tokens": 1, "total_tokens": 41}
CHAT_REPLY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "length"}],
    "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 32}},
}
MESSAGE_REPLY = {
    "type": "message",
    "content": [{"type": "text", "text": "x"}],
    "usage": {"input_tokens": 8, "output_tokens": 1, "cache_read_input_tokens": 32},
}


def models(owner: str, **more: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": "tiny", "object": "model", "owned_by": owner, **more}]}


VLLM_METRICS = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total{engine="0",model_name="tiny"} 1000.0
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 640.0
# TYPE vllm:num_preemptions counter
vllm:num_preemptions_total{engine="0",model_name="tiny"} 4.0
# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{engine="0",model_name="tiny"} 1000.0
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="tiny"} 5.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="tiny"} 5.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",enable_prefix_caching="True",engine="0",kv_cache_size_tokens="16016",\
kv_offloading_size="None",num_gpu_blocks="1001"} 1.0
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.7e+09
"""
OLD_VLLM_METRICS = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="tiny"} 1.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{model_name="tiny"} 0.0
# TYPE vllm:gpu_cache_usage_perc gauge
vllm:gpu_cache_usage_perc{model_name="tiny"} 0.5
# TYPE vllm:gpu_prefix_cache_queries counter
vllm:gpu_prefix_cache_queries_total{model_name="tiny"} 100.0
# TYPE vllm:gpu_prefix_cache_hits counter
vllm:gpu_prefix_cache_hits_total{model_name="tiny"} 60.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",num_gpu_blocks="101"} 1.0
"""

SHAPES: dict[str, dict[str, Any]] = {
    "openai_http": {"GET /v1/models": models("someone"), "POST /v1/chat/completions": CHAT_REPLY},
    "vllm": {
        "GET /v1/models": models("vllm", root="/m/tiny", max_model_len=4096),
        "GET /version": {"version": "0.32.0"},
        "GET /metrics": VLLM_METRICS,
        "GET /kv_event_sources": {},
        "GET /openapi.json": {
            "paths": {"/v1/chat/completions": {}, "/v1/completions": {}, "/v1/messages": {}}
        },
        "POST /tokenize": {"count": 3, "max_model_len": 4096, "tokens": [5, 6, 7], "token_strs": None},
        "POST /v1/chat/completions": CHAT_REPLY,
        "POST /v1/completions": {**CHAT_REPLY, "object": "text_completion"},
        "POST /v1/messages": MESSAGE_REPLY,
        "POST /v1/messages/count_tokens": {"input_tokens": 3},
        "POST /inference/v1/abort_requests": (403, {"error": {"message": "disabled", "code": 403}}),
    },
    "sglang": {
        "GET /v1/models": models("sglang", max_model_len=32768),
        "GET /server_info": {
            "version": "0.5.23",
            "max_total_num_tokens": 200_000,
            "max_running_requests": 256,
            "page_size": 64,
            "context_length": 32768,
            "dp_size": 1,
            "enable_priority_scheduling": True,
            "enable_session_radix_cache": True,
            "enable_streaming_session": False,
            "enable_cache_report": True,
            "radix_eviction_policy": "lru",
            "startup_time": 12.5,
            "kv_events": None,
        },
        "GET /v1/loads": {
            "version": "0.5.23",
            "loads": [
                {
                    "dp_rank": 0,
                    "num_running_reqs": 3,
                    "num_waiting_reqs": 1,
                    "num_used_tokens": 50_000,
                    "max_total_num_tokens": 200_000,
                    "token_usage": 0.25,
                }
            ],
        },
        "POST /tokenize": {"tokens": [5, 6, 7], "count": 3},
        "POST /v1/chat/completions": CHAT_REPLY,
        "POST /open_session": '"p1~hold"',
        "POST /close_session": "",
        "POST /generate": {"text": "x", "meta_info": {"cached_tokens": 32, "prompt_tokens": 40}},
        "POST /abort_request": "",
    },
    "trtllm": {
        "GET /v1/models": models("tensorrt_llm"),
        "GET /version": {"version": "1.3.0"},
        "GET /health": "",
        "GET /metrics": [
            {
                "iter": 7,
                "numActiveRequests": 2,
                "numQueuedRequests": 1,
                "kvCacheStats": {"maxNumBlocks": 100, "usedNumBlocks": 25, "tokensPerBlock": 32},
            }
        ],
        "POST /v1/chat/completions": CHAT_REPLY,
        "POST /_control/kv_cache/truncate": {"status": "ok"},
    },
    "dynamo": {
        "GET /v1/models": models("nvidia"),
        "GET /health": {"status": "healthy", "instances": [{}, {}]},
        "GET /metrics": (
            "# TYPE dynamo_frontend_inflight_requests gauge\n"
            'dynamo_frontend_inflight_requests{model="tiny"} 3\n'
            "# TYPE dynamo_frontend_queued_requests gauge\n"
            'dynamo_frontend_queued_requests{model="tiny"} 1\n'
            "# TYPE dynamo_frontend_model_total_kv_blocks gauge\n"
            'dynamo_frontend_model_total_kv_blocks{model="tiny"} 400\n'
            "# TYPE dynamo_frontend_model_kv_cache_block_size gauge\n"
            'dynamo_frontend_model_kv_cache_block_size{model="tiny"} 16\n'
        ),
        "POST /v1/chat/completions": CHAT_REPLY,
    },
    "llamacpp": {
        "GET /v1/models": models("llamacpp"),
        "GET /props": {
            "default_generation_settings": {"n_ctx": 4096},
            "total_slots": 3,
            "build_info": "b9000-abc",
        },
        "GET /slots": [{"id": i, "id_task": i, "n_ctx": 4096, "is_processing": i == 0} for i in range(3)],
        "POST /slots/0": {"id_slot": 0, "n_saved": 40, "n_restored": 40, "n_erased": 40},
        "POST /slots/1": {"id_slot": 1, "n_saved": 40, "n_restored": 40, "n_erased": 40},
        "POST /v1/chat/completions": CHAT_REPLY,
        "POST /v1/chat/completions/input_tokens": {"input_tokens": 3},
        "POST /tokenize": {"tokens": [5, 6, 7]},
    },
    "ollama": {
        "GET /v1/models": models("library"),
        "GET /api/version": {"version": "0.14.0"},
        "GET /api/tags": {"models": [{"name": "tiny"}]},
        "GET /api/ps": {"models": [{"name": "tiny", "context_length": 8192, "size_vram": 1}]},
        "POST /api/generate": {"model": "tiny", "done": True, "done_reason": "load"},
        "POST /v1/chat/completions": CHAT_REPLY,
    },
    "lmdeploy": {
        "GET /v1/models": models("lmdeploy"),
        "GET /metrics/": (
            "# TYPE lmdeploy:num_requests_running gauge\n"
            'lmdeploy:num_requests_running{model_name="tiny"} 2.0\n'
            "# TYPE lmdeploy:num_requests_waiting gauge\n"
            'lmdeploy:num_requests_waiting{model_name="tiny"} 1.0\n'
            "# TYPE lmdeploy:gpu_cache_usage_perc gauge\n"
            'lmdeploy:gpu_cache_usage_perc{model_name="tiny"} 0.25\n'
        ),
        "POST /v1/chat/completions": CHAT_REPLY,
        "POST /abort_request": {},
    },
    "tgi": {
        "GET /v1/models": models("tiny"),
        "GET /info": {
            "model_id": "tiny",
            "version": "3.3.6",
            "max_concurrent_requests": 128,
            "max_total_tokens": 4096,
            "max_batch_total_tokens": 16_000,
        },
        "GET /metrics": (
            "# TYPE tgi_queue_size gauge\ntgi_queue_size 1\n"
            "# TYPE tgi_batch_current_size gauge\ntgi_batch_current_size 2\n"
        ),
        "POST /chat_tokenize": {
            "tokenize_response": [{"id": 5}, {"id": 6}, {"id": 7}],
            "templated_text": "x",
        },
        "POST /tokenize": [{"id": 5}, {"id": 6}, {"id": 7}],
        "POST /v1/chat/completions": CHAT_REPLY,
    },
    "anthropic": {
        "GET /v1/models": {"data": [{"id": "tiny", "type": "model"}]},
        "POST /v1/messages": MESSAGE_REPLY,
        "POST /v1/messages/count_tokens": {"input_tokens": 3},
    },
    "openai": {"GET /v1/models": models("openai"), "POST /v1/chat/completions": CHAT_REPLY},
}
SHAPES["lmcache"] = {
    **SHAPES["vllm"],
    "GET /": "<html></html>",
    "POST /pin": {"event_id": "e", "num_tokens": 3},
}
EXTRA = {"lmcache": {"controller": "http://cache", "instance_id": "i0"}}
URLS = {"anthropic": "https://api.anthropic.com", "openai": "https://api.openai.com/v1"}
BODY = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 100,
    "stream": True,
}


class FakeEngine(httpx.AsyncBaseTransport):
    """Answers by its shape and keeps what it was asked."""

    def __init__(self, shape: Mapping[str, Any]) -> None:
        self.shape = dict(shape)
        self.asked: list[tuple[str, Any]] = []
        self.requests: list[httpx.Request] = []
        self.away = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.away:
            raise httpx.ConnectError("nobody there", request=request)
        content = await request.aread()
        name = f"{request.method} {request.url.path}"
        self.requests.append(request)
        self.asked.append((name, json.loads(content) if content else None))
        answer = self.shape.get(name, (404, {"error": "no such path"}))
        status, value = answer if isinstance(answer, tuple) else (200, answer)
        if isinstance(value, str):
            return httpx.Response(status, text=value)
        return httpx.Response(status, json=value)

    def bodies(self, name: str) -> list[Any]:
        return [body for asked, body in self.asked if asked == name]


Build = Callable[..., tuple[Any, FakeEngine]]


@pytest.fixture
def build() -> Build:
    """An adapter of a kind in front of a fake engine; `changes` alter the shape."""

    def make(
        kind: str,
        changes: Mapping[str, Any] | None = None,
        *,
        extra: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> tuple[Any, FakeEngine]:
        engine = FakeEngine({**SHAPES[kind], **(changes or {})})
        given = {**EXTRA.get(kind, {}), **(extra or {})}
        url = URLS.get(kind, "http://engine:8000")
        adapter = installed()[kind](
            EngineOptions(id="e1", kind=kind, url=url, extra=given, **options), transport=engine
        )
        return adapter, engine

    return make


@pytest.fixture
def shapes() -> dict[str, dict[str, Any]]:
    return SHAPES


@pytest.fixture
def urls() -> dict[str, str]:
    return URLS


@pytest.fixture
def old_vllm() -> dict[str, Any]:
    """A server of two years ago."""
    return {
        "GET /version": {"version": "0.8.5"},
        "GET /metrics": OLD_VLLM_METRICS,
        "GET /kv_event_sources": (404, {}),
    }


@pytest.fixture
def body() -> dict[str, Any]:
    return copy.deepcopy(BODY)


@pytest.fixture
def fake_engine() -> type[FakeEngine]:
    return FakeEngine


def hints(**more: Any) -> Hints:
    return Hints(**{"program": "p1", "tenant": "t1", "step": "s1", "priority": 3, **more})


async def prepared(adapter: Any, body: dict[str, Any], protocol: str = "chat", **more: Any) -> Outgoing:
    await adapter.probe()
    outgoing = Outgoing(protocol=protocol, path="/", body=body)
    adapter.prepare(outgoing, hints(**more))
    return outgoing


def chat(body: dict[str, Any]) -> ProgramPrefix:
    return ProgramPrefix(protocol="chat", body=body)
