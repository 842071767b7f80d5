"""What Claude Code and Codex send, field by field, reaches an engine that serves chat completions only.

Rule: the shapes are those of the clients' own requests, the words are not; a field that a new version sends is added
here first, so that what becomes of it is decided and not found out.
"""

from __future__ import annotations

from typing import Any

from agentserve.core import events as ev
from tests.live.conftest import Running, ScriptedEngine, Serve, delta, sse, streams
from tests.live.test_translate import CHAT_ONLY

Json = dict[str, Any]
KEPT_FOR_A_WHILE = {"cache_control": {"type": "ephemeral"}}


def calls_then_says(name: str, arguments: str) -> list[Any]:
    """The engine's two replies: a call of a tool, and a word."""
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return [
        streams(sse(delta("", tool_calls=[call]), delta("", "tool_calls"))),
        streams(sse(delta("Done."), delta("", "stop"))),
    ]


async def posted(running: Running, path: str, headers: Json, *bodies: Json) -> list[str]:
    """The streams that come back."""
    said = []
    for body in bodies:
        answer = await running.client.post(path, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        said.append(answer.text)
    first, second = running.books.told(ev.StepArrived)
    assert (second.program, second.relation, second.returned) == (first.program, "continues", ("c1",))
    return said


# -- Claude Code 2.1.329 --------------------------------------------------------------------------------------

CLAUDE_HEADERS = {
    "user-agent": "claude-cli/2.1.329 (external, sdk-cli)",
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27",
    "anthropic-dangerous-direct-browser-access": "true",
    "x-app": "cli",
    "x-claude-code-session-id": "7d0c9d27-5217-417c-b36b-078803aa21f5",
    "x-claude-code-request-class": "main",
    "x-claude-1p-request-class": "main",
    "x-claude-code-prompt-id": "a8c73b3b-0f36-49e8-8ba9-06b3c9b567d9",
    "x-stainless-retry-count": "0",
}
CLAUDE_SAID: list[Json] = [
    {"role": "user", "content": [{"type": "text", "text": "remember"}, {"type": "text", "text": "look"}]},
    {"role": "system", "content": [{"type": "text", "text": "the surroundings", **KEPT_FOR_A_WHILE}]},
]
CLAUDE_BODY: Json = {
    "model": "m",
    "messages": CLAUDE_SAID,
    "system": [{"type": "text", "text": "billing"}, {"type": "text", "text": "you code", **KEPT_FOR_A_WHILE}],
    "tools": [
        {
            "name": "Bash",
            "description": "runs",
            "input_schema": {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "properties": {"command": {"type": "string"}},
                "required": ["command"],
                "additionalProperties": False,
            },
        }
    ],
    "metadata": {"user_id": '{"device_id":"d","session_id":"s"}'},
    "max_tokens": 32_000,
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "stream": True,
}
CLAUDE_WENT_ON: list[Json] = [
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "tool_use", "id": "c1", "name": "Bash", "input": {"command": "ls"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {
                "type": "tool_result",
                "tool_use_id": "c1",
                "content": "a b",
                "is_error": False,
                **KEPT_FOR_A_WHILE,
            }
        ],
    },
]


async def test_claude_code_is_served_by_chat_with_all_that_it_sends(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, extra=CHAT_ONLY)
    engine.script.extend(calls_then_says("Bash", '{"command":"ls"}'))
    again = {**CLAUDE_BODY, "messages": [*CLAUDE_SAID, *CLAUDE_WENT_ON]}
    called, said = await posted(running, "/v1/messages?beta=true", CLAUDE_HEADERS, CLAUDE_BODY, again)
    assert '"stop_reason":"tool_use"' in called
    assert '"stop_reason":"end_turn"' in said
    first, second = (asked.json for asked in engine.asked)
    assert set(first) == {
        "model", "messages", "tools", "max_tokens", "user", "stream", "stream_options", "reasoning_effort",
    }  # fmt: skip
    assert [message["role"] for message in first["messages"]] == ["system", "user", "system"]
    assert second["messages"][: len(first["messages"])] == first["messages"], "the engine finds its prefix"
    function = {"name": "Bash", "arguments": '{"command":"ls"}'}
    assert second["messages"][3:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "a b"},
    ]


# -- Codex 0.169, its hosted search turned off ----------------------------------------------------------------

THREAD = "01a20412-e57d-7ca1-8ce0-5c876a5fc224"
CODEX_HEADERS = {
    "user-agent": "codex_exec/0.169.0 (Linux; x86_64)",
    "originator": "codex_exec",
    "accept": "text/event-stream",
    "session-id": THREAD,
    "thread-id": THREAD,
    "x-client-request-id": THREAD,
    "x-codex-window-id": f"{THREAD}:0",
    "x-codex-beta-features": "remote_compaction_v2",
    "x-codex-turn-metadata": f'{{"session_id":"{THREAD}","thread_id":"{THREAD}","turn_id":"t1","window_number":0}}',
}


def told(role: str, *texts: str) -> Json:
    """A message of Codex."""
    content = [{"type": "input_text", "text": text} for text in texts]
    return {"type": "message", "id": f"msg_{texts[0]}", "role": role, "content": content}


def function(name: str) -> Json:
    """A tool of Codex."""
    parameters = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    return {"type": "function", "name": name, "description": name, "strict": False, "parameters": parameters}


CODEX_SAID = [told("developer", "base"), told("developer", "skills", "sandbox"), told("user", "look")]
CODEX_BODY: Json = {
    "model": "m",
    "stream": True,
    "input": CODEX_SAID,
    "tools": [
        function("exec_command"),
        {"type": "namespace", "name": "agents", "description": "Others.", "tools": [function("wait_agent")]},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": THREAD,
    "client_metadata": {"x-codex-window-id": f"{THREAD}:0", "thread_id": THREAD, "turn_id": "t1"},
}
CODEX_WENT_ON: list[Json] = [
    {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "hm"}],
        "encrypted_content": None,
    },
    {
        "type": "function_call",
        "id": "fc_1",
        "status": "completed",
        "namespace": "agents",
        "name": "wait_agent",
        "arguments": "{}",
        "call_id": "c1",
    },
    {"type": "function_call_output", "id": "fco_1", "call_id": "c1", "output": "over"},
]


async def test_codex_is_served_by_chat_with_all_that_it_sends(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine, extra=CHAT_ONLY)
    engine.script.extend(calls_then_says("agents__wait_agent", "{}"))
    again = {**CODEX_BODY, "input": [*CODEX_SAID, *CODEX_WENT_ON]}
    called, said = await posted(running, "/v1/responses", CODEX_HEADERS, CODEX_BODY, again)
    assert '"namespace":"agents","name":"wait_agent"' in called
    assert "event: response.completed" in said
    first, second = (asked.json for asked in engine.asked)
    assert set(first) == {
        "model", "messages", "tools", "tool_choice", "parallel_tool_calls", "stream", "stream_options",
    }  # fmt: skip
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert second["messages"][: len(first["messages"])] == first["messages"], "the engine finds its prefix"
    call = {"id": "c1", "type": "function", "function": {"name": "agents__wait_agent", "arguments": "{}"}}
    assert second["messages"][2:] == [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "over"},
    ]
