"""Which program a call is of: from names where there are any, else from what was said before.

    resolver = Resolver()
    resolved = resolver.resolve(call_evidence, tenant="acme", now=now)
    outcome = resolver.replied(resolved, reply_evidence, now)      or resolver.failed(resolved, now)
    gone = resolver.expire(now)

It must not know protocols, HTTP or any text: see `evidence` for what it is shown.
"""

from agentserve.core.identity.evidence import CallEvidence, Item, ReplyEvidence, ToolUse, Trace
from agentserve.core.identity.harnesses import CONTROL_HEADER_PREFIX, TABLE_VERSION
from agentserve.core.identity.naming import named_by_header
from agentserve.core.identity.resolved import Outcome, Resolved, scoped, unscoped
from agentserve.core.identity.resolver import Resolver

__all__ = [
    "CONTROL_HEADER_PREFIX",
    "TABLE_VERSION",
    "CallEvidence",
    "Item",
    "Outcome",
    "ReplyEvidence",
    "Resolved",
    "Resolver",
    "ToolUse",
    "Trace",
    "named_by_header",
    "scoped",
    "unscoped",
]
