"""Fit a profile's efficiency factors to iterations that were timed on a real engine.

How to measure: time single iterations of the engine (its own step log, or a request alone) over a spread of shapes:
long prefills, short prefills behind a long context, decodes of 1 to 256 sequences at short and long context. A factor
that no sample depends on keeps the value that the profile came with.

Rule: the time is linear in (1/mfu, 1/mfu_attention, 1/mbu, overhead) once it is known which side of the roofline each
sample is on. So sides are guessed, least squares on relative errors gives the factors, and these give the sides anew,
until the sides stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agentserve.engine.profile import Profile
from agentserve.errors import UsageError

ROUNDS_MAX = 50
RIDGE = 1e-9  # keeps a factor that no sample speaks of; too small to be felt by any other


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One iteration of a real engine: one prefill chunk and a batch of decodes, either may be absent."""

    prefill_tokens: int = 0
    prefill_context: int = 0  # tokens before the chunk
    decodes: int = 0
    decode_context: int = 0  # in sum over the decoding sequences
    seconds: float

    def predicted_s(self, profile: Profile) -> float:
        """What the profile says."""
        prefill = [(self.prefill_tokens, self.prefill_context)] if self.prefill_tokens else []
        return profile.iteration_s(prefill=prefill, decodes=self.decodes, decode_context=self.decode_context)


def fit(profile: Profile, samples: Sequence[Sample]) -> Profile:
    """The profile with mfu, mfu_attention, mbu and overhead_s as these samples have them."""
    if len(samples) < 4 or any(s.seconds <= 0 or s.prefill_tokens + s.decodes < 1 for s in samples):
        raise UsageError(
            "a profile cannot be fitted to these samples",
            remedy="give at least four, each with tokens and a positive time",
        )
    start = [1 / profile.mfu, 1 / profile.mfu_attention, 1 / profile.mbu, profile.overhead_s]
    parts = [_parts(profile, s) for s in samples]
    x = start
    sides: list[bool] = []
    for _ in range(ROUNDS_MAX):
        fresh = [compute * x[0] >= weights * x[2] for compute, weights, _, _ in parts]
        if fresh == sides:
            break
        sides = fresh
        rows = []
        for bound, (compute, weights, attention, kv) in zip(sides, parts, strict=True):
            rows.append([compute if bound else 0.0, attention, kv + (0.0 if bound else weights), 1.0])
        x = _least_squares(rows, [s.seconds for s in samples], start)
    return replace(
        profile,
        mfu=1 / max(x[0], 1e-9),
        mfu_attention=1 / max(x[1], 1e-9),
        mbu=1 / max(x[2], 1e-9),
        overhead_s=max(x[3], 0.0),
    )


def error(profile: Profile, samples: Sequence[Sample]) -> float:
    """Mean relative error of the profile's times."""
    return sum(abs(s.predicted_s(profile) / s.seconds - 1) for s in samples) / len(samples)


def _parts(profile: Profile, sample: Sample) -> tuple[float, float, float, float]:
    """Seconds at full efficiency: of compute, of reading weights, of prefill attention, of reading KV."""
    ideal = replace(profile, mfu=1.0, mfu_attention=1.0, mbu=1.0)
    n = sample.prefill_tokens
    return (
        2.0 * profile.model.parameters * (n + sample.decodes) / ideal.flops,
        ideal.weight_bytes / ideal.bandwidth,
        n * (sample.prefill_context + n / 2) * ideal.attention_s_per_token_context(),
        sample.decode_context * ideal.kv_read_s_per_token(),
    )


def _least_squares(rows: list[list[float]], seconds: list[float], start: list[float]) -> list[float]:
    """Least squares on relative errors, in units of `start`, with a slight pull towards it."""
    size = len(start)
    unit = [value or 1.0 for value in start]
    matrix = [[RIDGE * len(rows) if i == j else 0.0 for j in range(size)] for i in range(size)]
    right = [RIDGE * len(rows)] * size
    for row, second in zip(rows, seconds, strict=True):
        scaled = [value * u / second for value, u in zip(row, unit, strict=True)]
        for i in range(size):
            right[i] += scaled[i]
            for j in range(size):
                matrix[i][j] += scaled[i] * scaled[j]
    return [value * u for value, u in zip(_solve(matrix, right), unit, strict=True)]


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination with partial pivoting."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda r: abs(rows[r][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for below in range(column + 1, size):
            share = rows[below][column] / rows[column][column]
            rows[below] = [b - share * a for a, b in zip(rows[column], rows[below], strict=True)]
    out = [0.0] * size
    for row in reversed(range(size)):
        known = sum(rows[row][j] * out[j] for j in range(row + 1, size))
        out[row] = (rows[row][size] - known) / rows[row][row]
    return out
