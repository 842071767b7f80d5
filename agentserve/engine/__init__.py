"""The emulated engine: a paged-KV inference server without a GPU, sans-IO, for simulation, tests and demonstration."""

from agentserve.engine.blocks import BlockPool
from agentserve.engine.config import EngineConfig
from agentserve.engine.engine import EmulatedEngine
from agentserve.engine.events import (
    EngineEvent,
    EngineRequest,
    EngineStats,
    FirstToken,
    Iterated,
    KvCleared,
    KvEvent,
    KvRemoved,
    KvStored,
    KvUse,
    Preempted,
    RequestAborted,
    RequestFinished,
    RequestRejected,
    RequestStarted,
)
from agentserve.engine.fit import Sample, fit
from agentserve.engine.fit import error as fit_error
from agentserve.engine.profile import PROFILES, Accelerator, Model, Profile, profile

__all__ = [
    "PROFILES",
    "Accelerator",
    "BlockPool",
    "EmulatedEngine",
    "EngineConfig",
    "EngineEvent",
    "EngineRequest",
    "EngineStats",
    "FirstToken",
    "Iterated",
    "KvCleared",
    "KvEvent",
    "KvRemoved",
    "KvStored",
    "KvUse",
    "Model",
    "Preempted",
    "Profile",
    "RequestAborted",
    "RequestFinished",
    "RequestRejected",
    "RequestStarted",
    "Sample",
    "fit",
    "fit_error",
    "profile",
]
