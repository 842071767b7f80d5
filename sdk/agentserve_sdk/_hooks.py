"""What integrations have in common: a framework's runs become programs, its tools tool calls.

Rule: a framework's run inside of a program of the application's own belongs to that one; only where there is none is
one made. A hooked method does what it did, whatever goes wrong in here.
"""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from typing import Any, Callable, Generic, Optional, TypeVar

from agentserve_sdk import _client
from agentserve_sdk._context import SCOPE, Scope, name_of, scope
from agentserve_sdk._marks import Tool, Workflow
from agentserve_sdk._propagate import MARK
from agentserve_sdk._wrap import Mark, wrapped

OPEN_MAX = 10_000  # runs and tools that may be under way at once, and whose ends may never come
V = TypeVar("V")


class Open(Generic[V]):
    """What began and has not ended, by the framework's own ids; the oldest is forgotten first."""

    def __init__(self) -> None:
        self._held: OrderedDict[Any, V] = OrderedDict()

    def put(self, key: Any, value: V) -> None:
        """It began."""
        self._held[key] = value
        while len(self._held) > OPEN_MAX:
            self._held.popitem(last=False)

    def get(self, key: Any) -> Optional[V]:
        """It is under way."""
        return self._held.get(key)

    def pop(self, key: Any) -> Optional[V]:
        """It ended."""
        return self._held.pop(key, None)


def quiet(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A callback whose faults are ours alone."""

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        except Exception:
            _client.log.debug("agentserve went wrong in %s and was ignored", fn.__qualname__, exc_info=True)
            return None

    return call


def run_mark(name: object, session_id: Optional[str] = None) -> Optional[Mark]:
    """A program for a framework's run, where the application has none."""
    if scope() is not None or not _client.enabled():
        return None
    return Workflow(name_of(name), session_id=session_id)


def tool_mark(name: object, call_id: Optional[str] = None) -> Optional[Mark]:
    """A tool call, where there is a program."""
    return None if scope() is None else Tool(name_of(name), call_id=call_id)


def in_step(name: object) -> None:
    """From here on, in this context, calls are of this step."""
    found = scope()
    if found is not None:
        SCOPE.set(Scope(found.program, name_of(name)))


def around(cls: Any, method: str, mark: Callable[..., Optional[Mark]]) -> None:
    """Put a mark around a method. `mark` gets the method's own arguments, and None from it means not this time."""
    inner = inspect.getattr_static(cls, method)
    if getattr(inner, MARK, False):
        return
    marked = quiet(mark)

    def chosen(args: Any, kwargs: Any) -> Callable[..., Any]:
        found = marked(*args, **kwargs)
        return inner if found is None else wrapped(found, inner)

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        return await chosen(args, kwargs)(*args, **kwargs)

    async def streamed(*args: Any, **kwargs: Any) -> Any:
        inside = chosen(args, kwargs)(*args, **kwargs)
        try:
            async for value in inside:
                yield value
        finally:
            await inside.aclose()

    def called(*args: Any, **kwargs: Any) -> Any:
        return chosen(args, kwargs)(*args, **kwargs)

    outer: Callable[..., Any] = called
    if inspect.iscoroutinefunction(inner):
        outer = awaited
    elif inspect.isasyncgenfunction(inner):
        outer = streamed
    outer = functools.wraps(inner)(outer)
    setattr(outer, MARK, True)
    setattr(cls, method, outer)
