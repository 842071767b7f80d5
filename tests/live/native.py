"""An engine that speaks a client's protocol and a gateway before it, and what both say, made comparable.

Rule: only ids and times may differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel

from agentserve.config import EngineSettings, Settings
from tests.live.conftest import Serve
from tests.live.test_clients import served

PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
SAY_OK = 'agentserve-script: [{"text": "{\\"ok\\": true}"}]'


RETOLD = ("text", "input_json")


DIFFERS = ("id", "created", "created_at", "completed_at", "call_id", "item_id", "response_id")


def plain(value: Any) -> Any:
    """An answer without what differs from call to call."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", warnings=False)
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if key not in DIFFERS}
    return value


def spoken(events: list[Any]) -> Any:
    """A stream's events without how an engine happened to cut its words: neighbouring pieces are put together.

    Anthropic's library tells each piece twice, as it came and as an event of its own, which would stand between them.
    """
    kept: list[Any] = []
    for event in events:
        said = plain(event)
        if said.get("type") in RETOLD:
            continue
        said.pop("sequence_number", None)
        said.pop("snapshot", None)
        last = kept[-1] if kept else {}
        if "delta" in said and last.get("type") == said["type"]:
            last["delta"] = put_together(last["delta"], said["delta"])
        else:
            kept.append(said)
    return kept


def put_together(before: Any, after: Any) -> Any:
    """Two pieces of one text."""
    if isinstance(before, str):
        return before + after
    return {key: before[key] if key == "type" else before[key] + after[key] for key in before}


@contextlib.asynccontextmanager
async def both(serve: Serve) -> AsyncIterator[tuple[str, str]]:
    """The engine's address and the gateway's."""
    async with served() as port:
        url = f"http://127.0.0.1:{port}"
        settings = Settings(engines=(EngineSettings(id="e1", url=url, models=("emulated",)),))
        yield url, (await serve(settings=settings)).url
