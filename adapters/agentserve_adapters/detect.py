"""Which kind of engine answers at an address.

Rule: every installed adapter may look; the surest wins, ties go to the first name. Adapters are found by
entry point, so that one installed from elsewhere is recognised the same way. An address where nothing
listens is an `EngineUnreachable`, one that keeps silent an `EngineTimeout`; one where something answers that nobody
knows is an `EngineBroke`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import httpx

from agentserve.errors import EngineBroke, EngineTimeout
from agentserve_adapters.detection import Recognised, Sight
from agentserve_adapters.wire import Answer, EngineWire

log = logging.getLogger("agentserve.engines")

GROUP = "agentserve.adapters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """The verdict, and who else thought to know it."""

    kind: str
    recognised: Recognised
    others: Mapping[str, Recognised]


def installed() -> dict[str, Any]:
    """Every adapter class that is installed, by kind. One that cannot be imported is no reason to fail."""
    found: dict[str, Any] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        try:
            found.setdefault(point.name, point.load())
        except (ImportError, AttributeError) as exc:
            log.warning("the adapter %s (%s) cannot be imported: %s", point.name, point.value, exc)
    return found


async def detect(
    url: str,
    *,
    api_key: str | None = None,
    adapters: Mapping[str, Any] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Detection:
    """The kind of the engine at `url`."""
    classes = installed() if adapters is None else adapters
    lookers = {kind: cls for kind, cls in classes.items() if hasattr(cls, "recognise")}
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    wire = EngineWire(url, engine=url, headers=headers, transport=transport)
    sight = Sight(wire)
    try:
        # all of them to their ends: one that is cancelled while it connects would leave its socket open
        answers = await asyncio.gather(
            *(cls.recognise(sight) for cls in lookers.values()), return_exceptions=True
        )
        listed = await sight.answer("/v1/models")
    finally:
        await wire.close()
    known: dict[str, Recognised] = {}
    for kind, seen in zip(lookers, answers, strict=True):
        if isinstance(seen, BaseException):
            raise seen
        if seen is not None:
            known[kind] = seen
    if not known and sight.silent:
        raise EngineTimeout(
            f"{url} takes connections and answers nothing",
            remedy="is the engine still loading its model, or stuck?",
            engine=url,
        )
    if not known:
        raise _unknown(url, listed)
    kind = max(sorted(known), key=lambda k: known[k].certainty)
    return Detection(kind=kind, recognised=known[kind], others={k: v for k, v in known.items() if k != kind})


def _unknown(url: str, listed: Answer | None) -> EngineBroke:
    """Why nobody knows it, as far as what it said when asked for its models tells."""
    if listed is None:
        way = "http://" if url.startswith("https://") else "https://"
        return EngineBroke(
            f"{url} does not answer with HTTP", remedy=f"is it {way}, or no engine?", engine=url
        )
    message = f"what answers at {url} is no engine that we know"
    if not listed.ok:
        message += f" (/v1/models: {listed.complaint()})"
    if listed.status in (401, 403):
        remedy = "give it its key: --api-key, or api_key_env in its settings"
    elif listed.status >= 500:
        remedy = "is it still loading its model, or what it stands in front of away?"
    else:
        remedy = "name its kind (kind = …) if it speaks an API of one"
    return EngineBroke(message, remedy=remedy, engine=url)
