"""One test for each row of the table, with requests of that client's shape (the words are our own)."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from agentserve.core.identity import CallEvidence, Resolver
from agentserve.core.identity.harnesses import NAMINGS, TABLE_VERSION
from agentserve.core.identity.naming import identify

Wire = Any
Json = dict[str, Any]

SESSION = "6f1c7d52-0b0e-4f7a-9f0b-0c6f1f3f2a11"
USER = {"role": "user", "content": "Find out why the build is red and mend it."}
CHAT_TOOLS = [{"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}]


def chat(*messages: Json, system: str = "You mend builds.", tools: bool = True, **extra: Any) -> Json:
    body: Json = {"model": "m", "messages": [{"role": "system", "content": system}, *messages], **extra}
    return {**body, "tools": CHAT_TOOLS} if tools else body


# -- Claude Code ----------------------------------------------------------------------------------------------


def claude(*messages: Json, system: str = "You are a coding agent.", tools: int = 3, **extra: Any) -> Json:
    body: Json = {
        "model": "m",
        "max_tokens": 32000,
        "stream": True,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.3; cch=0;"},
            {"type": "text", "text": system, "cache_control": {"type": "ephemeral"}},
        ],
        "messages": list(messages),
        "metadata": {
            "user_id": json.dumps({"device_id": "d" * 64, "account_uuid": "", "session_id": SESSION})
        },
        **extra,
    }
    if tools:
        body["tools"] = [{"name": f"Tool{at}", "input_schema": {"type": "object"}} for at in range(tools)]
    return body


def claude_headers(**extra: str) -> dict[str, str]:
    named = {f"x-claude-code-{key.replace('_', '-')}": value for key, value in extra.items()}
    return {"user-agent": "claude-cli/2.1.329 (external, cli)", "X-Claude-Code-Session-Id": SESSION, **named}


def text(words: str, **extra: Any) -> Json:
    return {"type": "text", "text": words, **extra}


MESSAGES = "/v1/messages?beta=true"


def test_claude_code_main_subagent_auxiliary_and_compaction_land_where_they_should(wire: Wire) -> None:
    opening = {"role": "user", "content": [text("<system-reminder>The day is 2026-11-02.</system-reminder>"),
                                           text("Mend the build.", cache_control={"type": "ephemeral"})]}  # fmt: skip
    title = wire.send(
        claude({"role": "user", "content": "Mend the build."}, system="Write a title.", tools=0),
        path=MESSAGES, headers=claude_headers(request_class="auxiliary"),
    )  # fmt: skip
    main = wire.send(
        claude(opening), path=MESSAGES, headers=claude_headers(request_class="main", prompt_id="t1")
    )
    assert title.relation == "auxiliary"
    assert (main.name, main.relation, main.step_index) == (SESSION, "new", 0)
    assert (main.source, main.confidence) == ("harness:claude-code", 0.98)
    wire.answer(title, "messages", "Mending the build")
    echo, outcome = wire.answer(
        main, "messages", "I will look.", [("toolu_1", "Bash", {"command": "make", "timeout": 9}),
                                           ("toolu_2", "Agent", {"prompt": "Look for flaky tests in tests/."})]
    )  # fmt: skip
    assert [tool.name for tool in outcome.tools] == ["Bash", "Agent"]

    sub = wire.send(
        claude({"role": "user", "content": [text("Look for flaky tests in tests/.")]}, system="You search.", tools=2),
        path=MESSAGES, headers=claude_headers(request_class="subagent", agent_id="a17", prompt_id="t1"),
    )  # fmt: skip
    assert (sub.name, sub.relation, sub.call_class) == (f"{SESSION}/a17", "subagent", "subagent")
    assert sub.parent_id == main.program_id
    nested = wire.send(
        claude({"role": "user", "content": "Look deeper."}, system="You search.", tools=2),
        path=MESSAGES, headers=claude_headers(agent_id="b2", parent_agent_id="a17"),
    )  # fmt: skip
    assert nested.parent_id == sub.program_id

    # The agent works on while its parent goes on: the call was answered at once.
    results = {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "error: 2 failed"},
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": [text("Agent started.")],
         "cache_control": {"type": "ephemeral"}},
    ]}  # fmt: skip
    echo[0]["content"] = [block for block in echo[0]["content"] if block["type"] != "thinking"]
    flipped = {"role": "user", "content": [opening["content"][0], text("Mend the build.")]}
    second = wire.send(
        claude(
            flipped,
            *echo,
            results,
            {"role": "system", "content": "A file was changed by its author."},
            tools=5,
        ),
        path=MESSAGES,
        headers=claude_headers(request_class="main", prompt_id="t1", prev_tool_durations="Bash=69,Agent=18"),
    )
    assert (second.name, second.relation, second.step_index, second.turn) == (SESSION, "continues", 1, 0)
    assert second.returns == ("toolu_1", "toolu_2")
    assert second.tool_seconds == (("Bash", 0.069), ("Agent", 0.018))
    assert not second.human
    echo2, outcome = wire.answer(second, "messages", "Mended.")
    assert outcome.turn_done
    assert not outcome.ended

    summary = wire.send(
        claude(flipped, *echo, results, *echo2, {"role": "user", "content": "Sum up all of this."}),
        path=MESSAGES, headers=claude_headers(request_class="compaction", compaction="auto", prompt_id="t1"),
    )  # fmt: skip
    assert (summary.relation, summary.call_class, summary.window) == ("continues", "compaction", 0)
    wire.answer(summary, "messages", "We mended the build; two tests had been flaky.")
    after = wire.send(
        claude({"role": "user", "content": "Summary so far: we mended the build. Go on."}),
        path=MESSAGES, headers=claude_headers(request_class="main", context_compacted="true", prompt_id="t2"),
    )  # fmt: skip
    assert (after.name, after.relation, after.window, after.turn) == (SESSION, "compaction", 1, 1)
    assert after.step_index == 3


def test_claude_code_is_known_by_its_body_too_old_and_new(wire: Wire) -> None:
    new = wire.send(claude({"role": "user", "content": "hello there"}), path=MESSAGES)
    old = claude({"role": "user", "content": "hello there"})
    old["metadata"] = {"user_id": f"user_{'ab' * 32}_account__session_{SESSION}"}
    again = wire.send(old, path=MESSAGES)
    assert new.name == again.name == SESSION


# -- Codex ----------------------------------------------------------------------------------------------------


def codex(*items: Json, thread: str = SESSION) -> Json:
    return {
        "model": "m", "instructions": "You are a coding agent.", "stream": True, "store": False,
        "input": [{"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "sandbox"}]},
                  *items],
        "tools": [{"type": "function", "name": "exec_command", "parameters": {}}, {"type": "web_search"}],
        "prompt_cache_key": thread, "client_metadata": {"thread_id": thread},
        "include": ["reasoning.encrypted_content"],
    }  # fmt: skip


def codex_headers(window: int = 0, kind: str = "turn", turn: str = "u1") -> dict[str, str]:
    metadata = {"turn_id": turn, "root_turn_id": turn, "request_kind": kind}
    return {
        "originator": "codex_exec", "session-id": SESSION, "thread-id": SESSION, "x-client-request-id": SESSION,
        "x-codex-window-id": f"{SESSION}:{window}", "x-codex-turn-metadata": json.dumps(metadata),
    }  # fmt: skip


def said(words: str) -> Json:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": words}]}


def test_codex_main_subagent_prewarm_and_compaction_land_where_they_should(wire: Wire) -> None:
    path = "/v1/responses"
    warm = wire.send(codex(said("Mend the build.")), path=path, headers=codex_headers(kind="prewarm"))
    main = wire.send(codex(said("Mend the build.")), path=path, headers=codex_headers())
    assert (warm.relation, main.relation, main.name, main.source) == (
        "auxiliary",
        "new",
        SESSION,
        "harness:codex",
    )
    echo, _ = wire.answer(main, "responses", "", [("call_1", "exec_command", {"cmd": ["make"]})])
    output = {"type": "function_call_output", "call_id": "call_1", "output": "error"}
    for item in echo:  # what is stored nowhere comes back without ids
        item.pop("id", None)
    second = wire.send(codex(said("Mend the build."), *echo, output), path=path, headers=codex_headers())
    assert (second.relation, second.step_index, second.returns) == ("continues", 1, ("call_1",))
    child = wire.send(
        codex(said("Review the patch."), thread="t-child"),
        path=path,
        headers=codex_headers()
        | {"thread-id": "t-child", "x-codex-parent-thread-id": SESSION, "x-openai-subagent": "review"},
    )
    assert (child.name, child.relation, child.parent_id) == ("t-child", "subagent", main.program_id)
    echo2, _ = wire.answer(second, "responses", "Mended.")
    summing = wire.send(
        codex(said("Mend the build."), *echo, output, *echo2, said("Sum up.")), path=path,
        headers=codex_headers(kind="compaction"),
    )  # fmt: skip
    assert (summing.relation, summing.call_class) == ("continues", "compaction")
    wire.answer(summing, "responses", "The build was mended.")
    after = wire.send(
        codex(said("Earlier: the build was mended.")), path=path, headers=codex_headers(window=1, turn="u2")
    )
    assert (after.relation, after.window, after.turn) == ("compaction", 1, 1)


def test_the_window_that_a_client_names_is_believed_and_an_older_one_opens_none(wire: Wire) -> None:
    path = "/v1/responses"
    main = wire.send(codex(said("Mend the build.")), path=path, headers=codex_headers())
    wire.answer(main, "responses", "Mended.")
    later = wire.send(codex(said("Earlier: it was mended.")), path=path, headers=codex_headers(window=3))
    assert (later.relation, later.window) == ("compaction", 3), "two were summed up where nobody saw it"
    wire.answer(later, "responses", "Done.")
    stray = wire.send(codex(said("Another thing.")), path=path, headers=codex_headers(window=2))
    assert (stray.program_id, stray.window) == (main.program_id, 3)
    assert stray.relation != "compaction"


def test_codex_of_older_builds(wire: Wire) -> None:
    by_metadata = wire.send(
        codex(said("hi")), path="/v1/responses",
        headers={"session_id": SESSION, "x-codex-turn-metadata": json.dumps({"turn_id": "u"})},
    )  # fmt: skip
    by_originator = wire.send(
        codex(said("hi")), path="/v1/responses", headers={"originator": "codex_cli_rs", "session_id": SESSION}
    )
    assert by_metadata.name == by_originator.name == SESSION
    assert by_metadata.source == by_originator.source == "harness:codex"


# -- OpenCode -------------------------------------------------------------------------------------------------


def test_opencode_main_title_subtask_and_compaction_land_where_they_should(wire: Wire) -> None:
    headers = {"x-session-id": "ses_71f", "x-session-affinity": "ses_71f", "user-agent": "opencode/1.18"}
    title = wire.send(
        chat({"role": "user", "content": "Mend it."}, system="Name this.", tools=False), headers=headers
    )
    main = wire.send(chat(USER), headers=headers)
    assert (title.relation, main.relation, main.source) == ("auxiliary", "new", "harness:opencode")
    wire.answer(title, "chat", "Mending")
    echo, _ = wire.answer(main, "chat", "", [("call_1", "bash", {"command": "make"})])
    late_title = wire.send(chat(USER, system="Name this.", tools=False), headers=headers)
    assert late_title.relation == "auxiliary"
    task = wire.send(
        chat({"role": "user", "content": "Look at the tests."}, system="You search."),
        headers={
            "x-session-id": "ses_8aa",
            "x-session-affinity": "ses_8aa",
            "x-parent-session-id": "ses_71f",
        },
    )
    assert (task.relation, task.parent_id) == ("subagent", main.program_id)
    result = {"role": "tool", "tool_call_id": "call_1", "content": "error"}
    second = wire.send(chat(USER, *echo, result), headers=headers)
    assert (second.relation, second.step_index) == ("continues", 1)
    echo2, _ = wire.answer(second, "chat", "Mended.")
    ask = {"role": "user", "content": "Sum up what was done."}
    summing = wire.send(chat(USER, *echo, result, *echo2, ask, tools=False), headers=headers)
    assert summing.relation == "continues"
    wire.answer(summing, "chat", "The build was red; it is mended.")
    after = wire.send(
        chat({"role": "user", "content": "The build was red; it is mended. Go on."}), headers=headers
    )
    assert (after.name, after.relation, after.window) == ("ses_71f", "compaction", 1)


# -- the other rows -------------------------------------------------------------------------------------------

ROWS: list[tuple[str, str, dict[str, str], Json]] = [
    ("explicit:agentserve", "run-1", {"x-agentserve-program-id": "run-1"}, {}),
    ("explicit:dynamo", "d-1", {"x-dynamo-session-id": "d-1"}, {}),
    ("explicit:dynamo", "d-2", {}, {"nvext": {"agent_context": {"session_id": "d-2"}}}),
    ("explicit:thunderagent", "th-1", {}, {"program_id": "th-1", "docker_ids": []}),
    ("explicit:continuum", "j-1", {}, {"job_id": "j-1", "is_last_step": False}),
    ("explicit:vllm-agent-hint", "h-1", {}, {"agent_hint": {"session_id": "h-1"}}),
    ("explicit:agentinfer", "i-1", {}, {"vllm_xargs": {"agentic_context": {"program_id": "i-1"}}}),
    ("harness:opencode", "op-1", {"x-opencode-session": "op-1", "x-opencode-request": "r"}, {}),
    ("harness:goose", "20261101_7", {"agent-session-id": "20261101_7"}, {}),
    ("harness:goose", "20251101_7", {"goose-session-id": "20251101_7"}, {}),
    ("harness:openhands", "oh-1", {"x-litellm-session-id": "oh-1", "user-agent": "OpenHands/1.4"}, {}),
    ("harness:roo-code", "roo-1", {"x-roo-task-id": "roo-1", "user-agent": "RooCode/3"}, {}),
    ("harness:cline", "cl-1", {"x-task-id": "cl-1"}, {}),
    ("harness:open-webui", "ow-1", {"x-openwebui-chat-id": "ow-1"}, {}),
    ("harness:qwen-code", "qw-1", {}, {"metadata": {"sessionId": "qw-1", "promptId": "qw-1########0"}}),
    ("generic:x-session-id", "s-1", {"x-session-id": "s-1"}, {}),
    ("generic:x-session-id", "s-2", {"x-session-affinity": "s-2"}, {}),
    ("generic:litellm", "l-1", {"x-litellm-session-id": "l-1"}, {}),
    ("generic:litellm", "l-2", {}, {"metadata": {"litellm_session_id": "l-2"}}),
    ("generic:helicone", "he-1", {"helicone-session-id": "he-1"}, {}),
    ("generic:session-id", "g-1", {"session_id": "g-1"}, {}),
    ("generic:session-id", "g-2", {}, {"session_id": "g-2"}),
    ("generic:body-session-id", "b-1", {}, {"metadata": {"session_id": "b-1"}}),
    ("generic:conversation", "conv_1", {}, {"conversation": {"id": "conv_1"}}),
    ("generic:conversation", "conv_2", {}, {"conversation": "conv_2"}),
    ("generic:x-*-session-id", "v-1", {"x-subconscious-session-id": "v-1"}, {}),
    ("generic:baggage", "bg-1", {"baggage": "a=b, gen_ai.conversation.id=bg-1;p=1"}, {}),
    ("weak:traceparent", f"trace-{'4b' * 16}", {"traceparent": f"00-{'4b' * 16}-00f067aa0ba902b7-01"}, {}),
]


@pytest.mark.parametrize(("source", "name", "headers", "extra"), ROWS, ids=lambda value: str(value)[:24])
def test_a_client_is_known_by_what_it_sends(
    wire: Wire, source: str, name: str, headers: dict[str, str], extra: Json
) -> None:
    first = wire.send(chat(USER, **extra), headers=headers)
    assert (first.source, first.name) == (source, name)
    echo, _ = wire.answer(first, "chat", "", [("call_1", "bash", {"command": "make"})])
    result = {"role": "tool", "tool_call_id": "call_1", "content": "error"}
    second = wire.send(chat(USER, *echo, result, **extra), headers=headers)
    assert (second.program_id, second.relation, second.step_index) == (first.program_id, "continues", 1)


def test_every_row_of_the_table_has_its_test() -> None:
    tested = {source.partition(":")[2] for source, *_ in ROWS} | {"claude-code", "codex", "opencode"}
    assert {row.name for row in NAMINGS} <= tested
    assert re.fullmatch(r"\d{4}-\d\d-\d+", TABLE_VERSION)


def test_people_and_constant_cache_keys_are_no_programs(wire: Wire) -> None:
    extra: Json = {"user": "ann", "safety_identifier": "s", "prompt_cache_key": "my-app"}
    one = wire.send(chat(USER, **extra))
    two = wire.send(chat({"role": "user", "content": "Something quite different, please."}, **extra))
    assert one.program_id != two.program_id
    assert one.source == "content:new"


@pytest.mark.parametrize("value", ["", " ", "x" * 300, "a\nb", "tab\there"])
def test_a_name_that_is_none_is_ignored(value: str) -> None:
    assert identify(CallEvidence(headers={"x-agentserve-program-id": value})) is None


def test_a_placeholder_is_no_session(wire: Wire) -> None:
    first = wire.send(chat(USER), headers={"x-session-id": "default"})
    assert first.source == "content:new"
    told = wire.send(chat(USER), headers={"x-agentserve-program-id": "default"})
    assert told.source == "explicit:agentserve"


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": "00-00000000000000000000000000000000-00f067aa0ba902b7-01"},
        {"traceparent": "nonsense"},
        {"baggage": "gen_ai.conversation.id"},
        {"x-codex-turn-metadata": "{"},
        {"x-parent-session-id": "p"},
    ],
)
def test_broken_headers_name_nothing(headers: dict[str, str]) -> None:
    resolved = Resolver().resolve(CallEvidence(headers=headers), tenant="a", now=0.0)
    assert resolved.source == "content:new"


def test_the_client_says_which_call_is_its_last(wire: Wire) -> None:
    headers = {"x-agentserve-program-id": "r", "x-agentserve-final": "true"}
    last = wire.send(chat(USER), headers=headers)
    assert last.final
    _, outcome = wire.answer(last, "chat", "Done.")
    assert outcome.final
    assert outcome.ended


def test_a_name_in_the_path_is_explicit(wire: Wire) -> None:
    resolved = wire.send(chat(USER), path="/p/run-9/v1/chat/completions", headers={"x-session-id": "other"})
    assert (resolved.name, resolved.source) == ("run-9", "explicit:agentserve")
