"""Our policy with one mechanism off at a time: what each is worth.

Rule: an arm changes one thing only, by constants that the policy has anyway or by the forecasts it is given, so that
every arm can be typed by hand as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentserve.core.policies import policy_class
from agentserve.sim.run import Trial

POLICY = "agentserve"
SECONDS_NO_START_OUTWEIGHS = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """One arm."""

    name: str
    meaning: str
    params: Mapping[str, Any] = field(default_factory=dict)
    scaled: Mapping[str, float] = field(default_factory=dict)  # constants that are multiplied
    forecast: str | None = None

    def of(self, trial: Trial) -> Trial:
        """The trial with this mechanism off."""
        declared = {f.name: f.default for f in dataclasses.fields(policy_class(POLICY).Params)}
        params = {**declared, **trial.params}
        changed = {**self.params, **{k: params[k] * by for k, by in self.scaled.items()}}
        return dataclasses.replace(
            trial,
            policy=POLICY,
            params={**trial.params, **changed},
            forecast=self.forecast or trial.forecast,
        )


ABLATIONS = (
    Ablation(name="as it is", meaning="every mechanism on"),
    Ablation(
        name="no reservation for gaps",
        meaning="a seat ends with each step",
        params={"reserve_gaps": False},
    ),
    Ablation(
        name="one threshold",
        meaning="fresh seats up to the ceiling, nothing left to grow",
        params={"admit": 1.0},
    ),
    Ablation(
        name="ceiling 1.1", meaning="the seated may outgrow the memory by a tenth", params={"ceiling": 1.1}
    ),
    Ablation(name="no touch", meaning="idle seats grow old in the engine's LRU", params={"touch_s": 0.0}),
    Ablation(name="TTL constant", meaning="every gap is kept for ten seconds", params={"ttl_s": 10.0}),
    Ablation(
        name="no ageing",
        meaning="what is left and small counts, when a program began does not",
        scaled={"beta": SECONDS_NO_START_OUTWEIGHS, "gamma": SECONDS_NO_START_OUTWEIGHS},
    ),
    Ablation(name="no forecasts", meaning="means instead of what was learned", forecast="naive"),
)
