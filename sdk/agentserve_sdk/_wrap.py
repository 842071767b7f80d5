"""One decorator for every kind of function: plain, async, generator, async generator.

Rule: the wrapped function keeps its kind, signature and results. A generator's scope is in force only while its own
code runs; between two values the consumer has its own scope back, so that closing it elsewhere restores nothing wrong.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Optional, Protocol

from agentserve_sdk._client import log
from agentserve_sdk._context import SCOPE

# of code objects, as the language reference has them
GENERATOR, COROUTINE, ASYNC_GENERATOR = 0x20, 0x80, 0x200


class Mark(Protocol):
    """What is done around a call. Neither may raise."""

    def open(self) -> Any:
        """Before it: a record of this run, or None when there is nothing to do at its end. Sets the scope."""

    def close(self, run: Any, error: Optional[BaseException]) -> None:
        """After it."""


def is_decorated(given: object) -> bool:
    """Is it what a bare decorator stands on, or a name?

    Methods of a class, properties and the tools that a framework's decorator made are not callable as such. Names are
    words, and what people make them of: numbers and members of an enumeration.
    """
    return not (given is None or isinstance(given, (str, int, float)) or hasattr(type(given), "__members__"))


def wrapped(mark: Mark, fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the mark around each of its calls; what is none, as it is."""
    if isinstance(fn, (classmethod, staticmethod)):
        return type(fn)(wrapped(mark, fn.__func__))
    if isinstance(fn, type) or not callable(fn):
        log.warning("agentserve marks functions, and leaves %r as it is: mark the function below it", fn)
        return fn
    flags = _flags(fn)
    if flags & ASYNC_GENERATOR:
        made = _async_generator(mark, fn)
    elif flags & GENERATOR:
        made = _generator(mark, fn)
    elif flags & COROUTINE:
        made = _async_function(mark, fn)
    else:
        made = _function(mark, fn)
    return functools.wraps(fn)(made)


def _flags(fn: Any) -> int:
    """What kind of function it is; `inspect` would tell too, and takes longer to import than all of this package."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    code = getattr(getattr(fn, "__func__", fn), "__code__", None)
    if code is None:  # an object that is called
        code = getattr(vars(type(fn)).get("__call__"), "__code__", None)
    return 0 if code is None else int(code.co_flags)


def _function(mark: Mark, fn: Callable[..., Any]) -> Callable[..., Any]:
    opens, closes = mark.open, mark.close

    def call(*args: Any, **kwargs: Any) -> Any:
        run = opens()
        if run is None:
            return fn(*args, **kwargs)
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:
            closes(run, error)
            raise
        closes(run, None)
        return result

    return call


def _async_function(mark: Mark, fn: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        run = mark.open()
        if run is None:
            return await fn(*args, **kwargs)
        try:
            result = await fn(*args, **kwargs)
        except BaseException as error:
            mark.close(run, error)
            raise
        mark.close(run, None)
        return result

    return call


class _Inside:
    """The scope of a generator's own code, put in force around each of its advances."""

    def __init__(self, mark: Mark) -> None:
        self._mark = mark
        outer = SCOPE.get()
        self._run = mark.open()
        self._scope = SCOPE.get()
        SCOPE.set(outer)
        self._outer = outer

    def __enter__(self) -> None:
        self._outer = SCOPE.get()
        SCOPE.set(self._scope)

    def __exit__(self, *_: object) -> None:
        self._scope = SCOPE.get()  # its own code may be inside of a `with` of its own
        SCOPE.set(self._outer)

    def over(self, error: Optional[BaseException]) -> None:
        """The generator has ended. A consumer who wants no more values is no failure."""
        if self._run is not None:
            outer = SCOPE.get()
            self._mark.close(self._run, None if isinstance(error, GeneratorExit) else error)
            SCOPE.set(outer)


def _generator(mark: Mark, fn: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        inside = _Inside(mark)
        ended: Optional[BaseException] = None
        try:
            inner = fn(*args, **kwargs)
            advance: Callable[[], Any] = functools.partial(next, inner)
            while True:
                try:
                    with inside:
                        value = advance()
                except StopIteration as stop:
                    return stop.value
                try:
                    sent = yield value
                except GeneratorExit:
                    with inside:
                        inner.close()
                    raise
                except BaseException as error:
                    advance = functools.partial(inner.throw, error)
                else:
                    advance = functools.partial(inner.send, sent)
        except BaseException as error:
            ended = error
            raise
        finally:
            inside.over(ended)

    return call


def _async_generator(mark: Mark, fn: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        inside = _Inside(mark)
        ended: Optional[BaseException] = None
        try:
            inner = fn(*args, **kwargs)
            advance: Callable[[], Any] = inner.__anext__
            while True:
                try:
                    with inside:
                        value = await advance()
                except StopAsyncIteration:
                    return
                try:
                    sent = yield value
                except GeneratorExit:
                    with inside:
                        await inner.aclose()
                    raise
                except BaseException as error:
                    advance = functools.partial(inner.athrow, error)
                else:
                    advance = functools.partial(inner.asend, sent)
        except BaseException as error:
            ended = error
            raise
        finally:
            inside.over(ended)

    return call
