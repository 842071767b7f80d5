"""What one request to `/v1/responses` hangs on: an earlier response or a conversation, put back into its input; and
where its reply will be kept.

Rule: a request that refers to nothing passes through untouched; it is only listened to, so that it can be referred to.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agentserve.errors import AgentServeError, BadRequest
from agentserve.live.keeptap import KeepTap
from agentserve.live.kept import Json, Kept, items_of

_encode = msgspec.json.encode


class Thread:
    """What one request to `/v1/responses` hangs on, and where its reply will be kept."""

    __slots__ = ("_kept", "_tenant", "conversation", "items", "new_at", "previous", "stores", "tokens")

    def __init__(self, kept: Kept, tenant: str, body: Json) -> None:
        self._kept = kept
        self._tenant = tenant
        self.stores = body.get("store") is not False
        self.previous: str | None = None
        self.conversation: str | None = None
        self.tokens = 0  # of what is put back, as the engine counted them
        before: list[Any] = []
        previous, conversation = body.get("previous_response_id"), body.get("conversation")
        if previous is not None and conversation is not None:
            raise BadRequest("previous_response_id and conversation exclude each other", field="conversation")
        if previous is not None:
            if not isinstance(previous, str):
                raise BadRequest("an id is a text", field="previous_response_id")
            earlier = kept.response(tenant, previous)
            if earlier.body.get("status") in ("queued", "in_progress"):
                raise BadRequest("that response is not finished yet", field="previous_response_id")
            self.previous = previous
            before, self.tokens = earlier.items, earlier.tokens
        elif conversation is not None:
            named = conversation.get("id") if isinstance(conversation, dict) else conversation
            if not isinstance(named, str):
                raise BadRequest("a conversation is named by its id", field="conversation")
            self.conversation = named
            before = list(kept.conversation(tenant, named).items)
        self.new_at = len(before)
        self.items = [*before, *items_of(body.get("input"))]

    @property
    def refers(self) -> bool:
        """Does the request leave something to be put back?"""
        return self.previous is not None or self.conversation is not None

    def fill(self, body: Json) -> None:
        """Put back what the request only referred to."""
        body["input"] = self.items
        body.pop("previous_response_id", None)
        body.pop("conversation", None)

    def tap(self, *, streamed: bool) -> KeepTap | None:
        """What listens to the reply; None when there is nothing to listen for."""
        return KeepTap(self, streamed=streamed) if self.stores or self.refers else None

    def keep(self, body: Json, size: int) -> None:
        """The response came: remember it."""
        output = [item for item in body.get("output") or [] if isinstance(item, dict)]
        if self.previous is not None:
            body["previous_response_id"] = self.previous
        if self.conversation is not None:
            body["conversation"] = {"id": self.conversation}
            try:
                conversation = self._kept.conversation(self._tenant, self.conversation)
                self._kept.extend(conversation, [*self.items[self.new_at :], *output])
            except AgentServeError:
                return  # deleted, or full, while the model wrote
        named = body.get("id")
        if self.stores and isinstance(named, str) and not self._kept.is_unwanted(self._tenant, named):
            items = [*self.items, *output]
            new = _encode(self.items[self.new_at :])
            self._kept.keep(self._tenant, body, items, new_at=self.new_at, size=size + len(new))
