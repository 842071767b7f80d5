"""Finished programs, kept as they looked at certain steps, and how alike a running one is to each of them.

One rule: a bounded number of samples per step, the oldest dropped first, and a bounded number looked at by a
query. It does not know what the features mean: which of them matter is measured on the samples.

How far apart two programs are is counted, not computed: a ruler writes every feature as so many ones in a row as its
value is high and as the feature matters, all in one long integer, so that the distance of two programs is the number
of bits in which their integers differ. That takes a hundred nanoseconds where a sum of differences takes microseconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from agentserve.core.forecast.grid import STEPS, Grid

# The steps at which a program is looked at: each about 1.4 times the one before.
MILESTONES = (1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 56, 80, 113, 160, 226, 320, 453, 640, 905, 1280)
SAMPLES_PER_MILESTONE = 192

_CLASSES = 5  # parts into which a feature is cut to see whether the outcome differs between them
_MEASURED_MAX = 768  # samples on which that is seen
_ENOUGH = 160  # samples at which a milestone needs none of its neighbours'
_NEAR_MAX = 288  # samples that one query looks at
# a feature with less than this share of all relevance is left out of the distance by relevance
_RELEVANT = 0.02
_REFIT = 4  # features measured anew at a time, once there are many programs,
_REFIT_EVERY = 8  # and after so many of them
_REFIT_ALL_BELOW = 48  # programs
_STEP_WEIGHT = 0.125
_BY_RELEVANCE = 0.25  # of the distance goes by measured relevance; by the rest every feature counts alike
_BANDWIDTH = 0.15
_BIT = 0.02  # of distance
_REACH = 3.0  # standard deviations from the mean that are told apart
_KINDS = 3  # another role, workflow or tenant makes a program less alike: each is one of so many places
_KIND_PLACES = 32
# A panel stands until one part in this many of what it was made from was learned anew; the ruler stands longer.
_GROWTH = 16
_RULER_GROWTH = 4


Kinds = tuple[int, int, int]  # role, workflow, tenant


class Sample(msgspec.Struct, frozen=True):
    """A finished program as it looked at a milestone, and what was still to come."""

    features: tuple[float, ...]
    kinds: Kinds
    steps: int
    tokens: float
    seconds: float


@dataclass(slots=True)
class _Scale:
    """How one feature is distributed, and how much the outcome depends on it."""

    mean: float = 0.0
    per_sd: float = 0.0  # one over the standard deviation; 0 where the feature is constant
    relevance: float = 0.0  # share of the outcome's variance between classes of the feature


class Ruler:
    """Writes a program as an integer, each feature with as many bits as it has weight."""

    __slots__ = ("_rows", "bits", "likeness")

    def __init__(self, scales: Sequence[_Scale]) -> None:
        # of each feature: bits a unit, the bits at zero, the most there are, and the integer of each count of them
        self._rows: list[tuple[int, float, float, int, tuple[int, ...]]] = []
        self.bits = 0
        for i, weight in _weights(scales).items():
            a_unit = weight * scales[i].per_sd / _BIT
            at_zero = weight * _REACH / _BIT - scales[i].mean * a_unit
            most = math.ceil(2 * _REACH * weight / _BIT)
            marks = tuple(((1 << count) - 1) << self.bits for count in range(most + 1))
            self._rows.append((i, a_unit, at_zero + 0.5, most, marks))
            self.bits += most
        # how much a sample says that differs in 0, 1, 2, ... bits: 1 for a program just like it
        differing = range(self.bits + 2 * _KINDS + 1)
        self.likeness = [math.exp(-_BIT * bits / _BANDWIDTH) for bits in differing]

    def code(self, features: Sequence[float], kinds: Sequence[int]) -> int:
        """The program as bits."""
        code = 0
        for i, a_unit, at_zero, most, marks in self._rows:
            count = int(features[i] * a_unit + at_zero)
            if count > 0:
                code |= marks[count if count < most else most]
        at = self.bits
        for kind in kinds:
            code |= 1 << (at + kind % _KIND_PLACES)
            at += _KIND_PLACES
        return code


def _weights(scales: Sequence[_Scale]) -> dict[int, float]:
    """By feature, what one standard deviation is of the distance; constant features have none."""
    used = [i for i, scale in enumerate(scales) if scale.per_sd and i]
    total = sum(scales[i].relevance for i in used) or 1.0
    weights = {}
    for i in used:
        share = scales[i].relevance / total
        judged = share if share >= _RELEVANT else 0.0
        weights[i] = (1.0 - _BY_RELEVANCE) / len(used) + _BY_RELEVANCE * judged
    if scales[0].per_sd:  # the step itself: its weight does not depend on how many features there are
        weights[0] = _STEP_WEIGHT
    return weights


class _Kept:
    """A sample with its code, by the ruler that wrote it last."""

    __slots__ = ("code", "ruler", "sample")

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.ruler: Ruler | None = None
        self.code = 0

    def written(self, ruler: Ruler) -> int:
        if self.ruler is not ruler:
            self.ruler = ruler
            self.code = ruler.code(self.sample.features, self.sample.kinds)
        return self.code


class Panel:
    """The samples that a question about one milestone looks at, in the order of what was left of them."""

    __slots__ = ("_codes", "_ruler", "_samples", "beside", "due", "parts")

    def __init__(self, kept: Sequence[_Kept], ruler: Ruler, due: int) -> None:
        kept = sorted(kept, key=lambda k: k.sample.steps)
        self._samples = [k.sample for k in kept]
        self._ruler = ruler
        self._codes = [k.written(ruler) for k in kept]
        self.beside: dict[
            tuple[Kinds, str], Sequence[float]
        ] = {}  # its asker's own, for as long as it stands
        self.due = due  # how many programs will have been learned from when it is to be made anew
        bins = [STEPS.index(sample.steps) for sample in self._samples]
        # each bin of steps that any sample is in, and where these begin and end
        self.parts = [
            (place, bisect_left(bins, place), bisect_right(bins, place)) for place in sorted(set(bins))
        ]

    def __len__(self) -> int:
        return len(self._samples)

    def bins(self, grid: Grid, quantity: str) -> list[int]:
        """The bin of each sample's outcome."""
        return [grid.index(getattr(sample, quantity)) for sample in self._samples]

    def weights(self, features: Sequence[float], kinds: Sequence[int]) -> list[float]:
        """How much each sample says of a program: 1 for one just like it."""
        code = self._ruler.code(features, kinds)
        differing = map(int.bit_count, map(code.__xor__, self._codes))
        return list(map(self._ruler.likeness.__getitem__, differing))


