"""Anthropic's messages, by chat completions.

Rule: see the package. Content blocks become content parts, tool results become tool messages in their place, and the
reply's text, reasoning and tool calls become blocks again, in the order in which they came.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import msgspec

from agentserve.live.translate.frame import (
    Json,
    Translation,
    Writer,
    as_dict,
    as_list,
    as_text,
    counts,
    event,
    first_choice,
    reasoning_of,
    refuse,
)

STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
# fields of the messages protocol that have a counterpart or are hints; any other travels on as it is
_OWN = frozenset(
    {
        "model", "messages", "system", "max_tokens", "stop_sequences", "stream", "tools", "tool_choice", "metadata",
        "thinking", "container", "context_management", "mcp_servers", "output_config", "output_format", "service_tier",
        "anthropic_beta", "betas",
    }
)  # fmt: skip
MOST_EFFORT = "high"  # the most that every engine of chat knows
_ABOVE_HIGH = ("xhigh", "max")
_REFUSED = {"container": "containers", "mcp_servers": "MCP servers"}
CLEARS_THINKING = "clear_thinking_"  # thinking of earlier turns is left out anyway


class MessagesTranslation(Translation):
    """One request to `/v1/messages`."""

    protocol = "messages"

    def __init__(self, body: Json) -> None:
        for field, what in _REFUSED.items():
            if body.get(field):
                raise refuse(what, field)
        for edit in as_list(as_dict(body.get("context_management")).get("edits")):
            kind = as_text(as_dict(edit).get("type"))
            if not kind.startswith(CLEARS_THINKING):
                raise refuse(f"the context edit {kind!r}", "context_management")
        chat: Json = {key: value for key, value in body.items() if key not in _OWN}
        chat["model"] = body.get("model")
        chat["messages"] = list(_messages(body))
        if "max_tokens" in body:
            chat["max_tokens"] = body["max_tokens"]
        if body.get("stop_sequences"):
            chat["stop"] = body["stop_sequences"]
        wanted = as_dict(body.get("output_config"))
        if (effort := wanted.get("effort")) is not None:
            chat["reasoning_effort"] = MOST_EFFORT if effort in _ABOVE_HIGH else effort
        if shape := wanted.get("format") or body.get("output_format"):
            chat["response_format"] = _response_format(as_dict(shape))
        if tools := [_tool(tool, i) for i, tool in enumerate(as_list(body.get("tools")))]:
            chat["tools"] = tools
            _choose(chat, as_dict(body.get("tool_choice")))
        user = as_dict(body.get("metadata")).get("user_id")
        if isinstance(user, str):
            chat["user"] = user
        if body.get("stream") is True:
            chat["stream"] = True
            chat["stream_options"] = {"include_usage": True}
        self.body = chat
        self._stops = [stop for stop in as_list(body.get("stop_sequences")) if isinstance(stop, str)]

    def reply(self, chat: Json) -> Json:
        choice = first_choice(chat)
        message = as_dict(choice.get("message"))
        blocks: list[Json] = []
        if thought := reasoning_of(message):
            blocks.append({"type": "thinking", "thinking": thought, "signature": ""})
        said = (as_text(message.get(field)) for field in ("content", "refusal"))
        blocks += [{"type": "text", "text": text} for text in said if text]
        for call in as_list(message.get("tool_calls")):
            function = as_dict(as_dict(call).get("function"))
            blocks.append(
                {
                    "type": "tool_use",
                    "id": as_text(as_dict(call).get("id")) or _new("toolu"),
                    "name": as_text(function.get("name")),
                    "input": _arguments(function.get("arguments")),
                }
            )
        reason, stop = self.stop(choice, refused=bool(message.get("refusal")))
        return {
            "id": f"msg_{as_text(chat.get('id')) or uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": as_text(chat.get("model")),
            "content": blocks,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": usage_of(chat.get("usage")),
        }

    def stop(self, choice: Json, *, refused: bool) -> tuple[str, str | None]:
        """Why the model stopped, and at which of the client's sequences."""
        if refused:
            return "refusal", None
        matched = choice.get("stop_reason")
        if isinstance(matched, str) and matched in self._stops:
            return "stop_sequence", matched
        return STOP_REASONS.get(as_text(choice.get("finish_reason")), "end_turn"), None

    def writer(self) -> Writer:
        return MessagesWriter(self)


