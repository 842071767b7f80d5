"""The constants of ours, each with what it is in; what they were tuned on stands in the README.

Rule: nothing adaptive changes them; what follows from what is seen (`thresholds`, `anew`) starts from them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingSetParams:
    """Turned with `[scheduler] params`; the defaults are those that were found best on all workloads."""

    admit: float = 0.9  # of capacity, for fresh seats
    loose: float = 0.5  # how much more than `admit` where programs do not return: the engine's own queue does
    ceiling: float = 1.0  # of capacity, for growth
    coarse: float = 2.0  # of what a mean seat holds beyond `coarse_from`, admitted beyond `admit`
    coarse_from: float = 0.2  # of capacity: fewer than five such seats fit
    small: float = 0.01  # of capacity: who needs no more, and is offered no tools, waits for no large one
    small_room: float = 0.05  # of capacity, for small ones beside all others and beyond `admit`
    capacity_margin: float = 0.03  # capacity is believed to be this much less than reported
    margin_tokens: int = 600  # a step's growth beyond forecast,
    margin_share_max: float = (
        0.04  # but no more than this share of an engine's KV: small ones hold small prompts
    )
    beta: float = 1.0  # seconds of rank per forecast second left; 0, with gamma 0, is program-FCFS
    gamma: float = (
        50.0  # seconds of rank per thousand tokens of a seat: small ones first fill the memory better
    )
    mu: float = 0.7  # price of memory, as a share of the engine's own fill rate
    sweep_s: float = 0.5
    touch_s: float = 2.0  # 0: never
    touch_from: float = 0.8  # of capacity seated
    touch_risk: float = 0.5  # of the unseated KV written since the last touch
    touch_seat_max: float = 0.1  # of capacity in the mean: where few fit, a touch comes too late
    reserve_gaps: bool = True  # False: a seat ends with each step (an ablation)
    ttl_s: float | None = None  # a constant instead of the price (an ablation)
    pin_s_max: float = 300.0  # no pin outlasts this while others wait, whatever was forecast
    announced_s: float = 5.0  # an announced return is believed for this long after its time
    certain_share: float = (
        0.25  # a return is foretold when 60% of its forecast lie within this share of its median
    )
    lead_s_max: float = (
        2.0  # who is expected joins the line at most this much ahead, however long its prefill
    )
    guest_wait_s_max: float = 10.0  # a step beside its program's seat goes then, whatever else is there
    stall_s: float = 0.3  # an engine that runs nothing for so long while others wait gives up a pin
    class_step_s: float = 600.0  # rank between priority classes
