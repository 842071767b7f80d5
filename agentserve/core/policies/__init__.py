"""Policies by name. `agentserve` is ours and the default; the literature's stand in a folder of their own.

A name with a dot is the import path of a class: a policy of your own needs no change here (`POLICIES.md`).
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from agentserve.core.board import Board
from agentserve.core.policies.policy import Policy
from agentserve.errors import ConfigError

# name -> module and class; loaded when first asked for
POLICIES: dict[str, tuple[str, str]] = {
    "agentserve": ("agentserve.core.policies.working_set", "WorkingSet"),
    "fifo": ("agentserve.core.policies.literature.fifo", "Fifo"),
    "affinity": ("agentserve.core.policies.literature.affinity", "Affinity"),
    "prefix": ("agentserve.core.policies.literature.prefix", "Prefix"),
    "thunderagent": ("agentserve.core.policies.literature.thunderagent", "ThunderAgent"),
    "plas": ("agentserve.core.policies.literature.plas", "Plas"),
    "atlas": ("agentserve.core.policies.literature.atlas", "Atlas"),
    "saga": ("agentserve.core.policies.literature.saga", "Saga"),
    "kvflow": ("agentserve.core.policies.literature.kvflow", "KvFlow"),
    "infercept": ("agentserve.core.policies.literature.infercept", "InferCept"),
    "dualmap": ("agentserve.core.policies.literature.dualmap", "DualMap"),
    "preble": ("agentserve.core.policies.literature.preble", "Preble"),
    "llumnix": ("agentserve.core.policies.literature.llumnix", "Llumnix"),
    "hexgen": ("agentserve.core.policies.literature.hexgen", "HexGen"),
    "jitserve": ("agentserve.core.policies.literature.jitserve", "JitServe"),
    "clairvoyant": ("agentserve.core.policies.literature.clairvoyant", "Clairvoyant"),
    "vtc": ("agentserve.core.policies.literature.vtc", "Vtc"),
    "uwfq": ("agentserve.core.policies.literature.uwfq", "Uwfq"),
    "justitia": ("agentserve.core.policies.literature.justitia", "Justitia"),
    "continuum": ("agentserve.core.policies.literature.continuum", "Continuum"),
}


def make_policy(name: str, board: Board, params: Mapping[str, Any] | None = None) -> Policy:
    """The policy of this name, playing on `board`."""
    return policy_class(name)(board, params)


def policy_class(name: str) -> type[Policy]:
    """The class of this name, for whoever asks what constants it has."""
    if "." in name:
        return _imported(name)
    if name not in POLICIES:
        near = difflib.get_close_matches(name, POLICIES, n=1)
        remedy = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(sorted(POLICIES))}"
        raise ConfigError(f"there is no policy `{name}`", remedy=remedy)
    module, cls = POLICIES[name]
    found: type[Policy] = getattr(importlib.import_module(module), cls)
    return found


def _imported(path: str) -> type[Policy]:
    """The class at `package.module.Class`."""
    module, _, cls = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError) as exc:
        raise ConfigError(f"there is no policy at `{path}`: {exc}", remedy="is it on PYTHONPATH?") from exc
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise ConfigError(
            f"`{path}` is no policy", remedy="derive it from agentserve.core.policies.policy.Policy"
        )
    return found
