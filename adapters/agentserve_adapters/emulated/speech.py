"""What the emulated model says: a function of the request, so that equal requests get equal replies.

A conversation can be scripted: a line in the system prompt or a user message

    agentserve-script: [{"tool": "search", "arguments": {"q": "x"}}, [{"tool": "a"}, {"tool": "b"}], {"text": "done"}]

gives the assistant's turns. Entry k is used when the conversation holds k assistant messages after the script; a
list is several tool calls at once, and {"tokens": 80} so many tokens of the model's own words. Past the end of the
script, and without one, it is the model's to say how many.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from agentserve_adapters.emulated.tokens import GROUP, calls_text, encode

SCRIPT = "agentserve-script:"
OUTPUT_MEDIAN, OUTPUT_SIGMA, OUTPUT_MAX = 120, 1.0, 4096
SENTENCE = (
    "the cache holds what was read and the next step reads it again while the tool runs and the queue waits its turn "
    "for room in memory that others keep until they come back with a result and go on from there"
)
WORDS = tuple(SENTENCE.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """One reply: its tokens' text, and the tool calls that it stands for."""

    text: str
    tokens: int
    finish_reason: str
    calls: tuple[dict[str, Any], ...] = ()
    stop_reason: str | None = None  # the stop string that ended it


def speak(
    seed: bytes,
    *,
    messages: Sequence[Any] = (),
    tools: Sequence[Any] | None = None,
    tool_choice: Any = None,
    tokens_max: int | None,
    tokens_min: int = 0,
    ignore_eos: bool = False,
    stop: Sequence[str] = (),
    stop_included: bool = False,
    schema: Any = None,
) -> Speech:
    """The reply to a request whose prompt has this seed."""
    said = _unstopped(
        seed,
        messages=messages,
        tools=tools,
        tool_choice=tool_choice,
        tokens_max=tokens_max,
        tokens_min=tokens_min,
        ignore_eos=ignore_eos,
        schema=schema,
    )
    return said if said.calls else _stopped(said, stop, tokens_min=tokens_min, included=stop_included)


def _stopped(said: Speech, stop: Sequence[str], *, tokens_min: int, included: bool) -> Speech:
    """Cut where the first stop string is complete; the tokens up to there were made, whether shown or not."""
    ends = []
    for mark in filter(None, stop):
        at = said.text.find(mark, max(tokens_min * GROUP - len(mark) + 1, 0))
        if at >= 0:
            ends.append((at + len(mark), at, mark))
    if not ends:
        return said
    end, at, mark = min(ends)
    return Speech(
        text=said.text[: end if included else at],
        tokens=max(1, len(encode(said.text[:end]))),
        finish_reason="stop",
        stop_reason=mark,
    )


def _unstopped(
    seed: bytes,
    *,
    messages: Sequence[Any],
    tools: Sequence[Any] | None,
    tool_choice: Any,
    tokens_max: int | None,
    tokens_min: int,
    ignore_eos: bool,
    schema: Any,
) -> Speech:
    turn = None if ignore_eos else scripted_turn(messages)
    if turn is not None:
        said = _scripted(turn, seed, tools, tokens_max)
        if said is not None:
            return said
    if tools and _must_call(tool_choice) and not ignore_eos:
        return _calls([_sample_call(tools, tool_choice)], seed, tokens_max)
    if schema is not None and not ignore_eos:
        return _spoken(msgspec.json.encode(_instance(schema)).decode(), tokens_max)
    digest = _digest(seed)
    length = tokens_max if ignore_eos and tokens_max else _length(digest)
    finish = "stop"
    if tokens_max is not None and length >= tokens_max:
        length, finish = tokens_max, "length"
    length = max(length, tokens_min, 1)
    return Speech(text=words(digest, length * GROUP), tokens=length, finish_reason=finish)


def scripted_turn(messages: Sequence[Any]) -> Any:
    """The script's entry for the assistant's next turn, or None."""
    script: list[Any] | None = None
    turns = 0
    for message in messages:
        if message.get("role") == "assistant":
            turns += 1
            continue
        if message.get("role") not in ("system", "developer", "user"):
            continue
        found = _find_script(message.get("content"))
        if found is not None:
            script, turns = found, 0
    if script is None or turns >= len(script):
        return None
    return script[turns]


