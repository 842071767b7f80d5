"""A thread pool whose work belongs to the program that submitted it.

Rule: everything but the context is `concurrent.futures`' own.
"""

from __future__ import annotations

import concurrent.futures
from contextvars import copy_context
from typing import Any, Callable, TypeVar

T = TypeVar("T")


class ThreadPoolExecutor(concurrent.futures.ThreadPoolExecutor):
    """`concurrent.futures.ThreadPoolExecutor` that carries context; `map` does too, through `submit`."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """Run the call in a copy of the context as it is now."""
        return super().submit(copy_context().run, fn, *args, **kwargs)
