"""Lists of live programs: what a caller asked for, read strictly, and the page of it.

Rule: a page costs what is on it where nothing is searched for; a search passes over all programs once. It reads only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from agentserve.core.board import Board
from agentserve.core.identity import unscoped
from agentserve.core.program import Program
from agentserve.errors import BadRequest
from agentserve.live import views

LIST_MAX = 1_000
OFFSET_MAX = 10_000_000
SERIAL_MAX = 1 << 53  # what a browser's numbers hold
ORDERS: Mapping[str, Callable[[Program], float] | None] = {
    "recent": None,  # as the board holds them
    "oldest": lambda program: program.created_at,
    "context": lambda program: -program.context_tokens,
    "steps": lambda program: -program.steps_done,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which programs, in which order, which page."""

    tenant: str | None = None
    state: str | None = None
    text: str = ""
    order: str = "recent"
    offset: int = 0
    limit: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A page, and how many there are."""

    page: list[Program]
    matching: int
    total: int


def asked(query: Mapping[str, str]) -> Asked:
    """What the query asks for."""
    state, order = query.get("state"), query.get("order", "recent")
    if state is not None and state not in views.STATES:
        raise BadRequest(f"a state is one of {', '.join(views.STATES)}", field="state")
    if order not in ORDERS:
        raise BadRequest(f"an order is one of {', '.join(ORDERS)}", field="order")
    return Asked(
        tenant=query.get("tenant"),
        state=state,
        text=query.get("q", "").lower(),
        order=order,
        offset=whole(query, "offset", most=OFFSET_MAX) or 0,
        limit=limit(query),
    )


def programs(board: Board, asked: Asked) -> Listed:
    """The page of live programs that was asked for."""
    total = len(board.programs)
    found: Iterable[Program] = reversed(board.programs.values())
    key = ORDERS[asked.order]
    plain = asked.tenant is None and asked.state is None and not asked.text
    if not plain:
        found = [program for program in found if matches(program, asked)]
    matching = len(found) if isinstance(found, list) else total
    if key is not None:
        found = sorted(found, key=key)  # equal ones stay in the order of their activity
    return Listed(
        page=list(islice(found, asked.offset, asked.offset + asked.limit)), matching=matching, total=total
    )


def matches(program: Program, asked: Asked) -> bool:
    """Is it one of those that were asked for?"""
    if asked.tenant is not None and unscoped(program.id)[0] != asked.tenant:
        return False
    if asked.text and not any(
        asked.text in (value or "").lower() for value in (program.id, program.workflow, program.home)
    ):
        return False
    return asked.state is None or views.state_of(program) == asked.state


def limit(query: Mapping[str, str]) -> int:
    """How many rows the caller wants."""
    given = whole(query, "limit", most=LIST_MAX)
    if given == 0:
        raise BadRequest(f"a limit is a number from 1 to {LIST_MAX}", field="limit")
    return 100 if given is None else given


def whole(query: Mapping[str, str], name: str, *, most: int) -> int | None:
    """A whole number of the query; None where it is not given."""
    given = query.get(name)
    if given is None:
        return None
    if not given.isascii() or not given.isdigit() or int(given[:20]) > most:
        raise BadRequest(f"{name} is a whole number of at most {most}", field=name)
    return int(given[:20])