def _find_script(content: Any) -> list[Any] | None:
    parts = (
        [content]
        if isinstance(content, str)
        else [p.get("text", "") for p in content or () if isinstance(p, dict)]
    )
    for part in parts:
        at = str(part).find(SCRIPT)
        if at < 0:
            continue
        rest = part[at + len(SCRIPT) :].strip().split("\n", 1)[0]
        try:
            script = msgspec.json.decode(rest)
        except msgspec.DecodeError:
            continue
        if isinstance(script, list):
            return script
    return None


def _scripted(turn: Any, seed: bytes, tools: Sequence[Any] | None, tokens_max: int | None) -> Speech | None:
    entries = turn if isinstance(turn, list) else [turn]
    wanted = [e for e in entries if isinstance(e, dict) and "tool" in e]
    if wanted and tools:
        called = [{"name": str(e["tool"]), "arguments": e.get("arguments", {})} for e in wanted]
        return _calls(called, seed, tokens_max)
    for entry in entries:
        if isinstance(entry, dict) and "text" in entry:
            return _spoken(str(entry["text"]), tokens_max)
        if isinstance(entry, dict) and isinstance(entry.get("tokens"), int):
            return _spoken(words(_digest(seed), min(entry["tokens"], OUTPUT_MAX) * GROUP), tokens_max)
    return None


def _spoken(text: str, tokens_max: int | None) -> Speech:
    tokens = max(1, len(encode(text)))
    if tokens_max is not None and tokens > tokens_max:
        return Speech(text=text[: tokens_max * GROUP], tokens=tokens_max, finish_reason="length")
    return Speech(text=text, tokens=tokens, finish_reason="stop")


def _calls(wanted: Sequence[dict[str, Any]], seed: bytes, tokens_max: int | None) -> Speech:
    """Tool calls; where there is no room for all of them, what fits is only text."""
    calls = []
    for k, call in enumerate(wanted):
        name = hashlib.blake2b(seed + bytes([k]), digest_size=12).hexdigest()
        calls.append(
            {
                "id": f"call_{name}",
                "type": "function",
                "function": {
                    "name": call["name"],
                    "arguments": msgspec.json.encode(call["arguments"]).decode(),
                },
            }
        )
    spelled = calls_text(calls)
    tokens = max(1, len(encode(spelled)))
    if tokens_max is not None and tokens > tokens_max:
        return _spoken(spelled, tokens_max)
    return Speech(text="", tokens=tokens, finish_reason="tool_calls", calls=tuple(calls))


def _must_call(choice: Any) -> bool:
    return choice == "required" or isinstance(choice, dict)


def _sample_call(tools: Sequence[Any], choice: Any) -> dict[str, Any]:
    named = choice.get("function", choice).get("name") if isinstance(choice, dict) else None
    functions = [t.get("function", t) for t in tools if isinstance(t, dict)]
    function = next((f for f in functions if f.get("name") == named), functions[0])
    return {"name": function.get("name", ""), "arguments": _instance(function.get("parameters") or {})}


def _instance(schema: Any) -> Any:
    """The simplest value that a JSON schema admits."""
    if not isinstance(schema, dict):
        return {}
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    for union in ("anyOf", "oneOf", "allOf"):
        if schema.get(union):
            return _instance(schema[union][0])
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties") or {}
        return {name: _instance(properties[name]) for name in properties}
    if kind == "array":
        return [_instance(schema.get("items") or {})] if schema.get("minItems") else []
    return {"string": "text", "integer": 1, "number": 1.0, "boolean": True, "null": None}.get(
        str(kind), "text"
    )


def _digest(seed: bytes) -> bytes:
    return hashlib.blake2b(seed, digest_size=16).digest()


def _length(digest: bytes) -> int:
    """A log-normal draw from the digest."""
    uniform = [(int.from_bytes(digest[i : i + 4], "little") + 1) / (2**32 + 1) for i in (0, 4)]
    normal = math.sqrt(-2 * math.log(uniform[0])) * math.cos(2 * math.pi * uniform[1])
    return max(1, min(OUTPUT_MAX, round(OUTPUT_MEDIAN * math.exp(OUTPUT_SIGMA * normal))))


def words(digest: bytes, characters: int) -> str:
    """This many characters of words, a function of the digest."""
    state = int.from_bytes(digest, "little") | 1
    out: list[str] = []
    size = 0
    while size < characters:
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        word = WORDS[(state >> 33) % len(WORDS)]
        out.append(word)
        size += len(word) + 1
    return " ".join(out)[:characters].ljust(characters, ".")
