"""A reply in the making: what the readers of every protocol write into, piece by piece.

Rule: it accepts anything and keeps what it can use; text beyond its bound is counted and dropped, and then there is no
echo to wait for.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agentserve.core.identity.evidence import Item
from agentserve.live.wire.canon import assistant_item, text_of
from agentserve.live.wire.reply import Reply, ReplyTool, Usage, finish_of

TEXT_CHARS_MAX = 4 * 1024 * 1024  # of a reply's own text and arguments
TOOL_CALLS_MAX = 512


def string(value: Any) -> str | None:
    """The value if it is text."""
    return value if isinstance(value, str) else None


class Draft:
    """What is known so far."""

    __slots__ = (
        "calls",
        "chars",
        "error",
        "finish",
        "model",
        "response_id",
        "texts",
        "usage",
        "usage_raw",
        "whole",
    )

    def __init__(self) -> None:
        self.response_id: str | None = None
        self.model: str | None = None
        self.finish = ""
        self.usage: Usage | None = None
        self.usage_raw: dict[str, Any] = {}
        self.texts: list[str] = []
        self.calls: dict[int, list[Any]] = {}  # index -> [id, name, pieces of its arguments]
        self.chars = 0
        self.whole = False
        self.error: str | None = None

    def text(self, text: Any) -> None:
        """A piece of the model's own text."""
        if not isinstance(text, str):
            text = text_of(text)
        self.chars += len(text)
        if self.chars <= TEXT_CHARS_MAX:
            self.texts.append(text)

    def call(self, index: int, call_id: Any, name: Any, arguments: Any) -> None:
        """A piece of a tool call; what is not text is left out, except arguments that came decoded."""
        call = self.calls.get(index)
        if call is None:
            if len(self.calls) >= TOOL_CALLS_MAX:
                return
            call = self.calls[index] = ["", "", []]
        if isinstance(call_id, str) and not call[0]:
            call[0] = call_id
        if isinstance(name, str) and not call[1]:
            call[1] = name
        if isinstance(arguments, (dict, list)):
            arguments = msgspec.json.encode(arguments).decode()
        if isinstance(arguments, str) and arguments:
            self.chars += len(arguments)
            if self.chars <= TEXT_CHARS_MAX:
                call[2].append(arguments)

    def ends(self, reason: Any) -> None:
        """How the reply ended, in the protocol's word."""
        if (word := finish_of(reason)) != "":
            self.finish = word

    def failed(self, error: Any) -> None:
        """The engine reported an error."""
        message = error.get("message", error.get("type")) if isinstance(error, dict) else error
        try:
            self.error = str(message)[:200]
        except RecursionError:  # what could just be decoded may be too deep to be written again
            self.error = "an error that is nested too deeply"
        self.finish = "error"

    def reply(self, *, items: tuple[Item, ...] | None = None) -> Reply:
        """The reply. `items`: what its client will echo, where that is not one message of text and calls."""
        tools: tuple[ReplyTool, ...] = ()
        if self.calls:
            tools = tuple(
                ReplyTool(
                    id=call_id or f"{name}:{index}", name=name, arguments="".join(pieces)
                )  # some give no ids
                for index, (call_id, name, pieces) in sorted(self.calls.items())
            )
        text = "".join(self.texts)
        if items is None:
            items = (
                (assistant_item(text, [(t.id, t.name, t.arguments) for t in tools]),) if text or tools else ()
            )
        if self.chars > TEXT_CHARS_MAX:
            items = ()  # what was dropped cannot be hashed, so there is no echo to wait for
        return Reply(
            response_id=self.response_id,
            model=self.model,
            finish=self.finish,
            usage=self.usage,
            tools=tools,
            items=items,
            output_chars=self.chars,
            whole=self.whole,
            error=self.error,
            text=text,
        )
