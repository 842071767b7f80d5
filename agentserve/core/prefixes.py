"""Leading segments that programs share on one engine: counted once, and known to be there.

Rule: a segment is named by the chain hash up to its end, so equal names mean equal text from the first token on.
Two uses: `take`/`drop` count which admitted programs stand on a segment (its tokens are charged to the first only);
`seen`/`held` remember which segments the engine has lately computed, whoever did it.
"""

from __future__ import annotations

from cachetools import LRUCache

from agentserve.core.events import Segment

SEGMENTS_REMEMBERED_MAX = 4096


class Prefixes:
    """The shared segments of one engine."""

    __slots__ = ("_holders", "_seen")

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self._seen: LRUCache[int, int] = LRUCache(SEGMENTS_REMEMBERED_MAX)

    def missing(self, path: tuple[Segment, ...]) -> int:
        """Tokens of `path` that nobody here stands on yet."""
        return sum(s.tokens for s in path if s.hash not in self._holders)

    def take(self, path: tuple[Segment, ...]) -> int:
        """Stand on `path`; the tokens that nobody stood on before."""
        fresh = 0
        for segment in path:
            count = self._holders.get(segment.hash, 0)
            if count == 0:
                fresh += segment.tokens
            self._holders[segment.hash] = count + 1
        return fresh

    def drop(self, path: tuple[Segment, ...]) -> int:
        """Leave `path`; the tokens that nobody stands on any more."""
        freed = 0
        for segment in path:
            count = self._holders[segment.hash] - 1
            if count:
                self._holders[segment.hash] = count
            else:
                del self._holders[segment.hash]
                freed += segment.tokens
        return freed

    def seen(self, path: tuple[Segment, ...], clock: int) -> None:
        """A prompt that begins with `path` was computed when the engine's clock stood at `clock`."""
        for segment in path:
            self._seen[segment.hash] = clock

    def held(self, path: tuple[Segment, ...]) -> int:
        """Leading tokens of `path` that were computed here and not forgotten since."""
        tokens = 0
        for segment in path:
            if segment.hash not in self._seen:
                break
            tokens += segment.tokens
        return tokens

    def forget(self) -> None:
        """The engine's cache is gone; who stands where is not changed by that."""
        self._seen.clear()

    def holders(self) -> int:
        return len(self._holders)
