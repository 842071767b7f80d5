"""What a client asked: reading a request's body and checking that it is well-formed, as vLLM checks it first.

Rule: a body that passed here has the types that the rest of this package relies on; whatever else it says is not
looked at. What is refused is refused with vLLM's status and shape.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec

from agentserve_adapters.emulated import wire

BODY_BYTES_MAX = 64 * 1024 * 1024

Json = dict[str, Any]
Scope = Any
Receive = Callable[[], Awaitable[Any]]


class Refused(Exception):
    """An error reply."""

    def __init__(
        self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = wire.error(message, status, kind, param)


class Gone(Exception):
    """The client closed its connection."""


Token = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Content = str | list[str | Json] | None


class Function(msgspec.Struct):
    """What a tool call calls."""

    name: str = ""
    arguments: str | Json | None = None


class ToolCall(msgspec.Struct):
    """A call in a conversation."""

    function: Function


class Message(msgspec.Struct):
    """One message of a conversation."""

    role: str = "user"
    content: Content = None
    tool_calls: list[ToolCall] | None = None


class Part(msgspec.Struct):
    """A part of an Anthropic message."""

    type: str | None = None
    name: str = ""
    input: Json | None = None
    content: str | list[Json] | None = None


class Turn(msgspec.Struct):
    """An Anthropic message."""

    role: str = "user"
    content: str | list[Part] | None = None


class Item(msgspec.Struct):
    """One item of a response's input."""

    type: str = "message"
    role: str = "user"
    content: Content = None
    name: str = ""
    arguments: str | Json = ""
    output: str | list[Json] | None = None


class Offered(msgspec.Struct):
    """A tool as Anthropic's messages and OpenAI's responses offer it."""

    type: str | None = None
    name: str = ""
    input_schema: Json | None = None
    parameters: Json | None = None


class Common(msgspec.Struct):
    """What every generation may say."""

    model: str | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: Json | None = None
    response_format: Json | None = None
    tool_choice: str | Json | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    vllm_xargs: Json | None = None


class Chat(Common):
    """`/v1/chat/completions`"""

    messages: list[Message] | None = None
    tools: list[Json] | None = None


class Messages(Common):
    """`/v1/messages` and its `/count_tokens`"""

    messages: list[Turn] | None = None
    system: Content = None
    max_tokens: int | None = None
    tool_choice: Json | None = None
    stop_sequences: list[str] | None = None
    tools: list[Offered] | None = None


class Completion(Common):
    """`/v1/completions`"""

    prompt: str | list[str | Token] | None = None


class Response(Common):
    """`/v1/responses`"""

    input: str | list[Item] | None = None
    instructions: Content = None
    tools: list[Offered] | None = None


class Embedding(msgspec.Struct):
    """`/v1/embeddings`"""

    model: str | None = None
    input: str | list[str | Token | list[Token]] | None = None


class Tokenize(msgspec.Struct):
    """`/tokenize`"""

    messages: list[Message] | None = None
    prompt: str | None = None
    tools: list[Json] | None = None


class Hint(msgspec.Struct):
    """One action of a KV-hint envelope."""

    action_type: str
    action_id: str = ""
    payload: Json | None = None


class Hints(msgspec.Struct):
    """`/kv_hints`"""

    actions: list[Hint]


class Detokenize(msgspec.Struct):
    """`/detokenize`"""

    tokens: list[Token] | None = None


def well_formed(body: Json, form: type[msgspec.Struct]) -> Json:
    """The body itself, if its fields have the types of `form`."""
    try:
        msgspec.convert(body, form)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        raise Refused(400, what, param=where.strip(".`") or None) from error
    return body


def named(model: str, body: Json) -> None:
    """Refuse a request for a model that is not served."""
    wanted = body.get("model")
    if wanted and wanted != model:
        raise Refused(404, f"The model `{wanted}` does not exist.", "NotFoundError", "model")


def header(scope: Scope, wanted: bytes) -> str | None:
    """The first header of this name, if any."""
    for name, value in scope["headers"]:
        if name == wanted:
            return str(value.decode("latin-1"))
    return None


def request_name(scope: Scope, body: Json) -> str:
    """The id that a client asked for, or a fresh one."""
    return header(scope, b"x-request-id") or str(body.get("request_id") or uuid.uuid4().hex)


def attributed(scope: Scope, body: Json) -> Json:
    """The body with the session and priority that count, wherever they were said.

    A session in the body goes before the header's, and that before `vllm_xargs`; the header's priority goes before the
    body's, and one that is no number does not count.
    """
    extra = (body.get("vllm_xargs") or {}).get("session_id")
    session = (
        body.get("session_id") or header(scope, b"x-session-id") or (extra if isinstance(extra, str) else "")
    )
    priority = header(scope, b"x-vllm-priority") or ""
    out = {**body, "session_id": session or None}
    try:
        out["priority"] = int(priority)
    except ValueError:
        return out
    return out


async def read_json(receive: Receive, form: type[msgspec.Struct]) -> Json:
    """The whole body as an object of that form."""
    parts = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_BYTES_MAX:
            raise Refused(413, "Request Entity Too Large", "BadRequestError")
        if not message.get("more_body"):
            break
    try:
        body = msgspec.json.decode(b"".join(parts))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refused(400, "the body is not a JSON object")
    return well_formed(body, form)
