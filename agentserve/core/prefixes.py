"""Leading segments that programs share on one engine: counted once, and known to be there.

Rule: a segment is named by the chain hash up to its end, so equal names mean equal text from the first token on.
Which of a prompt's leading segments are shared at all is `Common`'s to say.
Two uses: `take`/`drop` count which admitted programs stand on a segment (its tokens are charged to the first only);
`seen`/`held` remember which segments the engine has lately computed, whoever did it.
"""

from __future__ import annotations

from collections import OrderedDict

from agentserve.core.events import Segment
from agentserve.core.ids import ProgramId

SEGMENTS_REMEMBERED_MAX = 4096
BEGINNINGS_REMEMBERED_MAX = 65_536


class Common:
    """Which beginnings more than one program has: of leading pieces that might be shared, those that are.

    A prompt's first piece is what an agent is told, the same for all that are told it. What follows (the task, the
    first reply) is nearly always the program's own, and is common only once another program begins with it too. So is
    a prompt that is one piece.
    """

    __slots__ = ("_whose",)

    def __init__(self) -> None:
        # hash -> the one program that begins so, or None when there are others; least lately seen first
        self._whose: OrderedDict[int, ProgramId | None] = OrderedDict()

    def part(
        self, path: tuple[Segment, ...], program: ProgramId, *, undivided: bool = False
    ) -> tuple[Segment, ...]:
        """The leading segments of this program's `path` that others may find there too."""
        whose = self._whose
        for at in range(0 if undivided else 1, len(path)):
            name = path[at].hash
            owner = whose.get(name, program)
            alone = owner == program
            whose[name] = program if alone else None
            whose.move_to_end(name)
            if alone:  # and so is what follows
                if len(whose) > BEGINNINGS_REMEMBERED_MAX:
                    whose.popitem(last=False)
                return path[:at]
        return path


class Prefixes:
    """The shared segments of one engine."""

    __slots__ = ("_holders", "_seen")

    def __init__(self) -> None:
        self._holders: dict[int, list[int]] = {}  # hash -> how many stand on it, and its tokens
        self._seen: OrderedDict[int, int] = OrderedDict()  # hash -> clock, least lately computed first

    def missing(self, path: tuple[Segment, ...]) -> int:
        """Tokens of `path` that nobody here stands on yet."""
        tokens, holders = 0, self._holders
        for segment in path:
            if segment.hash not in holders:
                tokens += segment.tokens
        return tokens

    def take(self, path: tuple[Segment, ...]) -> int:
        """Stand on `path`; the tokens that nobody stood on before."""
        fresh = 0
        for segment in path:
            held = self._holders.get(segment.hash)
            if held is None:
                self._holders[segment.hash] = [1, segment.tokens]
                fresh += segment.tokens
            else:
                held[0] += 1
        return fresh

    def drop(self, path: tuple[Segment, ...]) -> int:
        """Leave `path`; the tokens that nobody stands on any more, as they were counted when it was first taken."""
        freed = 0
        for segment in path:
            held = self._holders[segment.hash]
            held[0] -= 1
            if not held[0]:
                del self._holders[segment.hash]
                freed += held[1]
        return freed

    def tokens(self) -> int:
        """Of all segments that somebody stands on, each once."""
        return sum(tokens for _, tokens in self._holders.values())

    def seen(self, path: tuple[Segment, ...], clock: int) -> None:
        """A prompt that begins with `path` was computed when the engine's clock stood at `clock`."""
        seen = self._seen
        for segment in path:
            seen[segment.hash] = clock
            seen.move_to_end(segment.hash)
        while len(seen) > SEGMENTS_REMEMBERED_MAX:
            seen.popitem(last=False)

    def held(self, path: tuple[Segment, ...]) -> int:
        """Leading tokens of `path` that were computed here and not forgotten since."""
        tokens, seen = 0, self._seen
        for segment in path:
            if segment.hash not in seen:
                break
            tokens += segment.tokens
        return tokens

    def forget(self) -> None:
        """The engine's cache is gone; who stands where is not changed by that."""
        self._seen.clear()
