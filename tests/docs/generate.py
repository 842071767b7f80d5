"""Write `agentserve/REFERENCE.md` from the code: settings, headers, metrics, API, verbs.

Run it with `python -m tests.docs.generate`.

Rule: names, types, defaults and labels come from the code; only the sentences that no code holds stand here. A header
without a sentence is an error, so that none is added in silence.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

from agentserve import cli, config
from agentserve.core.identity.harnesses import NAMINGS, TABLE_VERSION
from agentserve.core.policies import POLICIES
from agentserve.core.policies.params import WorkingSetParams
from agentserve.live import openapi
from agentserve.live.responses import Responses
from agentserve.live.services import Services
from agentserve.telemetry.metrics import TABLE
from tests.docs.sentences import REPLY_HEADERS, REQUEST_HEADERS, SETTINGS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "agentserve" / "REFERENCE.md"
HEAD = """# Reference

Generated from the code by `python -m tests.docs.generate`; a test holds this page to it. Change the code, not the page.

[Settings](#settings) · [Constants of the policy](#constants-of-the-policy) ·
[Headers of a request](#headers-of-a-request) · [Headers of a reply](#headers-of-a-reply) ·
[Names that clients send](#names-that-clients-send) · [Metrics](#metrics) · [API](#api) · [Verbs](#verbs)
"""


def page() -> str:
    """The whole page."""
    parts = [
        HEAD,
        settings(),
        constants(),
        request_headers(),
        reply_headers(),
        names(),
        metrics(),
        api(),
        verbs(),
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def table(*columns: str, rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def code(text: object) -> str:
    """As code; nothing for nothing."""
    return f"`{text}`" if str(text) else ""


# -- settings


def settings() -> str:
    """Every setting with its type, default and meaning."""
    out = [
        "## Settings\n",
        "In `agentserve.toml`, as `AGENTSERVE_<SECTION>_<KEY>`, or as `--set section.key=value`: the latter",
        "wins.",
        "`agentserve up --print-config` shows those in force and where each is from.\n",
    ]
    hints = typing.get_type_hints(config.Settings)
    for name, hint in hints.items():
        listed = typing.get_origin(hint) is tuple
        cls = typing.get_args(hint)[0] if listed else hint
        if not dataclasses.is_dataclass(cls):
            continue
        title = f"[[{name}]]" if listed else f"[{name}]"
        said = (cls.__doc__ or "").strip().rstrip(".").replace("`", "")
        out += [f"### `{title}`\n", said + ".\n"]
        out.append(table("key", "takes", "default", "meaning", rows=list(_fields(name, cast(type, cls)))))
    return "\n".join(out)


def _fields(section: str, cls: type) -> Iterator[tuple[str, ...]]:
    notes, hints = comments(cls), typing.get_type_hints(cls)
    for f in dataclasses.fields(cast(Any, cls)):
        meaning = SETTINGS.get(f"{section}.{f.name}") or notes.get(f.name, "")
        yield code(f.name), _takes(hints[f.name]), _default(f), meaning


def _takes(hint: Any) -> str:
    options = [a for a in typing.get_args(hint) if a is not type(None)]
    if typing.get_origin(hint) is Literal:
        return ", ".join(code(a) for a in options)
    if typing.get_origin(hint) is tuple:
        return "list of text"
    if options and typing.get_origin(hint) is not None and type(None) in typing.get_args(hint):
        return _takes(options[0])
    words = {int: "whole number", float: "number", bool: "true, false", str: "text"}
    return words.get(hint, "table")


def _default(f: dataclasses.Field[Any]) -> str:
    if f.default_factory is not dataclasses.MISSING:
        return "empty"
    if f.default is dataclasses.MISSING:
        return "required"
    if f.default is None:
        return "none"
    if f.default in ("", ()):
        return "empty"
    if isinstance(f.default, bool):
        return code(str(f.default).lower())
    return code(f.default)


def comments(cls: type) -> dict[str, str]:
    """What stands behind each field in the source."""
    found: dict[str, str] = {}
    name, opened = "", False
    for line in inspect.getsource(cls).splitlines():
        if begun := re.match(r"    (\w+): ", line):
            name, opened = begun[1], line.rstrip().endswith("(")
        if name and (said := re.search(r"\s#\s(.+)$", line)):
            found[name] = f"{found[name]} {said[1]}" if name in found else said[1]
        if not opened or line.startswith("    )"):
            name, opened = ("", False) if not line.rstrip().endswith("(") else (name, True)
    return found


def constants() -> str:
    """The default policy's constants, and the policies there are."""
    notes = comments(WorkingSetParams)
    rows = [(code(f.name), _default(f), notes.get(f.name, "")) for f in dataclasses.fields(WorkingSetParams)]
    others = ", ".join(code(name) for name in sorted(POLICIES))
    return (
        "## Constants of the policy\n\n"
        "`[scheduler] params`, or `--policy agentserve:name=value,…` in simulation. Seconds of rank order the line:\n"
        "smaller goes sooner.\n\n"
        + table("name", "default", "meaning", rows=rows)
        + f"\nPolicies: {others}; or the import path of [your own](POLICIES.md).\n"
    )


# -- headers


def request_headers() -> str:
    """What a client may say."""
    sources = [ROOT / "agentserve/live/wire/extensions.py", ROOT / "agentserve/core/identity/harnesses.py"]
    found = sorted({h for p in sources for h in re.findall(r'"(x-agentserve-[\w-]+)"', p.read_text("utf-8"))})
    rows = [(code(name), sentence(REQUEST_HEADERS, name)) for name in found]
    return (
        "## Headers of a request\n\n"
        "All are optional, none reaches the engine, and one that is malformed is ignored.\n\n"
        + table("header", "meaning", rows=rows)
    )


def reply_headers() -> str:
    """What a client is told."""
    source = (ROOT / "agentserve/live/passage.py").read_text("utf-8")
    found = re.findall(r'b"(x-agentserve-[\w-]+)"', source)
    rows = [(code(name), sentence(REPLY_HEADERS, name)) for name in found]
    return "## Headers of a reply\n\nOn every step, unless `gateway.response_headers = false`.\n\n" + table(
        "header", "meaning", rows=rows
    )


def sentence(held: dict[str, str], name: str) -> str:
    """Its sentence."""
    if name not in held:
        raise SystemExit(f"{name} has no sentence in tests/docs/sentences.py")
    return held[name]


def names() -> str:
    """Where known clients name their programs."""
    rows = []
    for naming in NAMINGS:
        places = ", ".join(code(p) for p in naming.program)
        proof = ", ".join(code(p.replace("^=", " begins with ")) for p in naming.proof)
        rows.append((naming.name, naming.tier, places, proof, ", ".join(code(p) for p in naming.parent)))
    return (
        "## Names that clients send\n\n"
        f"Table of {TABLE_VERSION}, in order of precedence; the first place that holds something wins. `body:` is a\n"
        "field of the body, `#` a key of the JSON in a header. What none of them names is recognised by\n"
        "the chain of its messages.\n\n" + table("client", "kind", "program", "only if", "parent", rows=rows)
    )


# -- metrics, API, verbs


def metrics() -> str:
    """Every metric that can be queried."""
    rows = [
        (
            code(m.exposed + ("_total" if m.kind == "counter" else "")),
            m.kind,
            ", ".join(map(code, m.labels)),
            m.help,
        )
        for m in TABLE
    ]
    return (
        "## Metrics\n\n"
        "At `/metrics`. A histogram has the series `_bucket`, `_count` and `_sum`. No label ever holds a program;\n"
        "exemplars carry the trace. Beside these stand the OpenTelemetry GenAI names (`telemetry/README.md`).\n\n"
        + table("name", "kind", "labels", "meaning", rows=rows)
    )


def api() -> str:
    """Every path that is served."""
    gateway = cast(Any, SimpleNamespace(responses=object.__new__(Responses)))
    document = openapi.document(Services(gateway).application().routes)
    rows = [
        (code(method.upper()), code(path), operation["summary"])
        for path, methods in document["paths"].items()
        if not path.startswith("/p/")
        for method, operation in methods.items()
    ]
    return (
        "## API\n\n"
        "`/openapi.json` describes bodies and answers, `/docs` shows them. Every inference path is also served below\n"
        "`/p/PROGRAM`, which names the program. The console is at `/console`.\n\n"
        + table("method", "path", "what", rows=rows)
    )


def verbs() -> str:
    """Every verb with its flags."""
    out = ["## Verbs\n"]
    for verb, text in cli.VERBS.items():
        out.append(f"### `agentserve {verb}`\n\n{text[0].upper() + text[1:]}.\n")
        parser = argparse.ArgumentParser(prog=f"agentserve {verb}")
        importlib.import_module(f"agentserve.cli.{verb}").add_arguments(parser)
        out += _flags(parser)
    return "\n".join(out)


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    rows, below = [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below.append(action)
        elif not isinstance(action, argparse._HelpAction):
            rows.append((code(_spelt(action)), (action.help or "").replace("%%", "%")))
    if rows:
        yield table("argument", "meaning", rows=rows)
    for action in below:
        said = {choice.dest: choice.help for choice in action._choices_actions}
        for name, sub in action.choices.items():
            yield f"`{parser.prog} {name}`: {said.get(name) or ''}\n"
            yield from _flags(sub)


def _spelt(action: argparse.Action) -> str:
    values = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    if not action.option_strings:
        return str(values)
    flags = ", ".join(action.option_strings)
    return flags if action.nargs == 0 else f"{flags} {values}"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
