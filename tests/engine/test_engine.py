"""Batching, time and physics of the emulated engine."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentserve.engine import (
    PROFILES,
    EmulatedEngine,
    EngineConfig,
    EngineRequest,
    FirstToken,
    KvRemoved,
    KvStored,
    Preempted,
    RequestFinished,
    RequestRejected,
    RequestStarted,
    profile,
)

LLAMA = profile("llama-3.1-8b-h100")


def engine(**config: Any) -> EmulatedEngine:
    return EmulatedEngine(profile=LLAMA, config=EngineConfig(**{"kv_tokens": 4096, **config}))


def request(
    name: str, prompt: int, output: int, *, stream: int | None = None, priority: int = 0
) -> EngineRequest:
    seed = hash_of(name) if stream is None else stream
    hashes = [seed * 1_000_000 + i for i in range((prompt + output) // 16)]
    return EngineRequest(
        id=name, hashes=hashes, prompt_tokens=prompt, output_tokens=output, priority=priority
    )


def hash_of(name: str) -> int:
    return sum(ord(c) * 257**i for i, c in enumerate(name))


def drain(e: EmulatedEngine, now: float = 1e9) -> list[Any]:
    out = e.advance(now)
    e.check()
    return out


def finished(events: list[Any]) -> dict[str, RequestFinished]:
    return {x.id: x for x in events if isinstance(x, RequestFinished)}


# -- the law: what happens does not depend on when one looks

PLANS = st.lists(
    st.tuples(st.floats(0, 3), st.integers(1, 900), st.integers(1, 120), st.integers(0, 3), st.booleans()),
    min_size=1,
    max_size=14,
)


def play(plans: Any, looks: list[float], **config: Any) -> list[Any]:
    e = engine(**config)
    moves: list[tuple[float, int, Any]] = []
    for i, (at, prompt, output, stream, leaves) in enumerate(plans):
        moves.append((at, i, request(f"r{i}", prompt, output, stream=stream, priority=i % 3)))
        if leaves:
            moves.append((at + 0.1, 100 + i, f"r{i}"))
    moves += [(at, 1000 + i, None) for i, at in enumerate(looks)]
    out: list[Any] = []
    for at, _, what in sorted(moves, key=lambda m: (m[0], m[1])):
        if isinstance(what, EngineRequest):
            e.submit(what, at)
        elif isinstance(what, str):
            e.abort(what, at)
        else:
            out += e.advance(at)
            e.check()
    out += e.advance(1e6)
    e.check()
    assert e.running() == e.waiting() == 0
    assert e.kv_use().running_tokens == 0
    return out


@settings(max_examples=120, deadline=None)
@given(PLANS, st.lists(st.floats(0, 20), max_size=25), st.sampled_from(["fcfs", "priority"]), st.booleans())
def test_events_are_the_same_however_often_one_looks(
    plans: Any, looks: list[float], policy: str, host: bool
) -> None:
    config = {"policy": policy, "host_kv_tokens": 2048 if host else 0, "kv_tokens": 1600}
    assert play(plans, sorted(looks), **config) == play(plans, [], **config)


# a full pool, and two that fill the same block at the same time: what the one gives back spares no eviction
ADOPTED_WHEN_FULL = [
    *[(0.0, 1, 1, 0, False)] * 7,
    *[(0.0, 1, 63, 0, False)] * 2,
    (0.0, 2, 63, 0, False),
    (0.0, 675, 63, 0, False),
    (0.0, 757, 61, 1, False),
]


@settings(max_examples=60, deadline=None)
@given(PLANS)
@example(ADOPTED_WHEN_FULL)
def test_decode_in_closed_form_equals_iteration_by_iteration(plans: Any) -> None:
    quiet = [(at, p, o, s, False) for at, p, o, s, _ in plans]
    fast = finished(play(quiet, [], kv_tokens=1600))
    slow = finished(play(quiet, [], kv_tokens=1600, fast_forward=False))
    assert fast.keys() == slow.keys()
    for name, one in fast.items():
        assert one.at == pytest.approx(slow[name].at, rel=1e-6)
        assert one.cached_tokens == slow[name].cached_tokens


@settings(max_examples=60, deadline=None)
@given(PLANS, st.integers(0, 10_000))
def test_every_request_ends_once_under_crashes_and_stalls(plans: Any, seed: int) -> None:
    rng = random.Random(seed)
    e = engine(kv_tokens=1600)
    ends: dict[str, int] = {}
    for i, (at, prompt, output, stream, _) in enumerate(sorted(plans)):
        for event in e.advance(at):
            if isinstance(event, (RequestFinished, RequestRejected)):
                ends[event.id] = ends.get(event.id, 0) + 1
        if rng.random() < 0.2:
            for lost in e.crash(at):
                ends[lost] = ends.get(lost, 0) + 1
        if rng.random() < 0.2:
            e.stall(at + rng.random())
        e.submit(request(f"r{i}", prompt, output, stream=stream), at)
        e.check()
    for event in drain(e):
        if isinstance(event, (RequestFinished, RequestRejected)):
            ends[event.id] = ends.get(event.id, 0) + 1
    assert ends == {f"r{i}": 1 for i in range(len(plans))}


# -- batching by example


def test_the_hit_stops_one_token_short_of_the_prompt() -> None:
    e = engine()
    e.submit(request("a", 64, 1, stream=1), 0.0)
    drain(e)
    e.submit(request("b", 64, 1, stream=1), 1e9)
    (started,) = [x for x in drain(e, 2e9) if isinstance(x, RequestStarted)]
    assert started.cached_tokens == 48


def test_the_next_turn_hits_prompt_and_output() -> None:
    e = engine()
    e.submit(request("a", 100, 60, stream=1), 0.0)
    drain(e)
    e.submit(request("b", 200, 10, stream=1), 1e9)
    (started,) = [x for x in drain(e, 2e9) if isinstance(x, RequestStarted)]
    # 159 tokens were computed (the last output token never is): nine full blocks
    assert started.cached_tokens == 144


def test_a_long_prompt_is_prefilled_in_chunks_beside_decodes() -> None:
    e = engine(kv_tokens=65_536, max_num_batched_tokens=2048)
    e.submit(request("a", 100, 400), 0.0)
    e.submit(request("b", 20_000, 1), 0.5)
    done = finished(drain(e))
    alone = engine(kv_tokens=65_536, max_num_batched_tokens=2048)
    alone.submit(request("a", 100, 400), 0.0)
    assert done["a"].at > finished(drain(alone))["a"].at
    assert done["b"].at < done["a"].at


def test_the_last_comer_is_preempted_and_computed_again() -> None:
    e = engine(kv_tokens=640)
    e.submit(request("a", 200, 200), 0.0)
    e.submit(request("b", 200, 200), 0.0)
    events = drain(e)
    assert {x.id for x in events if isinstance(x, Preempted)} == {"b"}
    assert finished(events)["b"].preemptions >= 1
    assert finished(events)["a"].at < finished(events)["b"].at
    assert [x.id for x in events if isinstance(x, FirstToken)] == ["a", "b"]


def test_priority_decides_who_goes_first_and_who_is_preempted() -> None:
    e = engine(policy="priority", max_num_seqs=1)
    e.submit(request("first", 100, 50), 0.0)
    e.submit(request("late", 100, 5, priority=9), 0.01)
    e.submit(request("soon", 100, 5, priority=1), 0.02)
    done = finished(drain(e))
    assert done["first"].at < done["soon"].at < done["late"].at


def test_what_can_never_fit_is_rejected_at_once() -> None:
    e = engine(kv_tokens=640)
    e.submit(request("a", 630, 20), 1.0)
    (rejected,) = drain(e)
    assert isinstance(rejected, RequestRejected)
    assert (rejected.at, rejected.reason) == (1.0, "too_long")


def test_an_abort_frees_at_the_next_iteration() -> None:
    e = engine()
    e.submit(request("a", 100, 1000), 0.0)
    e.submit(request("b", 100, 100), 0.0)
    e.advance(0.2)
    assert e.abort("a", 0.2)
    assert not e.abort("a", 0.2)
    e.advance(0.3)
    assert e.running() == 1
    assert finished(drain(e)).keys() == {"b"}


def test_kv_events_tell_what_can_be_hit() -> None:
    e = engine(kv_tokens=320, kv_events=True)
    known: set[int] = set()
    for i in range(6):
        one = request(f"r{i}", 150, 20)
        e.submit(one, e._now)
        for event in e.advance(1000.0 * (i + 1)):
            if isinstance(event, KvStored):
                known |= set(event.hashes)
            elif isinstance(event, KvRemoved):
                known -= set(event.hashes)
        assert e.resident_tokens(one.hashes) == 16 * sum(h in known for h in one.hashes)


def test_the_host_tier_is_slower_than_the_gpu_and_faster_than_prefill() -> None:
    def second_time(**config: Any) -> tuple[int, float]:
        e = engine(kv_tokens=8192, **config)
        e.submit(request("a", 8000, 1, stream=1), 0.0)
        drain(e, 100.0)
        e.submit(request("x", 8000, 1, stream=2), 100.0)
        drain(e, 200.0)
        e.submit(request("b", 8000, 1, stream=1), 200.0)
        (done,) = finished(drain(e, 300.0)).values()
        return done.cached_tokens, done.at - 200.0

    cold, cold_s = second_time()
    warm, warm_s = second_time(host_kv_tokens=65_536)
    assert cold < 200
    assert warm > 7900
    assert LLAMA.decode_step_s(1, 8000) < warm_s < cold_s / 3


def test_a_pinned_prefix_survives_pressure_until_its_time() -> None:
    e = engine(kv_tokens=1600)
    one = request("a", 480, 1, stream=1)
    e.submit(one, 0.0)
    drain(e, 10.0)
    assert e.pin("p", one.hashes, until=100.0, now=10.0) == 480
    for i in range(8):
        e.submit(request(f"x{i}", 700, 10), 20.0 + i)
    drain(e, 90.0)
    assert e.resident_tokens(one.hashes) == 480
    for i in range(8):
        e.submit(request(f"y{i}", 700, 10), 110.0 + i)
    drain(e, 200.0)
    assert e.resident_tokens(one.hashes) == 0


@settings(max_examples=60, deadline=None)
@given(PLANS, st.lists(st.floats(0, 20), max_size=20), st.floats(0, 4), st.floats(0, 8))
def test_pins_come_and_go_alike_however_often_one_looks(
    plans: Any, looks: list[float], at: float, held_s: float
) -> None:
    def played(looks: list[float]) -> list[Any]:
        e = engine(kv_tokens=1600, kv_events=True)
        moves: list[tuple[float, int, Any]] = [
            (t, i, request(f"r{i}", p, o, stream=s)) for i, (t, p, o, s, _) in enumerate(plans)
        ]
        moves += [(at, 500, "pin"), *((t, 1000 + i, None) for i, t in enumerate(looks))]
        out: list[Any] = []
        for t, _, what in sorted(moves, key=lambda m: (m[0], m[1])):
            if isinstance(what, EngineRequest):
                e.submit(what, t)
            elif what == "pin":
                e.pin("p", moves[0][2].hashes, t + held_s, t)
            else:
                out += e.advance(t)
            e.check()
        return out + drain(e)

    assert played(looks) == played([])


def test_pins_never_deadlock_the_engine() -> None:
    e = engine(kv_tokens=1600, pin_share_max=1.0)
    one = request("a", 1500, 1, stream=1)
    e.submit(one, 0.0)
    drain(e, 10.0)
    e.pin("p", one.hashes, until=1e12, now=10.0)
    e.submit(request("b", 1200, 10), 20.0)
    assert "b" in finished(drain(e))


def test_a_touched_prefix_outlives_one_that_was_used_later() -> None:
    e = engine(kv_tokens=1600)
    old, new = request("a", 480, 1, stream=1), request("b", 480, 1, stream=2)
    e.submit(old, 0.0)
    drain(e, 10.0)
    e.submit(new, 10.0)
    drain(e, 20.0)
    assert e.touch(old.hashes, 20.0) == 480
    e.check()
    e.submit(request("c", 1000, 10), 20.0)
    drain(e, 30.0)
    assert e.resident_tokens(old.hashes) == 480
    assert e.resident_tokens(new.hashes) < 480


def test_progress_is_known_between_events() -> None:
    e = engine()
    e.submit(request("a", 100, 200), 0.0)
    counts = [e.tokens_done("a", t / 10) for t in range(1, 15)]
    assert counts == sorted(counts)
    assert 0 < counts[2] < counts[-1] < 200


# -- physics


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_one_sequence_decodes_at_the_speed_of_reading_the_weights(name: str) -> None:
    shape = PROFILES[name]
    ideal = shape.weight_bytes / shape.bandwidth
    real = shape.decode_step_s(1, 100)
    assert ideal / shape.mbu <= real <= ideal / shape.mbu + shape.overhead_s * 1.1


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_prefill_runs_at_the_flops_over_twice_the_parameters(name: str) -> None:
    shape = PROFILES[name]
    ideal = shape.flops / (2 * shape.model.parameters)
    assert 0.7 * shape.mfu * ideal < shape.prefill_tokens_per_s() <= shape.mfu * ideal


def test_capacity_follows_from_memory() -> None:
    # 80 GB x 0.9 less 16 GB of weights and 4 GB of activations, at 128 KiB a token
    assert LLAMA.kv_tokens() == pytest.approx(396_000, rel=0.01)
    assert LLAMA.model.kv_bytes_per_token == 131_072


def test_attention_makes_long_prompts_dearer_than_linear() -> None:
    assert LLAMA.prefill_s(80_000, 80_000) > 2.2 * LLAMA.prefill_s(40_000, 40_000)
