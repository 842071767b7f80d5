"""Forecasts how many tokens a step will write, from what steps like it wrote.

One rule: a forecast never exceeds the limit that the client set, because the engine stops there. It does not read
prompts; a step is known by its role, its limit, its program, and what the last step of the program was.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import msgspec

from agentserve.core.forecast.calls import joined, text_hash
from agentserve.core.forecast.grid import TOKENS, lognormal
from agentserve.core.forecast.ladder import Ladder, Rung
from agentserve.core.forecast.survival import Survival

KEYS_MAX = 65_536
# What agents' steps write, of published runs (SWE-rebench, Claude Code): median 117 to 216 tokens, p90 560 to 900.
# The first programs are admitted by this; were it flat, each would be charged for ten thousand tokens.
_PRIOR = lognormal(TOKENS, median=150.0, sigma=1.3)
_VERSION = 1
_RUNGS = (
    Rung(half_life=500, strength=2),  # all steps
    Rung(half_life=200, strength=6),  # of this role and workflow
    Rung(half_life=100, strength=8),  # of this tenant, with such a limit
    Rung(half_life=20, strength=8),  # of this program
)


# By what a step is known: tenant, workflow, role and the client's limit.
Asked = tuple[str, str | None, int, int | None]


class OutputForecaster:
    """`predict` before a step, `observe` after it."""

    def __init__(self, *, keys_max: int = KEYS_MAX) -> None:
        self._ladder = Ladder(TOKENS, _RUNGS, keys_max=keys_max, prior=_PRIOR)

    def __len__(self) -> int:
        """Histories that are kept."""
        return len(self._ladder)

    def predict(
        self,
        *,
        tenant: str,
        workflow: str | None = None,
        role: int = 0,
        tokens_max: int | None = None,
        program: str | None = None,
        written: int = 0,
    ) -> Survival:
        """How many tokens the step will have written in all; `written` so far."""
        asked = (tenant, workflow, role, tokens_max)
        return self._foretold(self._of_kind(asked), asked, program, written)

    def _foretold(
        self, above: Sequence[float], asked: Asked, program: str | None, written: int = 0
    ) -> Survival:
        """What steps like it write, `above`, as this program's steps had it."""
        tokens_max = asked[-1]
        masses = list(above if program is None else self._narrowed(above, asked, program))
        if tokens_max is not None and tokens_max < TOKENS.high:
            limit = TOKENS.index(tokens_max)
            masses[limit] += sum(masses[limit + 1 :])
            masses[limit + 1 :] = [0.0] * (TOKENS.bins - limit - 1)
        return Survival(TOKENS, masses, elapsed_s=float(written))

    def _of_kind(self, asked: Asked) -> Sequence[float]:
        """What steps like it write, whatever their program."""
        return self._ladder.masses(_kind_keys(*asked))

    def _narrowed(self, above: Sequence[float], asked: Asked, program: str) -> Sequence[float]:
        """Masses of its kind, as this program's steps had it."""
        return self._ladder.narrowed(above, _program_key(asked, program), _RUNGS[-1])

    def observe(
        self,
        *,
        tenant: str,
        tokens: int,
        workflow: str | None = None,
        role: int = 0,
        tokens_max: int | None = None,
        program: str | None = None,
        truncated: bool = False,
    ) -> None:
        """A step wrote `tokens`; `truncated` if it was stopped there by its limit or its client."""
        asked = (tenant, workflow, role, tokens_max)
        keys: tuple[int, ...] = _kind_keys(*asked)
        if program is not None:
            keys = (*keys, _program_key(asked, program))
        self._ladder.learn(keys, float(max(tokens, 1)), censored=truncated)

    def forget(
        self, *, tenant: str, workflow: str | None, role: int, tokens_max: int | None, program: str
    ) -> None:
        """The program is over: what its own steps wrote under these is not asked for again."""
        self._ladder.forget(_program_key((tenant, workflow, role, tokens_max), program))

    def merge(self, other: OutputForecaster) -> None:
        self._ladder.merge(other._ladder)

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode((_VERSION, self._ladder.dump()))

    @classmethod
    def from_bytes(cls, data: bytes, *, keys_max: int = KEYS_MAX) -> OutputForecaster:
        """The inverse of `to_bytes`; raises ValueError on anything that is not its output."""
        version, ladder = msgspec.msgpack.decode(data, type=tuple[int, dict[int, bytes]])
        if version != _VERSION:
            raise ValueError(f"output forecasts of version {version} cannot be read here")
        made = cls(keys_max=keys_max)
        made._ladder.load(ladder)
        return made


@lru_cache(maxsize=4_096)
def _kind_keys(tenant: str, workflow: str | None, role: int, tokens_max: int | None) -> tuple[int, int, int]:
    kind = joined(role, text_hash(workflow or ""))
    limit = 0 if tokens_max is None else tokens_max.bit_length()
    return 1, kind, joined(joined(kind, text_hash(tenant)), limit)


def _program_key(asked: Asked, program: str) -> int:
    return joined(joined(_kind_keys(*asked)[-1], text_hash(program)), 1)
