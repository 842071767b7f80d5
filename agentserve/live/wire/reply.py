"""A reply of any protocol as one value, `Reply`: usage, tool calls, how it ended, and what its echo will hash to.

Rule: a value, made by the readers in `streams`; it decides nothing. Tool arguments and the reply's text are here as
they came, for those on this side of the wire who need them; `evidence()` is what may go further.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec

from agentserve.core.identity.evidence import Item, ReplyEvidence, ToolUse, Trace
from agentserve.live.wire.canon import clean
from agentserve.live.wire.extensions import tokens
from agentserve.live.wire.prints import TRACEABLE_CHARS_MIN, nothing_told, trace_of

TRACES_MAX = 8  # string arguments remembered of one tool call
ARGUMENTS_CHARS_MAX = 256 * 1024  # longer arguments are not looked into
WALK_MAX = 256  # values of one call's arguments that are looked at

FINISHES = {
    "stop": "stop", "end_turn": "stop", "stop_sequence": "stop", "completed": "stop", "eos": "stop",
    "length": "length", "max_tokens": "length", "max_output_tokens": "length", "incomplete": "length",
    "model_context_window_exceeded": "length",
    "tool_calls": "tool_calls", "tool_use": "tool_calls", "function_call": "tool_calls",
    "content_filter": "filtered", "refusal": "filtered",
    "abort": "aborted", "cancelled": "aborted", "error": "error", "failed": "error", "pause_turn": "pause",
}  # fmt: skip


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts as the engine gave them. `cached_tokens` is None where it does not say."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class ReplyTool(msgspec.Struct, frozen=True, kw_only=True):
    """One tool call that the model asks for; `arguments` as they came, usually JSON."""

    id: str
    name: str
    arguments: str


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What came back."""

    response_id: str | None = None
    model: str | None = None
    finish: str = ""  # stop, length, tool_calls, filtered, aborted, error, pause, or "" when it never said
    usage: Usage | None = None
    tools: tuple[ReplyTool, ...] = ()
    items: tuple[Item, ...] = ()
    output_chars: int = 0
    whole: bool = True  # the protocol's own end was seen
    error: str | None = None
    text: str = ""  # the model's own, for whoever looks for it in a later call

    @property
    def turn_done(self) -> bool:
        """The model asks for nothing more: a person, or nobody, is next."""
        return self.whole and not self.tools and self.finish in ("stop", "filtered")

    @property
    def output_tokens_estimate(self) -> int:
        """The engine's count, else a guess from the characters."""
        return self.usage.output_tokens if self.usage else max(1, self.output_chars // 4)

    def trace(self, told: Callable[[], bytes] = nothing_told) -> Trace | None:
        """Fingerprints of the reply's own text, as far as it does not repeat what it was told."""
        return trace_of(clean(self.text, assistant=True), told()) if self.text else None

    def evidence(self, told: Callable[[], bytes] = nothing_told) -> ReplyEvidence:
        """What the resolver may know of it: hashes, names and ids. `told`: the words of its prompt."""
        return ReplyEvidence(
            items=self.items,
            tools=tuple(
                [
                    ToolUse(id=tool.id, name=tool.name, traces=tuple(traces_of(tool.arguments)))
                    for tool in self.tools
                ]
            ),
            response_id=self.response_id,
            finish=self.finish,
            trace=partial(self.trace, told),
            whole=self.whole and self.error is None,
        )


def traces_of(arguments: str) -> Iterator[Trace]:
    """Traces of the longer string arguments: with one of them a sub-agent may be asked."""
    if not TRACEABLE_CHARS_MIN <= len(arguments) <= ARGUMENTS_CHARS_MAX:
        return
    try:
        waiting: list[Any] = [msgspec.json.decode(arguments)]
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        waiting = [arguments]
    found = 0
    for _ in range(WALK_MAX):
        if not waiting or found == TRACES_MAX:
            return
        value = waiting.pop()
        if isinstance(value, str):
            if (trace := trace_of(value)) is not None:
                found += 1
                yield trace
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value[:WALK_MAX])


def finish_of(reason: Any) -> str:
    """One word for each way to end, over all protocols; an unknown one as it is."""
    return FINISHES.get(reason, reason[:32]) if isinstance(reason, str) else ""


def usage_of(usage: Any) -> Usage | None:
    """Usage in any protocol's shape. Anthropic counts cached tokens beside the input; here they are part of it."""
    if not isinstance(usage, dict):
        return None
    output = tokens(usage.get("completion_tokens"), usage.get("output_tokens"))
    details = usage.get("prompt_tokens_details", usage.get("input_tokens_details"))
    cached = tokens(details.get("cached_tokens")) if isinstance(details, dict) else None
    prompt = tokens(usage.get("prompt_tokens"))
    if prompt is None:
        prompt = tokens(usage.get("input_tokens"))
        read, written = usage.get("cache_read_input_tokens"), usage.get("cache_creation_input_tokens")
        if cached is None and (read is not None or written is not None):
            cached = tokens(read) or 0
            prompt = (prompt or 0) + cached + (tokens(written) or 0)
    if prompt is None and output is None:
        return None
    thought = usage.get("completion_tokens_details", usage.get("output_tokens_details"))
    reasoning = tokens(thought.get("reasoning_tokens")) if isinstance(thought, dict) else None
    return Usage(
        prompt_tokens=prompt or 0,
        output_tokens=output or 0,
        cached_tokens=cached,
        reasoning_tokens=tokens(reasoning, usage.get("reasoning_tokens")),
    )
