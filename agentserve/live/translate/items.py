"""What a request for a response says in chat: its items as messages, its tools, and the shape of its answer.

Rule: see the package. What the model wrote in one turn is one message, its text and its calls together, so that the
engine's template renders what it generated and finds it in its cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from agentserve.live.translate.frame import Json, as_dict, as_list, as_text, refuse


def messages(body: Json) -> list[Json]:
    """The conversation; thoughts of earlier turns are left out. What the model is told before anybody speaks is one
    message: many templates take one of the system, and only there."""
    said = list(_messages(body))
    heads = list(itertools.takewhile(lambda message: message["role"] == "system", said))
    texts = [text for head in heads for text in _texts(head["content"])]
    if len(heads) < 2 or None in texts:
        return said
    return [{"role": "system", "content": "\n\n".join(map(as_text, texts))}, *said[len(heads) :]]


def _texts(content: Any) -> list[Any]:
    """A message's texts, with None for what is none."""
    return [as_dict(part).get("text") for part in content] if isinstance(content, list) else [content]


def _messages(body: Json) -> Iterator[Json]:
    if isinstance(body.get("instructions"), str):
        yield {"role": "system", "content": body["instructions"]}
    given = body.get("input")
    if isinstance(given, str):
        yield {"role": "user", "content": given}
        return
    turn: Json | None = None  # the model's own, until something else comes
    for i, item in enumerate(as_list(given)):
        item = as_dict(item)
        kind, field = item.get("type", "message"), f"input[{i}]"
        if kind == "reasoning":
            continue
        if kind == "function_call":
            turn = turn or {"role": "assistant", "content": None}
            turn.setdefault("tool_calls", []).append(_call(item))
            continue
        if turn is not None:
            yield turn
            turn = None
        if kind == "message":
            message = {"role": _role(item.get("role")), "content": _content(item.get("content"), field)}
            if message["role"] == "assistant":
                turn = message
            else:
                yield message
        elif kind == "function_call_output":
            output = _content(item.get("output"), field)
            yield {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}
        else:
            raise refuse(f"an item of type {kind!r}", field)
    if turn is not None:
        yield turn


def _call(item: Json) -> Json:
    space, name = as_text(item.get("namespace")), item.get("name")
    function = {
        "name": in_chat(space, as_text(name)) if space else name,
        "arguments": item.get("arguments"),
    }
    return {"id": item.get("call_id"), "type": "function", "function": function}


def _role(role: Any) -> Any:
    return "system" if role == "developer" else role


def _content(content: Any, field: str) -> Any:
    if not isinstance(content, list):
        return content
    parts: list[Json] = []
    for part in content:
        part = as_dict(part)
        kind = part.get("type")
        if kind in ("input_text", "output_text", "text"):
            parts.append({"type": "text", "text": part.get("text")})
        elif kind == "refusal":
            parts.append({"type": "text", "text": part.get("refusal")})
        elif kind == "input_image" and isinstance(part.get("image_url"), str):
            image = {"url": part["image_url"], **({"detail": part["detail"]} if part.get("detail") else {})}
            parts.append({"type": "image_url", "image_url": image})
        else:
            raise refuse(f"content of type {kind!r}", field)
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts


def functions(given: Any) -> tuple[list[Json], dict[str, tuple[str, str]]]:
    """What the model may call, and which of that is in a namespace: by its name in chat, the namespace and its own."""
    flat: list[Json] = []
    spaces: dict[str, tuple[str, str]] = {}
    for i, tool in enumerate(as_list(given)):
        tool, field = as_dict(tool), f"tools[{i}]"
        if tool.get("type") != "namespace":
            flat.append(_function(tool, field))
            continue
        about = as_text(tool.get("description"))
        for j, inner in enumerate(as_list(tool.get("tools"))):
            made = _function(as_dict(inner), f"{field}.tools[{j}]")
            function = made["function"]
            space, name = as_text(tool.get("name")), as_text(function.get("name"))
            function["name"] = in_chat(space, name)
            if about and j == 0:  # what is said of all of them is said once
                function["description"] = f"{about}\n\n{as_text(function.get('description'))}"
            spaces[function["name"]] = (space, name)
            flat.append(made)
    return flat, spaces


def in_chat(space: str, name: str) -> str:
    """The name in chat of a function in a namespace."""
    return f"{space}__{name}"


def _function(tool: Json, field: str) -> Json:
    if tool.get("type") != "function":
        raise refuse(f"the built-in tool {tool.get('type')!r}", field)
    kept = {
        key: tool[key] for key in ("name", "description", "parameters", "strict") if tool.get(key) is not None
    }
    return {"type": "function", "function": kept}


def tool_choice(choice: Any) -> Any:
    """Which of them it has to call."""
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    raise refuse(f"a tool choice of type {choice.get('type')!r}", "tool_choice")


def response_format(shape: Json) -> Json | None:
    """What its text has to look like; None when that is free."""
    kind = shape.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_schema":
        kept = {k: shape[k] for k in ("name", "description", "schema", "strict") if shape.get(k) is not None}
        return {"type": "json_schema", "json_schema": kept}
    return shape
