"""What an adapter may look at to tell whether an address is an engine of its kind.

Rule: each path is asked once however many adapters look at it, and looking changes nothing at the engine.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from agentserve.errors import EngineBroke, EngineTimeout
from agentserve_adapters.wire import Answer, EngineWire

LOOK_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """An adapter knows this engine: how surely, and by what."""

    certainty: float  # 0..1; the highest wins
    evidence: str
    version: str = ""


class Sight:
    """One address under inspection."""

    def __init__(self, wire: EngineWire) -> None:
        self._wire = wire
        self.host = wire.host
        self.url = wire.url
        self.silent = True  # until it says anything at all
        self._answers: dict[str, asyncio.Task[Answer | None]] = {}

    async def answer(self, path: str) -> Answer | None:
        """What the engine says at `path`; None where it breaks or keeps silent there."""
        if path not in self._answers:
            self._answers[path] = asyncio.ensure_future(self._look(path))
        return await self._answers[path]

    async def table(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`; empty where there is none."""
        found = await self.answer(path)
        return found.table() if found is not None else {}

    async def text(self, path: str) -> str:
        """The text at `path`; empty where there is none."""
        found = await self.answer(path)
        return found.text if found is not None and found.ok else ""

    async def owner(self) -> str:
        """Who the first listed model says it belongs to."""
        data = (await self.table("/v1/models")).get("data")
        first = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
        return str(first.get("owned_by", ""))

    async def _look(self, path: str) -> Answer | None:
        try:
            found = await self._wire.get(path, timeout_s=LOOK_TIMEOUT_S)
        except EngineTimeout:
            return None
        except EngineBroke:
            found = None
        self.silent = False
        return found
