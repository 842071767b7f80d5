"""An index from keys to the few members that each is known by.

Rule: nearly every key leads to one member, and there are hundreds of thousands of them, so that a single member stands
by itself: a table of its own would weigh several times as much as what it says. Members are told apart by identity.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Set
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
M = TypeVar("M", bound=Hashable)


class Index(Generic[K, M]):
    """Members by key; those of one key in the order in which they came."""

    __slots__ = ("_many", "_one")

    def __init__(self) -> None:
        self._one: dict[K, M] = {}
        self._many: dict[K, dict[M, None]] = {}

    def __len__(self) -> int:
        """How many keys lead anywhere."""
        return len(self._one) + len(self._many)

    def add(self, key: K, member: M) -> None:
        """Let the key lead to the member; one that it leads to already keeps its place."""
        many = self._many.get(key)
        if many is not None:
            many[member] = None
            return
        one = self._one.setdefault(key, member)
        if one is not member:
            del self._one[key]
            self._many[key] = {one: None, member: None}

    def add_all(self, keys: Iterable[K], member: M) -> None:
        """Let each of the keys lead to the member."""
        one, many = self._one, self._many
        for key in keys:
            if key not in one and key not in many:
                one[key] = member
            else:
                self.add(key, member)

    def drop_all(self, keys: Iterable[K], member: M) -> None:
        """Let none of the keys lead to the member."""
        one = self._one
        for key in keys:
            if one.get(key) is member:
                del one[key]
            else:
                self.drop(key, member)

    def among(self, keys: Set[K]) -> list[tuple[K, dict[M, None] | tuple[M, ...]]]:
        """Those of the keys that lead anywhere, with their members."""
        one, many = self._one, self._many
        found: list[tuple[K, dict[M, None] | tuple[M, ...]]] = [
            (key, (one[key],)) for key in one.keys() & keys
        ]
        if many:
            found += [(key, many[key]) for key in many.keys() & keys]
        return found

    def drop(self, key: K, member: M) -> None:
        """Let the key not lead to the member any more, if it did."""
        many = self._many.get(key)
        if many is None:
            if self._one.get(key) is member:
                del self._one[key]
            return
        many.pop(member, None)
        if len(many) == 1:
            del self._many[key]
            (self._one[key],) = many

    def get(self, key: K) -> dict[M, None] | tuple[M, ...]:
        """All members of the key, the oldest first; empty where it leads nowhere."""
        many = self._many.get(key)
        if many is not None:
            return many
        one = self._one.get(key)
        return () if one is None else (one,)

    def items(self) -> Iterator[tuple[K, dict[M, None] | tuple[M, ...]]]:
        """Every key with its members."""
        yield from ((key, (one,)) for key, one in self._one.items())
        yield from self._many.items()

    def values(self) -> Iterator[dict[M, None] | tuple[M, ...]]:
        """The members of every key."""
        return (members for _, members in self.items())
