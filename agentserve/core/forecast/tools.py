"""Forecasts how long tool calls take, online, from the durations of earlier ones.

One rule: constant memory a key and a bounded number of keys; nothing is kept of a call but counts. It must not
know what any particular tool does: what it knows of a tool is what it measured, shrunk towards coarser keys.

The model. A trunk of keys from all calls down to (tool, argument class, shape), then contexts (how many run in
parallel, how slow this program's recent calls of the tool were), then the program's own history at two speeds and
the exact repeat. Each key holds a decayed histogram; each step down adds its own counts to `strength` pseudo-counts
of what stands above. Every way down is a chain, and the chains are mixed with weights learned per tool from how
well each foretold. All of this is linear, so the mixture costs one weighted sum of nine histograms.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

from agentserve.core.forecast.calls import CallShape, joined, text_hash
from agentserve.core.forecast.grid import TOOL_SECONDS, spread
from agentserve.core.forecast.masses import Table, add
from agentserve.core.forecast.survival import Survival

KEYS_MAX = 65_536
PROGRAMS_MAX = 8_192
PROGRAM_KEYS_MAX = 128

# (half-life in observations of the key, strength of what stands above it)
_TRUNK = ((200.0, 1.0), (100.0, 2.0), (50.0, 4.0), (50.0, 4.0))
_CONTEXT = (50.0, 4.0)
_PROGRAM_SLOW = (20.0, 1.0)
_PROGRAM_FAST = (3.0, 2.0)
_EXACT = (10.0, 4.0)
_CONTEXTS = 3  # none, parallel, pace
_DEPTHS = 3  # context only, with the program's history, with exact repeats as well
_CHAINS = _CONTEXTS * _DEPTHS
_LEARNING_RATE, _FORGETTING = 0.3, 0.99
_RECENT = 5


def _growth(half_life: float) -> float:
    return 2.0 ** (1.0 / half_life)


_GROWTHS = tuple(_growth(h) for h, _ in (*_TRUNK, _CONTEXT, _CONTEXT, _PROGRAM_SLOW, _PROGRAM_FAST, _EXACT))


class _ProgramMemory:
    """What one program's own calls taught: histograms, and the pace of its recent calls by tool."""

    __slots__ = ("recent", "table")

    def __init__(self) -> None:
        self.table = Table(TOOL_SECONDS, PROGRAM_KEYS_MAX)
        self.recent: dict[int, list[int]] = {}

    def pace(self, tool: int) -> int:
        """The median of the last few durations of `tool`, in steps of a factor e; -1 where there is none."""
        recent = self.recent.get(tool)
        return sorted(recent)[len(recent) // 2] // 3 if recent else -1


class ToolForecaster:
    """`predict` before a call, `observe` after it; `forget_program` when its program is over."""

    def __init__(self, *, keys_max: int = KEYS_MAX, programs_max: int = PROGRAMS_MAX) -> None:
        self._grid = TOOL_SECONDS
        self._table = Table(self._grid, keys_max)
        self._programs: dict[tuple[str, str], _ProgramMemory] = {}
        self._programs_max = programs_max
        self._weights: dict[int, list[float]] = {}
        self._floor = 0.5 / self._grid.bins

    # -- asking -----------------------------------------------------------------------------------------------

    def predict(
        self, *, tenant: str, program: str | None, calls: Sequence[CallShape], elapsed_s: float = 0.0
    ) -> Survival:
        """When the last of `calls`, all emitted by one step, will have returned.

        Parallel calls are forecast by the dominant one: calls of one step are too alike for the product of their
        distributions to hold.
        """
        best: Survival | None = None
        longest = -1.0
        for position, call in enumerate(calls):
            masses = self._masses(tenant, program, call, (position, len(calls)))
            if len(calls) == 1:
                return Survival(self._grid, masses, elapsed_s=elapsed_s)
            one = Survival(self._grid, masses, elapsed_s=elapsed_s)
            median = one.quantile(0.75)
            if median > longest:
                best, longest = one, median
        if best is None:
            raise ValueError("a forecast needs at least one call")
        return best

    def _masses(
        self, tenant: str, program: str | None, call: CallShape, group: tuple[int, int]
    ) -> list[float]:
        nodes = self._nodes(tenant, program, call, group, create=False)
        coefficients, base = self._mix(nodes, self._weights.get(text_hash(call.name)))
        present = [(a, m) for a, m in zip(coefficients, nodes, strict=True) if m is not None]
        out = [base] * self._grid.bins
        for a, m in present:
            out = [x + a * y for x, y in zip(out, m, strict=False)]
        return out

    def _mix(
        self, nodes: Sequence[array[float] | None], weights: Sequence[float] | None
    ) -> tuple[list[float], float]:
        """The coefficient of each node's masses in the mixture of all chains, and of the uniform base."""
        keeps: list[float] = []
        adds: list[float] = []
        for masses, (_, strength) in zip(nodes, _LEVELS, strict=True):
            if masses is None or not masses[-2]:
                keeps.append(1.0)
                adds.append(0.0)
            else:
                total = masses[-2] / masses[-1] + strength
                keeps.append(strength / total)
                adds.append(1.0 / (total * masses[-1]))
        if weights is None:
            shares: Sequence[float] = _EQUAL
        else:
            top = max(weights)
            raw = [math.exp(w - top) for w in weights]
            scale = 1.0 / sum(raw)
            shares = [x * scale for x in raw]
        by_depth = [shares[d] + shares[_DEPTHS + d] + shares[2 * _DEPTHS + d] for d in range(_DEPTHS)]
        # From the bottom up: what each level lets through of what stands above it.
        k_slow, k_fast, k_exact = keeps[6], keeps[7], keeps[8]
        out = [0.0] * len(nodes)
        out[8] = by_depth[2] * adds[8]
        through = by_depth[1] + by_depth[2] * k_exact
        out[7] = through * adds[7]
        out[6] = through * k_fast * adds[6]
        passing = k_slow * k_fast
        lets = (1.0, passing, passing * k_exact)
        into = [sum(shares[c * _DEPTHS + d] * lets[d] for d in range(_DEPTHS)) for c in range(_CONTEXTS)]
        out[4], out[5] = into[1] * adds[4], into[2] * adds[5]
        trunk = into[0] + into[1] * keeps[4] + into[2] * keeps[5]
        for level in (3, 2, 1, 0):
            out[level] = trunk * adds[level]
            trunk *= keeps[level]
        return out, trunk / self._grid.bins

    def _nodes(
        self, tenant: str, program: str | None, call: CallShape, group: tuple[int, int], *, create: bool
    ) -> list[array[float] | None]:
        """The histograms of all keys of a call, coarse to fine; missing ones are None unless `create`."""
        name = text_hash(call.name)
        argument = joined(name, text_hash(call.argument_class))
        minutes = int(min(call.timeout_s or 0.0, 7200.0) // 60)
        shape = (call.pipes << 12) | (min(call.chain, 3) << 8) | minutes
        detail = joined(joined(argument, text_hash(tenant)), shape)
        position, size = group
        parallel = joined(detail, 1000 + 10 * min(size, 3) + min(position, 2))
        memory = self._memory(tenant, program, create=create)
        pace = joined(argument, 2000 + (memory.pace(name) if memory else -1))
        find = self._table.at if create else self._table.get
        nodes = [find(0), find(name), find(argument), find(detail), find(parallel), find(pace)]
        if memory is None:
            nodes += [None, None]
        else:
            own = memory.table.at if create else memory.table.get
            nodes += [own(argument), own(argument ^ 1)]
        nodes.append(None if call.exact_hash is None else find(joined(detail, call.exact_hash)))
        return nodes

    def _memory(self, tenant: str, program: str | None, *, create: bool) -> _ProgramMemory | None:
        if program is None:
            return None
        memory = self._programs.get((tenant, program))
        if memory is None and create:
            while len(self._programs) >= self._programs_max:
                del self._programs[next(iter(self._programs))]
            memory = self._programs[tenant, program] = _ProgramMemory()
        return memory

    # -- learning ---------------------------------------------------------------------------------------------

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
        """Count one call that took `seconds`; `censored` if it was still running then and its end was not seen.

        `group` is the call's position among the calls of its step, and their number.
        """
        nodes = self._nodes(tenant, program, call, group, create=True)
        if censored:
            # Redistributed to the right: it ended somewhere above, as likely as the forecast has it.
            masses = self._masses(tenant, program, call, group)
            smear = (0, spread(self._grid, masses, seconds))
        else:
            self._reweigh(text_hash(call.name), nodes, seconds)
            smear = self._grid.smear(seconds)
        for masses, growth in zip(nodes, _GROWTHS, strict=True):
            if masses is not None:
                add(masses, smear, growth)
        memory = self._memory(tenant, program, create=True)
        if memory is not None and not censored:
            recent = memory.recent.setdefault(text_hash(call.name), [])
            recent.append(self._grid.index(seconds))
            if len(recent) > _RECENT:
                del recent[0]

    def _reweigh(self, tool: int, nodes: Sequence[array[float] | None], seconds: float) -> None:
        """Move the weights of the chains towards those that gave the outcome more probability."""
        at = self._grid.index(seconds)
        below = [1.0 / self._grid.bins] * _CONTEXTS
        for level in range(4):
            below[0] = _shrunk(nodes[level], at, _LEVELS[level][1], below[0])
        below[1] = _shrunk(nodes[4], at, _CONTEXT[1], below[0])
        below[2] = _shrunk(nodes[5], at, _CONTEXT[1], below[0])
        weights = self._weights.get(tool)
        if weights is None:
            weights = self._weights[tool] = [0.0] * _CHAINS
        for context in range(_CONTEXTS):
            p = below[context]
            own = _shrunk(nodes[7], at, _PROGRAM_FAST[1], _shrunk(nodes[6], at, _PROGRAM_SLOW[1], p))
            exact = _shrunk(nodes[8], at, _EXACT[1], own)
            for depth, probability in enumerate((p, own, exact)):
                i = context * _DEPTHS + depth
                weights[i] = weights[i] * _FORGETTING + _LEARNING_RATE * math.log(probability + 1e-6)

    def forget_program(self, program: str, *, tenant: str = "") -> None:
        """Drop what was kept for one program; what it taught the tools stays."""
        self._programs.pop((tenant, program), None)


_LEVELS = (*_TRUNK, _CONTEXT, _CONTEXT, _PROGRAM_SLOW, _PROGRAM_FAST, _EXACT)
_EQUAL = (1.0 / _CHAINS,) * _CHAINS


def _shrunk(masses: array[float] | None, at: int, strength: float, above: float) -> float:
    if masses is None or not masses[-2]:
        return above
    return (masses[at] / masses[-1] + strength * above) / (masses[-2] / masses[-1] + strength)
