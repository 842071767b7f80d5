"""`agentserve run -- CMD`: start any agent command with its base URLs pointed at the gateway, as one program.

Rule: the command runs as it would alone: its input, output and exit status are its own, and a gateway that does not
answer, or is none, is said once and changes nothing else. Its environment is added to, and only what must point at
the gateway is replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from agentserve.cli.address import base_url, bearer
from agentserve.errors import AgentServeError, UsageError
from agentserve.live.upstream.hosted import LOOPBACK, THIS_MACHINE

HELP = "run an agent command with its base URLs pointed at the gateway"
URL_DEFAULT = "http://127.0.0.1:8400"
ASK_S = 2.0
PROGRAM_CHARS_MAX = 128  # as the SDK has it, and the gateway's headers
WRITTEN_S = 3.0  # how long the summary waits for the journal, which is written behind
TOOLS_SHOWN_MAX = 3
CLAUDE_MODELS = (
    "ANTHROPIC_MODEL",
    "ANTHROPIC_DEFAULT_HAIKU_MODEL",
    "ANTHROPIC_DEFAULT_SONNET_MODEL",
    "ANTHROPIC_DEFAULT_OPUS_MODEL",
)
KEY_STAND_IN = "agentserve"  # where no key is asked for, clients want one all the same


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--url", help=f"the gateway (default: AGENTSERVE_URL, else {URL_DEFAULT})")
    parser.add_argument("--key", help="its API key (default: AGENTSERVE_API_KEY)")
    parser.add_argument("--program", metavar="ID", help="the program's id (default: a new one)")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the model that Claude Code and Codex ask for (default: the one that is served, if it is the only one)",
    )
    parser.add_argument(
        "--workflow", metavar="NAME", help="the kind of program (default: the command's name)"
    )
    parser.add_argument("--priority", choices=("interactive", "standard", "batch"))
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="when it should be done")
    parser.add_argument("--quiet", action="store_true", help="no summary")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD", help="the command")


def run(args: argparse.Namespace) -> int:
    """Run the command; its exit status is ours."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("there is no command to run", remedy="write `agentserve run -- codex exec ...`")
    checked(args, command[0])
    url = address(args.url)
    gateway = Gateway(url, args.key or os.environ.get("AGENTSERVE_API_KEY"))
    program = args.program or f"run-{secrets.token_hex(10)}"
    gateway.declare(program, args, PurePath(command[0]).name)
    model = args.model or gateway.only_model()
    began = time.monotonic()
    status = supervise(
        pointed(command, gateway, program, model), environment(os.environ, gateway, program, model)
    )
    took_s = time.monotonic() - began
    steps = gateway.steps(program)
    gateway.end(program, status)
    if not args.quiet:
        print(
            summary(program, status, took_s, steps, gateway.summary(program) if steps else None),
            file=sys.stderr,
        )
    return status


def checked(args: argparse.Namespace, name: str) -> None:
    """What can be seen to be wrong before anything is started."""
    if shutil.which(name) is None:
        if os.path.exists(name) and os.path.dirname(name):
            raise UsageError(
                f"{name} is no file that may be executed", remedy="put its interpreter before it"
            )
        raise UsageError(f"there is no command {name!r}", remedy="is it installed, and in PATH?")
    if args.deadline is not None and not 0 < args.deadline < math.inf:
        raise UsageError(f"--deadline is {args.deadline:g}", remedy="it is more than 0 seconds")
    program = args.program or "-"
    if len(program) > PROGRAM_CHARS_MAX or not (program.isascii() and program.isprintable()):
        raise UsageError(
            f"--program is {program[:PROGRAM_CHARS_MAX]!r}",
            remedy=f"at most {PROGRAM_CHARS_MAX} characters of ASCII fit a header",
        )


def address(given: str | None) -> str:
    """The gateway's address."""
    named = given or os.environ.get("AGENTSERVE_URL") or URL_DEFAULT
    return base_url(named, "--url" if given else "AGENTSERVE_URL", like=URL_DEFAULT)


