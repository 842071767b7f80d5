"""FIFO with least load: what a plain load balancer does.

Intent: spread steps evenly; each engine serves its own queue in order of arrival.
Reads: steps in flight per engine.
Loses: whenever prefixes matter. Successive steps of a program land on different engines and prefill anew.
"""

from __future__ import annotations

from agentserve.core.fleet import Engine
from agentserve.core.policies.policy import Placing, least_loaded
from agentserve.core.program import Step


class Fifo(Placing):
    """Least loaded, no memory."""

    name = "fifo"
    reason = "least_loaded"

    def place(self, step: Step, engines: list[Engine], now: float) -> Engine:
        return least_loaded(engines)
