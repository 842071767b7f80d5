"""What a forecast costs: microseconds a call and bytes a key. Run by hand: `python tests/bench/forecast_cost.py`.

The calls are synthetic: a few hundred kinds of call in a few hundred programs, durations log-normal. Times are the
least of several rounds, because the rest is the machine's other work.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable

from agentserve.core.forecast import RemainingForecaster, StepFacts, ToolCall, ToolForecaster, classify
from agentserve.core.forecast.tools import KEYS_MAX

CALLS = 4_000
ROUNDS = 7


def made(rng: random.Random, count: int) -> list[tuple[str, ToolCall, float]]:
    """(program, call, seconds)"""
    kinds = [(f"tool{i % 12}", f"class{i}", rng.lognormvariate(0, 2)) for i in range(300)]
    calls = []
    for _ in range(count):
        name, argument, middle = kinds[int(rng.paretovariate(1.1)) % len(kinds)]
        call = ToolCall(
            name=name, argument_class=argument, exact_hash=rng.randrange(2_000), pipes=rng.random() < 0.3
        )
        calls.append((f"p{rng.randrange(200)}", call, middle * rng.lognormvariate(0, 0.5)))
    return calls


def least_us(run: Callable[[], None], count: int) -> float:
    times = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        run()
        times.append(time.process_time() - begun)
    return min(times) / count * 1e6


def tools() -> None:
    rng = random.Random(1)
    calls = made(rng, CALLS)
    forecaster = ToolForecaster()

    def ask() -> None:
        for program, call, _ in calls:
            forecaster.predict(tenant="t", program=program, calls=(call,))

    def ask_ttl() -> None:
        for program, call, _ in calls:
            forecaster.predict(tenant="t", program=program, calls=(call,)).best_ttl(5.0)

    def tell() -> None:
        for program, call, seconds in calls:
            forecaster.observe(tenant="t", program=program, call=call, seconds=seconds)

    tell()
    asked, with_ttl, told = least_us(ask, CALLS), least_us(ask_ttl, CALLS), least_us(tell, CALLS)
    print(
        f"keys and forecast {asked:6.1f} us   TTL {with_ttl - asked:5.1f} us   keys and update {told:5.1f} us"
    )
    print(f"all together      {with_ttl + told:6.1f} us a call (target: 60)")


def keys() -> None:
    forecaster = ToolForecaster()
    observed = ToolCall(name="warm")
    forecaster.observe(tenant="t", program=None, call=observed, seconds=1.0)
    tracemalloc.start()
    before, held = tracemalloc.get_traced_memory()[0], len(forecaster)
    for i in range(KEYS_MAX // 3):
        call = ToolCall(name="tool", argument_class="class", exact_hash=i)
        forecaster.observe(tenant="t", program=None, call=call, seconds=1.0)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    size = (after - before) / (len(forecaster) - held)
    print(f"a key             {size:6.0f} bytes (target: 500), at most {KEYS_MAX:,}")


def reading() -> None:
    commands = [
        "git status",
        "cd /srv/app && git -C lib log --oneline -20 | head -5",
        "timeout 300 uv run pytest -q tests/core 2>&1 | tail -20",
        "for f in src/*.ts; do npx prettier --check $f; done",
    ]
    arguments = [{"command": command, "description": "x" * 40} for command in commands]

    def read() -> None:
        for _ in range(250):
            for fields in arguments:
                classify("Bash", fields)

    print(f"reading arguments {least_us(read, 1_000):6.1f} us a call")


def remaining() -> None:
    rng = random.Random(2)
    forecaster = RemainingForecaster()
    for i in range(300):
        length = max(1, round(rng.lognormvariate(3, 0.8)))
        forecaster.begin(tenant="t", program=f"p{i}")
        for step in range(length):
            facts = StepFacts(
                input_tokens=rng.randrange(1_000, 90_000),
                output_tokens=rng.randrange(10, 900),
                started_s=5.0 * step,
                calls=(ToolCall(name=rng.choice(("Read", "Edit", "Bash", "Grep"))),),
            )
            forecaster.step(tenant="t", program=f"p{i}", facts=facts)
        forecaster.finish(tenant="t", program=f"p{i}")
    facts = StepFacts(input_tokens=9_000, output_tokens=200)
    count = 20

    def first() -> None:
        for i in range(count):
            forecaster.begin(tenant="t", program=f"new{i}")
            forecaster.step(tenant="t", program=f"new{i}", facts=facts)
            forecaster.steps_left(tenant="t", program=f"new{i}")
            forecaster.forget(tenant="t", program=f"new{i}")
            forecaster._made.clear()

    print(f"remaining length  {least_us(first, count):6.0f} us at a milestone")
    forecaster.step(tenant="t", program="again", facts=facts)
    forecaster.steps_left(tenant="t", program="again")

    def again() -> None:
        for _ in range(200):
            forecaster.steps_left(tenant="t", program="again")

    print(f"                  {least_us(again, 200):6.1f} us between milestones")


if __name__ == "__main__":
    tools()
    keys()
    reading()
    remaining()
