"""Spans as a tree that a person can read.

Rule: the tree is of what came over the wire: parents by span id, children in the order of their beginning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from tests.telemetry.collector import Event, Seen

# what is shown of a span's attributes, and by which word
SHOWN = {
    "graph.node.id": "node",
    "gen_ai.usage.input_tokens": "in",
    "gen_ai.usage.cache_read.input_tokens": "cached",
    "gen_ai.usage.output_tokens": "out",
    "agentserve.queue.time": "waited_s",
    "agentserve.inferred": "inferred",
    "agentserve.program.steps": "steps",
    "agentserve.program.slowdown": "slowdown",
    "agentserve.program.end_reason": "end",
}


def tree(spans: Iterable[Seen]) -> str:
    """All roots with what hangs under them; times are seconds from the first beginning, and how long it took."""
    known = {span.id: span for span in spans}
    under: dict[str, list[Seen]] = defaultdict(list)
    for span in sorted(known.values(), key=lambda span: (span.start, span.name)):
        under[span.parent if span.parent in known else ""].append(span)
    zero = min(span.start for span in known.values())
    return "\n".join(line for root in under[""] for line in _lines(root, under, zero, "", ""))


def _lines(span: Seen, under: dict[str, list[Seen]], zero: float, first: str, rest: str) -> Iterator[str]:
    took = span.end - span.start
    failed = "  FAILED" if span.failed else ""
    said = {short: span.attributes[name] for name, short in SHOWN.items() if name in span.attributes}
    yield f"{first}{span.name}  {span.start - zero:.2f} s + {took:.2f} s{_said(said)}{failed}"
    children: list[Seen | Event] = [*under[span.id], *span.events]
    children.sort(key=_place)
    for number, child in enumerate(children, start=1):
        branch, below = ("└── ", "    ") if number == len(children) else ("├── ", "│   ")
        if isinstance(child, Event):
            short = {name.rpartition(".")[2]: value for name, value in sorted(child.attributes.items())}
            yield f"{rest}{branch}· {child.name.removeprefix('agentserve.')}{_said(short)}"
        else:
            yield from _lines(child, under, zero, rest + branch, rest + below)


def _place(child: Seen | Event) -> tuple[float, bool]:
    """In the order of time, to the millisecond; what was decided comes after the wait that it ended."""
    if isinstance(child, Event):
        return round(child.at, 3), True
    return round(child.start, 3), False


def _said(attributes: dict[str, Any]) -> str:
    said = [
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in attributes.items()
    ]
    return "  " + " ".join(said) if said else ""
