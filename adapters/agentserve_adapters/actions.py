"""Native actions on an engine's KV, in the shape of the emerging KV-hint envelope, and what became of them.

Rule: every pin, release, prefetch and abort passes through an `ActionLog`, so that its answer is on record;
an engine that refused one is not asked again until it restarts, and the operator is warned once, not per
request. This module sends nothing.

The envelope is `{"protocol_version", "message_id", "actions": [{"action_id", "action_type",
"action_version", "payload"}]}`; engines, routers and cache tiers are converging on it.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from agentserve.core.decisions import PinMode
from agentserve.ports import Outcome, Receipt

log = logging.getLogger("agentserve.engines")

PROTOCOL_VERSION = "1.0"
RECORDS_MAX = 256

ActionType = Literal["kv.pin", "kv.release", "kv.prefetch", "request.abort"]

# Answers that will be the same next time; anything else may pass.
LASTING_REFUSALS = frozenset({400, 401, 403, 404, 405, 410, 415, 422, 501})


class Refused(Exception):
    """The engine said no. `lasting`: asking again before a restart is pointless."""

    def __init__(self, detail: str, *, lasting: bool) -> None:
        super().__init__(detail)
        self.detail = detail
        self.lasting = lasting

    @classmethod
    def by_status(cls, status: int, detail: str) -> Refused:
        return cls(detail, lasting=status in LASTING_REFUSALS)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvAction:
    """One thing asked of an engine."""

    action_id: str
    action_type: ActionType
    payload: dict[str, Any] = field(default_factory=dict)
    action_version: str = "1.0"

    def envelope(self) -> dict[str, Any]:
        """This action alone, as a message."""
        return {
            "protocol_version": PROTOCOL_VERSION,
            "message_id": f"m-{self.action_id}",
            "actions": [
                {
                    "action_id": self.action_id,
                    "action_type": self.action_type,
                    "action_version": self.action_version,
                    "payload": self.payload,
                }
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionRecord:
    """An action and its answer."""

    action: KvAction
    receipt: Receipt


class ActionLog:
    """What was asked of one engine, what it answered, and what it need not be asked again."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.records: deque[ActionRecord] = deque(maxlen=RECORDS_MAX)
        self._refused: dict[ActionType, str] = {}
        self._ids = itertools.count(1)

    @property
    def refused(self) -> tuple[str, ...]:
        """What the engine refuses for good, in words."""
        return tuple(f"{kind}: {why}" for kind, why in sorted(self._refused.items()))

    def forget(self) -> None:
        """The engine was restarted: it may be another build with other flags."""
        self._refused.clear()

    def note(self, action_type: ActionType, payload: dict[str, Any], receipt: Receipt) -> Receipt:
        """Put an action that needed no asking on record."""
        self.records.append(ActionRecord(action=self._action(action_type, payload), receipt=receipt))
        return receipt

    async def carry_out(
        self,
        action_type: ActionType,
        payload: dict[str, Any],
        native: Callable[[], Awaitable[Receipt]],
        *,
        instead: PinMode | Literal["none"],
        emulation: str,
    ) -> Receipt:
        """Ask the engine; where it refuses, say what takes the action's place."""
        known = self._refused.get(action_type)
        if known is not None:
            receipt = Receipt(outcome=Outcome.REFUSED, mode=instead, detail=f"{known}; {emulation}")
            return self.note(action_type, payload, receipt)
        try:
            receipt = await native()
        except Refused as exc:
            receipt = Receipt(outcome=Outcome.REFUSED, mode=instead, detail=f"{exc.detail}; {emulation}")
            if exc.lasting:
                self._refused[action_type] = exc.detail
                log.warning(
                    "engine %s refuses %s (%s): %s from now on",
                    self.engine,
                    action_type,
                    exc.detail,
                    emulation,
                )
        return self.note(action_type, payload, receipt)

    def _action(self, action_type: ActionType, payload: dict[str, Any]) -> KvAction:
        return KvAction(
            action_id=f"{self.engine}-{next(self._ids)}", action_type=action_type, payload=payload
        )
