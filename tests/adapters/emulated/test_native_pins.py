"""Pins that the emulated engine holds itself, by its route and by its adapter."""

from __future__ import annotations

from typing import Any

import httpx
from agentserve_adapters.emulated import EmulatedAdapter

from agentserve.ports import EngineOptions, Hints, Outcome, Outgoing


async def told(h: httpx.AsyncClient, kind: str, **payload: Any) -> Any:
    answer = await h.post("/kv_hints", json={"actions": [{"action_type": kind, "payload": payload}]})
    return answer.status_code, answer.json()


async def cached(h: httpx.AsyncClient, text: str, session: str) -> int:
    body = {"prompt": text, "max_tokens": 1, "session_id": session}
    answer = await h.post("/v1/completions", json=body)
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


async def test_a_pinned_session_survives_what_evicts_the_others(serve: Any) -> None:
    async with serve(kv_tokens=1600, native_pins=True) as (url, _), httpx.AsyncClient(base_url=url) as h:
        for session in ("kept", "lost"):
            await cached(h, session[0] * 1600, session)
        status, said = await told(h, "kv.pin", session_id="kept", ttl_s=3600)
        assert (status, said["results"][0]["outcome"]) == (200, "accepted")
        assert said["results"][0]["tokens"] == 400
        for c in "xyz":
            await cached(h, c * 3200, c)
        assert await cached(h, "l" * 1600, "lost") == 0
        assert await cached(h, "k" * 1600, "kept") == 384
        status, said = await told(h, "kv.release", session_id="kept")
        for c in "uvw":
            await cached(h, c * 5600, c)
        assert await cached(h, "k" * 1600, "kept") == 0


async def test_pins_have_a_budget_and_unknown_sessions_nothing_to_hold(serve: Any) -> None:
    async with (
        serve(kv_tokens=1600, native_pins=True, pin_share_max=0.1) as (url, _),
        httpx.AsyncClient(base_url=url) as h,
    ):
        await cached(h, "a" * 1600, "a")
        _, said = await told(h, "kv.pin", session_id="a", ttl_s=60, tokens=400)
        assert said["results"][0] == {
            "action_id": "", "outcome": "clipped", "tokens": 160, "detail": "160 tokens held",
        }  # fmt: skip
        _, said = await told(h, "kv.pin", session_id="nobody", ttl_s=60)
        assert said["results"][0]["outcome"] == "refused"


async def test_malformed_hints_are_refused_and_stock_engines_have_no_such_route(serve: Any) -> None:
    async with serve(native_pins=True) as (url, _), httpx.AsyncClient(base_url=url) as h:
        assert (await told(h, "kv.pin", session_id="a"))[0] == 400
        assert (await told(h, "kv.pin", session_id="a", ttl_s=-1))[0] == 400
        assert (await told(h, "kv.pin", ttl_s=1))[0] == 400
        assert (await told(h, "kv.burn", session_id="a"))[0] == 400
        assert (await h.post("/kv_hints", json={})).status_code == 400
    async with serve() as (url, _), httpx.AsyncClient(base_url=url) as h:
        assert (await told(h, "kv.pin", session_id="a", ttl_s=1))[0] == 404


async def test_the_adapter_pins_a_program_by_its_session() -> None:
    adapter = EmulatedAdapter(
        EngineOptions(
            id="e1", kind="emulated", kv_tokens=20_000, extra={"time_scale": 1000.0, "native_pins": True}
        )
    )
    await adapter.start()
    try:
        capabilities = await adapter.probe()
        assert capabilities.pin == "native"
        assert dict(capabilities.mechanisms)["pin"].startswith("native")
        body = {
            "model": "emulated", "messages": [{"role": "user", "content": "a" * 4000}], "max_tokens": 1,
        }  # fmt: skip
        outgoing = Outgoing(protocol="chat", path="/v1/chat/completions", body=body)
        adapter.prepare(outgoing, Hints(program="p1", tenant="t", step="s"))
        await adapter.wire.post(outgoing.path, body, headers=dict(outgoing.headers))
        receipt = await adapter.pin("p1", None, 1000, 60.0)
        assert (receipt.outcome, receipt.mode) == (Outcome.ACCEPTED, "native")
        assert adapter.server.host.engine.kv_use().pinned_tokens > 900
        await adapter.unpin("p1")
        assert adapter.server.host.engine.kv_use().pinned_tokens == 0
        assert (await adapter.pin("nobody", None, 1000, 60.0)).outcome is Outcome.REFUSED
    finally:
        await adapter.stop()


async def test_without_the_option_a_pin_is_held_by_admission() -> None:
    adapter = EmulatedAdapter(EngineOptions(id="e1", kind="emulated"))
    await adapter.start()
    try:
        assert (await adapter.probe()).pin == "reserved"
        assert (await adapter.pin("p1", None, 1000, 60.0)).mode == "reserved"
    finally:
        await adapter.stop()
