"""Forecasts how long tool calls take, online, from the durations of earlier ones.

One rule: constant memory a key and a bounded number of keys; nothing is kept of a call but counts. It must not
know what any particular tool does: what it knows of a tool is what it measured, shrunk towards coarser keys.

A call is known by a ladder of keys, from all calls down to the exact repeat in the same program; `chains` says how
what was counted under them is combined. What tools and their argument classes are like is learned from all tenants
together; everything narrower is a tenant's own. Waits for people are counted apart, and declared durations are
mixed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from agentserve.core.forecast.calls import CallShape, joined, text_hash
from agentserve.core.forecast.chains import GROWTHS, Chains, Histogram
from agentserve.core.forecast.grid import HUMAN_SECONDS, TOOL_SECONDS, spread
from agentserve.core.forecast.hints import Hints
from agentserve.core.forecast.ladder import Ladder, Rung
from agentserve.core.forecast.masses import Table, add_to_each
from agentserve.core.forecast.survival import Survival

KEYS_MAX = 65_536
PROGRAMS_MAX = 8_192
PROGRAM_KEYS_MAX = 64
_HUMAN_KEYS_MAX = 4_096
_ALL_CALLS = 0  # the key that every call has
_VERSION = 1

# People differ more than kinds of questions do, and deeper keys than these foretold worse.
_HUMAN_RUNGS = (
    Rung(half_life=200, strength=2),
    Rung(half_life=100, strength=6),
    Rung(half_life=50, strength=8),
)


class ToolForecaster:
    """`predict` before a call, `observe` after it, `forget_program` when its program is over."""

    def __init__(self, *, keys_max: int = KEYS_MAX, programs_max: int = PROGRAMS_MAX) -> None:
        self._grid = TOOL_SECONDS
        self._table = Table(self._grid, keys_max)
        self._programs: dict[tuple[str, str], Table] = {}
        self._programs_max = programs_max
        self._chains = Chains(self._grid.bins)
        self._humans = Ladder(HUMAN_SECONDS, _HUMAN_RUNGS, keys_max=_HUMAN_KEYS_MAX)
        self._hints = Hints(self._grid)

    def __len__(self) -> int:
        """How many keys are held."""
        return len(self._table) + len(self._humans) + sum(map(len, self._programs.values()))

    # -- asking -------------------------------------------------------------------------------------------

    def predict(
        self, *, tenant: str, program: str | None, calls: Sequence[CallShape], elapsed_s: float = 0.0
    ) -> Survival:
        """When the last of `calls`, all emitted by one step, will have returned.

        Parallel calls are forecast by the dominant one: calls of one step are too much alike for the product of
        their distributions to hold.
        """
        if not calls:
            raise ValueError("a forecast needs at least one call")
        forecasts = [
            self.predict_one(
                tenant=tenant, program=program, call=call, group=(at, len(calls)), elapsed_s=elapsed_s
            )
            for at, call in enumerate(calls)
        ]
        return forecasts[0] if len(forecasts) == 1 else max(forecasts, key=_reach)

    def predict_one(
        self,
        *,
        tenant: str,
        program: str | None,
        call: CallShape,
        group: tuple[int, int] = (0, 1),
        elapsed_s: float = 0.0,
    ) -> Survival:
        """When one call will have returned; `group` is its position among the calls of its step, and their number."""
        if call.kind in ("human", "permission"):
            return self._humans.forecast(_human_keys(tenant, call), elapsed=elapsed_s)
        return Survival(self._grid, self._masses(tenant, program, call, group), elapsed_s=elapsed_s)

    def dominant(self, *, tenant: str, program: str | None, calls: Sequence[CallShape]) -> int:
        """Which of the parallel `calls` is expected to return last."""
        if len(calls) == 1:
            return 0
        reaches = [
            _reach(self.predict_one(tenant=tenant, program=program, call=call, group=(at, len(calls))))
            for at, call in enumerate(calls)
        ]
        return reaches.index(max(reaches))

    def _masses(
        self, tenant: str, program: str | None, call: CallShape, group: tuple[int, int]
    ) -> list[float]:
        tool, shape, nodes = self._nodes(tenant, program, call, group)
        learned = self._chains.masses(nodes, tool=tool, shape=shape)
        hint = self._hint(tenant, program, call)
        if hint is None:
            return learned
        trust = self._hints.trust(hint[1])
        return [
            (1.0 - trust) * own + trust * told
            for own, told in zip(learned, self._hints.masses(*hint), strict=True)
        ]

    def _nodes(
        self,
        tenant: str,
        program: str | None,
        call: CallShape,
        group: tuple[int, int],
        *,
        create: bool = False,
    ) -> tuple[int, int, list[Histogram[float] | None]]:
        """The keys of a call's tool and shape, and its histograms by rung; missing ones are None unless `create`."""
        minutes = int(call.timeout_s // 60) if call.timeout_s else 0
        tool, argument, shape, parallel = _keys(
            tenant, call.name, call.argument_class, call.pipes, call.chain, minutes, group
        )
        find = self._table.at if create else self._table.get
        exact = None if call.exact_hash is None else find(joined(shape, call.exact_hash))
        slow = fast = None
        if program is not None:
            own = self._programs.get((tenant, program))
            if create:
                if own is None:
                    while len(self._programs) >= self._programs_max:
                        del self._programs[next(iter(self._programs))]
                    own = Table(self._grid, PROGRAM_KEYS_MAX)
                else:  # moved to the end: the one not told of for longest goes first
                    del self._programs[tenant, program]
                self._programs[tenant, program] = own
            if own is not None:
                find_own = own.at if create else own.get
                slow, fast = find_own(argument), find_own(argument ^ 1)
        nodes = [find(_ALL_CALLS), find(tool), find(argument), find(shape), find(parallel), slow, fast, exact]
        return tool, shape, nodes

    # -- learning -----------------------------------------------------------------------------------------

    def observe(
        self,
        *,
        tenant: str,
        program: str | None,
        call: CallShape,
        seconds: float,
        censored: bool = False,
        group: tuple[int, int] = (0, 1),
    ) -> None:
        """Count one call that took `seconds`; `censored` if it was still out then and its end was not seen.

        `group` is the call's position among the calls of its step, and their number.
        """
        if not seconds >= 0.0:
            raise ValueError(f"a call takes zero seconds or more, not {seconds}")
        if call.kind in ("human", "permission"):
            self._humans.learn(_human_keys(tenant, call), seconds, censored=censored)
            return
        tool, shape, nodes = self._nodes(tenant, program, call, group, create=True)
        if censored:
            # Redistributed to the right: it ended somewhere above, as likely as the forecast has it.
            smear = spread(self._grid, self._chains.masses(nodes, tool=tool, shape=shape), seconds)
        else:
            at = self._grid.index(seconds)
            hint = self._hint(tenant, program, call)
            if hint is not None:
                self._hints.learn(*hint, seconds, self._chains.masses(nodes, tool=tool, shape=shape)[at])
            self._chains.learn(nodes, at, tool=tool, shape=shape)
            smear = self._grid.smear(seconds)
        add_to_each(zip(nodes, GROWTHS, strict=True), smear)

    def forget_program(self, program: str, *, tenant: str) -> None:
        """Drop what was kept for one program; what it taught about tools stays."""
        self._programs.pop((tenant, program), None)

    # -- hints --------------------------------------------------------------------------------------------

    def hint(
        self, *, tenant: str, client: str, call: CallShape, seconds: float, program: str | None = None
    ) -> None:
        """`client` declares that `call` takes `seconds`: in one program, or, without one, wherever it is made.

        A declaration stands until it is replaced. It is weighed by how the client's earlier ones turned out.
        """
        who = joined(text_hash(tenant), text_hash(client))
        self._hints.declare(_hint_key(tenant, program, call), who, seconds)

    def hinter_trust(self, *, tenant: str, client: str) -> float:
        """The share of a forecast that the client's next hint would get, 0 to 1."""
        return self._hints.trust(joined(text_hash(tenant), text_hash(client)))

    def _hint(self, tenant: str, program: str | None, call: CallShape) -> tuple[float, int] | None:
        if not self._hints:
            return None
        if program is not None and (own := self._hints.find(_hint_key(tenant, program, call))):
            return own
        return self._hints.find(_hint_key(tenant, None, call))

    # -- sharing ------------------------------------------------------------------------------------------

    def merge(self, other: ToolForecaster) -> None:
        """Add what another forecaster learned, its open programs excepted."""
        self._table.merge(other._table)
        self._humans.merge(other._humans)
        self._hints.merge(other._hints)
        self._chains.merge(other._chains)

    def to_bytes(self) -> bytes:
        """All that was learned, open programs included."""
        programs = [(tenant, program, own.dump()) for (tenant, program), own in self._programs.items()]
        return msgspec.msgpack.encode(
            _Dumped(
                version=_VERSION,
                bins=self._grid.bins,
                table=self._table.dump(),
                programs=programs,
                weights=self._chains.dump(),
                humans=self._humans.dump(),
                hinters=self._hints.dump(),
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, keys_max: int = KEYS_MAX) -> ToolForecaster:
        """The inverse of `to_bytes`; raises ValueError on anything that is not its output."""
        dumped = msgspec.msgpack.decode(data, type=_Dumped)
        if dumped.version != _VERSION or dumped.bins != TOOL_SECONDS.bins:
            raise ValueError(
                f"forecasts of version {dumped.version} with {dumped.bins} bins cannot be read here"
            )
        made = cls(keys_max=keys_max)
        made._table.load(dumped.table)
        for tenant, program, own in dumped.programs[-made._programs_max :]:
            made._programs[tenant, program] = table = Table(made._grid, PROGRAM_KEYS_MAX)
            table.load(own)
        made._chains.load(dumped.weights)
        made._humans.load(dumped.humans)
        made._hints.load(dumped.hinters)
        return made


class _Dumped(msgspec.Struct, kw_only=True):
    version: int
    bins: int
    table: dict[int, bytes]
    programs: list[tuple[str, str, dict[int, bytes]]]
    weights: dict[int, list[float]]
    humans: dict[int, bytes]
    hinters: dict[int, tuple[list[float], float, float]]


def _reach(forecast: Survival) -> float:
    """What makes one of several parallel calls the dominant one: how late it may well be.

    A person who is asked dominates every machine.
    """
    return math.inf if forecast.grid is HUMAN_SECONDS else forecast.quantile(0.75)


@lru_cache(maxsize=16_384)
def _keys(
    tenant: str, name: str, argument_class: str, pipes: bool, chain: int, minutes: int, group: tuple[int, int]
) -> tuple[int, int, int, int]:
    tool = text_hash(name)
    argument = joined(tool, text_hash(argument_class))
    shape = joined(
        joined(argument, text_hash(tenant)), (pipes << 16) | (min(chain, 3) << 12) | min(minutes, 120)
    )
    position, size = group
    return tool, argument, shape, joined(shape, 1_000 + 10 * min(size, 3) + min(position, 2))


def _human_keys(tenant: str, call: CallShape) -> tuple[int, int, int]:
    kind = text_hash(call.kind)
    asked = joined(kind, text_hash(call.name))
    return kind, asked, joined(asked, text_hash(tenant))


def _hint_key(tenant: str, program: str | None, call: CallShape) -> int:
    key = joined(joined(text_hash(tenant), text_hash(call.name)), text_hash(call.argument_class))
    return key if program is None else joined(joined(key, text_hash(program)), call.exact_hash or 0)