class Neighbours:
    """`add` what a finished program looked like; a `panel` says how much each sample says about a running one."""

    def __init__(self, features: int) -> None:
        self._ruler: Ruler | None = None
        self._ruler_due = 0
        self._milestones: list[deque[_Kept]] = [deque(maxlen=SAMPLES_PER_MILESTONE) for _ in MILESTONES]
        self._scales = [_Scale() for _ in range(features)]
        self._panels: list[Panel | None] = [None] * len(MILESTONES)
        self._turn = 0
        self.programs = 0

    def __len__(self) -> int:
        return sum(map(len, self._milestones))

    def add(self, samples: Sequence[tuple[int, Sample]]) -> None:
        """One finished program: its samples, each with the index of its milestone."""
        for milestone, sample in samples:
            self._milestones[milestone].append(_Kept(sample))
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
        pooled = [sample for _, sample in self.items()]
        pooled = pooled[:: 1 + len(pooled) // _MEASURED_MAX]
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
            kept = list(self._milestones[milestone])
            if len(kept) < _ENOUGH:
                wanted = (_NEAR_MAX - len(kept)) // 2
                for beside in (milestone - 1, milestone + 1):
                    if 0 <= beside < len(MILESTONES):
                        kept += list(self._milestones[beside])[-wanted:]
            if self._ruler is None or self.programs >= self._ruler_due:
                self._ruler = Ruler(self._scales)
                self._ruler_due = self._until(_RULER_GROWTH)
            panel = self._panels[milestone] = Panel(kept, self._ruler, self._until(_GROWTH))
        return panel

    def _until(self, growth: int) -> int:
        """When one part in `growth` of the samples that are kept will be new."""
        return self.programs + 1 + min(self.programs, SAMPLES_PER_MILESTONE) // growth

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
        self._forget_made()

    def items(self) -> Iterator[tuple[int, Sample]]:
        for milestone, kept in enumerate(self._milestones):
            for one in kept:
                yield milestone, one.sample

    def load(self, items: Sequence[tuple[int, Sample]], programs: int) -> None:
        for milestone, sample in items:
            if len(sample.features) != len(self._scales) or not 0 <= milestone < len(MILESTONES):
                raise ValueError("a stored program does not fit these features")
            self._milestones[milestone].append(_Kept(sample))
        self.programs = programs
        self._refit(range(len(self._scales)))
        self._forget_made()

    def _forget_made(self) -> None:
        self._panels = [None] * len(MILESTONES)
        self._ruler = None


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
