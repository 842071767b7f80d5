"""Requests of each protocol, read into calls."""

from __future__ import annotations

from typing import Any

from agentserve.live.wire import Call, CallReader, split_path

CHAT = "/v1/chat/completions"


def read(body: dict[str, Any], path: str = CHAT, **headers: str) -> Call:
    call = CallReader().read(path, {name.replace("_", "-"): value for name, value in headers.items()}, body)
    assert call is not None
    return call


def digests(call: Call) -> list[int]:
    return [item.digest for item in call.evidence.items]


def test_a_path_that_is_no_inference_endpoint_is_no_call() -> None:
    assert CallReader().read("/v1/models", {}, {}) is None
    assert CallReader().read("/v1/messages/count_tokens", {}, {}) is None


def test_a_program_in_the_path_is_found_and_cut_off() -> None:
    assert split_path("/p/run 42/v1/messages") == ("run 42", "/v1/messages")
    assert split_path("/p/team/v1/run/v1/messages") == ("team/v1/run", "/v1/messages")
    assert split_path("/p/100%25/v1/messages") == ("100%25", "/v1/messages")  # was decoded once already
    assert split_path("/p/v1/messages") == (None, "/p/v1/messages")
    assert split_path("/p//v1/messages") == (None, "/p//v1/messages")
    assert split_path("/v1/messages") == (None, "/v1/messages")
    call = read({"messages": []}, path="/p/run-42/v1/messages?beta=true")
    assert call.protocol == "messages"
    assert call.evidence.named["path"] == "run-42"


def test_the_fields_that_serving_needs_are_read() -> None:
    call = read(
        {
            "model": "m", "stream": True, "max_tokens": 9, "max_completion_tokens": 7, "n": 2,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
            "tools": [{"type": "function", "function": {"name": "search", "parameters": {}}}],
        }
    )  # fmt: skip
    assert (call.model, call.stream, call.output_tokens_max) == ("m", True, 7)
    assert call.tools == ("search",)
    assert len(call.evidence.items) == 1
    assert call.prompt_chars > len("be briefhi")


def test_nonsense_in_every_field_is_read_as_absent() -> None:
    call = read(
        {
            "model": 3, "stream": "yes", "max_tokens": "many", "n": None,
            "messages": [None, 4, {"role": 7, "content": 8}],
            "tools": {"a": 1}, "metadata": {"user_id": "{broken"}, "stream_options": [], "conversation": {"id": []},
        }
    )  # fmt: skip
    assert call.model == ""
    assert not call.stream
    assert call.output_tokens_max is None
