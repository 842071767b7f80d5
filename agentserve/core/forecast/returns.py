"""Forecasts when a program comes back after a step: tool time and client overhead together, as a server sees it.

One rule: a gap is what lies between the end of a reply and the next request of the same program, whatever the
client did in it. It does not know why a gap was long; waits for people are a kind of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from agentserve.core.forecast.calls import CallShape, joined, text_hash
from agentserve.core.forecast.grid import HUMAN_SECONDS
from agentserve.core.forecast.ladder import Ladder, Rung
from agentserve.core.forecast.survival import Survival
from agentserve.core.forecast.tools import KEYS_MAX, ToolForecaster
from agentserve.core.forecast.turns import TurnsOut, doubted

_KEYS_MAX = 4_096
_VERSION = 1
# People: what is known of all of them, of this workflow's, of this tenant's. Deeper keys foretold worse.
_TURN_RUNGS = (
    Rung(half_life=200, strength=2),
    Rung(half_life=100, strength=8),
    Rung(half_life=100, strength=8),
)


class ReturnForecaster:
    """`predict` when a gap begins, `observe` when it ends (or, censored, when the program was given up)."""

    def __init__(self, *, keys_max: int = KEYS_MAX) -> None:
        self.gaps = ToolForecaster(keys_max=keys_max)  # keyed by the dominant call of each gap
        self._turns = Ladder(HUMAN_SECONDS, _TURN_RUNGS, keys_max=_KEYS_MAX)
        self._out = TurnsOut()

    def predict(
        self,
        *,
        tenant: str,
        program: str | None,
        calls: Sequence[CallShape] = (),
        workflow: str | None = None,
        elapsed_s: float = 0.0,
    ) -> Survival:
        """When the program's next request comes, after a step that asked for `calls`; after a turn if for none."""
        if not calls:
            keys = _turn_keys(tenant, workflow)
            return doubted(self._turns.forecast(keys, elapsed=elapsed_s), self._out.share(keys[-1]))
        return self.gaps.predict(tenant=tenant, program=program, calls=calls, elapsed_s=elapsed_s)

    def turn_ended(self, *, tenant: str, workflow: str | None = None) -> None:
        """A reply asked for nothing, and its program may or may not come back; `observe` follows if that is known."""
        self._out.began(_turn_keys(tenant, workflow)[-1])

    def observe(
        self,
        *,
        tenant: str,
        program: str | None,
        calls: Sequence[CallShape] = (),
        workflow: str | None = None,
        seconds: float,
        censored: bool = False,
        last: int | None = None,
    ) -> None:
        """A gap ended after `seconds`; `censored` if the program was given up then and has not come back.

        `last`: which of the calls ended last, where that was measured; else the one that was expected to.
        """
        if not calls:
            keys = _turn_keys(tenant, workflow)
            self._out.over(keys[-1])
            self._turns.learn(keys, seconds, censored=censored)
            return
        at = last if last is not None else self.gaps.dominant(tenant=tenant, program=program, calls=calls)
        self.gaps.observe(
            tenant=tenant,
            program=program,
            call=calls[at],
            seconds=seconds,
            censored=censored,
            group=(at, len(calls)),
        )

    def forget_program(self, program: str, *, tenant: str) -> None:
        self.gaps.forget_program(program, tenant=tenant)

    def merge(self, other: ReturnForecaster) -> None:
        self.gaps.merge(other.gaps)
        self._turns.merge(other._turns)

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode(
            _Dumped(
                version=_VERSION,
                gaps=self.gaps.to_bytes(),
                turns=self._turns.dump(),
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, keys_max: int = KEYS_MAX) -> ReturnForecaster:
        """The inverse of `to_bytes`; raises ValueError on anything that is not its output."""
        dumped = msgspec.msgpack.decode(data, type=_Dumped)
        if dumped.version != _VERSION:
            raise ValueError(f"return forecasts of version {dumped.version} cannot be read here")
        made = cls(keys_max=keys_max)
        made.gaps = ToolForecaster.from_bytes(dumped.gaps, keys_max=keys_max)
        made._turns.load(dumped.turns)
        return made


class _Dumped(msgspec.Struct, kw_only=True):
    version: int
    gaps: bytes
    turns: dict[int, bytes]


def _turn_keys(tenant: str, workflow: str | None) -> tuple[int, int, int]:
    kind = text_hash(workflow or "")
    return 0, kind, joined(kind, text_hash(tenant))
