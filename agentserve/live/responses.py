"""What `/v1/responses` needs beside the hot path: what a request refers to is found, background responses run, and all
that is kept is read and deleted through the API.

Rule: what a tenant names is looked for among its own. How a request and its reply hang together is `thread`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agentserve.errors import BadRequest, NotFound, Overloaded
from agentserve.live.auth import CALL
from agentserve.live.background import Background, response_body
from agentserve.live.exchange import Exchange
from agentserve.live.kept import (
    UNFINISHED,
    Conversation,
    Json,
    Kept,
    KeptResponse,
    new_id,
    with_id,
)
from agentserve.live.pages import listed, page
from agentserve.live.programs import mapping
from agentserve.live.replies import json_body, json_response
from agentserve.live.thread import Thread
from agentserve.ports import Archive

if TYPE_CHECKING:
    from agentserve.live.services import Services

BACKGROUND_MAX = 1_000
STOP_S = 5.0
# of a background response, as its client was told when it began: the engine was asked for another, that nobody keeps
_OURS = ("id", "created_at", "background", "metadata", "store")
CUT_SHORT = "the gateway stopped before the response was finished; send the request again"
_encode = msgspec.json.encode

RunBackground = Callable[[Exchange, bytes, Callable[[int, bytes], None]], asyncio.Task[None]]


class Responses:
    """The store's face: threads for the relay, routes for clients."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.background = Background()
        self._services: Services | None = None
        self._running: set[asyncio.Task[None]] = set()

    def archived_in(self, archive: Archive | None, *, whole: bool) -> None:
        """Where things are at rest: that background responses run, and whole responses where they may be."""
        self.background.archive = archive
        self.kept.archive = archive if whole else None

    def start(self) -> None:
        """From now on."""
        self.background.start()

    async def stop(self) -> None:
        """What still runs in the background is cut short, and that is said of it."""
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=STOP_S)
        await self.background.stop()

    def thread(self, tenant: str, body: Json) -> Thread:
        """What a request hangs on."""
        return Thread(self.kept, tenant, body)

    async def recalled(self, tenant: str, body: Json) -> None:
        """What the request refers to is in memory from now on, if it is anywhere."""
        conversation = body.get("conversation")
        named = conversation.get("id") if isinstance(conversation, dict) else conversation
        for wanted in (body.get("previous_response_id"), named):
            if isinstance(wanted, str) and self.kept.lacks(tenant, wanted):
                await self.kept.recall(tenant, wanted)

    async def _response(self, request: Request) -> KeptResponse:
        """The response that a path names; of one that another gateway ran there may be no more than its state."""
        tenant, named = self._tenant(request), request.path_params["response"]
        await self.kept.recall(tenant, named)
        try:
            return self.kept.response(tenant, named)
        except NotFound:
            told = await self.background.told(tenant, named)
            if told is None:
                raise
            return KeptResponse(body=told, items=[], new_at=0, size=0)

    async def _conversation(self, request: Request) -> Conversation:
        tenant, named = self._tenant(request), request.path_params["conversation"]
        await self.kept.recall(tenant, named)
        return self.kept.conversation(tenant, named)

    def in_background(self, x: Exchange, tenant: str, run: RunBackground) -> Json:
        """Begin a response whose client does not wait, and say how it can be asked for."""
        if len(self._running) >= BACKGROUND_MAX:
            raise Overloaded("too many responses run in the background", retry_after_s=5.0)
        if x.body.get("store") is False:
            raise BadRequest("a background response has to be stored", field="store")
        if x.body.get("stream") is True:
            raise BadRequest(
                "a background response is not streamed here", field="stream", remedy="poll it by its id"
            )
        thread = self.thread(tenant, x.body)
        body: Json = {
            "id": new_id("resp"),
            "created_at": int(time.time()),
            "instructions": x.body.get("instructions"),
            "metadata": x.body.get("metadata") or {},
            "model": x.body.get("model"),
            "parallel_tool_calls": x.body.get("parallel_tool_calls") is not False,
            "previous_response_id": thread.previous,
            "store": True,
            "tool_choice": x.body.get("tool_choice") or "auto",
            "tools": x.body.get("tools") or [],
        }
        if thread.conversation is not None:
            body["conversation"] = {"id": thread.conversation}
        body = response_body(body, "queued")
        kept = self.kept.keep(tenant, body, thread.items, new_at=thread.new_at, size=len(x.raw))
        inner = {k: v for k, v in x.body.items() if k not in ("background", "stream")}
        inner["store"] = False

        def ended(status: int, raw: bytes) -> None:
            self._ended(tenant, thread, kept.body, status, raw)

        kept.running = run(x, _encode(inner), ended)
        self._running.add(kept.running)
        kept.running.add_done_callback(self._running.discard)
        self.background.began(tenant, body)
        kept.body["status"] = "in_progress"
        return {**body, "status": "queued"}

    def _ended(self, tenant: str, thread: Thread, body: Json, status: int, raw: bytes) -> None:
        if body["status"] == "cancelled":
            self._keep_end(tenant, thread, body)
            return
        try:
            said = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeError):
            said = {}
        said = said if isinstance(said, dict) else {}
        if status == 200 and said.get("object") == "response":
            said |= {name: body[name] for name in _OURS}
            thread.keep(said, len(raw))
            self.background.over(tenant, body["id"], "completed")
            return
        error = said.get("error")
        message = error.get("message") if isinstance(error, dict) else CUT_SHORT
        body["status"] = "failed"
        body["error"] = {"code": "server_error", "message": message}
        self._keep_end(tenant, thread, body)

    def _keep_end(self, tenant: str, thread: Thread, body: Json) -> None:
        """It has no reply; that it ended, and why, is kept like one."""
        try:
            size = self.kept.response(tenant, body["id"]).size
        except NotFound:  # deleted meanwhile
            self.background.forget(tenant, body["id"])
            return
        self.kept.keep(tenant, body, thread.items, new_at=thread.new_at, size=size)
        self.background.over(tenant, body["id"], body["status"])

    # -- the API

    def routes(self, services: Services) -> list[Route]:
        """Where it is."""
        self._services = services
        at, items = "/v1/responses/{response}", "/v1/conversations/{conversation}/items"
        conversation = "/v1/conversations/{conversation}"
        return [
            Route(at, self.show, methods=["GET"]),
            Route(at, self.delete, methods=["DELETE"]),
            Route(f"{at}/cancel", self.cancel, methods=["POST"]),
            Route(f"{at}/input_items", self.input_items, methods=["GET"]),
            Route("/v1/conversations", self.begin, methods=["POST"]),
            Route(conversation, self.conversation, methods=["GET"]),
            Route(conversation, self.update, methods=["POST"]),
            Route(conversation, self.end, methods=["DELETE"]),
            Route(items, self.items, methods=["GET"]),
            Route(items, self.add_items, methods=["POST"]),
            Route(f"{items}/{{item}}", self.item, methods=["GET"]),
            Route(f"{items}/{{item}}", self.delete_item, methods=["DELETE"]),
        ]

    def _tenant(self, request: Request) -> str:
        assert self._services is not None
        return self._services.authorise(request, CALL).tenant

    async def show(self, request: Request) -> Response:
        """A stored response."""
        if request.query_params.get("stream", "false").lower() not in ("false", "0"):
            raise BadRequest(
                "a stored response is not streamed here", field="stream", remedy="poll it by its id"
            )
        kept = await self._response(request)
        return json_response(kept.body)

    async def delete(self, request: Request) -> Response:
        """Forget a response."""
        tenant, response_id = self._tenant(request), request.path_params["response"]
        try:
            found = await self._response(request)
        except NotFound:
            self.kept.unwanted(tenant, response_id)
            raise
        if found.body["status"] in UNFINISHED:
            _cut(found)
        self.kept.forget(tenant, response_id)
        self.background.forget(tenant, response_id)
        return json_response({"id": response_id, "object": "response.deleted", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        """Stop a background response."""
        kept = await self._response(request)
        if not kept.body.get("background"):
            raise BadRequest(
                "only background responses can be cancelled", remedy="close the connection instead"
            )
        if kept.body["status"] in UNFINISHED:
            _cut(kept)
        return json_response(kept.body)

    async def input_items(self, request: Request) -> Response:
        """What a response was asked with."""
        kept = await self._response(request)
        produced = len(kept.body.get("output") or [])
        asked = kept.items[: len(kept.items) - produced] if kept.body["status"] != "queued" else kept.items
        for i, item in enumerate(asked):
            if not isinstance(item, dict) or not isinstance(item.get("id"), str):
                asked[i] = kept.items[i] = with_id(item)
        return json_response(page(asked, request.query_params))

    async def begin(self, request: Request) -> Response:
        """A new conversation."""
        tenant = self._tenant(request)
        said = mapping(await json_body(request))
        conversation = self.kept.begin(
            tenant,
            items=_items_field(said),
            metadata=_metadata_field(said),
            created_at=int(time.time()),
        )
        return json_response(conversation.view())

    async def conversation(self, request: Request) -> Response:
        """A conversation without its items."""
        return json_response((await self._conversation(request)).view())

    async def update(self, request: Request) -> Response:
        """Replace a conversation's metadata."""
        conversation = await self._conversation(request)
        conversation.metadata = _metadata_field(mapping(await json_body(request)))
        self.kept.changed(conversation)
        return json_response(conversation.view())

    async def end(self, request: Request) -> Response:
        """Forget a conversation."""
        conversation_id = request.path_params["conversation"]
        await self._conversation(request)
        self.kept.end(self._tenant(request), conversation_id)
        return json_response({"id": conversation_id, "object": "conversation.deleted", "deleted": True})

    async def items(self, request: Request) -> Response:
        """A conversation's items, by pages."""
        conversation = await self._conversation(request)
        return json_response(page(conversation.items, request.query_params))

    async def add_items(self, request: Request) -> Response:
        """Add to a conversation."""
        conversation = await self._conversation(request)
        added = self.kept.extend(conversation, _items_field(mapping(await json_body(request))))
        return json_response(listed(added, more=False))

    async def item(self, request: Request) -> Response:
        """One item."""
        conversation = await self._conversation(request)
        wanted = request.path_params["item"]
        for item in conversation.items:
            if item["id"] == wanted:
                return json_response(item)
        raise NotFound(f"there is no item {wanted!r} in this conversation")

    async def delete_item(self, request: Request) -> Response:
        """Forget one item."""
        conversation = await self._conversation(request)
        wanted = request.path_params["item"]
        if not self.kept.take_out(conversation, wanted):
            raise NotFound(f"there is no item {wanted!r} in this conversation")
        return json_response(conversation.view())


def _cut(kept: KeptResponse) -> None:
    if kept.running is None:
        raise BadRequest("this response runs on another gateway", remedy="wait until it is finished")
    kept.body["status"] = "cancelled"
    kept.running.cancel()


def _items_field(said: Any) -> list[Any]:
    items = said.get("items") or []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadRequest("items is a list of objects", field="items")
    return items


def _metadata_field(said: Any) -> Json:
    metadata = said.get("metadata") or {}
    if not isinstance(metadata, dict) or len(metadata) > 16:
        raise BadRequest("metadata is an object of at most 16 entries", field="metadata")
    return metadata
