"""Gaps that nobody ended, by how many steps their programs had done: the evidence that such a program is over.

One rule: a turn that is still out speaks against a return until it is followed; one that never is goes on speaking,
and fades with the turns that come after it. It knows counts by key and nothing of seconds: most programs end with a
turn whose client never says that it was the last, and half an hour, until it is given up, is long to keep its memory.

Programs end where their clients stop them: at a limit of turns, or where the work of their kind is done. So each gap is
counted under its kind and, below that, under the number of steps before it, which says what its kind says until it was
seen a few times.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from agentserve.core.forecast.calls import joined
from agentserve.core.forecast.survival import Survival

KEYS_MAX = 16_384
HALF_LIFE = 200  # in gaps of the key
DECAY = 0.5 ** (1 / HALF_LIFE)
# gaps that are believed to have been followed before any was, and so many that the kind speaks for below
STRENGTHS = (2.0, 2.0)
STEPS_EXACT = 64  # so many steps are told apart; beyond, those within an eighth of one another are not
EIGHTHS = 8
DOUBT_LEAST = 1 / 64  # less is not worth another forecast


class Unfollowed:
    """`missing` when a gap counts as not followed, `followed` when a program came back; `share` is asked."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        # key -> not followed, and followed; least lately counted first
        self._counts: OrderedDict[int, list[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def _of(self, key: int) -> list[float]:
        counts = self._counts.get(key)
        if counts is None:
            if len(self._counts) >= KEYS_MAX:
                self._counts.popitem(last=False)
            counts = self._counts[key] = [0.0, 0.0]
        else:
            self._counts.move_to_end(key)
        return counts

    def missing(self, keys: Sequence[int]) -> None:
        """One more is not followed, by now."""
        for key in keys:
            counts = self._of(key)
            counts[0] = counts[0] * DECAY + 1.0
            counts[1] *= DECAY

    def followed(self, keys: Sequence[int], *, counted: bool) -> None:
        """A program came back; `counted` if it had been counted as missing."""
        for key in keys:
            counts = self._of(key)
            if counted:
                counts[0] = max(counts[0] - 1.0, 0.0)
            else:
                counts[0] *= DECAY
                counts[1] *= DECAY
            counts[1] += 1.0

    def withdrawn(self, keys: Sequence[int]) -> None:
        """One that was counted as missing says nothing: its client told the end, and will again."""
        for key in keys:
            if (counts := self._counts.get(key)) is not None:
                counts[0] = max(counts[0] - 1.0, 0.0)

    def share(self, keys: Sequence[int]) -> float:
        """Of the gaps under the keys, coarse to fine, those that are not followed."""
        share = 0.0
        for key, strength in zip(keys, STRENGTHS, strict=False):
            missing, followed = self._counts.get(key) or (0.0, 0.0)
            share = (missing + strength * share) / (missing + followed + strength)
        return share

    def beyond(self, keys: Sequence[int]) -> float:
        """The share of those that are not followed after so many steps, of what is beyond that of their kind."""
        kind, here = self.share(keys[:1]), self.share(keys)
        return max((here - kind) / (1.0 - kind), 0.0)

    def merge(self, other: Unfollowed) -> None:
        for key, theirs in other._counts.items():
            mine = self._of(key)
            mine[0] += theirs[0]
            mine[1] += theirs[1]

    def dump(self) -> dict[int, tuple[float, float]]:
        return {key: (missing, followed) for key, (missing, followed) in self._counts.items()}

    def load(self, dumped: dict[int, tuple[float, float]]) -> None:
        self._counts.clear()
        for key, counts in dumped.items():
            self._of(key)[:] = counts


def keys_of(kind: int, steps: int) -> tuple[int, int]:
    """Of a gap after so many steps of a program of this kind."""
    return kind, joined(kind, steps_place(steps))


def steps_place(steps: int) -> int:
    """The same for numbers of steps that are not told apart."""
    if steps <= STEPS_EXACT:
        return steps
    doublings = steps.bit_length() - 1
    return (doublings + STEPS_EXACT) * EIGHTHS + ((steps * EIGHTHS) >> doublings)


def doubted(gap: Survival, share: float) -> Survival:
    """The same, but for a share that does not return at all."""
    if share < DOUBT_LEAST:
        return gap
    masses = [mass * (1.0 - share) for mass in gap.masses]
    masses[-1] += share
    return Survival(gap.grid, masses, elapsed_s=gap.elapsed_s)
