"""How far a program has come, as the few numbers that tell how far it has to go.

One rule: everything here was visible on the wire when the step ended; nothing is kept of prompts or replies but
counts. Features are for comparing programs with each other, so each is a logarithm, a share or a small count.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import msgspec

from agentserve.core.forecast.calls import CallShape

# What tools of any agent are for, by their names; the first match counts.
_PURPOSES = (
    ("plan", re.compile(r"todo|plan|task_?(?:update|create|list|get)|checklist|think", re.IGNORECASE)),
    ("agent", re.compile(r"agent|^task$|spawn|delegate|handoff", re.IGNORECASE)),
    ("edit", re.compile(r"edit|write|patch|replace|insert|create|save|append|delete|apply", re.IGNORECASE)),
    ("search", re.compile(r"grep|glob|search|find|list|^ls$|query", re.IGNORECASE)),
    ("web", re.compile(r"web|fetch|browser|http|url|navigate|click", re.IGNORECASE)),
    ("run", re.compile(r"bash|shell|exec|terminal|run|command|python|test", re.IGNORECASE)),
    ("read", re.compile(r"read|view|open|(?:^|_)(?:cat|get)(?:$|_)|show|load", re.IGNORECASE)),
)
_OTHER = len(_PURPOSES)

_OPEN = frozenset(["pending", "in_progress", "todo", "open", "not_started", "blocked", "doing", "active"])
_DONE = frozenset(["completed", "complete", "done", "cancelled", "canceled", "skipped", "closed", "finished"])
_TODO_ITEMS_MAX = 256
_TODO_LISTS = ("todos", "todo_list", "plan", "tasks", "items", "steps", "newTodos")


@lru_cache(maxsize=4096)
def purpose(tool: str) -> int:
    """What a tool is for: an index into the purposes, the last of which is "something else"."""
    for i, (_, pattern) in enumerate(_PURPOSES):
        if pattern.search(tool):
            return i
    return _OTHER


@dataclass(frozen=True, slots=True)
class Todo:
    """An agent's own list of what it has to do, as a tool call carried it."""

    open: int
    done: int


def read_todo(arguments: Mapping[str, object]) -> Todo | None:
    """The to-do list in a tool call's arguments, in whichever of the common shapes; None if there is none."""
    for key in _TODO_LISTS:
        items = arguments.get(key)
        if isinstance(items, str) and "[" in items:
            done = len(re.findall(r"\[[xX]\]", items[:65_536]))
            undone = len(re.findall(r"\[[ ~>-]?\]", items[:65_536]))
            if done + undone:
                return Todo(undone, done)
        if not isinstance(items, list) or not items:
            continue
        states = [_state(item) for item in items[:_TODO_ITEMS_MAX]]
        if any(state is not None for state in states):
            done = sum(state is True for state in states)
            return Todo(len(states) - done, done)
    return None


def _state(item: object) -> bool | None:
    """Whether an item of a list is done; None if it does not look like an item."""
    if not isinstance(item, Mapping):
        return None
    for key in ("status", "state"):
        value = item.get(key)
        if isinstance(value, str):
            word = value.lower().replace("-", "_").replace(" ", "_")
            return True if word in _DONE else False if word in _OPEN else None
    for key in ("done", "completed", "checked"):
        if isinstance(item.get(key), bool):
            return bool(item[key])
    return None


class StepFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One finished step, as the wire showed it."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    started_s: float = 0.0  # since the program's first step
    llm_s: float = 0.0
    calls: Sequence[CallShape] = ()
    calls_count: int | None = None  # where only the number is known
    human: bool = False  # a person wrote since the last step
    subagents: int = 0
    todo: Todo | None = None


@dataclass(slots=True, kw_only=True)
class Progress:
    """What is kept of a running program: sums, from which `features` follow."""

    tools_offered: int = 0
    system_tokens: int = 0
    steps_declared: float = 0.0  # by a plan, a graph or a limit; 0 where nothing was
    steps: int = 0
    output_tokens: int = 0
    ended_s: float = 0.0  # when the last step ended
    _opening: int = 0
    _opening_output: int = 0
    _opening_cached: float = 0.0
    _input: int = 0
    _input_max: int = 0
    _output: int = 0
    _missed: float = 0.0
    _llm_s: float = 0.0
    _gap_s: float = 0.0
    _gap_sum_s: float = 0.0
    _gap_max_s: float = 0.0
    _calls: int = 0
    _toolless: int = 0
    _last_toolless: bool = False
    _humans: int = 0
    _since_human: int = 0
    _subagents: int = 0
    _compactions: int = 0
    _todo: Todo = field(default_factory=lambda: Todo(0, 0))
    _purposes: list[int] = field(default_factory=lambda: [0] * (_OTHER + 1))

    def add(self, step: StepFacts) -> None:
        """Count one finished step."""
        cached = step.cached_tokens / (step.input_tokens or 1)
        if self.steps == 0:
            self._opening, self._opening_output = step.input_tokens, step.output_tokens
            self._opening_cached = cached
        else:
            gap_s = step.started_s - self.ended_s
            if gap_s < 0.0:
                gap_s = 0.0
            self._gap_s = gap_s
            self._gap_sum_s += gap_s
            if gap_s > self._gap_max_s:
                self._gap_max_s = gap_s
            # A context that shrinks by a third was rewritten, not trimmed.
            self._compactions += step.input_tokens < 0.67 * self._input
        self.steps += 1
        self.ended_s = step.started_s + step.llm_s
        self._input = step.input_tokens
        if self._input > self._input_max:
            self._input_max = self._input
        self._output = step.output_tokens
        self.output_tokens += step.output_tokens
        self._missed += 1.0 - cached
        self._llm_s += step.llm_s
        count = len(step.calls) if step.calls_count is None else step.calls_count
        self._calls += count
        self._last_toolless = count == 0
        self._toolless += count == 0
        self._humans += step.human
        self._since_human = 0 if step.human else self._since_human + 1
        self._subagents += step.subagents
        for call in step.calls:
            self._purposes[purpose(call.name)] += 1
        if step.todo is not None:
            self._todo = step.todo

    def features(self) -> array[float]:
        """The numbers by which programs are compared."""
        n = max(self.steps, 1)
        named = sum(self._purposes) or 1
        gaps = max(self.steps - 1, 1)
        log = math.log1p
        return array(
            "f",
            (
                math.log(n),
                log(self._opening),
                log(self._input),
                log(self._input_max),
                log(max(self._input - self._opening, 0)),
                log(self._opening_output),
                log(self.output_tokens / n),
                log(self._output),
                self._opening_cached,
                self._missed / n,
                self._toolless / n,
                self._calls / n,
                log(self._humans),
                log(self._since_human),
                float(self._last_toolless),
                log(self.ended_s),
                log(self._gap_sum_s / gaps),
                log(self._gap_max_s),
                log(self._gap_s),
                log(self._llm_s / n),
                log(self._subagents),
                log(self._compactions),
                log(self._purposes[2]),  # edits: an agent that has begun to change things is past exploring
                *(count / named for count in self._purposes),
                log(self._todo.open),
                log(self._todo.done),
                log(self.tools_offered),
                log(self.system_tokens),
                log(max(self.steps_declared - self.steps, 0.0)),
            ),
        )


FEATURES = len(Progress().features())
