"""Describes a tool call by what its running time depends on, without keeping its arguments.

One rule: the description is small, free of the arguments' text beyond a program's or host's name, and the same
for the same call on every machine, so that it can be a key. It names no agent: tools of agents never seen before
are recognised by the shape of their arguments.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Literal, Protocol
from urllib.parse import urlsplit

import msgspec

from agentserve.core.forecast import shell

Kind = Literal["tool", "human", "permission", "subagent"]

ARGUMENT_CLASS_CHARS_MAX = 64
_ARGUMENTS_CHARS_MAX = 65_536


class CallShape(Protocol):
    """What a forecast reads of a tool call; both `ToolCall` and the scheduler's pending tool have this shape."""

    @property
    def name(self) -> str: ...
    @property
    def argument_class(self) -> str: ...
    @property
    def exact_hash(self) -> int | None: ...
    @property
    def pipes(self) -> bool: ...
    @property
    def chain(self) -> int: ...
    @property
    def timeout_s(self) -> float | None: ...
    @property
    def background(self) -> bool: ...
    @property
    def kind(self) -> Kind: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One tool call, described."""

    name: str
    argument_class: str = ""
    exact_hash: int | None = None
    pipes: bool = False
    chain: int = 1
    timeout_s: float | None = None
    background: bool = False
    kind: Kind = "tool"


# The names under which tools of many agents take the same thing. Order matters: the first present one counts.
_COMMAND = ("command", "cmd", "commands", "shell_command", "bash_command", "script", "bash", "keystrokes")
_AGENT = ("subagent_type", "agent_type", "agent_name", "subagent", "recipient", "coworker", "agent")
_URL = ("url", "urls", "uri", "href", "link", "website_url")
_PATH = (
    *("file_path", "path", "filename", "file", "filepath", "notebook_path", "target_file", "absolute_path"),
    *("relative_workspace_path", "file_name", "paths", "files"),
)
_MODE = (
    "output_mode",
    "mode",
    "action",
    "operation",
    "op",
    "method",
    "language",
    "type",
    "kind",
    "subcommand",
)
_TIMEOUT_MS = ("timeout_ms", "timeout_millis", "timeoutms", "yield_time_ms")
_TIMEOUT_S = ("timeout_s", "timeout_seconds", "timeout_sec", "timeout_secs", "max_seconds", "wait_seconds")
_BACKGROUND = ("run_in_background", "background", "is_background", "detach", "async")
# Words for the reader, and limits: two calls that differ only here are the same call.
_VOLATILE = frozenset(
    [
        *("description", "explanation", "reason", "justification", "thought", "title", "timeout"),
        *_TIMEOUT_MS,
        *_TIMEOUT_S,
    ]
)

_HUMAN = re.compile(
    r"ask.?(?:user|human|follow|question)|human.?(?:input|feedback|in.?the)"
    r"|request.?(?:user|input|approval)|(?:user|get).?input|exit.?plan|confirm",
    re.IGNORECASE,
)
_SPAWN = re.compile(
    r"(?:^|[_\W])(?:task|agent|sub.?agent|spawn\w*|delegate\w*|dispatch\w*|handoff\w*|transfer_to\w*)(?:$|[_\W])",
    re.IGNORECASE,
)
_SHELL = re.compile(r"bash|shell|terminal|exec|command|run_?cmd", re.IGNORECASE)
_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,7}\Z")
_WORD = re.compile(r"[A-Za-z][\w.:/-]{0,31}\Z")
_PRIVATE = re.compile(
    r"(?:localhost|127\.|10\.|192\.168\.|172\.(?:1[6-9]|2\d|3[01])\.|\[?::1|.*\.(?:local|internal|lan)$)"
)


def classify(name: str, arguments: Mapping[str, object] | str) -> ToolCall:
    """Describe a call of tool `name`; `arguments` as the model wrote them, as JSON text or already parsed."""
    fields = _parsed(name, arguments)
    exact = stable_hash(
        msgspec.json.encode({k: v for k, v in fields.items() if k not in _VOLATILE}, order="sorted")
    )
    command = _command(fields)
    timeout_s = _timeout(fields)
    background = any(fields.get(key) is True for key in _BACKGROUND)
    if command is not None:
        read = shell.read(command)
        slept = f"sleep {_power_of_two(read.sleeps_s)}" if read.sleeps_s >= 1.0 else ""
        return ToolCall(
            name=name,
            argument_class=(slept or read.program)[:ARGUMENT_CLASS_CHARS_MAX],
            exact_hash=exact,
            pipes=read.pipes,
            chain=read.chain,
            timeout_s=read.timeout_s or timeout_s,
            background=background or read.background,
        )
    kind, argument_class = _kind_and_class(name, fields)
    return ToolCall(
        name=name,
        argument_class=argument_class[:ARGUMENT_CLASS_CHARS_MAX],
        exact_hash=exact,
        timeout_s=timeout_s,
        background=background,
        kind=kind,
    )


def _parsed(name: str, arguments: Mapping[str, object] | str) -> Mapping[str, object]:
    if not isinstance(arguments, str):
        return arguments
    text = arguments[:_ARGUMENTS_CHARS_MAX]
    try:
        parsed = msgspec.json.decode(text)
    except msgspec.DecodeError:
        parsed = text
    if isinstance(parsed, dict):
        return parsed
    # Free text: the command itself, for a shell; otherwise only good for telling repeats apart.
    return {"command" if _SHELL.search(name) else "input": parsed if isinstance(parsed, str) else text}


def _command(fields: Mapping[str, object]) -> str | None:
    for key in _COMMAND:
        value = fields.get(key)
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
            # ["bash", "-lc", "git status"]: an argument vector around a command line
            return shlex.join(map(str, value))
    return None


def _kind_and_class(name: str, fields: Mapping[str, object]) -> tuple[Kind, str]:
    if _HUMAN.search(name):
        return "human", ""
    agent = _text(fields, _AGENT)
    if _SPAWN.search(name) and (agent or "prompt" in fields or "task" in fields or "message" in fields):
        return "subagent", agent
    url = _text(fields, _URL)
    if "://" in url:
        return "tool", _host_class(url)
    path = _text(fields, _PATH)
    mode = _text(fields, _MODE)
    if path and (ending := _ENDING.search(path)):
        return "tool", ending[0].lower()
    return "tool", mode if _WORD.match(mode) else ""


def _text(fields: Mapping[str, object], keys: tuple[str, ...]) -> str:
    for key in keys:
        value = fields.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, str) and value:
            return value[:512]
    return ""


def _host_class(url: str) -> str:
    """The part of a host that is run by one operator; every private address is one class."""
    try:
        host = (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""
    if _PRIVATE.match(host):
        return "private"
    labels = host.split(".")
    # co.uk, com.au: a short second label is part of the suffix
    kept = 3 if len(labels) > 2 and len(labels[-1]) == 2 and len(labels[-2]) <= 3 else 2
    return ".".join(labels[-kept:])


def _timeout(fields: Mapping[str, object]) -> float | None:
    for keys, scale in ((_TIMEOUT_MS, 1e-3), (_TIMEOUT_S, 1.0), (("timeout",), 0.0)):
        for key in keys:
            value = fields.get(key)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
                # A bare `timeout` is in milliseconds for some agents; nobody means 1000 s or more by it.
                return float(value) * (scale or (1e-3 if value >= 1000 else 1.0))
    return None


def _power_of_two(seconds: float) -> str:
    return str(2 ** max(0, round(math.log2(seconds))))


def stable_hash(data: bytes) -> int:
    """64 bits that are the same in every process."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


@lru_cache(maxsize=8192)
def text_hash(text: str) -> int:
    """`stable_hash` of text, remembered: the same few names come again and again."""
    return stable_hash(text.encode("utf-8", "surrogatepass"))


_MIX = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def joined(first: int, second: int) -> int:
    """A key made of two keys; the order counts."""
    x = (first ^ (second + _MIX + (first << 6) + (first >> 2))) & _MASK
    return (x * 0xBF58476D1CE4E5B9 + 1) & _MASK
