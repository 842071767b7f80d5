"""Names of things. All are opaque strings; ties between them are broken by comparing them.

Rule: an id never carries meaning. A program id is unique over tenants because the resolver scopes it.
"""

from __future__ import annotations

from typing import NewType

TenantId = NewType("TenantId", str)
ProgramId = NewType("ProgramId", str)
StepId = NewType("StepId", str)
EngineId = NewType("EngineId", str)
WorkflowId = NewType("WorkflowId", str)
