"""OpenAI's responses, by chat completions.

Rule: see the package. Items become messages, and the reply becomes items again; the echo of the request's own fields
is complete, since clients read it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

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
from agentserve.live.translate.items import functions, messages, response_format, tool_choice

_SAME = ("temperature", "top_p", "parallel_tool_calls", "user", "metadata", "service_tier", "seed")
_OWN = frozenset(
    {
        *_SAME, "model", "input", "instructions", "max_output_tokens", "stream", "stream_options", "tools",
        "tool_choice", "text", "reasoning", "store", "background", "previous_response_id", "conversation", "include",
        "truncation", "prompt", "top_logprobs", "max_tool_calls", "safety_identifier", "prompt_cache_key",
        "client_metadata",
    }
)  # fmt: skip
_REFUSED = {
    "prompt": "stored prompts",
    "top_logprobs": "log probabilities",
    "max_tool_calls": "a limit of tool calls",
}


CUT_BY = {"length": "max_output_tokens", "content_filter": "content_filter"}
# what the events of an item's text are called
_SAID = {"message": "output_text", "refusal": "refusal", "reasoning": "reasoning_text"}


class ResponsesTranslation(Translation):
    """One request to `/v1/responses`."""

    protocol = "responses"

    def __init__(self, body: Json) -> None:
        for field, what in _REFUSED.items():
            if body.get(field):
                raise refuse(what, field)
        if body.get("truncation") == "auto":
            raise refuse("automatic truncation", "truncation")
        if "message.output_text.logprobs" in as_list(body.get("include")):
            raise refuse("log probabilities", "include")
        chat: Json = {key: value for key, value in body.items() if key not in _OWN}
        chat["model"] = body.get("model")
        chat["messages"] = messages(body)
        for field in _SAME:
            if body.get(field) is not None and field != "metadata":
                chat[field] = body[field]
        if body.get("max_output_tokens") is not None:
            chat["max_tokens"] = body["max_output_tokens"]
        tools, self._spaces = functions(body.get("tools"))
        if tools:
            chat["tools"] = tools
            if (choice := body.get("tool_choice")) is not None:
                chat["tool_choice"] = tool_choice(choice)
        text = as_dict(body.get("text"))
        if (shape := response_format(as_dict(text.get("format")))) is not None:
            chat["response_format"] = shape
        if text.get("verbosity") is not None:
            chat["verbosity"] = text["verbosity"]
        if (effort := as_dict(body.get("reasoning")).get("effort")) is not None:
            chat["reasoning_effort"] = effort
        if body.get("stream") is True:
            chat["stream"] = True
            chat["stream_options"] = {"include_usage": True}
        self.body = chat
        self.asked = body
        self.response_id = _new("resp")

    def envelope(
        self,
        *,
        status: str,
        cut: str | None,
        model: str,
        created: int,
        output: list[Json],
        usage: Json | None,
    ) -> Json:
        """The response object around its items; `cut` is why it is incomplete."""
        asked = self.asked
        return {
            "id": self.response_id,
            "object": "response",
            "created_at": created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": cut} if cut else None,
            "instructions": asked.get("instructions"),
            "max_output_tokens": asked.get("max_output_tokens"),
            "metadata": as_dict(asked.get("metadata")),
            "model": model or as_text(asked.get("model")),
            "output": output,
            "parallel_tool_calls": asked.get("parallel_tool_calls") is not False,
            "previous_response_id": asked.get("previous_response_id"),
            "reasoning": {"effort": as_dict(asked.get("reasoning")).get("effort"), "summary": None},
            "store": asked.get("store") is not False,
            "temperature": asked.get("temperature", 1.0),
            "text": asked.get("text") or {"format": {"type": "text"}},
            "tool_choice": asked.get("tool_choice") or "auto",
            "tools": as_list(asked.get("tools")),
            "top_p": asked.get("top_p", 1.0),
            "truncation": "disabled",
            "usage": usage,
            "user": asked.get("user"),
        }

    def reply(self, chat: Json) -> Json:
        choice = first_choice(chat)
        message = as_dict(choice.get("message"))
        output: list[Json] = []
        if thought := reasoning_of(message):
            output.append(reasoning_item(_new("rs"), thought))
        for kind, text in _said(message):
            output.append(message_item(_new("msg"), text, kind))
        for call in as_list(message.get("tool_calls")):
            function = as_dict(as_dict(call).get("function"))
            item = self.call_item(as_text(as_dict(call).get("id")), as_text(function.get("name")))
            output.append({**item, "arguments": as_text(function.get("arguments"))})
        cut = CUT_BY.get(as_text(choice.get("finish_reason")))
        return self.envelope(
            status="incomplete" if cut else "completed",
            cut=cut,
            model=as_text(chat.get("model")),
            created=int(time.time()),
            output=output,
            usage=usage_of(chat.get("usage")),
        )

    def call_item(self, call_id: str, name: str, *, status: str = "completed") -> Json:
        """A tool that the model calls, by the name that its client gave it."""
        space, own = self._spaces.get(name, (None, name))
        return {
            "id": _new("fc"),
            "type": "function_call",
            "call_id": call_id or _new("call"),
            **({"namespace": space} if space else {}),
            "name": own,
            "arguments": "",
            "status": status,
        }

    def writer(self) -> Writer:
        return ResponsesWriter(self)


class ResponsesWriter(Writer):
    """Writes the events of one response."""

    def __init__(self, made: ResponsesTranslation) -> None:
        self._made = made
        self._number = -1
        self._created = int(time.time())
        self._model = ""
        self._output: list[Json] = []
        self._open: Json | None = None
        self._kind = ""
        self._text: list[str] = []
        self._cut: str | None = None
        self._usage: Any = None
        self._begun = False

    def chunk(self, chunk: Json) -> Iterator[bytes]:
        if not self._begun:
            yield from self._begin(as_text(chunk.get("model")))
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        choice = first_choice(chunk)
        delta = as_dict(choice.get("delta"))
        if thought := reasoning_of(delta):
            yield from self._item("reasoning", lambda: reasoning_item(_new("rs"), ""))
            yield self._delta("reasoning_text", thought)
        for kind, text in _said(delta):
            yield from self._item(
                kind, lambda kind=kind: message_item(_new("msg"), "", kind, status="in_progress")
            )
            yield self._delta(_SAID[kind], text)
        for call in as_list(delta.get("tool_calls")):
            yield from self._call(as_dict(call))
        if (reason := as_text(choice.get("finish_reason"))) in CUT_BY:
            self._cut = CUT_BY[reason]

    def end(self) -> Iterator[bytes]:
        if not self._begun:
            yield from self._begin("")
        yield from self._close()
        status = "incomplete" if self._cut else "completed"
        whole = self._envelope(status, usage_of(self._usage))
        yield self._say(f"response.{status}", {"response": whole})

    def _begin(self, model: str) -> Iterator[bytes]:
        self._begun = True
        self._model = model
        for name in ("created", "in_progress"):
            yield self._say(f"response.{name}", {"response": self._envelope("in_progress", None)})

    def _envelope(self, status: str, usage: Json | None) -> Json:
        return self._made.envelope(
            status=status,
            cut=self._cut if status == "incomplete" else None,
            model=self._model,
            created=self._created,
            output=list(self._output),
            usage=usage,
        )

    def _call(self, call: Json) -> Iterator[bytes]:
        function = as_dict(call.get("function"))
        if name := as_text(function.get("name")):
            call_id = as_text(call.get("id")) or _new("call")
            kind = f"call {call.get('index', 0)}"
            yield from self._item(kind, lambda: self._made.call_item(call_id, name, status="in_progress"))
        if arguments := as_text(function.get("arguments")):
            yield self._delta("function_call_arguments", arguments)

    def _item(self, kind: str, make: Any) -> Iterator[bytes]:
        if self._kind == kind:
            return
        yield from self._close()
        item: Json = make()
        self._kind, self._open, self._text = kind, item, []
        shown = {**item, "content": []} if kind in _SAID else item
        yield self._say("response.output_item.added", {"output_index": len(self._output), "item": shown})
        if kind in _SAID:
            yield self._say("response.content_part.added", {**self._place(), "part": _part(kind, "")})

    def _place(self) -> Json:
        assert self._open is not None
        place = {"item_id": self._open["id"], "output_index": len(self._output)}
        return place if self._kind.startswith("call") else {**place, "content_index": 0}

    def _delta(self, said: str, text: str) -> bytes:
        self._text.append(text)
        more: Json = {"logprobs": []} if said == "output_text" else {}
        return self._say(f"response.{said}.delta", {**self._place(), "delta": text, **more})

    def _close(self) -> Iterator[bytes]:
        item = self._open
        if item is None:
            return
        text, place = "".join(self._text), self._place()
        if self._kind.startswith("call"):
            item["arguments"] = text
            done = {**place, "arguments": text, "name": item["name"]}
            yield self._say("response.function_call_arguments.done", done)
        else:
            part = _part(self._kind, text)
            item["content"] = [part]
            said = _SAID[self._kind]
            whole: Json = {"refusal": text} if said == "refusal" else {"text": text}
            more: Json = {"logprobs": []} if said == "output_text" else {}
            yield self._say(f"response.{said}.done", {**place, **whole, **more})
            yield self._say("response.content_part.done", {**place, "part": part})
        item["status"] = "completed"
        yield self._say("response.output_item.done", {"output_index": len(self._output), "item": item})
        self._output.append(item)
        self._open, self._kind = None, ""

    def _say(self, name: str, value: Json) -> bytes:
        self._number += 1
        return event(name, {"type": name, "sequence_number": self._number, **value})


# -- items


def _part(kind: str, text: str) -> Json:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _said(message: Json) -> list[tuple[str, str]]:
    """What the model says to its user, and what it says of what it will not do."""
    said = (("message", as_text(message.get("content"))), ("refusal", as_text(message.get("refusal"))))
    return [(kind, text) for kind, text in said if text]


def message_item(item_id: str, text: str, kind: str = "message", *, status: str = "completed") -> Json:
    """What the model said."""
    return {
        "id": item_id,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [_part(kind, text)],
    }


def reasoning_item(item_id: str, text: str) -> Json:
    """What the model thought."""
    return {"id": item_id, "type": "reasoning", "summary": [], "content": [_part("reasoning", text)]}


def usage_of(usage: Any) -> Json:
    """A chat usage in the words of responses."""
    prompt, cached, output, thought = counts(usage)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": prompt + output,
    }


def _new(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:24]}"
