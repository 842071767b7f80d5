"""A request of any protocol as one value, `Call`: what the gateway serves by and what the resolver decides from.

Rule: reading never fails. The engine judges whether a body is valid; here a field that is missing or of the wrong
type is as if it were absent. Texts stay in the body: a `Call` holds hashes, counts, names and ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

import msgspec

from agentserve.core.events import Segment
from agentserve.core.identity.evidence import BASE, PRIME, CallEvidence, Item, digest_of
from agentserve.live.wire.canon import Canon, Remembered, steady, text_of, utf8
from agentserve.live.wire.conversation import Conversation, listed, messages_of, systems_of
from agentserve.live.wire.extensions import (
    Extensions,
    extensions_of,
    named_in,
    person_of,
    printable_id,
    tokens,
)

Protocol = Literal["chat", "completions", "responses", "messages", "embeddings"]

PATHS: Mapping[str, Protocol] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/embeddings": "embeddings",
}
PROGRAM_PATH = "/p/"
PATHS_REMEMBERED = 4_096  # a program's steps come by one path
PATH_CHARS_REMEMBERED = 512
SEGMENTS_MAX = 4  # leading pieces of a prompt that other programs may share
TOOL_NAMES_MAX = 1_024
LINES_MAX = 2_048  # of a bare prompt; what follows is one more item
TOKENS_AN_ITEM = 64  # of a prompt that comes as token ids
CHARS_PER_TOKEN = 4.0
OPENINGS_REMEMBERED = 4_096


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One LLM call."""

    protocol: Protocol
    model: str
    stream: bool
    output_tokens_max: int | None
    tools: tuple[str, ...]  # names, as offered
    prompt_chars: int
    prompt_tokens_exact: int | None  # the prompt came as token ids
    prefix: tuple[Segment, ...]  # the prompt's leading pieces; all of it where there is one
    extensions: Extensions
    evidence: CallEvidence
    said: Conversation


def split_path(path: str) -> tuple[str | None, str]:
    """`/p/<program>/v1/…`, decoded, as (program, `/v1/…`); any other path as (None, path).

    A program's name may hold slashes, so that it ends where the last `/v1/` begins.
    """
    if not path.startswith(PROGRAM_PATH):
        return None, path
    return _split(path) if len(path) <= PATH_CHARS_REMEMBERED else _split.__wrapped__(path)


@lru_cache(PATHS_REMEMBERED)
def _split(path: str) -> tuple[str | None, str]:
    end = path.rfind("/v1/")
    name = printable_id(path[len(PROGRAM_PATH) : end]) if end > 0 else None
    return (name, path[end:]) if name else (None, path)


def _tool_names(tools: Iterable[Any]) -> Iterator[str]:
    """Names of offered tools, in any protocol's form; a built-in tool goes by its type."""
    for tool in tools:
        if not isinstance(tool, dict):
            continue
        inner = tool.get("function")
        name = inner.get("name") if isinstance(inner, dict) else tool.get("name", tool.get("type"))
        if isinstance(name, str):
            yield name


