"""The emulated server as real clients and routers see it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import msgspec
import openai
import pytest
import zmq
import zmq.asyncio

SEARCH: Any = {
    "type": "function",
    "function": {"name": "search", "parameters": {"type": "object", "properties": {}}},
}

ASKED = [{"role": "user", "content": "x"}]


def client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


async def test_equal_requests_get_equal_replies_and_the_second_is_cached(serve: Any) -> None:
    async with serve() as (url, _), client(url) as c:
        messages: Any = [{"role": "user", "content": "a long question " * 40}]
        first = await c.chat.completions.create(model="emulated", messages=messages, max_tokens=20)
        second = await c.chat.completions.create(model="emulated", messages=messages, max_tokens=20)
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.usage is not None
    assert second.usage is not None
    assert first.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details is not None
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    cached = second.usage.prompt_tokens_details.cached_tokens or 0
    assert second.usage.prompt_tokens - 16 <= cached < second.usage.prompt_tokens


async def test_the_next_turn_finds_prompt_and_reply_cached(serve: Any) -> None:
    async with serve() as (url, _), client(url) as c:
        messages: Any = [{"role": "user", "content": "a long question " * 40}]
        first = await c.chat.completions.create(
            model="emulated", messages=messages, max_tokens=200, extra_body={"ignore_eos": True}
        )
        assert first.usage is not None
        assert first.choices[0].finish_reason == "length"
        messages += [
            {"role": "assistant", "content": first.choices[0].message.content},
            {"role": "user", "content": "go on"},
        ]
        second = await c.chat.completions.create(model="emulated", messages=messages, max_tokens=5)
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) > first.usage.total_tokens - 20


async def test_a_stream_says_the_same_as_a_whole_reply(serve: Any) -> None:
    async with serve() as (url, _), client(url) as c:
        messages: Any = [{"role": "user", "content": "hello"}]
        whole = await c.chat.completions.create(model="emulated", messages=messages, max_tokens=80)
        text, usage, roles, finish = "", None, [], None
        stream = await c.chat.completions.create(
            model="emulated",
            messages=messages,
            max_tokens=80,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            if chunk.usage is not None:
                usage = chunk.usage
                assert chunk.choices == []
                continue
            text += chunk.choices[0].delta.content or ""
            roles.append(chunk.choices[0].delta.role)
            finish = chunk.choices[0].finish_reason or finish
    assert text == whole.choices[0].message.content
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert roles[0] == "assistant"
    assert finish == whole.choices[0].finish_reason


async def test_usage_comes_in_a_stream_only_when_asked_and_it_ends_with_done(serve: Any) -> None:
    async with serve() as (url, _), httpx.AsyncClient() as c:
        body = {
            "model": "emulated",
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 9,
            "stream": True,
        }
        reply = await c.post(f"{url}/v1/chat/completions", json=body)
    lines = [line for line in reply.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert all("usage" not in json.loads(line[6:]) for line in lines[:-1])
    assert reply.headers["content-type"].startswith("text/event-stream")


async def test_a_scripted_conversation_calls_tools_turn_by_turn(serve: Any) -> None:
    script = 'agentserve-script: [{"tool": "search", "arguments": {"q": "x"}}, {"text": "all done"}]'
    async with serve() as (url, _), client(url) as c:
        messages: Any = [{"role": "user", "content": f"please\n{script}\nthanks"}]
        first = await c.chat.completions.create(model="emulated", messages=messages, tools=[SEARCH])
        call: Any = (first.choices[0].message.tool_calls or [])[0]
        assert first.choices[0].finish_reason == "tool_calls"
        assert (call.function.name, json.loads(call.function.arguments)) == ("search", {"q": "x"})
        messages += [first.choices[0].message.model_dump(exclude_none=True)]
        messages += [{"role": "tool", "tool_call_id": call.id, "content": "found"}]
        stream = await c.chat.completions.create(
            model="emulated",
            messages=messages,
            tools=[SEARCH],
            stream=True,
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    assert text == "all done"


async def test_a_scripted_tool_call_takes_no_more_tokens_than_it_may(serve: Any) -> None:
    script = 'agentserve-script: [{"tool": "search", "arguments": {"q": "where the ferries go"}}]'
    async with serve() as (url, _), client(url) as c:
        messages: Any = [{"role": "user", "content": script}]
        reply = await c.chat.completions.create(
            model="emulated", messages=messages, tools=[SEARCH], max_tokens=1
        )
    assert reply.usage is not None
    assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (1, "length")
    assert not reply.choices[0].message.tool_calls


async def test_a_script_may_ask_for_so_many_of_the_models_own_words(serve: Any) -> None:
    async with serve() as (url, _), client(url) as c:
        replies = [
            await c.chat.completions.create(
                model="emulated",
                messages=[{"role": "user", "content": f'{about}\nagentserve-script: [{{"tokens": 80}}]'}],
            )
            for about in ("ferries", "ferries", "harbours")
        ]
    said = [r.choices[0].message.content for r in replies]
    assert [r.usage.completion_tokens for r in replies if r.usage] == [80, 80, 80]
    assert said[0] == said[1] != said[2]


async def test_streamed_tool_calls_accumulate_to_the_whole_ones(serve: Any) -> None:
    script = 'agentserve-script: [[{"tool": "search", "arguments": {"q": 1}}, {"tool": "search", "arguments": {}}]]'
    async with serve() as (url, _), client(url) as c:
        stream = await c.chat.completions.create(
            model="emulated",
            messages=[{"role": "system", "content": script}, {"role": "user", "content": "go"}],
            tools=[SEARCH],
            stream=True,
        )
        calls: dict[int, list[str]] = {}
        async for chunk in stream:
            for part in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
                assert part.function is not None
                entry = calls.setdefault(part.index, [part.id or "", part.function.name or "", ""])
                entry[2] += part.function.arguments or ""
    assert [(name, arguments) for _, name, arguments in calls.values()] == [
        ("search", '{"q":1}'),
        ("search", "{}"),
    ]
    assert len({call_id for call_id, _, _ in calls.values()}) == 2


async def test_several_choices_stop_marks_and_a_schema(serve: Any) -> None:
    async with serve() as (url, _), client(url) as c:
        messages: Any = [{"role": "user", "content": "x"}]
        several = await c.chat.completions.create(model="emulated", messages=messages, n=3, max_tokens=30)
        assert len({choice.message.content for choice in several.choices}) == 3
        stopped = await c.chat.completions.create(
            model="emulated", messages=messages, stop=[" "], max_tokens=30
        )
        assert " " not in (stopped.choices[0].message.content or "")
        schema: dict[str, object] = {
            "type": "object",
            "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}},
        }
        shaped = await c.chat.completions.create(
            model="emulated",
            messages=messages,
            response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
        )
    assert json.loads(shaped.choices[0].message.content or "") == {"n": 1, "ok": True}


async def spoken(c: openai.AsyncOpenAI, **asked: Any) -> tuple[str, Any, Any]:
    """The whole reply, after the stream has said the same."""
    given: Any = {"model": "emulated", "messages": ASKED, "max_tokens": 60, **asked}
    whole = (await c.chat.completions.create(**given)).model_dump()
    texts: dict[int, str] = {}
    ends: dict[int, Any] = {}
    usage = None
    async for chunk in await c.chat.completions.create(
        **given, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.model_dump()["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + (choice["delta"]["content"] or "")
            if choice["finish_reason"]:
                assert choice["index"] not in ends, "each choice ends once"
                ends[choice["index"]] = (choice["finish_reason"], choice["stop_reason"])
    for choice in whole["choices"]:
        index = choice["index"]
        assert texts[index] == choice["message"]["content"]
        assert ends[index] == (choice["finish_reason"], choice["stop_reason"])
    assert usage is not None
    assert usage.completion_tokens == whole["usage"]["completion_tokens"]
    first = whole["choices"][0]
    return first["message"]["content"], (first["finish_reason"], first["stop_reason"]), whole["usage"]


async def test_a_stop_string_across_tokens_ends_the_reply_before_it(serve: Any) -> None:
    async with serve() as (url, _), client(url) as c:
        plain, _, _ = await spoken(c, extra_body={"ignore_eos": True})
        mark = plain[41:52]  # begins and ends inside tokens of four characters
        at = plain.find(mark)
        text, ended, usage = await spoken(c, stop=["@@", mark], extra_body={"ignore_eos": True})
        assert (text, ended) == (plain[:at], ("stop", mark))
        assert usage["completion_tokens"] == -(-(at + len(mark)) // 4), "what was made to see it is counted"
        kept, _, _ = await spoken(
            c, stop=mark, extra_body={"ignore_eos": True, "include_stop_str_in_output": True}
        )
        assert kept == plain[: at + len(mark)]
        late, _, _ = await spoken(c, stop=plain[:5], extra_body={"ignore_eos": True, "min_tokens": 30})
        assert len(late) >= 4 * 30 - 5


async def test_several_choices_stream_side_by_side(serve: Any) -> None:
    async with serve() as (url, _), client(url) as c:
        await spoken(c, n=4)
        await spoken(c, n=3, stop=["the "])


async def test_messages_name_the_sequence_that_stopped_them(serve: Any) -> None:
    body = {"model": "emulated", "messages": ASKED, "max_tokens": 50, "stop_sequences": ["e "]}
    async with serve() as (url, _), httpx.AsyncClient(base_url=url) as h:
        whole = (await h.post("/v1/messages", json=body)).json()
        streamed = (await h.post("/v1/messages", json={**body, "stream": True})).text
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("stop_sequence", "e ")
    assert '"stop_sequence":"e "' in streamed
    deltas = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: ")]
    said = "".join(d["delta"]["text"] for d in deltas if d["type"] == "content_block_delta")
    assert said == whole["content"][0]["text"]


async def test_completions_embeddings_and_tokens(serve: Any) -> None:
    async with serve() as (url, _), client(url) as c, httpx.AsyncClient(base_url=url) as h:
        done = await c.completions.create(model="emulated", prompt="once upon", max_tokens=7)
        assert done.usage is not None
        assert done.usage.completion_tokens <= 7
        vectors = await c.embeddings.create(model="emulated", input=["a", "b", "a"], encoding_format="float")
        assert vectors.data[0].embedding == vectors.data[2].embedding != vectors.data[1].embedding
        text = "naïve café 🙂 end"
        tokens = (await h.post("/tokenize", json={"prompt": text})).json()
        assert tokens["count"] == len(tokens["tokens"])
        back = (await h.post("/detokenize", json={"tokens": tokens["tokens"]})).json()
    assert back["prompt"] == text


async def test_a_client_that_leaves_frees_the_engine(serve: Any) -> None:
    async with serve(time_scale=1.0) as (url, app), httpx.AsyncClient() as h:
        body = {"model": "emulated", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4000}
        body |= {"ignore_eos": True, "stream": True}
        async with h.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
            async for _ in reply.aiter_lines():
                break
            assert app.host.engine.running() == 1
        async with asyncio.timeout(30):
            while len(app.host):
                await asyncio.sleep(0.01)
        app.host.engine.advance(app.host.now() + 10)
        assert app.host.engine.running() == 0
        app.host.engine.check()


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/v1/chat/completions", {"model": "other", "messages": ASKED}, 404, "NotFoundError"),
        ("/v1/chat/completions", {"model": "emulated", "messages": []}, 400, "BadRequestError"),
        ("/v1/chat/completions", {"messages": ASKED, "max_tokens": 0}, 400, "BadRequestError"),
        ("/v1/completions", {"prompt": "x" * 4_000_000}, 400, "BadRequestError"),
        ("/nowhere", {}, 404, "NotFoundError"),
    ],
)  # fmt: skip
async def test_errors_have_vllms_shape(serve: Any, path: str, body: Any, status: int, kind: str) -> None:
    async with serve() as (url, _), httpx.AsyncClient(base_url=url) as h:
        reply = await h.post(path, json=body)
    assert reply.status_code == status
    assert reply.json()["error"]["code"] == status
    assert reply.json()["error"]["type"] == kind


async def test_a_full_queue_is_refused_with_503(serve: Any) -> None:
    async with (
        serve(max_num_seqs=1, max_num_queued_reqs=1, time_scale=1.0) as (url, app),
        httpx.AsyncClient() as h,
    ):
        body = {
            "model": "emulated",
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 3000,
            "ignore_eos": True,
        }

        async def ask() -> int:
            return (await h.post(f"{url}/v1/chat/completions", json=body, timeout=30)).status_code

        tasks = [asyncio.create_task(ask()) for _ in range(2)]
        while app.host.engine.waiting() < 1:
            await asyncio.sleep(0.01)
        assert await ask() == 503
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_metrics_have_vllms_names_and_braces(serve: Any) -> None:
    async with (
        serve(kv_tokens=16_000, old_metric_names=True) as (url, _),
        httpx.AsyncClient(base_url=url) as h,
    ):
        await h.post("/v1/completions", json={"prompt": "x" * 400, "max_tokens": 4, "ignore_eos": True})
        text = (await h.get("/metrics")).text
    assert 'vllm:num_requests_running{engine="0",model_name="emulated"} 0.0' in text
    assert 'num_gpu_blocks="1000"' in text
    assert 'kv_cache_size_tokens="16000"' in text
    assert 'vllm:generation_tokens_total{engine="0",model_name="emulated"} 4.0' in text
    assert "vllm:gpu_cache_usage_perc{" in text


@pytest.mark.parametrize("legacy", [False, True])
async def test_kv_events_are_published_and_replayed(serve: Any, legacy: bool) -> None:
    with zmq.Context() as probe, probe.socket(zmq.PUB) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1", min_port=20_000, max_port=40_000)
    async with (
        serve(kv_events_port=port, kv_events_legacy=legacy) as (url, _),
        httpx.AsyncClient(base_url=url) as h,
    ):
        source = (await h.get("/kv_event_sources")).json()["0"]
        await h.post("/v1/completions", json={"prompt": "x" * 400, "max_tokens": 4})
        context = zmq.asyncio.Context()
        with context.socket(zmq.DEALER) as dealer:
            dealer.connect(source["replay_endpoint"])
            await dealer.send_multipart((b"", (0).to_bytes(8, "big")))
            frames = await asyncio.wait_for(dealer.recv_multipart(), 5)
            end = await asyncio.wait_for(dealer.recv_multipart(), 5)
        context.term()
    assert frames[1] == b"kv"
    _, events, _ = msgspec.msgpack.decode(frames[3])
    if legacy:
        assert events[0][0] == "BlockStored"
        assert len(events[0][1]) == 6
    else:
        assert events[0]["type"] == "BlockStored"
        assert len(events[0]["block_hashes"]) == 6
    assert int.from_bytes(end[2], "big", signed=True) == -1
