"""Forecasts when a program comes back after a step: tool time and client overhead together, as a server sees it.

One rule: a gap is what lies between the end of a reply and the next request of the same program, whatever the
client did in it. It does not know why a gap was long; waits for people are a kind of their own. Whether the program
comes back at all is doubted by how many steps it has done (`turns`): after a reply that asked for nothing as soon as
such gaps stay open, after tool calls once programs were given up there.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from agentserve.core.forecast.calls import CallShape, joined, text_hash
from agentserve.core.forecast.grid import HUMAN_SECONDS
from agentserve.core.forecast.ladder import Ladder, Rung
from agentserve.core.forecast.survival import Survival
from agentserve.core.forecast.tools import KEYS_MAX, ToolForecaster
from agentserve.core.forecast.turns import Unfollowed, doubted, keys_of

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
        self._out = Unfollowed()  # turns, counted from when they end
        self._stopped = Unfollowed()  # after tool calls, counted when the program is given up

    def predict(
        self,
        *,
        tenant: str,
        program: str | None,
        calls: Sequence[CallShape] = (),
        workflow: str | None = None,
        steps: int = 0,
        elapsed_s: float = 0.0,
    ) -> Survival:
        """When the program's next request comes, after a step that asked for `calls`; after a turn if for none.

        `steps`: how many it has done.
        """
        if not calls:
            keys = _turn_keys(tenant, workflow)
            share = self._out.share(keys_of(keys[-1], steps))
            return doubted(self._turns.forecast(keys, elapsed=elapsed_s), share)
        gap = self.gaps.predict(tenant=tenant, program=program, calls=calls, elapsed_s=elapsed_s)
        if not self._stopped:
            return gap
        # that of its kind is in the tool's own forecast, which learns of the given up as of any other
        return doubted(gap, self._stopped.beyond(keys_of(_turn_keys(tenant, workflow)[-1], steps)))

    def turn_ended(self, *, tenant: str, workflow: str | None = None, steps: int = 0) -> None:
        """A reply asked for nothing, and its program may or may not come back; `observe` follows if that is known."""
        self._out.missing(keys_of(_turn_keys(tenant, workflow)[-1], steps))

    def turn_was_last(self, *, tenant: str, workflow: str | None = None, steps: int = 0) -> None:
        """After `turn_ended`: the client told that the program is over."""
        self._out.withdrawn(keys_of(_turn_keys(tenant, workflow)[-1], steps))

    def observe(
        self,
        *,
        tenant: str,
        program: str | None,
        calls: Sequence[CallShape] = (),
        workflow: str | None = None,
        seconds: float,
        steps: int = 0,
        censored: bool = False,
        given_up: bool = False,
        last: int | None = None,
    ) -> None:
        """A gap ended after `seconds`; `censored` if its program was not seen to come back, `given_up` if it will not.

        `last`: which of the calls ended last, where that was measured; else the one that was expected to.
        """
        keys = _turn_keys(tenant, workflow)
        if not calls:
            if given_up:
                return  # it stays counted as one that nobody followed, and says nothing of how long the others take
            after = keys_of(keys[-1], steps)
            self._out.withdrawn(after) if censored else self._out.followed(after, counted=True)
            self._turns.learn(keys, seconds, censored=censored)
            return
        if given_up:
            self._stopped.missing(keys_of(keys[-1], steps))
        elif self._stopped and not censored:
            self._stopped.followed(keys_of(keys[-1], steps), counted=False)
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
        self._out.merge(other._out)
        self._stopped.merge(other._stopped)

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode(
            _Dumped(
                version=_VERSION,
                gaps=self.gaps.to_bytes(),
                turns=self._turns.dump(),
                out=self._out.dump(),
                stopped=self._stopped.dump(),
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
        made._out.load(dumped.out)
        made._stopped.load(dumped.stopped)
        return made


class _Dumped(msgspec.Struct, kw_only=True):
    version: int
    gaps: bytes
    turns: dict[int, bytes]
    out: dict[int, tuple[float, float]] = {}  # of versions before these, nothing
    stopped: dict[int, tuple[float, float]] = {}


def _turn_keys(tenant: str, workflow: str | None) -> tuple[int, int, int]:
    kind = text_hash(workflow or "")
    return 0, kind, joined(kind, text_hash(tenant))
