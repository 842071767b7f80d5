"""Forecasts how long tool calls take, online, from the durations of earlier ones.

One rule: constant memory a key and a bounded number of keys; nothing is kept of a call but counts. It must not
know what any particular tool does: what it knows of a tool is what it measured, shrunk towards coarser keys.

The model. A trunk of keys leads from all calls down to (tenant, tool, argument class, shape); below it stand the
call's place among the parallel calls of its step, the program's own history at two speeds, and exact repeats.
Each key holds a decayed histogram, and each step down adds its own counts to `strength` pseudo-counts of what
stands above. Ways down that leave some keys out are chains of their own, mixed with weights that are learned per
tool from how well each chain foretold. All of this is linear in the histograms, so that asking costs one weighted
sum of eight of them, however many chains there are.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from agentserve.core.forecast.calls import CallShape, joined, text_hash
from agentserve.core.forecast.grid import HUMAN_SECONDS, TOOL_SECONDS, spread
from agentserve.core.forecast.hints import Hints
from agentserve.core.forecast.ladder import Ladder, Rung
from agentserve.core.forecast.masses import Table, add, empty
from agentserve.core.forecast.survival import Survival

KEYS_MAX = 65_536
PROGRAMS_MAX = 16_384
PROGRAM_KEYS_MAX = 128
TOOLS_MAX = 4_096
_HUMAN_KEYS_MAX = 4_096
_VERSION = 1

_ALL, _TOOL, _ARGUMENT, _SHAPE, _PARALLEL, _SLOW, _FAST, _EXACT = range(8)
_RUNGS = (
    Rung(half_life=200, strength=1),  # all calls
    Rung(half_life=100, strength=3),  # the tool
    Rung(half_life=50, strength=6),  # and the class of its arguments
    Rung(half_life=50, strength=6),  # and pipes, chain and timeout, of this tenant
    Rung(half_life=50, strength=2),  # and the place among the calls of its step
    Rung(half_life=20, strength=2),  # in this program
    Rung(half_life=3, strength=2),  # in this program, lately
    Rung(half_life=10, strength=3),  # the same call exactly
)
_GROWTHS = tuple(rung.growth for rung in _RUNGS)
_STRENGTHS = tuple(float(rung.strength) for rung in _RUNGS)
# People differ more than kinds of questions do, and deeper keys than these foretold worse.
_HUMAN_RUNGS = (
    Rung(half_life=200, strength=2),
    Rung(half_life=100, strength=6),
    Rung(half_life=50, strength=8),
)

# A chain passes the rung of parallel calls or not, and ends above, at or below the program's own history.
_CHAINS = 6
_LEARNING_RATE, _FORGETTING = 0.2, 0.99
_ANY_TOOL = 0  # under which the weights of all tools together are kept, for tools not seen before
_NOTHING = empty(TOOL_SECONDS.bins)

Histogram = array  # of floats


class ToolForecaster:
    """`predict` before a call, `observe` after it, `forget_program` when its program is over."""

    def __init__(self, *, keys_max: int = KEYS_MAX, programs_max: int = PROGRAMS_MAX) -> None:
        self._grid = TOOL_SECONDS
        self._table = Table(self._grid, keys_max)
        self._programs: dict[tuple[str, str], Table] = {}
        self._programs_max = programs_max
        self._weights: dict[int, list[float]] = {}
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
        learned = self._learned(self._nodes(tenant, program, call, group), text_hash(call.name))
        hint = self._hint(tenant, program, call)
        if hint is None:
            return learned
        trust = self._hints.trust(hint[1])
        return [
            (1.0 - trust) * own + trust * told
            for own, told in zip(learned, self._hints.masses(*hint), strict=True)
        ]

    def _learned(self, nodes: Sequence[Histogram[float] | None], tool: int) -> list[float]:
        """The mixture of all chains: the weighted sum of the histograms that exist."""
        keeps = [1.0] * 8
        adds = [0.0] * 8
        held: list[Histogram[float]] = [_NOTHING] * 8
        for i, node in enumerate(nodes):
            if node is not None:
                strength = _STRENGTHS[i] * node[-1]
                scale = 1.0 / (node[-2] + strength)
                keeps[i], adds[i], held[i] = strength * scale, scale, node
        above, own, exact, parallel_above, parallel_own, parallel_exact = self._shares(tool)
        # From the bottom up: what each rung adds to the chains through it, and lets through of what is above.
        ends_exact, ends_own = exact + parallel_exact, own + parallel_own
        h = ends_exact * adds[_EXACT]
        through = ends_own + ends_exact * keeps[_EXACT]
        g = through * adds[_FAST]
        f = through * keeps[_FAST] * adds[_SLOW]
        past_own = keeps[_SLOW] * keeps[_FAST]
        past_exact = past_own * keeps[_EXACT]
        parallel = parallel_above + parallel_own * past_own + parallel_exact * past_exact
        e = parallel * adds[_PARALLEL]
        trunk = above + own * past_own + exact * past_exact + parallel * keeps[_PARALLEL]
        d = trunk * adds[_SHAPE]
        trunk *= keeps[_SHAPE]
        c = trunk * adds[_ARGUMENT]
        trunk *= keeps[_ARGUMENT]
        b = trunk * adds[_TOOL]
        trunk *= keeps[_TOOL]
        a = trunk * adds[_ALL]
        base = trunk * keeps[_ALL] / self._grid.bins
        sums = [
            base + a * p + b * q + c * r + d * s + e * t + f * u + g * v + h * w
            for p, q, r, s, t, u, v, w in zip(*held, strict=True)
        ]
        del sums[-2:]  # a histogram's last two entries are its sum and its weight
        return sums

    def _shares(self, tool: int) -> Sequence[float]:
        """The weight of each chain for a tool: the softmax of how well they foretold."""
        scores = self._weights.get(tool) or self._weights.get(_ANY_TOOL)
        if scores is None:
            return (1.0 / _CHAINS,) * _CHAINS
        top = max(scores)
        raw = [math.exp(score - top) for score in scores]
        scale = 1.0 / sum(raw)
        return [share * scale for share in raw]

    def _nodes(
        self,
        tenant: str,
        program: str | None,
        call: CallShape,
        group: tuple[int, int],
        *,
        create: bool = False,
    ) -> list[Histogram[float] | None]:
        """The histograms under all keys of a call, coarse to fine; missing ones are None unless `create`."""
        minutes = int(call.timeout_s // 60) if call.timeout_s else 0
        name, argument, shape, parallel = _keys(
            tenant, call.name, call.argument_class, call.pipes, call.chain, minutes, group
        )
        find = self._table.at if create else self._table.get
        exact = None if call.exact_hash is None else find(joined(shape, call.exact_hash))
        nodes = [find(_ANY_TOOL), find(name), find(argument), find(shape), find(parallel), None, None, exact]
        if program is not None:
            own = self._programs.get((tenant, program))
            if own is None and create:
                while len(self._programs) >= self._programs_max:
                    del self._programs[next(iter(self._programs))]
                own = self._programs[tenant, program] = Table(self._grid, PROGRAM_KEYS_MAX)
            if own is not None:
                find = own.at if create else own.get
                nodes[_SLOW], nodes[_FAST] = find(argument), find(argument ^ 1)
        return nodes

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
        tool = text_hash(call.name)
        nodes = self._nodes(tenant, program, call, group, create=True)
        if censored:
            # Redistributed to the right: it ended somewhere above, as likely as the forecast has it.
            smear = spread(self._grid, self._learned(nodes, tool), seconds)
        else:
            hint = self._hint(tenant, program, call)
            if hint is not None:
                learned = self._learned(nodes, tool)[self._grid.index(seconds)]
                self._hints.learn(*hint, seconds, learned)
            self._reweigh(tool, nodes, self._grid.index(seconds))
            smear = self._grid.smear(seconds)
        for node, growth in zip(nodes, _GROWTHS, strict=True):
            if node is not None:
                add(node, smear, growth)

    def _reweigh(self, tool: int, nodes: Sequence[Histogram[float] | None], at: int) -> None:
        """Move the weights of the chains towards those that gave the outcome's bin more probability."""
        above = 1.0 / self._grid.bins
        for rung in (_ALL, _TOOL, _ARGUMENT, _SHAPE):
            above = _shrunk(nodes[rung], at, _STRENGTHS[rung], above)
        foretold: list[float] = []
        for start in (above, _shrunk(nodes[_PARALLEL], at, _STRENGTHS[_PARALLEL], above)):
            own = _shrunk(nodes[_SLOW], at, _STRENGTHS[_SLOW], start)
            own = _shrunk(nodes[_FAST], at, _STRENGTHS[_FAST], own)
            foretold += (start, own, _shrunk(nodes[_EXACT], at, _STRENGTHS[_EXACT], own))
        gains = [_LEARNING_RATE * math.log(probability + 1e-6) for probability in foretold]
        for key in (tool, _ANY_TOOL):
            scores = self._weights.get(key)
            if scores is None:
                while len(self._weights) >= TOOLS_MAX:
                    del self._weights[next(k for k in self._weights if k != _ANY_TOOL)]
                scores = self._weights.get(_ANY_TOOL, [0.0] * _CHAINS)
            self._weights[key] = [
                score * _FORGETTING + gain for score, gain in zip(scores, gains, strict=True)
            ]

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
        for tool, scores in other._weights.items():
            mine = self._weights.get(tool)
            self._weights[tool] = (
                list(scores) if mine is None else [(a + b) / 2 for a, b in zip(mine, scores, strict=True)]
            )

    def to_bytes(self) -> bytes:
        """All that was learned, open programs included."""
        programs = [(tenant, program, own.dump()) for (tenant, program), own in self._programs.items()]
        return msgspec.msgpack.encode(
            _Dumped(
                version=_VERSION,
                bins=self._grid.bins,
                table=self._table.dump(),
                programs=programs,
                weights=self._weights,
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
        made._weights = {k: w for k, w in dumped.weights.items() if len(w) == _CHAINS}
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


def _shrunk(node: Histogram[float] | None, at: int, strength: float, above: float) -> float:
    """The probability of one bin after one rung."""
    if node is None:
        return above
    strength *= node[-1]
    probability: float = (node[at] + strength * above) / (node[-2] + strength)
    return probability


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
