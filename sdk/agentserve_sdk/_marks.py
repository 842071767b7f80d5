"""`workflow`, `step`, `tool` and `end`: what the application says of itself.

Rule: each is a decorator, bare or with arguments, and a context manager. What goes wrong in here is logged and
changes nothing. No argument and no result of the application's functions is looked at.
"""

from __future__ import annotations

from contextvars import ContextVar
from types import TracebackType
from typing import (
    Any,
    Callable,
    Dict,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Type,
    TypeVar,
    Union,
    cast,
    overload,
)

from agentserve_sdk import _client
from agentserve_sdk._announce import ToolRun, open_program, status_of, tell_edges, tool_began, tool_ended
from agentserve_sdk._context import SCOPE, Program, Scope, name_of, number_of, scope
from agentserve_sdk._wrap import is_decorated, wrapped

F = TypeVar("F", bound=Callable[..., Any])


class _Entry:
    """A `with` block that is under way. One mark may be entered by several tasks and threads at once."""

    __slots__ = ("before", "mark", "over", "run")

    def __init__(self, mark: _Mark, run: Any, before: Optional[_Entry]) -> None:
        self.mark = mark
        self.run = run
        self.before = before
        self.over = False


_INNERMOST: ContextVar[Optional[_Entry]] = ContextVar("agentserve_entered", default=None)


class _Mark:
    """What the three have in common."""

    def __init__(self, name: Optional[str]) -> None:
        self._name = name
        self._entered: List[_Entry] = []

    def __call__(self, fn: F) -> F:
        if self._name is None:
            inner = getattr(fn, "__func__", fn)  # of a class's or static method
            self._name = name_of(getattr(inner, "__name__", type(inner).__name__))
        return cast(F, wrapped(self, fn))

    def open(self) -> Any:
        """Begin; None when there is nothing to end."""
        raise NotImplementedError

    def close(self, run: Any, error: Optional[BaseException]) -> None:
        """End."""
        raise NotImplementedError

    def __enter__(self) -> Any:
        run = self.open()
        before = _INNERMOST.get()
        while before is not None and before.over:
            before = before.before
        entry = _Entry(self, run, before)
        self._entered.append(entry)
        _INNERMOST.set(entry)
        return self._entry(run)

    def _entry(self, run: Any) -> Any:
        return run

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        entry = self._left()
        if entry is not None and entry.run is not None:
            self.close(entry.run, error)

    def _left(self) -> Optional[_Entry]:
        """What this context entered last; what was entered last at all, where that was in another."""
        found = _INNERMOST.get()
        while found is not None and (found.over or found.mark is not self):
            found = found.before
        if found is not None:
            _INNERMOST.set(found.before)
        elif self._entered:
            found = self._entered[-1]
        else:
            return None
        found.over = True
        self._entered.remove(found)
        return found

    async def __aenter__(self) -> Any:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.__exit__(kind, error, trace)


class _ProgramRun(NamedTuple):
    program: Program
    before: Optional[Scope]


class Workflow(_Mark):
    """A kind of program; each call, or each entry, is one program."""

    def __init__(
        self,
        name: Optional[str] = None,
        *,
        id: Optional[str] = None,
        session_id: Optional[str] = None,
        deadline_s: Optional[float] = None,
        priority: Optional[str] = None,
        graph: Optional[Dict[str, Any]] = None,
    ) -> None:
        super().__init__(None if name is None else name_of(name))
        self._id = None if id is None else name_of(id)
        self._session_id = None if session_id is None else str(session_id)
        self._deadline_s = number_of(deadline_s, "deadline_s")
        self._priority = None if priority is None else name_of(priority)
        self._graph = graph

    def open(self) -> Any:
        """A new program, told to the gateway, in force from now on."""
        before = SCOPE.get()
        try:
            program = open_program(
                id=self._id,
                workflow=self._name,
                session_id=self._session_id,
                deadline_s=self._deadline_s,
                priority=self._priority,
                graph=self._graph,
            )
        except Exception:
            return _gone_wrong(None)
        SCOPE.set(Scope(program))
        return _ProgramRun(program, before)

    def close(self, run: _ProgramRun, error: Optional[BaseException]) -> None:
        """The program is over."""
        SCOPE.set(run.before)
        try:
            run.program.end(status_of(error))
        except Exception:
            _gone_wrong(None)

    def _entry(self, run: Optional[_ProgramRun]) -> Program:
        return Program("none") if run is None else run.program

    def __enter__(self) -> Program:
        return cast(Program, super().__enter__())

    async def __aenter__(self) -> Program:
        return self.__enter__()


class _StepRun(NamedTuple):
    before: Optional[Scope]


