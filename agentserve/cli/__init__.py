"""The command line: one verb a file, and the composition root of everything that a verb starts.

Rule: a verb's module has `HELP`, `add_arguments(parser)` and `run(args) -> int`, and is imported only when it is
called or when its help is asked for. What a user did wrong ends in exit status 2 and one line that says what to do.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from agentserve.errors import AgentServeError, UsageError

# verb -> one line of help; the module has the verb's name
VERBS = {
    "up": "run the gateway, by default with an embedded emulated engine and a SQLite file",
    "demo": "the same agents direct and through agentserve, on emulated engines, compared",
    "simulate": "what policies would do with a generated workload, in virtual time",
    "replay": "what policies would do with recorded traffic, in virtual time",
    "forecast": "judge the forecasters on recorded tool calls or programs",
    "run": "run an agent command with its base URLs pointed at the gateway",
    "programs": "list programs, show one with its steps, or draw a workflow's graph",
    "engines": "list engines with what they hold and how they answer",
    "engine": "serve the emulated engine alone, as a vLLM server would",
    "profile": "list the emulated engines' profiles, show one, or fit one to a real engine",
    "tenants": "list tenants with their share and use",
    "keys": "create, list and revoke API keys",
    "doctor": "what an engine is and what agentserve can do with it",
    "export": "write programs, steps and tool calls to a file",
    "db": "create or migrate the database",
}


class Parser(argparse.ArgumentParser):
    """One line on stderr and exit status 2, without the usage block."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def build_parser(verb: str | None) -> Parser:
    """The parser of all verbs; only `verb` has its arguments, so that only its module is loaded."""
    parser = Parser(prog="agentserve", description="Agent-workflow-aware serving middleware.")
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=Parser)
    for name, text in VERBS.items():
        sub = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == verb:
            importlib.import_module(f"agentserve.cli.{name}").add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = next((a for a in arguments if not a.startswith("-")), None)
    if verb is not None and verb not in VERBS:
        verb = None
    try:
        return _carry_out(verb, arguments)
    except UsageError as error:
        return _fail(error, 2)
    except AgentServeError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader of our output left, as `head` does; keep the interpreter from complaining at exit
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _carry_out(verb: str | None, arguments: Sequence[str]) -> int:
    parser = build_parser(verb)
    args, unknown = parser.parse_known_args(arguments)
    if (
        unknown
    ):  # left to itself the outer parser complains, and names its own help, which knows no verb's flags
        prog = " ".join(filter(None, ("agentserve", args.verb)))
        Parser(prog=prog).error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.verb is None:
        parser.print_help()
        return 0
    status: int = importlib.import_module(f"agentserve.cli.{args.verb}").run(args)
    return status


def _fail(error: AgentServeError, status: int) -> int:
    print(f"agentserve: {error}", file=sys.stderr)
    return status


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"agentserve {version('agentserve-gateway')}"
    except PackageNotFoundError:
        return "agentserve (not installed)"
