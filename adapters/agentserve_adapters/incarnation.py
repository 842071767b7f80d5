"""Which run of an engine this is.

Rule: when the run changes, everything believed of the engine's KV is void. The signs are its start time,
its version, its capacity, and counters that only ever grow; any one of them suffices.
"""

from __future__ import annotations

from collections.abc import Mapping


class Incarnation:
    """Fed with every reading of an engine; says when it has become another one."""

    def __init__(self) -> None:
        self.runs = 0  # restarts seen so far
        self._marks: dict[str, object] = {}
        self._counters: dict[str, float] = {}

    @property
    def boot(self) -> str:
        """Names this run; a change means that its KV is gone."""
        started = self._marks.get("started")
        return f"{self.runs}" if started is None else f"{self.runs}@{started}"

    def observe(
        self,
        *,
        marks: Mapping[str, object | None] | None = None,
        counters: Mapping[str, float | None] | None = None,
    ) -> bool:
        """Take a reading in. True if the engine was restarted since the last one.

        `marks` are facts that stay while it runs, `counters` never shrink; None is "did not say".
        """
        new_marks = {k: v for k, v in (marks or {}).items() if v is not None}
        new_counters = {k: v for k, v in (counters or {}).items() if v is not None}
        restarted = any(k in self._marks and self._marks[k] != v for k, v in new_marks.items()) or any(
            k in self._counters and v < self._counters[k] for k, v in new_counters.items()
        )
        if restarted:
            self.runs += 1
            self._marks.clear()
            self._counters.clear()
        self._marks.update(new_marks)
        self._counters.update(new_counters)
        return restarted
