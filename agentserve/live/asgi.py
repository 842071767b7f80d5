"""What the parts of the listening side say to each other in ASGI, and the little that we add to it.

Rule: names only; whoever listens imports this and not what is served.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from agentserve.errors import AgentServeError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# A server that can say at once that the client left puts a function here: it takes the callback to be called.
LEFT_EXTENSION = "agentserve.left"


class StreamCut(AgentServeError):
    """The reply broke after it had begun and cannot be ended in an orderly way: the connection is closed."""
