"""The index says what a plain table of tables would say."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.core.identity.index import Index

STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.sampled_from("abcd")), max_size=60)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_the_index_says_what_a_table_of_tables_says(steps: list[tuple[bool, int, str]]) -> None:
    index: Index[int, str] = Index()
    plain: dict[int, dict[str, None]] = {}
    for adds, key, member in steps:
        if adds:
            index.add(key, member)
            plain.setdefault(key, {})[member] = None
        else:
            index.drop(key, member)
            plain.get(key, {}).pop(member, None)
        plain = {key: members for key, members in plain.items() if members}
        assert {key: list(members) for key, members in index.items()} == {
            k: list(m) for k, m in plain.items()
        }
        assert len(index) == len(plain)
        for key in range(4):
            assert list(index.get(key)) == list(plain.get(key, ()))
            assert list(reversed(index.get(key))) == list(reversed(plain.get(key, {})))


@settings(max_examples=150, deadline=None)
@given(STEPS, st.lists(st.integers(0, 3), max_size=4), st.booleans(), st.sampled_from("abcd"))
def test_several_keys_at_once_are_the_same_as_one_after_the_other(
    steps: list[tuple[bool, int, str]], keys: list[int], adds: bool, member: str
) -> None:
    index: Index[int, str] = Index()
    singly: Index[int, str] = Index()
    for one in (index, singly):
        for put, key, who in steps:
            (one.add if put else one.drop)(key, who)
    (index.add_all if adds else index.drop_all)(keys, member)
    for key in keys:
        (singly.add if adds else singly.drop)(key, member)
    assert {k: list(m) for k, m in index.items()} == {k: list(m) for k, m in singly.items()}
    found = {key: list(members) for key, members in index.among(frozenset(keys))}
    assert found == {key: list(index.get(key)) for key in set(keys) if index.get(key)}
