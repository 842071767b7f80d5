"""The text in which engines expose their gauges and counters (Prometheus' format), read by name.

Rule: an absent sample is None, never zero: an engine that does not say is not an engine that is idle. One that is below
zero, endless or no number at all is absent.
Only lines of wanted names are parsed, since histograms are nine tenths of a page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.parser import text_string_to_metric_families

from agentserve_adapters.readings import NUMBER_MAX

LINES_MAX = 50_000


class Exposition:
    """The wanted samples of one page. Each engine rank is a sample of its own; the verbs join them."""

    def __init__(self, text: str, *, prefixes: tuple[str, ...]) -> None:
        self._samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
        kept = [line for line in text.splitlines()[:LINES_MAX] if _wanted(line, prefixes)]
        try:
            for family in text_string_to_metric_families("\n".join(kept) + "\n"):
                for sample in family.samples:
                    value = float(sample.value)
                    if 0 <= value <= NUMBER_MAX:
                        self._samples.setdefault(sample.name, []).append((sample.labels, value))
        except ValueError:
            # a page that is cut off or not in this format: what was read until there still counts
            return

    def __bool__(self) -> bool:
        return bool(self._samples)

    def names(self) -> Iterable[str]:
        return self._samples.keys()

    def total(self, *names: str) -> float | None:
        """The sum over ranks, under the first of these names that is there."""
        found = self._first(names)
        return sum(value for _, value in found) if found else None

    def count(self, *names: str) -> int | None:
        """`total` as a whole number."""
        value = self.total(*names)
        return None if value is None else round(value)

    def mean(self, *names: str) -> float | None:
        """The mean over ranks."""
        found = self._first(names)
        return sum(value for _, value in found) / len(found) if found else None

    def labels(self, name: str) -> list[Mapping[str, str]]:
        """The label sets of an info-like sample, one per rank."""
        return [labels for labels, _ in self._samples.get(name, [])]

    def _first(self, names: tuple[str, ...]) -> list[tuple[Mapping[str, str], float]]:
        for name in names:
            if found := self._samples.get(name):
                return found
        return []


def _wanted(line: str, prefixes: tuple[str, ...]) -> bool:
    return line.startswith(prefixes) and "_bucket" not in line.partition("{")[0]
