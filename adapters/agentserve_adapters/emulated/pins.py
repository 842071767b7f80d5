"""Native pins over HTTP: what an engine would answer if it could be told to hold a session's KV.

Rule: the form is the KV-hint envelope that engines converge on; what is held is what the session's latest request left
behind, so nobody has to send the prompt again. No stock engine has this: it is here so that policies can be compared
with and without it.
"""

from __future__ import annotations

import math
from typing import Any

from agentserve_adapters.emulated.asked import Refused
from agentserve_adapters.emulated.host import Host

TTL_S_MAX = 86_400.0


def carry_out(host: Host, action: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Pin or release; the outcome, the tokens held, and words."""
    session = payload.get("session_id")
    if not isinstance(session, str) or not session:
        raise Refused(400, "a hint without session_id", param="session_id")
    if action == "kv.release":
        host.unpin(session)
        return {"outcome": "accepted", "tokens": 0, "detail": "released"}
    if action != "kv.pin":
        raise Refused(400, f"{action} is not known; known are kv.pin and kv.release", param="action_type")
    ttl_s = payload.get("ttl_s")
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, (int, float)) or not 0 < ttl_s < math.inf:
        raise Refused(400, "a pin without a positive ttl_s", param="ttl_s")
    wanted = payload.get("tokens")
    held = host.pin(session, min(float(ttl_s), TTL_S_MAX))
    if held == 0:
        return {"outcome": "refused", "tokens": 0, "detail": "nothing of this session is in the cache"}
    full = not isinstance(wanted, int) or 2 * held >= wanted
    outcome = "accepted" if full else "clipped"
    return {"outcome": outcome, "tokens": held, "detail": f"{held} tokens held"}
