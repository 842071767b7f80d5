"""Generators: the program is in force inside of them and nowhere else, however and wherever they are closed."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Generator
from typing import Any

import agentserve_sdk as agentserve
import pytest
from agentserve_sdk import testing


@agentserve.workflow
def numbers() -> Generator[str, None, None]:
    for _ in range(3):
        program = agentserve.current()
        assert program is not None
        yield program.id


@agentserve.workflow
async def later() -> AsyncGenerator[str, None]:
    for _ in range(3):
        await asyncio.sleep(0)
        program = agentserve.current()
        assert program is not None
        yield program.id


def test_a_generator_is_one_program_and_its_consumer_is_in_none(gateway: testing.Gateway) -> None:
    seen = set()
    for value in numbers():
        assert agentserve.current() is None
        seen.add(value)
    assert seen == {gateway.only_program.id}
    assert gateway.only_program.status == "succeeded"


def test_a_consumer_keeps_its_own_program(gateway: testing.Gateway) -> None:
    with agentserve.workflow("outer") as outer:
        for value in numbers():
            assert agentserve.current() is outer
            assert value != outer.id
        assert agentserve.current() is outer


def test_two_generators_in_turns_do_not_mix(gateway: testing.Gateway) -> None:
    a, b = numbers(), numbers()
    pairs = list(zip(a, b, strict=True))
    assert len(set(pairs)) == 1
    assert pairs[0][0] != pairs[0][1]
    assert agentserve.current() is None


def test_values_errors_and_results_pass_through(gateway: testing.Gateway) -> None:
    @agentserve.workflow
    def talk() -> Any:
        heard = [(yield 1)]
        try:
            heard.append((yield 2))
        except ValueError as error:
            heard.append(str(error))
        return heard

    gen = talk()
    assert next(gen) == 1
    assert gen.send("a") == 2
    with pytest.raises(StopIteration) as stop:
        gen.throw(ValueError("b"))
    assert stop.value.value == ["a", "b"]
    assert gateway.only_program.status == "succeeded"


def test_a_generator_that_is_left_early_ends_its_program(gateway: testing.Gateway) -> None:
    gen = numbers()
    next(gen)
    gen.close()
    assert gateway.only_program.status == "succeeded"
    assert agentserve.current() is None


async def test_an_async_generator_closed_in_another_task_restores_nothing_wrong(
    gateway: testing.Gateway,
) -> None:
    gen = later()
    first = await asyncio.create_task(anext(gen))

    async def elsewhere() -> None:
        with agentserve.workflow("elsewhere") as mine:
            await gen.aclose()
            assert agentserve.current() is mine

    await asyncio.create_task(elsewhere(), context=contextvars.Context())
    gateway.settle()
    assert gateway.programs[first].status == "succeeded"
    assert agentserve.current() is None


async def test_an_async_generator_may_be_moved_between_tasks(gateway: testing.Gateway) -> None:
    gen = later()
    seen = {await asyncio.create_task(anext(gen)) for _ in range(3)}
    assert len(seen) == 1
    with pytest.raises(StopAsyncIteration):
        await anext(gen)
    assert gateway.only_program.status == "succeeded"


async def test_async_values_and_errors_pass_through(gateway: testing.Gateway) -> None:
    @agentserve.step
    async def talk() -> Any:
        got = yield 1
        try:
            yield got
        except ValueError as error:
            yield str(error)

    with agentserve.workflow("w"):
        gen = talk()
        assert await anext(gen) == 1
        assert await gen.asend("a") == "a"
        assert await gen.athrow(ValueError("b")) == "b"
        await gen.aclose()
    assert gateway.only_program.status == "succeeded"
