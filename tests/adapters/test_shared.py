"""Parts that several adapters share: gauges, runs, warms, addresses."""

from __future__ import annotations

from typing import Any

import pytest
from agentserve_adapters.exposition import Exposition
from agentserve_adapters.incarnation import Incarnation
from agentserve_adapters.prompts import warm_request
from agentserve_adapters.readings import whole
from agentserve_adapters.wire import Answer, plain_url
from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.errors import ConfigError, EngineBroke
from agentserve.ports import ProgramPrefix


def test_an_exposition_sums_ranks_and_tells_zero_from_absent() -> None:
    text = 'x:a{engine="0"} 1\nx:a{engine="1"} 2\nx:h_bucket{le="1"} 9\ny:b 5\n'
    page = Exposition(text, prefixes=("x:",))
    assert page.total("x:a") == 3
    assert page.mean("x:a") == 1.5
    assert page.total("x:none") is None
    assert page.total("x:none", "x:a") == 3
    assert page.total("y:b") is None
    assert list(page.names()) == ["x:a"]


@pytest.mark.parametrize("number", ["NaN", "+Inf", "-Inf", "-5", "1e30"])
def test_a_gauge_that_is_no_sensible_number_is_absent(number: str) -> None:
    page = Exposition(f"x:a {number}\nx:b 2\n", prefixes=("x:",))
    assert (page.count("x:a"), page.mean("x:a"), page.count("x:b")) == (None, None, 2)
    assert whole(number) is None


@settings(deadline=None)
@given(st.text(max_size=200))
def test_no_text_breaks_an_exposition(text: str) -> None:
    Exposition(text, prefixes=("a", "v", "x"))


def test_a_run_ends_when_a_counter_shrinks_or_a_mark_changes() -> None:
    run = Incarnation()
    assert not run.observe(marks={"version": "1"}, counters={"n": 5})
    assert not run.observe(marks={"version": None}, counters={"n": 7})
    assert run.observe(counters={"n": 6})
    assert not run.observe(marks={"version": "2"})  # of the new run nothing is known yet
    assert run.observe(marks={"version": "3"})
    assert run.boot == "2"


def test_a_warm_keeps_what_makes_the_prompt_and_drops_what_makes_the_output() -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "tools": [{"type": "function"}],
        "chat_template_kwargs": {"thinking": True},
        "stream_options": {"include_usage": True},
        "stop": ["y"],
        "n": 3,
    }
    request = warm_request(ProgramPrefix(protocol="chat", body=body))
    assert request is not None
    path, sent = request
    assert path == "/v1/chat/completions"
    assert sent["tools"] == body["tools"]
    assert sent["chat_template_kwargs"] == {"thinking": True}
    assert sent["messages"] == body["messages"]
    assert not {"stop", "n", "stream_options"} & set(sent)
    assert warm_request(ProgramPrefix(protocol="embeddings", body={"input": "x"})) is None


def test_warms_of_the_other_protocols_ask_for_one_token_in_their_own_words() -> None:
    text = warm_request(ProgramPrefix(protocol="completions", body={"prompt": "ab", "max_tokens": 9}))
    assert text == ("/v1/completions", {"prompt": "ab", "max_tokens": 1, "stream": False})
    reply = warm_request(ProgramPrefix(protocol="responses", body={"input": "x", "store": True}))
    assert reply is not None
    assert (reply[1]["max_output_tokens"], reply[1]["store"]) == (1, False)


def test_addresses_are_taken_with_and_without_their_version_path() -> None:
    assert plain_url("http://h:1/v1/") == plain_url("http://h:1") == "http://h:1"
    assert plain_url("https://h/base/v1") == "https://h/base"
    with pytest.raises(Exception, match="http://host:port"):
        plain_url("h:8000")


async def test_no_redirect_is_followed_with_the_engines_key(build: Any) -> None:
    adapter, engine = build("openai_http", {"GET /v1/models": (302, "")}, api_key="secret")
    assert (await adapter.probe()).models == ()
    assert len(engine.requests) == 1
    assert engine.requests[0].headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_an_engine_that_says_it_cannot_serve_now_is_not_up(build: Any, status: int) -> None:
    adapter, _ = build("openai_http", {"GET /v1/models": (status, '{"error": "Loading model"}')})
    with pytest.raises(EngineBroke, match=f"HTTP {status}: Loading model"):
        await adapter.probe()
    with pytest.raises(EngineBroke, match="still loading"):
        await adapter.load()


def test_an_answer_that_is_nested_without_end_is_no_json() -> None:
    assert Answer(status=200, content=b"[" * 100_000, headers={}).json() is None


@pytest.mark.parametrize("key", ["k\n", "schl\u00fcssel"])
def test_a_key_that_no_header_may_hold_is_refused_before_anything_is_asked(build: Any, key: str) -> None:
    with pytest.raises(ConfigError, match="cannot be sent"):
        build("openai_http", {}, api_key=key)
