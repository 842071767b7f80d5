"""Responses and conversations that clients refer to later: our own store, since engines keep none.

Rule: in memory, bounded in number and bytes, the oldest out first; a tenant's own, by id. A kept response holds the
whole chain of items that led to it, sharing the items with the one before, so that a chain costs what is new in it.
Where there is an archive, what is kept is written there too, and `recall` brings back what memory has let go of or
what an earlier gateway kept; nothing else waits for it.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import msgspec

from agentserve.errors import NotFound, TooLarge
from agentserve.ports import Archive

Json = dict[str, Any]
BYTES_MAX = 256 * 1024 * 1024
CONVERSATION_ITEMS_MAX = 20_000
CONVERSATION_BYTES_MAX = 32 * 1024 * 1024
CHAIN_MAX = 1_000  # responses before one, read back at once
UNFINISHED = ("queued", "in_progress")


@dataclass(slots=True, kw_only=True)
class KeptResponse:
    """One response with everything that led to it."""

    body: Json
    items: list[Any]  # everything that the model saw, in order
    new_at: int  # where what this request brought begins
    size: int
    tokens: int = 0
    running: Any = None  # of a background response: what cancels it


@dataclass(slots=True, kw_only=True)
class Conversation:
    """A list of items that outlives its responses."""

    id: str
    created_at: int
    metadata: Json = field(default_factory=dict)
    items: list[Json] = field(default_factory=list)
    size: int = 0
    tenant: str = ""

    def view(self) -> Json:
        """As the API shows it."""
        return {
            "id": self.id,
            "object": "conversation",
            "created_at": self.created_at,
            "metadata": self.metadata,
        }


class Kept:
    """Everybody's, by tenant and id."""

    def __init__(self, *, responses_max: int = 10_000, bytes_max: int = BYTES_MAX) -> None:
        self._responses: OrderedDict[tuple[str, str], KeptResponse] = OrderedDict()
        self._conversations: OrderedDict[tuple[str, str], Conversation] = OrderedDict()
        self._responses_max = responses_max
        self._bytes_max = bytes_max
        self.bytes = 0
        self.archive: Archive | None = None

    # -- responses

    def keep(self, tenant: str, body: Json, items: list[Any], *, new_at: int, size: int) -> KeptResponse:
        """Remember a response, or what has become of it."""
        kept = self._put(tenant, body, items, new_at=new_at, size=size)
        if self.archive is not None and body.get("status") not in UNFINISHED:
            previous = body.get("previous_response_id")
            mine = items[new_at:] if isinstance(previous, str) else items
            record = {"kind": "response", "body": body, "items": mine, "new_at": new_at, "size": size}
            self.archive.keep(tenant, str(body.get("id")), msgspec.json.encode(record))
        return kept

    def _put(self, tenant: str, body: Json, items: list[Any], *, new_at: int, size: int) -> KeptResponse:
        key = (tenant, str(body.get("id")))
        self._drop(key)
        usage = body.get("usage")
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else 0
        kept = KeptResponse(
            body=body, items=items, new_at=new_at, size=size, tokens=tokens if isinstance(tokens, int) else 0
        )
        self._responses[key] = kept
        self.bytes += size
        while len(self._responses) > self._responses_max:
            self._drop(next(iter(self._responses)))
        self._shrink(but=key)
        return kept

    def _shrink(self, *, but: tuple[str, str]) -> None:
        """Let go of the oldest until all fits, responses before conversations, and never of what was just kept."""
        while self.bytes > self._bytes_max:
            oldest = next((key for key in self._responses if key != but), None)
            if oldest is not None:
                self._drop(oldest)
                continue
            idle = next((key for key in self._conversations if key != but), None)
            if idle is None:
                return
            self.bytes -= self._conversations.pop(idle).size

    def response(self, tenant: str, response_id: str) -> KeptResponse:
        """The response of that id, or `NotFound`."""
        found = self._responses.get((tenant, response_id))
        if found is None:
            raise NotFound(
                f"there is no response {response_id!r}",
                remedy="it was never stored, or is too old; send the whole conversation instead",
            )
        return found

    def forget(self, tenant: str, response_id: str) -> None:
        """Delete it, wherever it is."""
        self._drop((tenant, response_id))
        if self.archive is not None:
            self.archive.forget(tenant, response_id)

    def _drop(self, key: tuple[str, str]) -> None:
        old = self._responses.pop(key, None)
        if old is not None:
            self.bytes -= old.size

    # -- conversations

    def begin(self, tenant: str, *, items: list[Any], metadata: Json, created_at: int) -> Conversation:
        """A new conversation."""
        conversation = Conversation(
            id=new_id("conv"), created_at=created_at, metadata=metadata, tenant=tenant
        )
        self._hold(conversation)
        self.extend(conversation, items)
        return conversation

    def _hold(self, conversation: Conversation) -> None:
        self._conversations[conversation.tenant, conversation.id] = conversation
        if len(self._conversations) > self._responses_max:
            _, old = self._conversations.popitem(last=False)
            self.bytes -= old.size

    def conversation(self, tenant: str, conversation_id: str) -> Conversation:
        """The conversation of that id, or `NotFound`."""
        found = self._conversations.get((tenant, conversation_id))
        if found is None:
            raise NotFound(
                f"there is no conversation {conversation_id!r}", remedy="POST /v1/conversations begins one"
            )
        self._conversations.move_to_end((tenant, conversation_id))
        return found

    def end(self, tenant: str, conversation_id: str) -> None:
        """Delete it."""
        gone = self.conversation(tenant, conversation_id)
        del self._conversations[tenant, conversation_id]
        self.bytes -= gone.size
        if self.archive is not None:
            self.archive.forget(tenant, conversation_id)

    def extend(self, conversation: Conversation, items: list[Any]) -> list[Json]:
        """Add items, with ids where they have none."""
        if len(conversation.items) + len(items) > CONVERSATION_ITEMS_MAX:
            raise TooLarge(
                f"a conversation holds at most {CONVERSATION_ITEMS_MAX} items",
                remedy="begin a new conversation",
            )
        added = [with_id(item) for item in items]
        size = len(msgspec.json.encode(added))
        if conversation.size + size > CONVERSATION_BYTES_MAX:
            raise TooLarge(
                f"a conversation holds at most {CONVERSATION_BYTES_MAX} bytes",
                remedy="begin a new conversation",
            )
        conversation.items += added
        conversation.size += size
        key = (conversation.tenant, conversation.id)
        if key in self._conversations:  # else it was deleted meanwhile, and stays so
            self.bytes += size
            self._shrink(but=key)
            self.changed(conversation)
        return added

    def changed(self, conversation: Conversation) -> None:
        """It is not as it was: what is at rest has to follow."""
        if self.archive is not None:
            record = {
                "kind": "conversation",
                "created_at": conversation.created_at,
                "metadata": conversation.metadata,
                "items": conversation.items,
                "size": conversation.size,
            }
            self.archive.keep(conversation.tenant, conversation.id, msgspec.json.encode(record))

    # -- what memory lacks

    def lacks(self, tenant: str, named: str) -> bool:
        """Is there something of that id to be recalled?"""
        key = (tenant, named)
        return self.archive is not None and key not in self._responses and key not in self._conversations

    async def recall(self, tenant: str, named: str) -> None:
        """Bring it back from the archive, with the responses before it; nothing happens where it is not there."""
        chain: list[tuple[str, Json]] = []
        wanted: Any = named
        while (
            isinstance(wanted, str)
            and self.archive is not None
            and self.lacks(tenant, wanted)
            and len(chain) < CHAIN_MAX
        ):
            body = await self.archive.load(tenant, wanted)
            if body is None:
                break
            record = msgspec.json.decode(body)
            if "kind" not in record:
                break  # it only says that something runs
            chain.append((wanted, record))
            wanted = record["body"].get("previous_response_id") if record["kind"] == "response" else None
        for id_, record in reversed(chain):
            self._revive(tenant, id_, record)

    def _revive(self, tenant: str, named: str, record: Json) -> None:
        if not self.lacks(tenant, named):
            return  # another request was faster, and may have added to it since
        if record["kind"] == "conversation":
            conversation = Conversation(
                id=named,
                created_at=record["created_at"],
                metadata=record["metadata"],
                items=record["items"],
                size=record["size"],
                tenant=tenant,
            )
            self._hold(conversation)
            self.bytes += conversation.size
            self._shrink(but=(tenant, named))
            return
        body, items = record["body"], record["items"]
        previous = body.get("previous_response_id")
        if isinstance(previous, str):
            before = self._responses.get((tenant, previous))
            if before is None:
                return  # a part of the chain is gone, and half a conversation would mislead
            items = [*before.items, *items]
        self._put(tenant, body, items, new_at=record["new_at"], size=record["size"])


def new_id(prefix: str) -> str:
    """An id that cannot be guessed."""
    return f"{prefix}_{uuid.uuid4().hex}"


_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def with_id(item: Any) -> Json:
    """An item with an id, and a type where it is plainly a message."""
    made: Json = (
        dict(item) if isinstance(item, dict) else {"type": "message", "role": "user", "content": item}
    )
    made.setdefault("type", "message")
    if made["type"] == "message" and isinstance(made.get("content"), str):
        kind = "output_text" if made.get("role") == "assistant" else "input_text"
        made["content"] = [{"type": kind, "text": made["content"]}]
    if not isinstance(made.get("id"), str):
        made["id"] = new_id(_PREFIXES.get(str(made["type"]), "item"))
    return made


def items_of(given: Any) -> list[Any]:
    """A request's `input` as a list of items."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    return list(given) if isinstance(given, list) else []
