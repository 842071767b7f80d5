"""Context into threads: a plain thread or pool starts with an empty one.

Rule: what is carried is the context as it was when the work was handed over, not when it runs.
"""

from __future__ import annotations

import functools
from contextvars import copy_context
from typing import Any, Callable, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def bind(fn: F) -> F:
    """The function, running in the program that is current now, whichever thread calls it.

    Each call has a copy of the context of its own, so that many threads may call it at once.
    """
    kept = copy_context()

    @functools.wraps(fn)
    def bound(*args: Any, **kwargs: Any) -> Any:
        return kept.copy().run(fn, *args, **kwargs)

    return cast(F, bound)
