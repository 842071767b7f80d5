"""Every exception that agentserve raises on purpose.

Rule: an error says what is wrong and what to do about it, and whose fault it is.

    AgentServeError
    ├── UsageError            the command line or its input: exit status 2
    │   └── ConfigError       a settings file, variable or flag
    ├── RequestError          the client's fault; carries an HTTP status
    │   ├── BadRequest        400, names the field
    │   ├── NotAuthorised     401 or 403
    │   ├── NotFound          404
    │   ├── TooLarge          413
    │   └── Overloaded        429 or 503, carries when to come back
    ├── EngineError           the engine's fault
    │   ├── EngineUnreachable nothing answered, or the connection broke
    │   ├── EngineTimeout     it answered too late
    │   └── EngineBroke       it answered with something that is not HTTP, or not what it promised
    ├── StoreError            the database's fault; never reaches a request
    └── InvariantBroken       our fault: `check()` found the core's state inconsistent
"""

from __future__ import annotations


class AgentServeError(Exception):
    """The root. `remedy` is one sentence that tells the reader what to do."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class UsageError(AgentServeError):
    """The command cannot be carried out as it was given."""


class ConfigError(UsageError):
    """A setting is unknown, malformed or contradicts another."""


class RequestError(AgentServeError):
    """The client asked for something that cannot be done."""

    status = 400
    code = "bad_request"

    def __init__(self, message: str, *, remedy: str = "", field: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.field = field


class BadRequest(RequestError):
    """The request is malformed; `field` names the place."""


class NotAuthorised(RequestError):
    """No key, a wrong key, or a key without the scope that this needs."""

    status = 401
    code = "not_authorised"

    def __init__(self, message: str, *, remedy: str = "", status: int = 401) -> None:
        super().__init__(message, remedy=remedy)
        self.status = status


class NotFound(RequestError):
    """There is no such thing, or not for this tenant."""

    status = 404
    code = "not_found"


class TooLarge(RequestError):
    """A body, header or graph is over its limit."""

    status = 413
    code = "too_large"


class Overloaded(RequestError):
    """Nothing can be taken now; `retry_after_s` is the forecast of when it can."""

    status = 429
    code = "overloaded"

    def __init__(self, message: str, *, remedy: str = "", retry_after_s: float, status: int = 429) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after_s = retry_after_s
        self.status = status


class EngineError(AgentServeError):
    """An engine failed us; `engine` says which."""

    def __init__(self, message: str, *, remedy: str = "", engine: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.engine = engine


class EngineUnreachable(EngineError):
    """No connection, or it broke before the reply was whole."""


class EngineTimeout(EngineError):
    """A deadline passed: to connect, for the first byte, between bytes, or overall."""


class EngineBroke(EngineError):
    """The reply is not HTTP, or not what its own headers promised."""


class StoreError(AgentServeError):
    """The database refused or is away."""


class InvariantBroken(AgentServeError):
    """`check()` found a contradiction. Always a bug of ours."""
