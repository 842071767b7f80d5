"""Finished programs, kept as they looked at certain steps, and how alike a running one is to each of them.

One rule: a bounded number of samples per step, the oldest dropped first, and a bounded number looked at by a
query. It does not know what the features mean: which of them matter is measured on the samples.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

# The steps at which a program is looked at: each about 1.4 times the one before.
MILESTONES = (1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 56, 80, 113, 160, 226, 320, 453, 640, 905, 1280)
SAMPLES_PER_MILESTONE = 192

_CLASSES = 5  # parts into which a feature is cut to see whether the outcome differs between them
_ENOUGH = 160  # samples at which a milestone needs none of its neighbours'
_NEAR_MAX = 288  # samples that one query looks at
_RELEVANT = (
    0.02  # a feature with less than this share of all relevance is left out of the distance by relevance
)
_REFIT = 4  # features measured anew for each finished program, once there are many
_REFIT_ALL_BELOW = 48  # programs
_STEP_WEIGHT = 0.125
# Another role, workflow or tenant makes a program less alike, by as much as this distance.
_STRANGER = (0.02, 0.05, 0.02)


class Sample(msgspec.Struct, frozen=True):
    """A finished program as it looked at a milestone, and what was still to come."""

    features: tuple[float, ...]
    kinds: tuple[int, int, int]  # role, workflow, tenant
    steps: int
    tokens: float
    seconds: float


@dataclass(slots=True)
class _Scale:
    """How one feature is distributed, and how much the outcome depends on it."""

    mean: float = 0.0
    per_sd: float = 0.0  # one over the standard deviation; 0 where the feature is constant
    relevance: float = 0.0  # share of the outcome's variance between classes of the feature


class Neighbours:
    """`add` what a finished program looked like; `weigh` how much each sample says about a running one."""

    def __init__(self, features: int) -> None:
        self._milestones: list[deque[Sample]] = [deque(maxlen=SAMPLES_PER_MILESTONE) for _ in MILESTONES]
        self._scales = [_Scale() for _ in range(features)]
        self._turn = 0
        self.programs = 0

    def __len__(self) -> int:
        return sum(map(len, self._milestones))

    def add(self, samples: Sequence[tuple[int, Sample]]) -> None:
        """One finished program: its samples, each with the index of its milestone."""
        for milestone, sample in samples:
            self._milestones[milestone].append(sample)
        self.programs += 1
        count = len(self._scales)
        if self.programs < _REFIT_ALL_BELOW:
            turns = range(count) if self.programs % 8 == 0 or self.programs < 8 else range(0)
        else:
            turns = range(self._turn, self._turn + _REFIT)
            self._turn = (self._turn + _REFIT) % count
        if turns:
            pooled = [sample for kept in self._milestones for sample in kept]
            outcomes = [math.log(sample.steps + 0.5) for sample in pooled]
            programs = len({id(kept) for kept in pooled}) / max(1.0, len(pooled) / max(1, self._widest()))
            for turn in turns:
                feature = turn % count
                self._scales[feature] = _measured([s.features[feature] for s in pooled], outcomes, programs)

    def _widest(self) -> int:
        return max(map(len, self._milestones))

    def near(self, milestone: int) -> list[Sample]:
        """The samples of a milestone; filled up from those beside it, newest first, while it has few."""
        samples = list(self._milestones[milestone])
        if len(samples) < _ENOUGH:
            wanted = (_NEAR_MAX - len(samples)) // 2
            for beside in (milestone - 1, milestone + 1):
                if 0 <= beside < len(MILESTONES):
                    samples += list(self._milestones[beside])[-wanted:]
        return samples

    def distances(
        self, samples: Sequence[Sample], features: Sequence[float], kinds: tuple[int, int, int]
    ) -> tuple[list[float], list[float]]:
        """How unlike each sample is: with every feature counting alike, and with each by its measured relevance."""
        scales = self._scales
        used = [i for i, scale in enumerate(scales) if scale.per_sd and i]
        total = sum(scales[i].relevance for i in used) or 1.0
        columns = list(zip(*(sample.features for sample in samples), strict=True))
        even = [
            sum(far for mine, theirs, far in zip(kinds, s.kinds, _STRANGER, strict=True) if mine != theirs)
            for s in samples
        ]
        if scales[0].per_sd:  # the step itself: its weight does not depend on how many features there are
            even = _further(even, columns[0], features[0], scales[0].per_sd * _STEP_WEIGHT)
        judged = even
        for i in used:
            even = _further(even, columns[i], features[i], scales[i].per_sd / len(used))
            share = scales[i].relevance / total
            if share >= _RELEVANT:
                judged = _further(judged, columns[i], features[i], scales[i].per_sd * share)
        return even, judged

    def merge(self, other: Neighbours) -> None:
        """Take in another gateway's samples, as if its programs had ended here."""
        for mine, theirs in zip(self._milestones, other._milestones, strict=True):
            both = [x for pair in zip(mine, theirs, strict=False) for x in pair]
            longer = list(mine if len(mine) > len(theirs) else theirs)
            mine.clear()
            mine.extend([*longer[: len(longer) - len(both) // 2], *both] if both else longer)
        self.programs += other.programs
        if other.programs > self.programs - other.programs:
            self._scales = list(other._scales)

    def items(self) -> Iterator[tuple[int, Sample]]:
        for milestone, kept in enumerate(self._milestones):
            for sample in kept:
                yield milestone, sample

    def load(self, items: Sequence[tuple[int, Sample]], programs: int) -> None:
        for milestone, sample in items:
            if len(sample.features) != len(self._scales) or not 0 <= milestone < len(MILESTONES):
                raise ValueError("a stored program does not fit these features")
            self._milestones[milestone].append(sample)
        self.programs = programs
        pooled = [sample for kept in self._milestones for sample in kept]
        outcomes = [math.log(sample.steps + 0.5) for sample in pooled]
        for feature in range(len(self._scales)):
            values = [sample.features[feature] for sample in pooled]
            self._scales[feature] = _measured(values, outcomes, max(1.0, float(self._widest())))


def _further(distances: list[float], column: Sequence[float], mine: float, weight: float) -> list[float]:
    """The distances, with one more feature counted."""
    return [d + weight * abs(mine - theirs) for d, theirs in zip(distances, column, strict=True)]


def _measured(values: Sequence[float], outcomes: Sequence[float], programs: float) -> _Scale:
    """Mean, spread and relevance of one feature over all samples."""
    n = len(values)
    if n < 4:
        return _Scale()
    mean = sum(values) / n
    variance = sum((v - mean) ** 2 for v in values) / n
    if variance < 1e-10:
        return _Scale(mean=mean)
    ordered = sorted(values)
    cuts = sorted({ordered[n * i // _CLASSES] for i in range(1, _CLASSES)})
    counts, sums = [0] * (len(cuts) + 1), [0.0] * (len(cuts) + 1)
    for value, outcome in zip(values, outcomes, strict=True):
        part = bisect_right(cuts, value)
        counts[part] += 1
        sums[part] += outcome
    overall = sum(outcomes) / n
    total = sum((o - overall) ** 2 for o in outcomes) / n
    between = sum(s * s / c for s, c in zip(sums, counts, strict=True) if c) / n - overall * overall
    # As many classes would differ this much by chance alone.
    chance = (sum(c > 0 for c in counts) - 1) / max(programs, 1.0)
    relevance = max(0.0, between / total - chance) if total > 0 else 0.0
    return _Scale(mean=mean, per_sd=1.0 / math.sqrt(variance), relevance=relevance)
