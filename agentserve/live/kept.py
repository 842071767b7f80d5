"""Responses and conversations that clients refer to later: our own store, since engines keep none.

Rule: in memory, bounded in number and bytes; a tenant's own, by id. When there is too much, the tenant that keeps most
lets go of its oldest, so that nobody loses what is theirs to another's flood. A kept response holds the whole chain of
items that led to it, sharing the items with the one before, so that a chain costs what is new in it. Where there is an
archive, what is kept is written there too, and `recall` brings back what memory has let go of or what an earlier
gateway kept; nothing else waits for it.
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
UNWANTED_MAX = 1_000  # responses deleted before they were whole
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


class Shelf:
    """One tenant's, by id, the oldest first; what it takes up is counted with everybody's."""

    __slots__ = ("bytes", "conversations", "responses")

    def __init__(self) -> None:
        self.responses: OrderedDict[str, KeptResponse] = OrderedDict()
        self.conversations: OrderedDict[str, Conversation] = OrderedDict()
        self.bytes = 0

    def drop(self, named: str) -> int:
        """Let go of it, if it is here; how many bytes that is."""
        gone = self.responses.pop(named, None) or self.conversations.pop(named, None)
        size = gone.size if gone is not None else 0
        self.bytes -= size
        return size

    def oldest(self, *, but: str) -> str | None:
        """What goes first, responses before conversations."""
        named = next((name for name in self.responses if name != but), None)
        return named or next((name for name in self.conversations if name != but), None)


class Kept:
    """Everybody's, by tenant and id."""

    def __init__(self, *, responses_max: int = 10_000, bytes_max: int = BYTES_MAX) -> None:
        self._shelves: dict[str, Shelf] = {}
        self._responses_max = responses_max
        self._bytes_max = bytes_max
        self._responses = self._conversations = 0
        self.bytes = 0
        self.archive: Archive | None = None
        self._unwanted: OrderedDict[tuple[str, str], None] = OrderedDict()

    # -- responses

    def unwanted(self, tenant: str, response_id: str) -> None:
        """It was deleted, and nothing of it is here: if it is still being streamed it is not to be kept."""
        self._unwanted[tenant, response_id] = None
        if len(self._unwanted) > UNWANTED_MAX:
            self._unwanted.popitem(last=False)

    def is_unwanted(self, tenant: str, response_id: str) -> bool:
        """Was it deleted before it was whole? That is asked once, when it is."""
        if (tenant, response_id) not in self._unwanted:
            return False
        del self._unwanted[tenant, response_id]
        return True

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
        named = str(body.get("id"))
        self._drop(tenant, named)
        usage = body.get("usage")
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else 0
        kept = KeptResponse(
            body=body, items=items, new_at=new_at, size=size, tokens=tokens if isinstance(tokens, int) else 0
        )
        shelf = self._shelf(tenant)
        shelf.responses[named] = kept
        self._responses += 1
        self._grown(shelf, size)
        while self._responses > self._responses_max:
            fullest = max(self._shelves, key=lambda name: len(self._shelves[name].responses))
            self._drop(fullest, next(iter(self._shelves[fullest].responses)))
        self._shrink(tenant, named)
        return kept

    def _shelf(self, tenant: str) -> Shelf:
        shelf = self._shelves.get(tenant)
        if shelf is None:
            shelf = self._shelves[tenant] = Shelf()
        return shelf

    def _grown(self, shelf: Shelf, size: int) -> None:
        shelf.bytes += size
        self.bytes += size

    def _shrink(self, tenant: str, but: str) -> None:
        """Until all fits the tenant that keeps most lets go of its oldest, and nobody of what was just kept."""
        while self.bytes > self._bytes_max:
            for name in sorted(self._shelves, key=lambda name: -self._shelves[name].bytes):
                oldest = self._shelves[name].oldest(but=but if name == tenant else "")
                if oldest is not None:
                    self._drop(name, oldest)
                    break
            else:
                return

    def response(self, tenant: str, response_id: str) -> KeptResponse:
        """The response of that id, or `NotFound`."""
        found = self._find(tenant, response_id)
        if not isinstance(found, KeptResponse):
            raise NotFound(
                f"there is no response {response_id!r}",
                remedy="it was never stored, or is too old; send the whole conversation instead",
            )
        return found

    def forget(self, tenant: str, response_id: str) -> None:
        """Delete it, wherever it is."""
        self._drop(tenant, response_id)
        if self.archive is not None:
            self.archive.forget(tenant, response_id)

    def _find(self, tenant: str, named: str) -> KeptResponse | Conversation | None:
        shelf = self._shelves.get(tenant)
        if shelf is None:
            return None
        return shelf.responses.get(named) or shelf.conversations.get(named)

    def _drop(self, tenant: str, named: str) -> None:
        shelf = self._shelves.get(tenant)
        if shelf is None:
            return
        if named in shelf.responses:
            self._responses -= 1
        elif named in shelf.conversations:
            self._conversations -= 1
        self.bytes -= shelf.drop(named)
        if not shelf.responses and not shelf.conversations:
            del self._shelves[tenant]

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
        shelf = self._shelf(conversation.tenant)
        shelf.conversations[conversation.id] = conversation
        self._conversations += 1
        if self._conversations > self._responses_max:
            fullest = max(self._shelves, key=lambda name: len(self._shelves[name].conversations))
            self._drop(fullest, next(iter(self._shelves[fullest].conversations)))

    def conversation(self, tenant: str, conversation_id: str) -> Conversation:
        """The conversation of that id, or `NotFound`."""
        found = self._find(tenant, conversation_id)
        if not isinstance(found, Conversation):
            raise NotFound(
                f"there is no conversation {conversation_id!r}", remedy="POST /v1/conversations begins one"
            )
        self._shelves[tenant].conversations.move_to_end(conversation_id)
        return found

    def end(self, tenant: str, conversation_id: str) -> None:
        """Delete it."""
        self.conversation(tenant, conversation_id)
        self._drop(tenant, conversation_id)
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
        tenant, named = conversation.tenant, conversation.id
        if self._find(tenant, named) is conversation:  # else it was deleted meanwhile, and stays so
            self._grown(self._shelves[tenant], size)
            self._shrink(tenant, named)
            self.changed(conversation)
        return added

    def take_out(self, conversation: Conversation, item_id: str) -> bool:
        """Forget one item, and what it took up; False when it is not there."""
        gone = [item for item in conversation.items if item["id"] == item_id]
        if not gone:
            return False
        size = min(len(msgspec.json.encode(gone)), conversation.size)
        conversation.items = [item for item in conversation.items if item["id"] != item_id]
        conversation.size -= size
        if self._find(conversation.tenant, conversation.id) is conversation:
            self._grown(self._shelves[conversation.tenant], -size)
        self.changed(conversation)
        return True

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
        return self.archive is not None and self._find(tenant, named) is None

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
            self._grown(self._shelf(tenant), conversation.size)
            self._shrink(tenant, named)
            return
        body, items = record["body"], record["items"]
        previous = body.get("previous_response_id")
        if isinstance(previous, str):
            before = self._find(tenant, previous)
            if not isinstance(before, KeptResponse):
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
