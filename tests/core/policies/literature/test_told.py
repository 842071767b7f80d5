"""Every policy of the literature says what it is for. (What holds for all of them under faults: `test_stateful`.)"""

from __future__ import annotations

import importlib

import pytest

from agentserve.core.policies import POLICIES

LITERATURE = sorted(name for name, (module, _) in POLICIES.items() if ".literature." in module)


@pytest.mark.parametrize("policy", LITERATURE)
def test_a_policy_has_a_name_and_says_when_it_loses(policy: str) -> None:
    module, cls = POLICIES[policy]
    loaded = importlib.import_module(module)
    assert getattr(loaded, cls).name == policy
    assert loaded.__doc__
    for word in ("Intent:", "Reads:", "Loses:"):
        assert word in loaded.__doc__, f"{module} does not say `{word}`"
