"""What follows from a step graph: expected remaining work, distances, the critical path.

A graph here is a table of weights: `weights[a][b]` is how often b is visited next after a visit to a, on average. A
choice has weights that sum to at most 1, the rest being the chance that the program ends; a fan-out has more. So
expected work is the solution of v = own + weights v, whatever the graph's shape.

Rule: pure functions, cyclic graphs included. A cycle that nothing leaves is taken to be left in the end.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

import networkx as nx

Weights = Mapping[str, Mapping[str, float]]

STEPS_HORIZON = 10_000.0  # expected work is never said to be more than this many visits of one node
LEAK_MIN = 1e-4  # chance to leave a cycle at each visit, at the least
DENSE_MAX = 96  # a cycle of more nodes is solved by sweeps
SWEEPS_MAX = 400
SWEEPS_MIN = 20
SWEPT_MAX = 100_000  # figures looked at in all sweeps: who declares a graph must not hold up everybody else
HOPS_MAX = 256
PARALLEL_MIN = 1.05  # weights that sum to more than this are a fan-out's


def components(weights: Weights) -> list[list[str]]:
    """The graph's strongly connected parts, each after all those that it leads to."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(sorted(weights))
    graph.add_edges_from(
        (a, b)
        for a in sorted(weights)
        for b, weight in sorted(weights[a].items())
        if weight > 0 and b in weights
    )
    condensed = nx.condensation(graph)
    order = list(nx.topological_sort(condensed))
    return [sorted(condensed.nodes[part]["members"]) for part in reversed(order)]


