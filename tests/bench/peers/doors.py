"""What each router is told of the programs: nothing, or the ids that it asks its clients for.

Rule: a router is given exactly what its own documentation asks for, no more; the messages are the same for all.
"""

from __future__ import annotations

from typing import Any

from agentserve.cli.crowd import Door, Post
from agentserve.sim.programs import ProgramPlan

KEY = "sk-peers"  # LiteLLM wants one


class Plain(Door):
    """One base URL, and nothing but the protocol."""

    def headers(self, plan: ProgramPlan, k: int, parent: ProgramPlan | None) -> dict[str, str]:
        return {"authorization": f"Bearer {KEY}"}


class RoundRobin(Door):
    """No router: the client sends each request to the next engine."""

    def url(self, program: int, request: int) -> str:
        return self.urls[request % len(self.urls)]


class AgentserveHeaders(Plain):
    """Program, parent, step and end, in headers."""

    def headers(self, plan: ProgramPlan, k: int, parent: ProgramPlan | None) -> dict[str, str]:
        out = {
            "x-agentserve-program-id": plan.id,
            "x-agentserve-step": str(k),
            "x-agentserve-workflow": plan.workflow,
        }
        if parent is not None:
            out["x-agentserve-parent-id"] = parent.id
        if k + 1 == len(plan.steps):
            out["x-agentserve-final"] = "true"
        return super().headers(plan, k, parent) | out


class ThunderAgentIds(Plain):
    """`program_id` in the body, and a release at the end."""

    def body(self, plan: ProgramPlan, k: int, parent: ProgramPlan | None) -> dict[str, Any]:
        return {"program_id": plan.id}

    async def ended(self, post: Post, plan: ProgramPlan) -> None:
        await post(self.urls[0], "/programs/release", {"program_id": plan.id})


class AgenticContext(Plain):
    """`vllm_xargs.agentic_context`, as vllm-router's program scheduling reads it."""

    def body(self, plan: ProgramPlan, k: int, parent: ProgramPlan | None) -> dict[str, Any]:
        context: dict[str, Any] = {
            "program_id": plan.id,
            "session_id": plan.id,
            "step_id": k,
            "expected_resume": k + 1 < len(plan.steps),
        }
        if parent is not None:
            context["parent_program_id"] = parent.id
        return {"vllm_xargs": {"agentic_context": context}}