class CallReader:
    """Reads requests. One per process: it remembers the messages that it has seen."""

    def __init__(self, canon: Canon | None = None) -> None:
        self.canon = canon or Canon()
        # of a model, a system text and tools: the fingerprints of text and role, and the hash with which prompts begin
        self._openings: Remembered[tuple[int, int, int]] = Remembered(OPENINGS_REMEMBERED)

    def read(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Call | None:
        """The call that this request makes; None when the path is none of the inference endpoints.

        `headers`: names in lower case. `body`: the decoded JSON object.
        """
        program, rest = split_path(path)
        protocol = PATHS.get(rest.split("?", 1)[0].rstrip("/"))
        return None if protocol is None else self.read_as(protocol, program, headers, body)

    def read_as(
        self,
        protocol: Protocol,
        program: str | None,
        headers: Mapping[str, str],
        body: Mapping[str, Any],
        said: Conversation | None = None,
    ) -> Call:
        """The call, where its path is read already: the protocol, and the program that the path names. `said`: what
        its messages say, where they are read already too."""
        exact_tokens: int | None = None
        if protocol in ("completions", "embeddings"):
            bare, exact_tokens = _bare_items(body.get("prompt", body.get("input")))
            said = Conversation(protocol, bare, [], [])
        elif said is None:
            said = self.conversation(protocol, body)
        items = said.items
        system = _system_text(protocol, body, said.systems)
        offered = listed(body.get("tools")) or listed(body.get("functions"))
        tools: tuple[str, ...] = ()
        tool_chars = tool_hash = 0
        if offered:
            tools = tuple(islice(_tool_names(offered), TOOL_NAMES_MAX))
            tool_chars, tool_hash = self._tools(offered)
        named = named_in(body)
        if program is not None:
            named["path"] = program
        model = body.get("model")
        model = model if isinstance(model, str) else ""
        fixed_chars = len(system) + tool_chars
        system_role, role, begins = self._opening(model, system, tools, tool_hash)
        return Call(
            protocol=protocol,
            model=model,
            stream=body.get("stream") is True,
            output_tokens_max=tokens(
                body.get("max_completion_tokens"), body.get("max_output_tokens"), body.get("max_tokens")
            ),
            tools=tools,
            prompt_chars=fixed_chars + sum([item.size for item in items]),
            prompt_tokens_exact=exact_tokens,
            prefix=_prefix(begins, fixed_chars, items),
            extensions=extensions_of(headers, body),
            evidence=CallEvidence(
                headers=headers,
                named=named,
                items=items,
                role=role,
                system=system_role,
                system_size=len(system),
                tools_offered=len(offered),
                person=person_of(body),
                conversational=protocol != "embeddings",
                prints=said.prints,
            ),
            said=said,
        )

    def conversation(
        self, protocol: Protocol, body: Mapping[str, Any], raw: bytes | None = None
    ) -> Conversation:
        """What a body's messages say. `raw`: the bytes of the body, where they are held."""
        messages = messages_of(protocol, body)
        return Conversation(protocol, self.canon.items(messages), systems_of(messages), messages, raw)

    def _tools(self, offered: list[Any]) -> tuple[int, int]:
        """Characters and digest of the tools' definitions, as they stand in the prompt."""
        if any(isinstance(tool, dict) and "cache_control" in tool for tool in offered):
            offered = [steady(tool) if isinstance(tool, dict) else tool for tool in offered]
        raw = self.canon.raw(offered)
        return len(raw), self.canon.bytes_digest(raw)

    def _opening(
        self, model: str, system: str, tools: tuple[str, ...], tool_hash: int
    ) -> tuple[int, int, int]:
        """What stands before the conversation, as nearly every call has in common with many."""
        key = hash(model), len(model), hash(system), len(system), tool_hash
        known = self._openings.get(key)
        if known is None:
            text = self.canon.role(system)
            begins = digest_of(utf8(model), tool_hash.to_bytes(8, "little"))
            begins = (begins * BASE + self.canon.exact(system)) % PRIME
            known = text, _role_of(text, tools), begins
            self._openings.put(key, known)
        return known


def _prefix(begins: int, fixed_chars: int, items: Sequence[Item]) -> tuple[Segment, ...]:
    """The leading pieces: what is fixed, then message by message."""
    parts = [Segment(begins, segment_tokens(fixed_chars))] if fixed_chars else []
    for item in items[: SEGMENTS_MAX - len(parts)]:
        begins = (begins * BASE + item.digest) % PRIME
        parts.append(Segment(begins, segment_tokens(item.size)))
    return tuple(parts)


def segment_tokens(chars: int) -> int:
    """The tokens of a shared piece. Always by the same scale: one hash must not mean two lengths to the scheduler."""
    return round(chars / CHARS_PER_TOKEN) or 1


def _role_of(system: int, tools: tuple[str, ...]) -> int:
    """The role fingerprint: who the model is told to be, and what it may use."""
    names = sorted(name for name in tools if not name.startswith("mcp__"))
    return digest_of(system.to_bytes(8, "little"), *[utf8(name) for name in names])


def _system_text(protocol: Protocol, body: Mapping[str, Any], systems: Sequence[str]) -> str:
    """All that the model is told before the conversation."""
    if protocol == "messages":
        systems = [text_of(body.get("system")), *systems]
    elif protocol == "responses" and isinstance(instructions := body.get("instructions"), str):
        systems = [instructions, *systems]
    return "\n".join(systems)


def _bare_items(prompt: Any) -> tuple[list[Item], int | None]:
    """A prompt without messages: a text, token ids, or a list of these. Lists within those lists are no prompt."""
    if isinstance(prompt, str):
        return _lines(prompt), None
    if not isinstance(prompt, list) or not prompt:
        return [], None
    if isinstance(prompt[0], int):
        return _token_runs(prompt), len(prompt)
    items: list[Item] = []
    total = beyond = 0
    for one in prompt[:LINES_MAX]:
        ids = isinstance(one, list)
        if not ids and not isinstance(one, str):
            continue
        if len(items) >= LINES_MAX:  # as of a long text: what follows counts only in size
            beyond += 4 * len(one) if ids else len(one)
        elif not ids:
            items += _lines(one)
        elif one and isinstance(one[0], int):
            items += _token_runs(one)
            total += len(one)
    if beyond:
        items[-1] = Item(role="text", digest=items[-1].digest, size=items[-1].size + beyond)
    return items, total or None


def _lines(text: str) -> list[Item]:
    """One item a line, so that a longer text is seen to continue a shorter one. The last line may still be growing, so
    it counts only in size."""
    lines = text.split("\n", LINES_MAX)
    last = lines.pop()
    items = [Item(role="text", digest=digest_of(utf8(line)), size=len(line) + 1) for line in lines]
    if items and last:
        items[-1] = Item(role="text", digest=items[-1].digest, size=items[-1].size + len(last))
    return items or [Item(role="text", digest=digest_of(utf8(last)), size=len(last))]


def _token_runs(ids: list[Any]) -> list[Item]:
    """Items of so many token ids; the last run, which may still be growing, counts only where it is the only one."""
    runs = [ids[at : at + TOKENS_AN_ITEM] for at in range(0, len(ids), TOKENS_AN_ITEM)]
    whole = [run for run in runs if len(run) == TOKENS_AN_ITEM] or runs
    return [Item(role="text", digest=digest_of(repr(run).encode()), size=4 * len(run)) for run in whole]