class Step(_Mark):
    """A node of the workflow's graph: the calls made inside of it carry its name."""

    def __init__(self, name: Optional[str] = None, *, next: Union[str, Sequence[str], None] = None) -> None:
        super().__init__(None if name is None else name_of(name))
        following = [next] if isinstance(next, str) else list(next or ())
        self._next = tuple(name_of(one) for one in following)

    def open(self) -> Any:
        """The current program, in this step."""
        before = SCOPE.get()
        try:
            found = scope()
            if found is None:
                return None
            name = self._name or "step"
            if self._next:
                tell_edges(found.program, name, self._next)
            SCOPE.set(Scope(found.program, name))
        except Exception:
            return _gone_wrong(None)
        return _StepRun(before)

    def close(self, run: _StepRun, error: Optional[BaseException]) -> None:
        """Back to where it was called from."""
        SCOPE.set(run.before)

    def _entry(self, run: Any) -> Step:
        return self

    def __enter__(self) -> Step:
        return cast("Step", super().__enter__())

    async def __aenter__(self) -> Step:
        return self.__enter__()


_TOLD_AS = {"expected_s": "eta_ms", "timeout_s": "timeout_ms"}


class Tool(_Mark):
    """What fills the gap between two steps. Its end is told at once, so that the program's KV is there in time."""

    def __init__(
        self,
        name: Optional[str] = None,
        *,
        call_id: Optional[str] = None,
        expected_s: Optional[float] = None,
        timeout_s: Optional[float] = None,
        idempotent: Optional[bool] = None,
        background: bool = False,
    ) -> None:
        super().__init__(None if name is None else name_of(name))
        self._call_id = None if call_id is None else name_of(call_id)
        self._more: Dict[str, object] = {}
        for key, given_s in (("expected_s", expected_s), ("timeout_s", timeout_s)):
            value_s = number_of(given_s, key)
            if value_s is not None:
                self._more[_TOLD_AS[key]] = value_s * 1e3
        if idempotent is not None:
            self._more["annotations"] = {"idempotentHint": idempotent}
        if background:
            self._more["background"] = True

    def open(self) -> Any:
        """Announce the call."""
        try:
            found = scope()
            if found is None or not _client.enabled():
                return None
            return tool_began(found.program, self._name or "tool", self._call_id, self._more)
        except Exception:
            return _gone_wrong(None)

    def close(self, run: ToolRun, error: Optional[BaseException]) -> None:
        """Announce its end."""
        try:
            tool_ended(run, ok=error is None)
        except Exception:
            _gone_wrong(None)

    def _entry(self, run: Any) -> Tool:
        return self

    def __enter__(self) -> Tool:
        return cast("Tool", super().__enter__())

    async def __aenter__(self) -> Tool:
        return self.__enter__()


def end(status: str = "succeeded") -> None:
    """The current program is over; what is kept for it may go."""
    try:
        found = scope()
        if found is not None:
            found.program.end(status)
    except Exception:
        _gone_wrong(None)


def _gone_wrong(result: None) -> None:
    _client.log.debug("agentserve went wrong and was ignored", exc_info=True)
    return result


# -- the public face: bare or with arguments


@overload
def workflow(name: F, /) -> F: ...
@overload
def workflow(
    name: Optional[str] = None,
    *,
    id: Optional[str] = None,
    session_id: Optional[str] = None,
    deadline_s: Optional[float] = None,
    priority: Optional[str] = None,
    graph: Optional[Dict[str, Any]] = None,
) -> Workflow: ...
def workflow(name: Any = None, **options: Any) -> Any:
    """A run of the decorated function, or of the `with` block, is one program.

    `id` names the program (else one is made up), `session_id` the conversation that it belongs to; `deadline_s` is
    when it should be done, `priority` is `interactive`, `standard` or `batch`, `graph` its steps as the gateway's
    `POST /v1/programs` takes them. Inside of another program it is a child of that one.
    """
    return Workflow()(name) if is_decorated(name) else Workflow(name, **options)


@overload
def step(name: F, /) -> F: ...
@overload
def step(name: Optional[str] = None, *, next: Union[str, Sequence[str], None] = None) -> Step: ...
def step(name: Any = None, **options: Any) -> Any:
    """Model calls made inside carry this step's name; `next` names the steps that may follow."""
    return Step()(name) if is_decorated(name) else Step(name, **options)


@overload
def tool(name: F, /) -> F: ...
@overload
def tool(
    name: Optional[str] = None,
    *,
    call_id: Optional[str] = None,
    expected_s: Optional[float] = None,
    timeout_s: Optional[float] = None,
    idempotent: Optional[bool] = None,
    background: bool = False,
) -> Tool: ...
def tool(name: Any = None, **options: Any) -> Any:
    """The decorated function, or the `with` block, is a tool call: its start and end are told to the gateway.

    `call_id` is the model's id of the call, where you know it; `expected_s` how long it takes, until measured times
    are better; `timeout_s` when you give it up; `background` says that the agent does not wait for it.
    """
    return Tool()(name) if is_decorated(name) else Tool(name, **options)
