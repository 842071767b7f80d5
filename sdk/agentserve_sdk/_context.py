"""Which program and step the running code belongs to.

Rule: the context holds one immutable value, and leaving a scope sets the value that was there before. It never uses
a token, because a generator may be closed in another task than it was started in, where a token is refused.
"""

from __future__ import annotations

import os
import time
from contextvars import ContextVar
from typing import Dict, NamedTuple, Optional

PROGRAM_ENV = "AGENTSERVE_PROGRAM_ID"
NAME_CHARS_MAX = 128
NUMBER_MAX = 1e9  # of seconds and steps; what is beyond is as good as not said, and the gateway refuses it


class Program:
    """One run of an agent. Its methods tell the gateway about it; all of them return at once."""

    __slots__ = (
        "_deadline_at",
        "_over",
        "_tools_open",
        "id",
        "parent_id",
        "priority",
        "session_id",
        "workflow",
    )

    def __init__(
        self,
        id: str,
        workflow: Optional[str] = None,
        parent_id: Optional[str] = None,
        session_id: Optional[str] = None,
        priority: Optional[str] = None,
        deadline_s: Optional[float] = None,
    ) -> None:
        self.id = id
        self.workflow = workflow
        self.parent_id = parent_id
        self.session_id = session_id
        self.priority = priority
        self._deadline_at = None if deadline_s is None else time.monotonic() + deadline_s
        self._over = False
        self._tools_open = 0

    def __repr__(self) -> str:
        return f"Program(id={self.id!r}, workflow={self.workflow!r})"

    @property
    def deadline_in_s(self) -> Optional[float]:
        """Seconds left, if it has a deadline."""
        return None if self._deadline_at is None else self._deadline_at - time.monotonic()

    @property
    def base_url(self) -> str:
        """A base URL that carries the program by itself, for clients that take nothing else."""
        from agentserve_sdk._client import settings

        return f"{settings().url}/p/{quoted(self.id)}/v1"

    def headers(self, step: Optional[str] = None) -> Dict[str, str]:
        """The headers that tell the gateway of this program."""
        return _headers(Scope(self, step))

    def env(self) -> Dict[str, str]:
        """What a child process needs to belong to this program: `env={**os.environ, **program.env()}`.

        Its SDK, or any client given these, goes on in this program and leaves its end to this process. Where no trace
        is named yet, one is that all of the program's processes share.
        """
        from agentserve_sdk._client import settings

        found = settings()
        if not found.enabled:
            return {}
        made = {"AGENTSERVE_URL": found.url, PROGRAM_ENV: self.id}
        if found.key:
            made["AGENTSERVE_API_KEY"] = found.key
        if "TRACEPARENT" not in os.environ:
            from hashlib import sha256

            digest = sha256(self.id.encode()).hexdigest()
            made["TRACEPARENT"] = f"00-{digest[:32]}-{digest[32:48]}-01"
        return made

    def expect(self, in_s: float, steps_left: Optional[float] = None) -> None:
        """Say when the next call will come, and how many calls are left."""
        soon_s, left = number_of(in_s, "in_s"), number_of(steps_left, "steps_left")
        if soon_s is None:
            return
        said: Dict[str, object] = {"type": "hint", "in_ms": round(soon_s * 1e3, 3)}
        if left is not None:
            said["steps_left"] = left
        self._tell(said)

    def compacted(self) -> None:
        """Say that the conversation was rewritten: its old prefix is used no more."""
        self._tell({"type": "compacted"})

    def end(self, status: str = "succeeded") -> None:
        """Say that it is over. The first time counts."""
        if not self._over:
            self._over = True
            self._tell({"type": "end", "status": status})

    def _tell(self, said: Dict[str, object]) -> None:
        from agentserve_sdk._client import tell

        tell(self.id, said)


class Lease:
    """How long a scope holds that was set where nobody can take it back.

    A framework may tell of a run's begin in the run's own context and of its end in another.
    """

    __slots__ = ("before", "over")

    def __init__(self, before: Optional[Scope]) -> None:
        self.before = before
        self.over = False


class Scope(NamedTuple):
    """Where the running code is."""

    program: Program
    step: Optional[str] = None
    lease: Optional[Lease] = None


SCOPE: ContextVar[Optional[Scope]] = ContextVar("agentserve_scope", default=None)
_ambient: Dict[str, Scope] = {}


def marked() -> Optional[Scope]:
    """Where the running code is, by what was marked in this process."""
    found = SCOPE.get()
    while found is not None and found.lease is not None and found.lease.over:
        found = found.lease.before
    return found


def scope() -> Optional[Scope]:
    """Where the running code is, else the program that this process was started for."""
    return marked() or ambient()


def ambient() -> Optional[Scope]:
    """The program that the environment names: the parent process made it, and ends it."""
    name = os.environ.get(PROGRAM_ENV)
    if not name:
        return None
    found = _ambient.get(name)
    if found is None:
        _ambient.clear()  # one at a time: the environment has one value
        found = _ambient[name] = Scope(Program(name_of(name)))
    return found


def current() -> Optional[Program]:
    """The program that the running code belongs to."""
    found = scope()
    return None if found is None else found.program


def headers(*, final: bool = False) -> Dict[str, str]:
    """The headers that tell the gateway of the current program and step; empty outside of any.

    `final` says that the call which carries them is the program's last.
    """
    from agentserve_sdk._client import enabled

    found = scope()
    if found is None or not enabled():
        return {}
    made = _headers(found)
    if final:
        made["x-agentserve-final"] = "true"
    return made


def _headers(found: Scope) -> Dict[str, str]:
    program = found.program
    made = {"x-agentserve-program-id": program.id}
    if program.parent_id is not None:
        made["x-agentserve-parent-id"] = program.parent_id
    if program.workflow is not None:
        made["x-agentserve-workflow"] = program.workflow
    if found.step is not None:
        made["x-agentserve-step"] = found.step
    if program.priority is not None:
        made["x-agentserve-priority"] = program.priority
    left_s = program.deadline_in_s
    if left_s is not None:
        made["x-agentserve-deadline-ms"] = str(max(int(left_s * 1e3), 0))
    return made


def name_of(value: object) -> str:
    """A name that fits a header: printable ASCII, short."""
    text = str(value).strip()
    if not text.isascii() or not text.isprintable():
        text = "".join(c if c.isascii() and c.isprintable() else "_" for c in text)
    return text[:NAME_CHARS_MAX] or "unnamed"


def number_of(value: object, what: str) -> Optional[float]:
    """A number from 0 on; none for what has no bound, and, with a word of it, for what is no number.

    `os.environ["DEADLINE_S"]` is a string, what is left of a deadline may be negative, and no deadline infinite.
    """
    if value is None:
        return None
    try:
        number = float(value)  # type: ignore[arg-type]  # whatever the application gave
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if number < NUMBER_MAX:
        return max(number, 0.0)
    if number != number:
        from agentserve_sdk._client import log

        log.warning("agentserve takes no notice of %s=%r: it is not a number", what, value)
    return None


def new_program_id() -> str:
    """A name that nobody else has."""
    return f"run-{os.urandom(10).hex()}"


def quoted(name: str) -> str:
    """A name as one part of a path."""
    from urllib.parse import quote

    return quote(name, safe="")