class MessagesWriter(Writer):
    """Writes the events of one message."""

    def __init__(self, made: MessagesTranslation) -> None:
        self._made = made
        self._begun = False
        self._index = -1
        self._open = ""  # the kind of the open block, with the call's index for a tool
        self._stop: tuple[str, str | None] = ("end_turn", None)
        self._usage: Any = None
        self._refused = False

    def chunk(self, chunk: Json) -> Iterator[bytes]:
        if not self._begun:
            yield self._begin(chunk)
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        choice = first_choice(chunk)
        delta = as_dict(choice.get("delta"))
        if thought := reasoning_of(delta):
            yield from self._block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": thought})
        for said in ("content", "refusal"):
            if text := as_text(delta.get(said)):
                self._refused = self._refused or said == "refusal"
                yield from self._block("text", {"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
        for call in as_list(delta.get("tool_calls")):
            yield from self._call(as_dict(call))
        if choice.get("finish_reason"):
            self._stop = self._made.stop(choice, refused=self._refused)

    def end(self) -> Iterator[bytes]:
        if not self._begun:
            yield self._begin({})
        yield from self._close()
        reason, stop = self._stop
        usage = usage_of(self._usage)
        yield event(
            "message_delta",
            {
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": stop},
                "usage": usage,
            },
        )
        yield event("message_stop", {"type": "message_stop"})

    def _begin(self, chunk: Json) -> bytes:
        self._begun = True
        message: Json = {
            "id": f"msg_{as_text(chunk.get('id')) or uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": as_text(chunk.get("model")),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_of(chunk.get("usage")),
        }
        return event("message_start", {"type": "message_start", "message": message})

    def _call(self, call: Json) -> Iterator[bytes]:
        index = call.get("index", 0)
        function = as_dict(call.get("function"))
        if name := as_text(function.get("name")):
            block = {
                "type": "tool_use",
                "id": as_text(call.get("id")) or _new("toolu"),
                "name": name,
                "input": {},
            }
            yield from self._block(f"tool {index}", block)
        if arguments := as_text(function.get("arguments")):
            yield self._delta({"type": "input_json_delta", "partial_json": arguments})

    def _block(self, kind: str, block: Json) -> Iterator[bytes]:
        if self._open == kind:
            return
        yield from self._close()
        self._open = kind
        self._index += 1
        yield event(
            "content_block_start",
            {"type": "content_block_start", "index": self._index, "content_block": block},
        )

    def _delta(self, delta: Json) -> bytes:
        return event(
            "content_block_delta", {"type": "content_block_delta", "index": self._index, "delta": delta}
        )

    def _close(self) -> Iterator[bytes]:
        if self._open:
            self._open = ""
            yield event("content_block_stop", {"type": "content_block_stop", "index": self._index})


# -- the request


def _messages(body: Json) -> Iterator[Json]:
    system = body.get("system")
    if isinstance(system, list):
        system = "\n".join(as_text(as_dict(block).get("text")) for block in system)
    if isinstance(system, str) and system:
        yield {"role": "system", "content": system}
    for i, given in enumerate(as_list(body.get("messages"))):
        message = as_dict(given)
        role, content = message.get("role"), message.get("content")
        if isinstance(content, str):
            yield {"role": role, "content": content}
        elif role == "assistant":
            yield _assistant(as_list(content), f"messages[{i}]")
        else:
            yield from _user(role, as_list(content), f"messages[{i}]")


def _assistant(blocks: list[Any], where: str) -> Json:
    texts: list[str] = []
    calls: list[Json] = []
    for i, block in enumerate(blocks):
        block = as_dict(block)
        kind = block.get("type")
        if kind == "text":
            texts.append(as_text(block.get("text")))
        elif kind == "tool_use":
            arguments = msgspec.json.encode(block.get("input", {})).decode()
            function = {"name": block.get("name"), "arguments": arguments}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind not in ("thinking", "redacted_thinking"):
            raise refuse(f"a block of type {kind!r}", f"{where}.content[{i}]")
    message: Json = {"role": "assistant", "content": "".join(texts) or None}
    if calls:
        message["tool_calls"] = calls
    return message


def _user(role: Any, blocks: list[Any], where: str) -> Iterator[Json]:
    parts: list[Json] = []
    for i, block in enumerate(blocks):
        block = as_dict(block)
        kind, field = block.get("type"), f"{where}.content[{i}]"
        if kind == "tool_result":
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": _result(block, field)}
        else:
            parts.append(_part(block, field))
    if parts and all(part["type"] == "text" for part in parts) and len(parts) == 1:
        yield {"role": role, "content": parts[0]["text"]}
    elif parts:
        yield {"role": role, "content": parts}


def _result(block: Json, field: str) -> str | list[Json]:
    content = block.get("content")
    if not isinstance(content, list):
        return as_text(content)
    blocks = [as_dict(part) for part in content]
    if all(part.get("type") == "text" for part in blocks):
        return "\n".join(as_text(part.get("text")) for part in blocks)
    return [_part(part, field) for part in blocks]


def _part(block: Json, field: str) -> Json:
    if block.get("type") == "text":
        return {"type": "text", "text": block.get("text")}
    if block.get("type") == "image":
        return {"type": "image_url", "image_url": {"url": _image(as_dict(block.get("source")), field)}}
    raise refuse(f"a block of type {block.get('type')!r}", field)


def _image(source: Json, field: str) -> str:
    if source.get("type") == "base64":
        return f"data:{source.get('media_type')};base64,{source.get('data')}"
    if source.get("type") == "url":
        return as_text(source.get("url"))
    raise refuse(f"an image from {source.get('type')!r}", field)


def _tool(tool: Any, index: int) -> Json:
    tool = as_dict(tool)
    if tool.get("type", "custom") != "custom" or "input_schema" not in tool:
        raise refuse(f"the built-in tool {tool.get('type')!r}", f"tools[{index}]")
    function = {"name": tool.get("name"), "parameters": tool["input_schema"]}
    if isinstance(tool.get("description"), str):
        function["description"] = tool["description"]
    if isinstance(tool.get("strict"), bool):
        function["strict"] = tool["strict"]
    return {"type": "function", "function": function}


def _response_format(shape: Json) -> Json:
    if shape.get("type") != "json_schema":
        raise refuse(f"an output of type {shape.get('type')!r}", "output_config.format")
    schema = {"name": "output", "schema": shape.get("schema"), "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _choose(chat: Json, choice: Json) -> None:
    kind = choice.get("type")
    if kind == "tool":
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif kind in ("auto", "none"):
        chat["tool_choice"] = kind
    elif kind == "any":
        chat["tool_choice"] = "required"
    if choice.get("disable_parallel_tool_use") is True:
        chat["parallel_tool_calls"] = False


# -- the reply


def usage_of(usage: Any) -> Json:
    """Anthropic counts cached tokens beside the input."""
    prompt, cached, output, _ = counts(usage)
    return {
        "input_tokens": max(prompt - cached, 0),
        "output_tokens": output,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
    }


def _arguments(text: Any) -> Any:
    try:
        return msgspec.json.decode(text) if text else {}
    except (msgspec.DecodeError, TypeError, UnicodeError, RecursionError):
        return {"arguments": text}  # what the model wrote, though it is no JSON


def _new(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:24]}"
