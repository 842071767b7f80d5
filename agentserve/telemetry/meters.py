"""Counters, gauges and histograms that cost a few hundred nanoseconds, shown through prometheus-client.

Rule: one thread writes a child. The client library's own metrics take a lock and scan their buckets; these do
neither, and hand their state to a collector only when somebody scrapes. Label values are bounded: what comes after
the first `values_max` of a label is called `other`, and a metric has at most `CHILDREN_MAX` children.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Shown
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Exemplar

from agentserve.telemetry.metrics import BY_NAME, TABLE, Metric

CHILDREN_MAX = 5_000
LABEL_CHARS_MAX = 120
OTHER = "other"
NONE = "none"  # an empty label value means "no such label" to Prometheus

# What a pulled figure answers: one value, or a value for each tuple of label values.
Pulled = float | Mapping[tuple[str, ...], float]


class Words:
    """The values a label may have, first come first served."""

    __slots__ = ("_known", "_values_max")

    def __init__(self, values_max: int) -> None:
        self._values_max = values_max
        self._known: dict[str, str] = {}

    def bounded(self, value: str) -> str:
        """The value itself, or `other`."""
        known = self._known.get(value)
        if known is not None:
            return known
        if len(self._known) >= self._values_max:
            return OTHER
        word = value[:LABEL_CHARS_MAX] or NONE
        self._known[value] = word
        return word


class Number:
    """A counter or a gauge: change `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Spread:
    """A histogram's child."""

    __slots__ = ("_bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.exemplars: dict[int, tuple[str, float, float]] | None = None

    def observe(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def observe_traced(self, value: float, trace_id: str, at: float) -> None:
        """One more, and the trace that shows it."""
        self.observe(value)
        self.show(value, trace_id, at)

    def observe_all(self, values: list[float]) -> None:
        """Some more. They are sorted, so that buckets look for their values instead of values for their buckets."""
        values.sort()
        below = 0
        for place, bound in enumerate(self._bounds):
            if below == len(values):
                break
            upto = bisect_right(values, bound, below)
            self.counts[place] += upto - below
            below = upto
        self.counts[-1] += len(values) - below
        self.sum += sum(values)

    def show(self, value: float, trace_id: str, at: float) -> None:
        """A trace that shows a value that is counted."""
        if self.exemplars is None:
            self.exemplars = {}
        self.exemplars[bisect_left(self._bounds, value)] = (trace_id, value, at)


class Family:
    """A metric with its children."""

    __slots__ = ("_by_labels", "_words", "children", "metric")

    def __init__(self, metric: Metric, words: Mapping[str, Words]) -> None:
        self.metric = metric
        self._words = [words[label] for label in metric.labels]
        self.children: dict[tuple[str, ...], Any] = {}
        # the label values as they came, so that one look-up finds the child
        self._by_labels: dict[tuple[str, ...], Any] = {}
        if not metric.labels:
            self.child()
        for values in metric.seeds:
            self.child(*values)

    def child(self, *values: str) -> Any:
        """The child of these label values: a `Number` or a `Spread`. Keep it, it stays the same."""
        found = self._by_labels.get(values)
        if found is not None:
            return found
        bounded = tuple([words.bounded(value) for words, value in zip(self._words, values, strict=True)])
        found = self.children.get(bounded)
        if found is None:
            if len(self.children) >= CHILDREN_MAX:
                bounded = (OTHER,) * len(bounded)
                found = self.children.get(bounded)
            if found is None:
                found = Spread(self.metric.buckets) if self.metric.kind == "histogram" else Number()
                self.children[bounded] = found
        if len(self._by_labels) < CHILDREN_MAX:
            self._by_labels[values] = found
        return found

    def drop(self, *values: str) -> None:
        """Show it no longer: what it tells of is gone. One that stands for others too stays."""
        if values in self.children:
            del self.children[values]
            self._by_labels.pop(values, None)

    def shown(self) -> Shown:
        """The family as the client library shows it."""
        metric = self.metric
        if metric.kind == "histogram":
            histogram = HistogramMetricFamily(metric.exposed, metric.help, labels=metric.labels)
            for values, child in self.children.items():
                histogram.add_metric(values, _buckets(metric.buckets, child), child.sum)
            return histogram
        plain: CounterMetricFamily | GaugeMetricFamily
        if metric.kind == "counter":
            plain = CounterMetricFamily(metric.exposed, metric.help, labels=metric.labels)
        else:
            plain = GaugeMetricFamily(metric.exposed, metric.help, labels=metric.labels)
        for values, child in self.children.items():
            plain.add_metric(values, child.value)
        return plain


def _buckets(bounds: tuple[float, ...], child: Spread) -> list[Any]:
    out: list[Any] = []
    total = 0
    for place, count in enumerate(list(child.counts)):
        total += count
        name = repr(bounds[place]) if place < len(bounds) else "+Inf"
        exemplar = child.exemplars.get(place) if child.exemplars is not None else None
        if exemplar is None:
            out.append((name, total))
        else:
            trace_id, value, at = exemplar
            out.append((name, total, Exemplar({"trace_id": trace_id}, value, at)))
    return out


class Meters(Collector):
    """All families of the table, in a registry of their own, with the process's own figures beside them."""

    def __init__(self, *, values_max: int, table: Iterable[Metric] = TABLE) -> None:
        self._words: dict[str, Words] = {}
        self.families: dict[str, Family] = {}
        for metric in table:
            for label in metric.labels:
                self._words.setdefault(label, Words(values_max))
            self.families[metric.name] = Family(metric, self._words)
        self._pulled: list[tuple[str, Callable[[], Pulled]]] = []
        self._before: list[Callable[[], None]] = []
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def child(self, name: str, *values: str) -> Any:
        """A metric's child, by the metric's name and its label values in the table's order."""
        return self.families[name].child(*values)

    def labelled(self, name: str, labels: Mapping[str, str]) -> Any:
        """A metric's child, by label names; KeyError for a metric or a label that is not in the table."""
        family = self.families[name]
        expected = family.metric.labels
        if len(labels) != len(expected):
            raise KeyError(f"{name} has the labels {expected}, not {tuple(labels)}")
        return family.child(*[labels[label] for label in expected])

    def pull(self, name: str, ask: Callable[[], Pulled]) -> None:
        """Ask for this figure whenever somebody scrapes. It must answer from memory."""
        if name not in self.families:
            raise KeyError(name)
        self._pulled.append((name, ask))

    def before_showing(self, count: Callable[[], None]) -> None:
        """Call this at every scrape, before the figures are read."""
        self._before.append(count)

    def collect(self) -> Iterator[Shown]:
        """Called by the registry at each scrape."""
        for count in self._before:
            try:
                count()
            except Exception:
                self.child("telemetry_errors", "record").value += 1
        for name, ask in self._pulled:
            try:
                given = ask()
                pairs = given.items() if isinstance(given, Mapping) else (((), given),)
                for values, value in pairs:
                    self.child(name, *values).value = float(value)
            except Exception:  # a figure that cannot be had must not cost the others
                self.child("telemetry_errors", name).value += 1
        for family in self.families.values():
            yield family.shown()


def known(name: str) -> bool:
    """Is there such a metric?"""
    return name in BY_NAME
