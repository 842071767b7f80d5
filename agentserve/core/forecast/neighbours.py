"""Finished programs, kept as they looked at certain steps, and how alike a running one is to each of them.

One rule: a bounded number of samples per step, the oldest dropped first, and a bounded number looked at by a
query. It does not know what the features mean: which of them matter is measured on the samples.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from agentserve.core.forecast.grid import STEPS, Grid

# The steps at which a program is looked at: each about 1.4 times the one before.
MILESTONES = (1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 56, 80, 113, 160, 226, 320, 453, 640, 905, 1280)
SAMPLES_PER_MILESTONE = 192

_CLASSES = 5  # parts into which a feature is cut to see whether the outcome differs between them
_ENOUGH = 160  # samples at which a milestone needs none of its neighbours'
_NEAR_MAX = 288  # samples that one query looks at
_RELEVANT = (
    0.02  # a feature with less than this share of all relevance is left out of the distance by relevance
)
_REFIT = 4  # features measured anew at a time, once there are many programs,
_REFIT_EVERY = 8  # and after so many of them
_REFIT_ALL_BELOW = 48  # programs
_STEP_WEIGHT = 0.125
# Another role, workflow or tenant makes a program less alike, by as much as this distance.
_STRANGER = (0.02, 0.05, 0.02)
# A panel stands until one part in this many of what it was made from was learned anew.
_GROWTH = 16


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


class Panel:
    """The samples that a question about one milestone looks at: by feature, each already weighed.

    Two ways to weigh: every feature alike, and each by its measured relevance.
    """

    __slots__ = ("_even", "_judged", "_kinds", "_samples", "due", "steps")

    def __init__(self, samples: Sequence[Sample], scales: Sequence[_Scale], due: int) -> None:
        self._samples = samples
        self.due = due  # how many programs will have been learned from when it is to be made anew
        self._kinds = [sample.kinds for sample in samples]
        self.steps = [STEPS.index(sample.steps) for sample in samples]
        used = [i for i, scale in enumerate(scales) if scale.per_sd and i]
        total = sum(scales[i].relevance for i in used) or 1.0
        even = {i: scales[i].per_sd / len(used) for i in used}
        judged = {
            i: scales[i].per_sd * share for i in used if (share := scales[i].relevance / total) >= _RELEVANT
        }
        if scales[0].per_sd:  # the step itself: its weight does not depend on how many features there are
            even[0] = judged[0] = scales[0].per_sd * _STEP_WEIGHT
        self._even, self._judged = self._weighed(even), self._weighed(judged)

    def __len__(self) -> int:
        return len(self._samples)

    def bins(self, grid: Grid, quantity: str) -> list[int]:
        """The bin of each sample's outcome."""
        return [grid.index(getattr(sample, quantity)) for sample in self._samples]

    def _weighed(self, weights: Mapping[int, float]) -> list[tuple[int, float, array[float]]]:
        return [
            (i, weight, array("d", [weight * sample.features[i] for sample in self._samples]))
            for i, weight in weights.items()
        ]

    def distances(
        self, features: Sequence[float], kinds: tuple[int, int, int]
    ) -> tuple[list[float], list[float]]:
        """How unlike each sample is: with every feature counting alike, and with each by its measured relevance."""
        strange = {
            theirs: sum(far for a, b, far in zip(kinds, theirs, _STRANGER, strict=True) if a != b)
            for theirs in set(self._kinds)
        }
        start = [strange[theirs] for theirs in self._kinds]
        return _further(start, self._even, features), _further(start, self._judged, features)


class Neighbours:
    """`add` what a finished program looked like; a `panel` says how much each sample says about a running one."""

    def __init__(self, features: int) -> None:
        self._milestones: list[deque[Sample]] = [deque(maxlen=SAMPLES_PER_MILESTONE) for _ in MILESTONES]
        self._scales = [_Scale() for _ in range(features)]
        self._panels: list[Panel | None] = [None] * len(MILESTONES)
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
        elif self.programs % _REFIT_EVERY == 0:
            turns = range(self._turn, self._turn + _REFIT)
            self._turn = (self._turn + _REFIT) % count
        else:
            turns = range(0)
        if turns:
            self._refit([turn % count for turn in turns])

    def _refit(self, features: Iterable[int]) -> None:
        """Measure some features anew, on all samples."""
        pooled = [sample for kept in self._milestones for sample in kept]
        outcomes = [math.log(sample.steps + 0.5) for sample in pooled]
        programs = max(1.0, float(self._widest()))
        for feature in features:
            values = [sample.features[feature] for sample in pooled]
            self._scales[feature] = _measured(values, outcomes, programs)

    def _widest(self) -> int:
        return max(map(len, self._milestones))

    def panel(self, milestone: int) -> Panel:
        """The samples of a milestone; filled up from those beside it, newest first, while it has few."""
        panel = self._panels[milestone]
        if panel is None or self.programs >= panel.due:
            samples = list(self._milestones[milestone])
            if len(samples) < _ENOUGH:
                wanted = (_NEAR_MAX - len(samples)) // 2
                for beside in (milestone - 1, milestone + 1):
                    if 0 <= beside < len(MILESTONES):
                        samples += list(self._milestones[beside])[-wanted:]
            due = self.programs + 1 + min(self.programs, SAMPLES_PER_MILESTONE) // _GROWTH
            panel = self._panels[milestone] = Panel(samples, self._scales, due)
        return panel

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
        self._panels = [None] * len(MILESTONES)

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
        self._refit(range(len(self._scales)))
        self._panels = [None] * len(MILESTONES)


def _further(
    far: list[float], columns: Sequence[tuple[int, float, array[float]]], features: Sequence[float]
) -> list[float]:
    """The distances, with more features counted: four at a time, since a turn of a loop costs as much as three."""
    quads = len(columns) - len(columns) % 4
    for at in range(0, quads, 4):
        (i, u, first), (j, v, second), (k, w, third), (m, x, fourth) = columns[at : at + 4]
        a, b, c, d = u * features[i], v * features[j], w * features[k], x * features[m]
        far = [
            sofar + abs(a - p) + abs(b - q) + abs(c - r) + abs(d - s)
            for sofar, p, q, r, s in zip(far, first, second, third, fourth, strict=True)
        ]
    for i, weight, column in columns[quads:]:
        mine = weight * features[i]
        far = [sofar + abs(mine - theirs) for sofar, theirs in zip(far, column, strict=True)]
    return far


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
