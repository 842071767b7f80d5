"""Combines what histograms under several keys say into one forecast, by weights learned from the outcomes.

One rule: everything is linear in the histograms, so that a forecast costs one weighted sum whatever the number of
chains. It does not know how keys are made or where histograms are kept.

The keys of a call are rungs. Four of them, from all calls down to the call's shape, are the trunk; below stand the
place among parallel calls, the program's own history at two speeds, and exact repeats. Each rung adds its counts
to `strength` pseudo-counts of what stands above it. A chain is a way down: it passes the rung of parallel calls or
not, and ends above the program's history, at it, or at the exact repeat. Six chains are mixed.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence

from agentserve.core.forecast.ladder import Rung
from agentserve.core.forecast.masses import empty

Histogram = array  # of floats

ALL, TOOL, ARGUMENT, SHAPE, PARALLEL, SLOW, FAST, EXACT = range(8)
RUNGS = (
    Rung(half_life=200, strength=1),  # all calls
    Rung(half_life=100, strength=3),  # the tool
    Rung(half_life=50, strength=6),  # and the class of its arguments
    Rung(half_life=50, strength=6),  # and pipes, chain and timeout, of this tenant
    Rung(half_life=50, strength=2),  # and the place among the calls of its step
    Rung(half_life=20, strength=2),  # in this program
    Rung(half_life=3, strength=2),  # in this program, lately
    Rung(half_life=10, strength=3),  # the same call exactly
)
GROWTHS = tuple(rung.growth for rung in RUNGS)
_STRENGTHS = tuple(float(rung.strength) for rung in RUNGS)

CHAINS = 6
_LEARNING_RATE, _FORGETTING = 0.2, 0.99
# However sure the narrow keys of a trunk are, so much of it is what the tool is like in general: their tails are
# thin, and what they miss is costly.
_SURPRISE = 0.03
ANY_TOOL = 0  # under which the weights of all tools together are kept, for tools not seen before
_SAMPLED = 4  # one outcome in this many goes to the weights of all tools together
TOOLS_MAX = 4_096
TRUNKS_MAX = 2_048
# A trunk may be older than its own rung by one observation in this many, and than all others by a few more.
_TRUNK_SLACK, _TRUNK_SLACK_MAX = 12.0, 6.0
_TRUNK_AGE_MAX = 64


class Chains:
    """The weights of the chains, and the sums they lead to."""

    __slots__ = ("_bins", "_learned", "_nothing", "_scores", "_trunks")

    def __init__(self, bins: int) -> None:
        self._bins = bins
        self._nothing = empty(bins)
        self._scores: dict[int, list[float]] = {}
        # Trunk sums by shape, each with the weights of its last rung, and the outcomes, between which it holds.
        self._trunks: dict[int, tuple[list[float], float, float, int]] = {}
        self._learned = 0

    def masses(self, nodes: Sequence[Histogram[float] | None], *, tool: int, shape: int) -> list[float]:
        """The forecast for a call with the histograms `nodes`, one a rung, of which any may be missing."""
        trunk = self._trunk(nodes, shape)
        above, own, exact, parallel_above, parallel_own, parallel_exact = self._shares(tool)
        to_parallel, past_parallel, parallel_node = self._rung(nodes, PARALLEL)
        to_slow, past_slow, slow_node = self._rung(nodes, SLOW)
        to_fast, past_fast, fast_node = self._rung(nodes, FAST)
        to_exact, past_exact, exact_node = self._rung(nodes, EXACT)
        # From the bottom up: what each rung adds to the chains through it, and lets through of what is above.
        ends_exact, ends_own = exact + parallel_exact, own + parallel_own
        e = ends_exact * to_exact
        through = ends_own + ends_exact * past_exact
        d = through * to_fast
        c = through * past_fast * to_slow
        past_own = past_slow * past_fast
        past_all = past_own * past_exact
        parallel = parallel_above + parallel_own * past_own + parallel_exact * past_all
        b = parallel * to_parallel
        a = above + own * past_own + exact * past_all + parallel * past_parallel
        # The last two entries of a histogram are its sum and its weight; the trunk is shorter and ends the sums.
        return [
            a * p + b * q + c * r + d * s + e * t
            for p, q, r, s, t in zip(trunk, parallel_node, slow_node, fast_node, exact_node, strict=False)
        ]

    def learn(self, nodes: Sequence[Histogram[float] | None], at: int, *, tool: int, shape: int) -> None:
        """The outcome fell into bin `at`: move the weights towards the chains that gave it more probability."""
        start = self._trunk(nodes, shape)[at]
        to_parallel, past_parallel, parallel_node = self._rung(nodes, PARALLEL)
        to_slow, past_slow, slow_node = self._rung(nodes, SLOW)
        to_fast, past_fast, fast_node = self._rung(nodes, FAST)
        to_exact, past_exact, exact_node = self._rung(nodes, EXACT)
        lately, seen, repeated = to_fast * fast_node[at], to_slow * slow_node[at], to_exact * exact_node[at]
        foretold: list[float] = []
        for above in (start, to_parallel * parallel_node[at] + past_parallel * start):
            own = lately + past_fast * (seen + past_slow * above)
            foretold += (above, own, repeated + past_exact * own)
        gains = [_LEARNING_RATE * math.log(probability + 1e-6) for probability in foretold]
        self._learned += 1
        for key in (tool, ANY_TOOL) if self._learned % _SAMPLED == 1 else (tool,):
            scores = self._scores.get(key)
            if scores is None:
                while len(self._scores) >= TOOLS_MAX:
                    del self._scores[next(k for k in self._scores if k != ANY_TOOL)]
                scores = self._scores.get(ANY_TOOL, [0.0] * CHAINS)
            self._scores[key] = [s * _FORGETTING + g for s, g in zip(scores, gains, strict=True)]

    def _trunk(self, nodes: Sequence[Histogram[float] | None], shape: int) -> list[float]:
        """The sum down to the call's shape: kept for a few outcomes, as it moves slowly."""
        last = nodes[SHAPE]
        weight = last[-1] if last is not None else 0.0
        kept = self._trunks.get(shape)
        if kept is not None and kept[1] <= weight <= kept[2] and self._learned < kept[3]:
            return kept[0]
        to_all, past_all, all_node = self._rung(nodes, ALL)
        to_tool, past_tool, tool_node = self._rung(nodes, TOOL)
        to_argument, past_argument, argument_node = self._rung(nodes, ARGUMENT)
        d, past_shape, shape_node = self._rung(nodes, SHAPE)
        sure = 1.0 - _SURPRISE
        d, c = sure * d, sure * past_shape * to_argument
        above = sure * past_shape * past_argument + _SURPRISE
        b, rest = above * to_tool, above * past_tool
        a, base = rest * to_all, rest * past_all / self._bins
        sums = [
            base + a * p + b * q + c * r + d * s
            for p, q, r, s in zip(all_node, tool_node, argument_node, shape_node, strict=True)
        ]
        del sums[-2:]
        if len(self._trunks) >= TRUNKS_MAX:
            self._trunks.clear()
        seen = last[-2] / weight if last is not None else 0.0
        due = weight * GROWTHS[SHAPE] ** min(seen / _TRUNK_SLACK, _TRUNK_SLACK_MAX)
        self._trunks[shape] = (sums, weight, due, self._learned + min(_TRUNK_AGE_MAX, 1 + int(seen)))
        return sums

    def _rung(
        self, nodes: Sequence[Histogram[float] | None], rung: int
    ) -> tuple[float, float, Histogram[float]]:
        """What one rung multiplies its histogram with, what it lets through of what is above, and the histogram."""
        node = nodes[rung]
        if node is None:
            return 0.0, 1.0, self._nothing
        strength = _STRENGTHS[rung] * node[-1]
        scale = 1.0 / (node[-2] + strength)
        return scale, strength * scale, node

    def _shares(self, tool: int) -> Sequence[float]:
        """The weight of each chain for a tool: the softmax of how well they foretold."""
        scores = self._scores.get(tool) or self._scores.get(ANY_TOOL)
        if scores is None:
            return (1.0 / CHAINS,) * CHAINS
        top = max(scores)
        raw = [math.exp(score - top) for score in scores]
        scale = 1.0 / sum(raw)
        return [share * scale for share in raw]

    def merge(self, other: Chains) -> None:
        for tool, scores in other._scores.items():
            mine = self._scores.get(tool)
            self._scores[tool] = (
                list(scores) if mine is None else [(a + b) / 2 for a, b in zip(mine, scores, strict=True)]
            )
        self._trunks.clear()

    def dump(self) -> dict[int, list[float]]:
        return self._scores

    def load(self, dumped: Mapping[int, list[float]]) -> None:
        self._scores = {tool: scores for tool, scores in dumped.items() if len(scores) == CHAINS}
        self._trunks.clear()