class Gateway:
    """What is asked of it. None of it may keep the command from running."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url
        self.key = key
        self._headers = bearer(key, "--key, or AGENTSERVE_API_KEY,")
        self._away = False

    def declare(self, program: str, args: argparse.Namespace, name: str) -> None:
        """Tell of the program, before its first call."""
        said = {
            "id": program,
            "parent_id": os.environ.get("AGENTSERVE_PROGRAM_ID"),
            "workflow": args.workflow or name,
            "priority": args.priority,
            "deadline_ms": None if args.deadline is None else args.deadline * 1e3,
        }
        self._ask("POST", "/v1/programs", {k: v for k, v in said.items() if v is not None})

    def only_model(self) -> str | None:
        """The model that it serves, where there is no choice: clients ask for names of their own, which it refuses."""
        rows = (self._ask("GET", "/v1/models") or {}).get("data")
        named = [row.get("id") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        names = {name for name in named if isinstance(name, str)}
        return names.pop() if len(names) == 1 else None

    def steps(self, program: str) -> int:
        """How many steps of the program it saw; 0 when it is away."""
        done = (self._ask("GET", f"/v1/programs/{quote(program, safe='')}") or {}).get("steps_done")
        return done if isinstance(done, int) else 0

    def summary(self, program: str) -> dict[str, Any] | None:
        """The program in a few sums. They are written behind: its end is waited for, but not for long."""
        found = None
        until = time.monotonic() + WRITTEN_S
        while time.monotonic() < until:
            found = self._ask("GET", f"/v1/summaries/{quote(program, safe='')}") or found
            if self._away or (found is not None and found.get("over")):
                break
            time.sleep(0.1)
        return found

    def end(self, program: str, status: int) -> None:
        """The program is over."""
        how = "succeeded" if status == 0 else "cancelled" if status in (129, 130, 143) else "failed"
        self._ask("POST", f"/v1/programs/{quote(program, safe='')}/events", [{"type": "end", "status": how}])

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any] | None:
        if self._away:
            return None
        try:
            with httpx.Client(timeout=ASK_S, mounts=THIS_MACHINE) as client:
                reply = client.request(method, self.url + path, json=body, headers=self._headers)
            reply.raise_for_status()
            found = reply.json()
        except (
            httpx.HTTPError,
            ValueError,
            OSError,
            ImportError,
            RecursionError,
        ) as error:  # OSError and ImportError: certificates, proxies
            what = f"does not answer: {error}"
            if isinstance(error, httpx.HTTPStatusError):
                what = f"refuses: {error.response.text[:200]}"
            else:
                if isinstance(error, (ValueError, RecursionError)):
                    what = "answers as no gateway does"
                self._away = True
            if method != "GET":
                print(f"agentserve: the gateway at {self.url} {what}", file=sys.stderr)
            return None
        return found if isinstance(found, dict) else None


# -- pointing the command at the gateway


def environment(
    given: Mapping[str, str], gateway: Gateway, program: str, model: str | None
) -> dict[str, str]:
    """The command's environment. The base URLs carry the program, for clients that send no header of their own."""
    root = f"{gateway.url}/p/{quote(program, safe='')}"
    key = gateway.key or KEY_STAND_IN
    made = dict(given)
    made.update(
        AGENTSERVE_URL=gateway.url,
        AGENTSERVE_PROGRAM_ID=program,
        OPENAI_BASE_URL=f"{root}/v1",
        OPENAI_API_BASE=f"{root}/v1",  # Aider, and others that use LiteLLM
        OPENAI_HOST=root,  # Goose
        OPENAI_API_KEY=key,
        ANTHROPIC_BASE_URL=root,
        ANTHROPIC_API_BASE=root,
        # what Claude Code knows of its calls: their class, sub-agents, compaction, measured tool durations
        CLAUDE_CODE_GATEWAY_HINT_HEADERS="1",
        # its billing line changes with each request, and would change the prompt's first tokens
        CLAUDE_CODE_ATTRIBUTION_HEADER="0",
    )
    if model is not None:
        for name in CLAUDE_MODELS:  # it asks for models by several names
            made.setdefault(name, model)
    if gateway.key:
        made["AGENTSERVE_API_KEY"] = gateway.key
    made.update(_past_proxies(given, gateway.url))
    if gateway.key or "ANTHROPIC_API_KEY" not in given:
        made["ANTHROPIC_AUTH_TOKEN"] = key
        made.pop("ANTHROPIC_API_KEY", None)  # both would be sent
    if "TRACEPARENT" not in given:
        digest = hashlib.sha256(program.encode()).hexdigest()
        made["TRACEPARENT"] = f"00-{digest[:32]}-{digest[32:48]}-01"
    return made


