"""DualMap, Preble and Llumnix: where a step goes."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.policies.literature.dualmap import Ring
from agentserve.core.policies.literature.lines import Line, LineByTenant, stamp
from agentserve.core.program import Step


def segment(name: int, tokens: int = 500) -> tuple[ev.Segment, ...]:
    return (ev.Segment(name, tokens),)


# -- DualMap


def test_an_engine_that_leaves_a_ring_moves_only_its_own_keys() -> None:
    names: Any = tuple(f"e{i}" for i in range(8))
    before, after = Ring("first", names), Ring("first", names[:-1])
    keys = [f"k{i}" for i in range(400)]
    moved = [k for k in keys if before.find(k) != after.find(k)]
    assert all(before.find(k) == "e7" for k in moved)
    assert 0 < len(moved) < 150
    assert all(before.find(k, without=before.find(k)) != before.find(k) for k in keys)


def test_equal_prefixes_meet_on_two_engines_of_many(desk: Any) -> None:
    d = desk("dualmap", engines=8)
    for i in range(20):  # other traffic, so that no prefix is hot
        d.arrive(f"x{i}", tokens=100, prefix=segment(100 + i, 50))
    for i in range(3):
        d.arrive(f"p{i}", tokens=2000, prefix=segment(7))
    assert len({d.sent(f"p{i}") for i in range(3)}) <= 2


def test_a_hot_prefix_is_told_apart_further_down(desk: Any) -> None:
    d = desk("dualmap", engines=8)
    for i in range(40):
        d.arrive(f"p{i}", tokens=200, prefix=segment(7, 100))
    assert len({d.sent(f"p{i}") for i in range(20, 40)}) > 4


def test_a_hot_prefix_stays_split_until_it_has_half_the_share_that_split_it(desk: Any) -> None:
    d = desk("dualmap", engines=8, memory_steps=20.0)
    policy, hot = d.scheduler.policy, segment(7, 100)

    def key_after(others: int) -> str:
        for _ in range(others):
            d.arrive(f"x{len(d.board.programs)}", tokens=100)
        d.arrive(f"p{len(d.board.programs)}", tokens=200, prefix=hot)
        (*_, step) = d.board.steps.values()
        return str(policy._key_of(step, 8))

    for _ in range(20):
        d.arrive(f"h{len(d.board.programs)}", tokens=200, prefix=hot)
    assert key_after(0).startswith("7/"), "all traffic is its own"
    assert key_after(30).startswith("7/"), (
        "a fifth and more: less than a quarter, but not less than an eighth"
    )
    assert key_after(60) == "7"
    assert key_after(3) == "7", "it is not split again by as little as it stayed split by"


def test_the_warmer_candidate_takes_it_unless_the_objective_breaks(desk: Any) -> None:
    d = desk("dualmap", engines=2, ttft_slo_s=5.0)
    d.arrive("a", tokens=3000)
    home = d.sent("a")
    d.finish("a", tokens=3000)
    d.arrive("a", 1, tokens=3500)
    assert d.sent("a", 1) == home
    d.finish("a", 1, tokens=3500)
    d.arrive("a", 2, tokens=3600)
    d.finish("a", 2, tokens=3600)
    for i in range(12):
        d.arrive(f"l{i}", tokens=1000)
    for i in range(12):
        if d.sent(f"l{i}") != home:
            d.start(f"l{i}")  # the other engine has no prefill left to do
    policy, at_home = d.scheduler.policy, d.board.fleet[home]
    assert policy._owed.of(at_home) >= 5000
    d.arrive("a", 3, tokens=3700)
    assert d.board.programs["a"].own.engine not in (home, None)


def test_a_queued_step_moves_to_its_other_candidate_when_that_is_sooner(desk: Any) -> None:
    d = desk("dualmap", engines=2)
    for i in range(6):
        d.arrive(f"w{i}", tokens=5000)
    before = {p.id: p.own.engine for p in d.board.programs.values()}
    assert sorted(before.values()) == ["e0"] * 3 + ["e1"] * 3
    for name in [n for n in before if d.sent(n) == "e1"]:
        d.start(name)
    gone = next(n for n in before if before[n] == "e1" and d.sent(n) is None)
    d.leave(gone)
    assert d.scheduler.policy.figures()["moved"] == 1


# -- Preble


def test_it_exploits_the_holder_when_more_is_cached_than_missing(desk: Any) -> None:
    d = desk("preble", engines=2)
    d.arrive("a", tokens=2000, prefix=segment(7, 1000))
    d.finish("a", tokens=2000)
    assert d.sent("a") == "e0"
    d.arrive("b", tokens=1800, prefix=segment(7, 1000))
    assert d.sent("b") == "e0"
    d.arrive("c", tokens=2200, prefix=segment(7, 1000))
    assert d.sent("c") == "e1", "1,000 cached, 1,200 missing: it explores"


def test_the_heaviest_engine_is_spared_when_it_has_half_again_the_load(desk: Any) -> None:
    d = desk("preble", engines=2, rebalance_ratio=1.5)
    d.arrive("a", tokens=4000, prefix=segment(7, 3500))
    d.arrive("b", tokens=3000, prefix=segment(8))
    d.finish("a", tokens=4000)
    sent = []
    for i in range(6):
        d.arrive(f"p{i}", tokens=4500, prefix=segment(7, 3500), output_tokens_max=1)
        sent.append(d.sent(f"p{i}"))
    assert sent[0] == "e0"
    assert "e1" in sent
    assert d.scheduler.policy.figures()["rebalanced"] >= 1


def test_load_is_forgotten_after_three_minutes(desk: Any) -> None:
    d = desk("preble", engines=2)
    d.arrive("a", tokens=5000)
    policy, engine = d.scheduler.policy, d.board.fleet["e0"]
    assert policy._load(engine, d.now) == pytest.approx(5.0 + 200 * 0.015)
    assert policy._load(engine, d.now + 180.0) > 0
    assert policy._load(engine, d.now + 181.0) == 0


def test_a_prefix_whose_ttft_doubled_is_replicated(desk: Any) -> None:
    d = desk("preble", engines=2, replicate_min=4)
    for i, wait_s in enumerate((0.1, 0.1, 0.5, 0.5)):
        d.now = 100.0 * (i >= 2) + i
        d.arrive(f"p{i}", tokens=2000, prefix=segment(7, 1500))
        d.start(f"p{i}", after=wait_s)
        d.finish(f"p{i}", tokens=2000, final=True)
    d.arrive("q", tokens=2000, prefix=segment(7, 1500))
    assert d.scheduler.policy.figures()["replicated"] == 1


# -- Llumnix


def test_freeness_is_room_for_each_running_step(desk: Any) -> None:
    d = desk("llumnix", headroom_tokens=1000)
    policy, engine = d.scheduler.policy, d.board.fleet["e0"]
    assert policy.freeness(engine) == 10_000
    d.arrive("a", tokens=1800)
    d.arrive("b", tokens=3800)
    assert policy.freeness(engine) == pytest.approx((10_000 - 2000 - 4000) / 2)
    d.arrive("i", tokens=800, priority="interactive")
    assert policy.freeness(engine) == pytest.approx((10_000 - 7000 - 1000) / 3)


def test_a_program_moves_only_from_a_full_engine_to_a_free_one(desk: Any) -> None:
    d = desk("llumnix", engines=2, out_below=500.0, in_above=2000.0)
    d.arrive("a", tokens=1000)
    assert d.sent("a") == "e0"
    d.arrive("b", tokens=800)
    d.finish("a", tokens=1000)
    d.arrive("c", tokens=7000)
    assert d.sent("c") == "e0"
    d.arrive("a", 1, tokens=1200)
    assert d.sent("a", 1) == "e0", "2,800 left for each: no reason to move"
    d.finish("a", 1, tokens=1200)
    d.finish("c", tokens=7000)
    d.arrive("c", 1, tokens=9700)
    d.arrive("a", 2, tokens=1300)
    assert d.sent("a", 2) == "e1"
    d.finish("a", 2, tokens=1300)
    d.arrive("a", 3, tokens=1400)
    assert d.sent("a", 3) == "e1"


def test_an_engine_that_comes_back_is_told_who_is_the_more_important(desk: Any) -> None:
    d = desk("llumnix")
    d.lose("e0")
    d.arrive("a", priority="standard")
    d.arrive("b", priority="interactive")
    sent = {x.step: x.priority for x in d.back("e0") if isinstance(x, do.Dispatch)}
    assert sent == {"a/0": 1, "b/0": 0}


# -- lines


def test_a_line_skips_what_left_and_follows_new_keys(desk: Any) -> None:
    d = desk("fifo")
    d.report("e0", draining=True)
    for name, tenant in (("a", "t"), ("b", "t"), ("c", "u")):
        d.arrive(name, tenant=tenant)
    waiting: list[Step] = list(d.board.steps.values())
    a, b, c = waiting
    line = Line()
    for step, at in ((a, 1.0), (b, 2.0), (c, 3.0)):
        line.put(step, (0, at))
    line.put(a, (1, 0.0))
    assert line.first(5) == [b, c, a]
    assert line.head() is b
    line.drop(b)
    assert (line.head(), len(line), b in line) == (c, 2, False)
    for i in range(1000):
        line.put(a, (1, float(i)))
    assert len(line._heap) < 200, "stale entries are swept"
    by_tenant = LineByTenant(lambda tenant, _: {"t": 2.0, "u": 1.0}[tenant])
    by_tenant.put(a, (0, 0.0))
    by_tenant.put(c, (0, 9.0))
    assert by_tenant.head() is c


def test_an_engine_priority_keeps_the_order_of_keys() -> None:
    keys = [(0, 0.0), (0, 5.0), (0, 1e9), (1, 0.0), (2, 3.0), (50, 0.0)]
    assert [stamp(k) for k in keys] == sorted(stamp(k) for k in keys)
    assert stamp((50, 1e12)) < 1 << 20
