"""Claude Agent SDK: `ClaudeAgentOptions(env=claude_agent.env(), hooks=claude_agent.hooks())`.

Rule: the CLI that it starts identifies its own session; what is added here is the program, and tool ends in time.
"""

from __future__ import annotations

from typing import Any, Dict, List

from agentserve_sdk import _client
from agentserve_sdk._announce import ToolRun, tool_began, tool_ended
from agentserve_sdk._context import headers, name_of, scope
from agentserve_sdk._hooks import Open, quiet

_tools: Open[ToolRun] = Open()


def env() -> Dict[str, str]:
    """The environment that points Claude Code at the gateway, within the current program."""
    settings = _client.settings()
    if not settings.enabled:
        return {}
    made = {"ANTHROPIC_BASE_URL": settings.url, "CLAUDE_CODE_GATEWAY_HINT_HEADERS": "1"}
    said = headers()
    if said:
        made["ANTHROPIC_CUSTOM_HEADERS"] = "\n".join(f"{name}: {value}" for name, value in said.items())
    if settings.key:
        made["ANTHROPIC_AUTH_TOKEN"] = settings.key
    return made


def hooks() -> Dict[str, List[Any]]:
    """Hooks for `ClaudeAgentOptions`, of the program that is current now."""
    from claude_agent_sdk import HookMatcher
    from claude_agent_sdk import types as known

    found = scope()
    program = None if found is None else found.program

    @quiet
    def began(said: Any, tool_use_id: Any) -> None:
        if program is not None and tool_use_id:
            run = tool_began(program, name_of(said.get("tool_name", "tool")), tool_use_id)
            _tools.put((program.id, tool_use_id), run)

    @quiet
    def ended(said: Any, tool_use_id: Any) -> None:
        run = None if program is None else _tools.pop((program.id, tool_use_id))
        if run is not None:
            failed = said.get("hook_event_name") == "PostToolUseFailure"
            tool_ended(run, ok=not failed, took_ms=said.get("duration_ms"))

    async def before(said: Any, tool_use_id: Any, context: Any) -> Dict[str, Any]:
        began(said, tool_use_id)
        return {}

    async def after(said: Any, tool_use_id: Any, context: Any) -> Dict[str, Any]:
        ended(said, tool_use_id)
        return {}

    made = {"PreToolUse": [HookMatcher(hooks=[before])], "PostToolUse": [HookMatcher(hooks=[after])]}
    if "PostToolUseFailure" in str(getattr(known, "HookEvent", "")):  # older ones have no such event
        made["PostToolUseFailure"] = [HookMatcher(hooks=[after])]
    return made