def totals(weights: Weights, own: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """For each node, the expected sum of `own` over it and everything that follows; each figure on its own."""
    width = len(next(iter(own.values()), ()))
    value: dict[str, list[float]] = {}
    for part in components(weights):
        known = [
            [
                own[a][k] + sum(w * value[b][k] for b, w in weights[a].items() if b in value)
                for k in range(width)
            ]
            for a in part
        ]
        if len(part) == 1 and weights[part[0]].get(part[0], 0.0) <= 0:
            value[part[0]] = known[0]
            continue
        inner = _inner(weights, part)
        solved = _dense(inner, known) if len(part) <= DENSE_MAX else _swept(inner, known)
        value.update(zip(part, solved, strict=True))
    return value


def _inner(weights: Weights, part: list[str]) -> list[dict[int, float]]:
    """The part's own weights, thinned where the part would otherwise be left too seldom."""
    at = {node: index for index, node in enumerate(part)}
    inner = [{at[b]: w for b, w in weights[a].items() if b in at and w > 0} for a in part]
    leaks = any(sum(row.values()) < 1 - LEAK_MIN for row in inner)
    return inner if leaks else [{b: w * (1 - LEAK_MIN) for b, w in row.items()} for row in inner]


def _dense(inner: list[dict[int, float]], known: list[list[float]]) -> list[list[float]]:
    """Solve (1 - inner) v = known by elimination; beyond the horizon, which a growing fan-out passes, the horizon."""
    size = len(inner)
    rows = [
        [(1.0 if i == j else 0.0) - inner[i].get(j, 0.0) for j in range(size)] + known[i] for i in range(size)
    ]
    for col in range(size):
        pivot = max(range(col, size), key=lambda r: abs(rows[r][col]))
        if abs(rows[pivot][col]) < 1e-12:
            return _capped(known)
        rows[col], rows[pivot] = rows[pivot], rows[col]
        top = rows[col]
        for row in range(col + 1, size):
            factor = rows[row][col] / top[col]
            if factor:
                rows[row] = [x - factor * y for x, y in zip(rows[row], top, strict=True)]
    solved: list[list[float]] = [[] for _ in range(size)]
    for row in range(size - 1, -1, -1):
        coefficients = rows[row]
        solved[row] = [
            (coefficients[size + k] - sum(coefficients[j] * solved[j][k] for j in range(row + 1, size)))
            / coefficients[row]
            for k in range(len(known[0]))
        ]
    most = _capped(known)
    beyond = any(
        v < -1e-9 or v > cap
        for got, caps in zip(solved, most, strict=True)
        for v, cap in zip(got, caps, strict=True)
    )
    return most if beyond else solved


def _capped(known: list[list[float]]) -> list[list[float]]:
    per_visit = [max(column) for column in zip(*known, strict=True)]
    return [[STEPS_HORIZON * max(v, 1e-9) for v in per_visit] for _ in known]


def _swept(inner: list[dict[int, float]], known: list[list[float]]) -> list[list[float]]:
    most = _capped(known)
    value = [list(row) for row in known]
    looked_at = len(known[0]) * sum(len(row) + 1 for row in inner)
    for _ in range(max(min(SWEEPS_MAX, SWEPT_MAX // looked_at), SWEEPS_MIN)):
        moved = 0.0
        for i, row in enumerate(inner):
            for k, base in enumerate(known[i]):
                new = min(base + sum(w * value[j][k] for j, w in row.items()), most[i][k])
                moved = max(moved, abs(new - value[i][k]) / (1e-9 + abs(new)))
                value[i][k] = new
        if moved < 1e-6:
            break
    return value


def collapsed(weights: Weights, keep: Iterable[str]) -> dict[str, dict[str, float]]:
    """The graph of only the kept nodes: what lies between two of them is folded into the weight."""
    kept = set(keep)
    passing = {
        n: {b: w for b, w in row.items() if b not in kept} for n, row in weights.items() if n not in kept
    }
    landing: dict[str, dict[str, float]] = {}
    targets = sorted({b for n in passing for b in weights[n] if b in kept})
    if passing and targets:
        own = {n: [weights[n].get(t, 0.0) for t in targets] for n in passing}
        landing = {n: dict(zip(targets, row, strict=True)) for n, row in totals(passing, own).items()}
    result: dict[str, dict[str, float]] = {}
    for node in weights:
        if node not in kept:
            continue
        row = result[node] = {}
        for b, w in weights[node].items():
            for target, share in ({b: 1.0} if b in kept else landing.get(b, {})).items():
                if share > 0:
                    row[target] = row.get(target, 0.0) + w * share
    return result


def steps_to_execution(
    weights: Weights, now: Iterable[str], joins: Mapping[str, Sequence[str]] | None = None
) -> dict[str, int]:
    """In how many steps each node can run, if those of `now` run now: one more than the nearest predecessor's, or,
    where branches are joined, than the farthest one's. Nodes that cannot be reached are absent."""
    joins = joins or {}
    current = set(now) & set(weights)
    reachable = _reach(weights, current)
    awaited = {
        node: {s for s in sources if s in reachable and s in _reach(weights, current - {node}, without=node)}
        for node, sources in joins.items()
        if node in reachable
    }
    distance: dict[str, int] = {}
    heap = [(0, node) for node in sorted(current)]
    held: dict[str, int] = {}  # joins that some branch has come to
    while heap or held:
        if not heap:  # joins that wait for each other: the one come to first goes on
            first = min(held, key=lambda node: (held[node], node))
            awaited.pop(first, None)
            heap.append((held.pop(first), first))
        steps, node = heapq.heappop(heap)
        if node in distance:
            continue
        if node not in current and awaited.get(node, set()) - distance.keys():
            held[node] = max(steps, held.get(node, 0))
            continue  # it is pushed again by the last of those it waits for
        farthest = max((distance[s] + 1 for s in awaited.get(node, ()) if node not in current), default=0)
        if farthest > steps:
            heapq.heappush(heap, (farthest, node))
            continue
        held.pop(node, None)
        distance[node] = steps
        for after, weight in weights[node].items():
            if weight > 0 and after in weights and after not in distance:
                heapq.heappush(heap, (distance[node] + 1, after))
    return distance


def _reach(weights: Weights, sources: Iterable[str], without: str | None = None) -> set[str]:
    seen = set(sources)
    todo = list(seen)
    while todo:
        for after, weight in weights.get(todo.pop(), {}).items():
            if weight > 0 and after not in seen and after != without and after in weights:
                seen.add(after)
                todo.append(after)
    return seen


def hops(weights: Weights, source: str, target: str) -> tuple[float, float]:
    """The chance to come to the target after the source, and in how many steps then, on average."""
    here = {source: 1.0}
    chance = expected = 0.0
    for step in range(1, HOPS_MAX + 1):
        after: dict[str, float] = {}
        for node, mass in here.items():
            for b, w in weights.get(node, {}).items():
                after[b] = min(after.get(b, 0.0) + mass * min(w, 1.0), 1.0)
        arrived = min(after.pop(target, 0.0), 1.0 - chance)
        chance += arrived
        expected += arrived * step
        here = {node: mass for node, mass in after.items() if mass > 1e-9}
        if not here:
            break
    return chance, expected / chance if chance > 0 else 0.0


def seconds_left(times: Weights, seconds: Mapping[str, float]) -> dict[str, float]:
    """The expected time from each node on: the mean over a choice, and at a fan-out the slowest of its branches.
    A cycle is passed as often as is expected; `times` are weights in which a join's arrivals count in full."""
    left: dict[str, float] = {}
    for part in components(times):
        onward = {a: _onward(times[a], left) for a in part}
        if len(part) == 1 and times[part[0]].get(part[0], 0.0) <= 0:
            left[part[0]] = seconds.get(part[0], 0.0) + onward[part[0]]
            continue
        inner = _inner(times, part)
        for row in inner:  # within a cycle too, steps beside each other take the time of one
            if (total := sum(row.values())) > PARALLEL_MIN:
                row.update({b: w / total for b, w in row.items()})
        if not any(sum(row.values()) < 1 - LEAK_MIN for row in inner):
            inner = [{b: w * (1 - LEAK_MIN) for b, w in row.items()} for row in inner]
        known = [[seconds.get(a, 0.0) + onward[a]] for a in part]
        solved = _dense(inner, known) if len(part) <= DENSE_MAX else _swept(inner, known)
        left.update({a: row[0] for a, row in zip(part, solved, strict=True)})
    return left


def _onward(row: Mapping[str, float], left: Mapping[str, float]) -> float:
    """The time after a node, over what is solved already."""
    ahead = {b: w for b, w in row.items() if b in left}
    mean = sum(w * left[b] for b, w in ahead.items())
    total = sum(row.values())
    if total <= PARALLEL_MIN:
        return mean
    return max(mean / total, max((left[b] for b, w in ahead.items() if w >= 0.5), default=0.0))


def critical_path(times: Weights, seconds: Mapping[str, float], start: str) -> tuple[list[str], float]:
    """The nodes that decide when a program ends which is at `start`, and the expected seconds from there: at a
    fan-out the slowest branch, at a choice the likeliest way, until the end is likelier. Nodes come once."""
    left = seconds_left(times, seconds)
    path, seen, node = [start], {start}, start
    while row := {b: w for b, w in times.get(node, {}).items() if w > 0 and b in left and b not in seen}:
        total = sum(times[node].values())
        if total > PARALLEL_MIN:
            node = max(row, key=lambda b: (row[b] >= 0.5, left[b], b))
        else:
            node = max(row, key=lambda b: (row[b], b))
            if row[node] < 1.0 - total:
                break
        seen.add(node)
        path.append(node)
    return path, left.get(start, 0.0)