def _past_proxies(given: Mapping[str, str], url: str) -> dict[str, str]:
    """A gateway on this machine is asked directly: a proxy would be shown its key, and find nobody."""
    host = urlsplit(url).hostname or ""
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    if host not in LOOPBACK or not any(given.get(name) or given.get(name.upper()) for name in proxies):
        return {}
    lower, upper = (
        given.get("no_proxy"),
        given.get("NO_PROXY"),
    )  # where both stand, clients differ in which they take
    return {
        "no_proxy": ",".join(filter(None, (lower or upper, host))),
        "NO_PROXY": ",".join(filter(None, (upper or lower, host))),
    }


def pointed(command: Sequence[str], gateway: Gateway, program: str, model: str | None) -> list[str]:
    """The command, with the provider's settings added where the client takes them as arguments only."""
    if PurePath(command[0]).name != "codex":
        return list(command)
    provider = {
        "model_provider": "agentserve",
        "model_providers.agentserve.name": "agentserve",
        "model_providers.agentserve.base_url": f"{gateway.url}/p/{quote(program, safe='')}/v1",
        "model_providers.agentserve.wire_api": "responses",
        "model_providers.agentserve.env_key": "OPENAI_API_KEY",
        "web_search": "disabled",  # a tool that OpenAI runs, and no engine; its own `-c` goes before this
    }
    if model is not None:
        provider["model"] = model  # `-m` among its own arguments goes before this
    settings = [part for key, value in provider.items() for part in ("-c", f'{key}="{value}"')]
    return [command[0], *settings, *command[1:]]


def supervise(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run it to its end; what ends us is passed on, so that the command ends in its own way."""
    try:
        child = subprocess.Popen(command, env=dict(env))
    except OSError as error:
        raise AgentServeError(f"cannot start {command[0]}: {error.strerror}") from error
    with _passing_on(child):
        status = child.wait()
    return 128 - status if status < 0 else status


@contextlib.contextmanager
def _passing_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(OSError):
            child.send_signal(number)

    # the terminal sends an interrupt to the command too: it is not ours to answer
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        before[number] = signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- the summary


def summary(program: str, status: int, took_s: float, steps: int, sums: Mapping[str, Any] | None) -> str:
    """One screen: how it went, where the time went, and what the gateway saved."""
    how = "succeeded" if status == 0 else f"exit status {status}"
    lines = [f"\nagentserve: {program} {how} after {took_s:.1f} s"]
    if not steps:
        lines.append("  no call of it came through the gateway, or the gateway is away")
    else:
        try:
            lines += [f"  {name:<11} {value}" for name, value in figures(sums or {})]
        except (KeyError, TypeError, ValueError):
            lines.append(f"  steps       {steps}; the gateway's store has nothing more to tell")
    return "\n".join(lines)


def figures(sums: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values of the summary."""
    agents, prompt, cached = sums["agents"], sums["prompt_tokens"], sums["cached_tokens"]
    yield "steps", f"{sums['steps']}" + (f", those of {agents} sub-agents with them" if agents else "")
    named = ", ".join(f"{t['name']} {t['seconds']:.1f} s" for t in sums["tools"][:TOOLS_SHOWN_MAX])
    yield "tool time", f"{sums['tool_s']:.1f} s" + (f" ({named})" if named else "")
    yield "queue time", f"{sums['queue_s']:.2f} s"
    share = f" ({cached / prompt:.0%})" if prompt else ""
    yield "reused", f"{cached:,} of {prompt:,} prompt tokens{share}"
    yield "output", f"{sums['output_tokens']:,} tokens"
    yield "saved", f"{sums['saved_s']:.1f} s of prefill by {sums['pins_used']} pins that were used"
