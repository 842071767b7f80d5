"""How long a prompt is before an engine has counted it: characters, by what a token is worth to its model.

Rule: an estimate delays no request. The first prompt of a model is counted behind its back by an engine that has a
tokeniser, so that the calls right after it, of which many may come at once, are not measured by a guess; from then
on every reply corrects the scale.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agentserve.live.wire import Call
from agentserve.live.wire.call import CHARS_PER_TOKEN

MODELS_MAX = 1_000
GAIN_LEAST = 0.1  # of the newest prompt; the first few count for more, so that the guess is soon forgotten
RANGE = (1.0, 16.0)  # characters a token
TOKENS_MIN, CHARS_MIN = 16, 64  # of a prompt that teaches something

Count = Callable[[str, str, dict[str, Any]], Awaitable[int | None]]


class Lengths:
    """Each model's characters a token."""

    def __init__(self, count: Count | None = None) -> None:
        self._count = count
        self._scales: dict[str, tuple[float, int]] = {}  # and how many prompts it rests on
        self._asked: set[str] = set()
        self._asking: set[asyncio.Task[None]] = set()

    def estimate(self, call: Call) -> int:
        """About how many tokens; never fewer than its leading pieces were said to have."""
        if call.prompt_tokens_exact:
            return call.prompt_tokens_exact
        scale, _ = self._scales.get(call.model, (CHARS_PER_TOKEN, 0))
        least = sum([part.tokens for part in call.prefix]) or 1
        tokens = round(call.prompt_chars / scale)
        return tokens if tokens > least else least

    def learn(self, call: Call, prompt_tokens: int) -> None:
        """An engine counted this prompt."""
        if prompt_tokens < TOKENS_MIN or call.prompt_chars < CHARS_MIN:
            return
        known = self._scales.get(call.model)
        if known is None and len(self._scales) >= MODELS_MAX:
            return
        old, prompts = known or (CHARS_PER_TOKEN, 0)
        seen = call.prompt_chars / prompt_tokens
        if not RANGE[0] <= seen <= RANGE[1]:
            seen = RANGE[0] if seen < RANGE[0] else RANGE[1]
        gain = 1.0 / (prompts + 1)
        if gain < GAIN_LEAST:
            gain = GAIN_LEAST
        self._scales[call.model] = (old + gain * (seen - old), prompts + 1)

    def knows(self, model: str) -> bool:
        """Does its scale rest on anything that was counted?"""
        return model in self._scales

    def first(self, call: Call, protocol: str, body: Callable[[], dict[str, Any]]) -> None:
        """A prompt of a model of which nothing is known yet is counted by an engine, once, while it goes its way.
        `body` reads it."""
        model = call.model
        if self._count is None or model in self._scales or model in self._asked:
            return
        if call.prompt_tokens_exact or call.prompt_chars < CHARS_MIN or len(self._asked) >= MODELS_MAX:
            return
        self._asked.add(model)
        asking = asyncio.get_running_loop().create_task(self._ask(self._count, call, protocol, body()))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)

    async def _ask(self, count: Count, call: Call, protocol: str, body: dict[str, Any]) -> None:
        tokens = await count(call.model, protocol, body)
        if tokens is not None:
            self.learn(call, tokens)

    async def close(self) -> None:
        """Nobody waits for an answer any more."""
        for asking in self._asking:
            asking.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
