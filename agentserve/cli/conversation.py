"""The messages that an agent with a given plan would send: prompts of the planned length, made of stable words.

Rule: equal runs of a plan are equal text and a longer run begins with a shorter one's text, so engines find in their
caches what the plan says they may. Nothing here knows of HTTP or time.

The emulated engine is told what to say by a script inside the first user message; to a real engine that is only text.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import msgspec

from agentserve.sim.programs import SUB_AGENT, ProgramPlan, Run, StepPlan, ToolPlan

SCRIPT = "agentserve-script:"
BETWEEN = "\n\n"  # a document and what was said of it
TOKEN_CHARS = 4  # what the emulated tokenizer makes of ASCII; a word and its space
SLACK_TOKENS = 160  # a prompt that repeats all but this much of the one before it continues it
CALL_TOKENS = 12  # what a tool call weighs beside its argument
SYSTEM_SHARE = 4  # of a recorded first prompt, one part in so many is its system message
DEFAULT_TOOL = ToolPlan(name="bash", argument_class="run")
# 256 words of three letters, one for each byte
WORDS = tuple(
    "".join(letters) + " " for letters in itertools.product("bdfgklmnprst", "aeiou", "bdfgklmnprst")
)[:256]
COMMAND = {"type": "object", "properties": {"command": {"type": "string"}}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": f"{name} something", "parameters": COMMAND},
    }
    for name in ("bash", "read", "edit")
]
Message = dict[str, Any]


def text(key: int, tokens: int) -> str:
    """Words worth this many tokens; the same key gives the same words, and more tokens only add to them."""
    digest = hashlib.shake_128(key.to_bytes(16, "little")).digest(max(tokens, 0))
    return "".join(map(WORDS.__getitem__, digest))


def offered(plan: ProgramPlan) -> list[dict[str, Any]]:
    """The definitions of tools that the program sends: recorded prompts have them only where that was recorded."""
    return TOOLS if plan.tools_offered or plan.steps[0].contents is None else []


def turn(plan: ProgramPlan, k: int) -> Any:
    """What the engine is told to say at this step: the planned tool calls, the closing words, or so many of its own."""
    step = plan.steps[k]
    if step.handed or any(later.handed for later in plan.steps[k + 1 : k + 2]):
        return {"tokens": step.output_tokens}
    if k + 1 == len(plan.steps) or (step.human and not step.tools) or not offered(plan):
        return {"text": text(_said(plan, k), step.output_tokens)}
    tools = step.tools or (SUB_AGENT,) * len(step.children) or (DEFAULT_TOOL,)
    size = max(step.output_tokens // len(tools) - CALL_TOKENS, 1)
    return [{"tool": t.name, "arguments": _arguments(t, text(_said(plan, k), size))} for t in tools]


def _arguments(tool: ToolPlan, words: str) -> dict[str, str]:
    """By which the gateway tells the kind and class of the call that were planned."""
    if tool.kind == "subagent":
        return {"prompt": words}
    return {"command": f"{tool.argument_class} {words}"} if tool.argument_class else {"input": words}


def _said(plan: ProgramPlan, k: int) -> int:
    """The key of what the engine says, apart from those of what it is told."""
    return (plan.own * 1000 + k) | 1 << 96


class Conversation:
    """One program's messages as they grow; `prompt(k)` before each step, `answered(...)` after it."""

    def __init__(self, plan: ProgramPlan) -> None:
        self.plan = plan
        self.messages: list[Message] = []
        self.kept_tokens = 0  # of the latest prompt, what this program had sent or been told before
        self._sizes: list[int] = []  # planned tokens of each message
        self._contents: tuple[Run, ...] = ()
        self._tools_tokens = len(msgspec.json.encode(offered(plan))) // TOKEN_CHARS
        self._reply: tuple[Message, int] | None = None
        self._said: list[str] = []  # every reply's words, for a plan that hands them on

    def prompt(self, k: int) -> list[Message]:
        """The messages of step `k`."""
        step = self.plan.steps[k]
        if step.contents is not None:
            self._recorded(k, step, step.contents)
        elif not self.messages or step.compact_to is not None:
            self._opening(k, step)
        else:
            self._continued(k, step.new_tokens)
        return self.messages

    def answered(self, k: int, reply: Message) -> None:
        """The reply as it came; the next prompt repeats it."""
        self._reply = (reply, self.plan.steps[k].output_tokens)
        if any(later.handed for later in self.plan.steps[k + 1 : k + 2]):
            self._said.append(reply.get("content") or "")

    # -- how a prompt comes about

    def _opening(self, k: int, step: StepPlan) -> None:
        """System prompt and task; after a compaction a summary stands for all that was said."""
        shared = self.plan.shared
        system = "".join(text(run.key, run.tokens) for run in shared) or "Work. "
        own = (step.compact_to or 0) + step.new_tokens
        self._restart(k, system, self._scripted(k, text(self.plan.own * 1000 + k, own)), own)
        self.kept_tokens = sum(r.tokens for r in shared) if k else 0

    def _continued(self, k: int, new_tokens: int) -> None:
        """The reply, and what its tools returned or the person said."""
        self.kept_tokens = sum(self._sizes)
        calls: Sequence[dict[str, Any]] = ()
        if self._reply is not None:
            reply, output = self._reply
            self._append(reply, output)
            self.kept_tokens += output
            calls = reply.get("tool_calls") or ()
        content = text(self.plan.own * 1000 + k, max(new_tokens, 1))
        if not calls:
            self._append({"role": "user", "content": content}, new_tokens)
            return
        share = -(-len(content) // len(calls))
        for i, call in enumerate(calls):
            part = content[i * share : (i + 1) * share]
            self._append(
                {"role": "tool", "tool_call_id": call["id"], "content": part}, len(part) // TOKEN_CHARS
            )

    def _recorded(self, k: int, step: StepPlan, contents: tuple[Run, ...]) -> None:
        """A prompt that is given whole: as much as it repeats is kept, at a message's end."""
        total = sum(r.tokens for r in contents)
        common = common_tokens(self._contents, contents)
        before = sum(r.tokens for r in self._contents)
        said = self._reply[1] if self._reply is not None else 0
        continues = bool(self.messages) and common >= before - SLACK_TOKENS and total > before
        self._contents = contents
        if continues:
            # what was sent and said so far, where thoughts were left out of a recorded prompt too
            self._continued(k, max(total - sum(self._sizes) - said, 1))
            return
        kept, size = 0, 0
        while kept < len(self._sizes) and size + self._sizes[kept] <= common:
            size += self._sizes[kept]
            kept += 1
        while kept > 2 and self._amid_calls(kept):
            kept -= 1
            size -= self._sizes[kept]
        if kept < 2:  # not even the task stands: another conversation
            self._another(k, step, contents)
            return
        del self.messages[kept:], self._sizes[kept:]
        self._reply = None
        self.kept_tokens = size
        rest = max(total - size, 1)
        self._append({"role": "user", "content": self._recorded_words(k, rest)}, rest)

    def _amid_calls(self, kept: int) -> bool:
        """Whether the first `kept` messages end between tool calls and their results."""
        follows = self.messages[kept]["role"] if kept < len(self.messages) else ""
        return bool(self.messages[kept - 1].get("tool_calls")) or follows == "tool"

    def _another(self, k: int, step: StepPlan, contents: tuple[Run, ...]) -> None:
        head, rest = contents[0], contents[1:]
        if not rest or rest[-1].tokens < SLACK_TOKENS:  # one run: a part of it is the system's
            system = head.tokens // SYSTEM_SHARE
            own = sum(r.tokens for r in contents) - system
        else:
            system, own = head.tokens, sum(r.tokens for r in rest)
        if step.handed:
            self._restart(k, text(head.key, system), self._scripted(k, self._handed(own)), own)
        else:
            self._restart(k, text(head.key, system - self._tools_tokens), self._recorded_words(k, own), own)
            self._sizes[0] = system
        self.kept_tokens = 0

    def _recorded_words(self, k: int, tokens: int) -> str:
        """A message of a recorded length, of which the script is a part."""
        script = self._scripted(k, "")
        return text(self._key(k), max(tokens - len(script) // TOKEN_CHARS, 1)) + script

    def _handed(self, tokens: int) -> str:
        """The document that the program began with and what was said of it, the last of it where there is too much;
        the document is as long as makes the prompt what was planned."""
        said = BETWEEN + BETWEEN.join(self._said)
        room = tokens - len(said) // TOKEN_CHARS
        return text(self._key(0), room) + said if room > 0 else said[-tokens * TOKEN_CHARS :]

    def _restart(self, k: int, system: str, task: str, task_tokens: int) -> None:
        self.messages = []
        self._sizes = []
        self._reply = None
        self._append({"role": "system", "content": system}, len(system) // TOKEN_CHARS)
        self._append({"role": "user", "content": task}, task_tokens)

    def _scripted(self, k: int, content: str) -> str:
        """With what the engine shall say from here on."""
        turns = [turn(self.plan, j) for j in range(k, self._script_end(k))]
        return f"{content}\n{SCRIPT} {msgspec.json.encode(turns).decode()}\n"

    def _script_end(self, k: int) -> int:
        """One past the last step that continues step `k`'s conversation."""
        steps = self.plan.steps
        for j in range(k + 1, len(steps)):
            later, earlier = steps[j], steps[j - 1]
            if later.compact_to is not None:
                return j
            if later.contents is not None:
                before = sum(r.tokens for r in earlier.contents or ())
                common = common_tokens(earlier.contents or (), later.contents)
                if common < before - SLACK_TOKENS or sum(r.tokens for r in later.contents) <= before:
                    return j
        return len(steps)

    def _key(self, k: int) -> int:
        return self.plan.own * 1000 + k

    def _append(self, message: Message, tokens: int) -> None:
        self.messages.append(message)
        self._sizes.append(tokens)


def common_tokens(before: Sequence[Run], after: Sequence[Run]) -> int:
    """How long two prompts are the same."""
    common = 0
    for a, b in zip(before, after, strict=False):
        if a.key != b.key:
            break
        common += min(a.tokens, b.tokens)
        if a.tokens != b.tokens:
            break
    return common
