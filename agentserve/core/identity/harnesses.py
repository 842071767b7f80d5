"""The clients that we know, and where each of them names its programs. Data only; `naming` reads it.

A row names *places* in a request:

    x-some-header            a header
    x-some-header#key        a key of the JSON object in a header
    body:dotted.path         an id that the wire reader found in the body

Rule: one row a client, in order of precedence, and a test for each row with a request of that client's shape.
Header sets change with almost every release of these clients: change the row, its test and `TABLE_VERSION`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tier = Literal["explicit", "harness", "generic", "weak"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """One way in which some client names its programs. All fields but `program` are optional extras."""

    name: str
    tier: Tier
    program: tuple[str, ...]  # places; the first that holds something wins
    proof: tuple[str, ...] = ()  # `place` or `place^=prefix`: all must hold for the row to apply
    parent: tuple[str, ...] = ()  # the parent program's own name
    agent: tuple[str, ...] = ()  # an agent inside the program: it becomes a program of its own, below it
    parent_agent: tuple[str, ...] = ()
    turn: tuple[str, ...] = ()
    window: tuple[str, ...] = ()  # its last `:n` counts the context windows
    call_class: tuple[str, ...] = ()
    compacting: tuple[str, ...] = ()  # present: this call writes a summary
    compacted: tuple[str, ...] = ()  # present: the old context was dropped before this call
    durations: tuple[str, ...] = ()  # `Tool=ms` pairs of the tools that just ran
    final: tuple[str, ...] = ()
    tools_always: bool = False  # its main calls offer tools, so a call without any is auxiliary


TABLE_VERSION = "2026-11-1"

NAMINGS: tuple[Naming, ...] = (
    # 1. Said to us, or in a form that others made for the same purpose.
    Naming(
        name="agentserve",
        tier="explicit",
        program=("x-agentserve-program-id", "body:path"),
        parent=("x-agentserve-parent-id",),
        final=("x-agentserve-final",),
    ),
    Naming(
        name="dynamo",
        tier="explicit",
        program=(
            "x-dynamo-session-id",
            "body:nvext.agent_context.session_id",
            "body:nvext.session_control.session_id",
        ),
        parent=("x-dynamo-parent-session-id", "body:nvext.agent_context.parent_session_id"),
        final=("x-dynamo-session-final",),
    ),
    Naming(name="thunderagent", tier="explicit", program=("body:program_id",)),
    Naming(name="continuum", tier="explicit", program=("body:job_id",)),
    Naming(
        name="vllm-agent-hint",
        tier="explicit",
        program=("body:agent_hint.session_id",),
        parent=("body:agent_hint.parent_session_id",),
    ),
    Naming(
        name="agentinfer",
        tier="explicit",
        program=("body:vllm_xargs.agentic_context.program_id",),
        parent=("body:vllm_xargs.agentic_context.parent_program_id",),
    ),
    # 2. Agent programs that name their sessions without being asked.
    Naming(
        name="claude-code",
        tier="harness",
        program=("x-claude-code-session-id", "body:metadata.user_id.session_id"),
        agent=("x-claude-code-agent-id",),
        parent_agent=("x-claude-code-parent-agent-id",),
        turn=("x-claude-code-prompt-id",),
        call_class=("x-claude-code-request-class",),
        compacting=("x-claude-code-compaction",),
        compacted=("x-claude-code-context-compacted",),
        durations=("x-claude-code-prev-tool-durations",),
        tools_always=True,
    ),
    Naming(
        name="codex",
        tier="harness",
        proof=("x-codex-window-id",),
        program=("thread-id", "session-id", "body:prompt_cache_key"),
        parent=("x-codex-parent-thread-id", "x-codex-turn-metadata#parent_thread_id"),
        turn=("x-codex-turn-metadata#turn_id",),
        window=("x-codex-window-id",),
        call_class=("x-openai-subagent", "x-codex-turn-metadata#request_kind"),
        tools_always=True,
    ),
    Naming(
        name="codex",
        tier="harness",
        proof=("x-codex-turn-metadata",),
        program=("thread-id", "session-id", "session_id"),
        parent=("x-codex-parent-thread-id",),
        turn=("x-codex-turn-metadata#turn_id",),
        call_class=("x-openai-subagent", "x-codex-turn-metadata#request_kind"),
        tools_always=True,
    ),
    Naming(  # older builds, and providers that speak as Codex does
        name="codex",
        tier="harness",
        proof=("originator^=codex",),
        program=("thread-id", "conversation_id", "session-id", "session_id"),
        call_class=("x-openai-subagent",),
        tools_always=True,
    ),
    Naming(
        name="opencode",
        tier="harness",
        proof=("x-session-id^=ses_",),
        program=("x-session-id",),
        parent=("x-parent-session-id",),
        tools_always=True,
    ),
    Naming(
        name="opencode",
        tier="harness",
        program=("x-opencode-session",),
        parent=("x-parent-session-id",),
        turn=("x-opencode-request",),
        tools_always=True,
    ),
    Naming(name="goose", tier="harness", program=("agent-session-id", "goose-session-id")),
    Naming(
        name="openhands", tier="harness", proof=("user-agent^=openhands",), program=("x-litellm-session-id",)
    ),
    Naming(name="roo-code", tier="harness", program=("x-roo-task-id",)),
    Naming(name="cline", tier="harness", program=("x-task-id",)),
    Naming(
        name="qwen-code",
        tier="harness",
        proof=("body:metadata.promptId",),
        program=("body:metadata.sessionId",),
        turn=("body:metadata.promptId",),
        tools_always=True,
    ),
    Naming(name="open-webui", tier="harness", program=("x-openwebui-chat-id",)),
    # 3. Session ids that gateways, tracers and applications have agreed on, more or less.
    Naming(
        name="x-session-id",
        tier="generic",
        program=("x-session-id", "x-session-affinity"),
        parent=("x-parent-session-id",),
    ),
    Naming(
        name="litellm",
        tier="generic",
        program=(
            "x-litellm-session-id",
            "body:litellm_session_id",
            "body:metadata.litellm_session_id",
            "body:litellm_metadata.session_id",
        ),
    ),
    Naming(name="helicone", tier="generic", program=("helicone-session-id",)),
    Naming(name="session-id", tier="generic", program=("session_id", "session-id", "body:session_id")),
    Naming(
        name="body-session-id",
        tier="generic",
        program=(
            "body:vllm_xargs.session_id",
            "body:metadata.session_id",
            "body:metadata.sessionId",
            "body:client_metadata.session_id",
            "body:run_id",
        ),
    ),
    Naming(
        name="conversation",
        tier="generic",
        program=(
            "body:conversation.id",
            "body:conversation",
            "body:conversation_id",
            "body:metadata.conversation_id",
        ),
    ),
)

# A tool whose call ends the program. These three sets are spelt as `plain_name` spells: lower case, no separators.
TERMINAL_TOOLS = frozenset(
    {"finalanswer", "finish", "submit", "submitanswer", "submitfinalanswer", "taskcomplete", "completetask", "endrun",
     "terminate"}
)  # fmt: skip

# A tool that starts another agent: what it is asked is kept for a while after it returned, since some of them
# return at once and work on.
SPAWN_TOOLS = frozenset(
    {"task", "agent", "subagent", "spawnagent", "spawn", "delegate", "delegatetask", "delegatework",
     "delegateworktocoworker", "newtask", "runsubagent", "dispatchagent",
     "launchagent", "handoff", "collabspawn", "callagent", "runagent"}
)  # fmt: skip

# Tools whose arguments are never another agent's opening: not worth remembering.
WORK_TOOLS = frozenset(
    {"bash", "shell", "execcommand", "runcommand", "terminal", "python", "execute", "runcode", "read", "readfile",
     "write", "writefile", "edit", "editfile", "multiedit", "strreplaceeditor", "strreplacebasededittool",
     "applypatch", "grep", "glob", "ls", "listdir", "webfetch", "fetch", "todowrite", "updateplan", "notebookedit"}
)  # fmt: skip

# Headers that are for us; they never go on to an engine.
CONTROL_HEADER_PREFIX = "x-agentserve-"


def plain_name(tool: str) -> str:
    """A tool's name as the tables above spell it."""
    return tool.replace("_", "").replace("-", "").replace(".", "").lower()
