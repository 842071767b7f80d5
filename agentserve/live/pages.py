"""Lists by pages, as OpenAI's are: `limit`, `order` and the `after` of the page before.

Rule: what is listed has an id; nothing here knows what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentserve.errors import BadRequest

PAGE_MAX = 100
Json = dict[str, Any]


def page(items: list[Any], query: Mapping[str, str]) -> Json:
    """One page of a list: the newest first unless asked otherwise."""
    limit = query.get("limit", "20")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= PAGE_MAX:
        raise BadRequest(f"a limit is a number from 1 to {PAGE_MAX}", field="limit")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest("the order is asc or desc", field="order")
    ordered = items if order == "asc" else items[::-1]
    after = query.get("after")
    if after is not None:
        at = next((i for i, item in enumerate(ordered) if item.get("id") == after), None)
        if at is None:
            raise BadRequest("there is no such item", field="after")
        ordered = ordered[at + 1 :]
    return listed(ordered[: int(limit)], more=len(ordered) > int(limit))


def listed(items: list[Any], *, more: bool) -> Json:
    """A list as the API shows it."""
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": more,
    }
