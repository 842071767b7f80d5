"""Recorded traffic as workloads: agent programs, Mooncake and kv-cache-tester traces, Azure and BurstGPT CSV.

Rule: a malformed line is named by number and reason and counted; it ends the run only when `strict`.
The format is told from the first line, so that a user names a file and nothing else.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentserve.errors import UsageError
from agentserve.sim.programs import OWN_KEYS, SUB_AGENT, ProgramPlan, Run, StepPlan, ToolPlan, Workload

PROBLEMS_KEPT_MAX = 20
GAP_S_MAX = 7200.0  # a person who is away longer starts, for a cache, a new program
MOONCAKE_BLOCK = 512
TOKENS_MAX = 1 << 20
REPLY_S_PER_TOKEN = 0.02  # of a reply whose time was not recorded: roughly what served it, and not its client
DEFINITION_TOKENS = 600  # of one tool of a coding agent: 12,500 tokens are its twenty or so


@dataclass(slots=True)
class Import:
    """What came of a file."""

    workload: Workload
    format: str
    lines: int = 0
    bad: int = 0
    problems: list[str] = field(default_factory=list)


class Malformed(Exception):
    """A line that cannot be used, and why."""


def fault(error: Exception) -> str:
    """What is wrong with a line, in words."""
    if isinstance(error, KeyError):
        return f"has no field `{error.args[0]}`"
    if isinstance(error, Malformed):
        return str(error)
    return f"is not of the expected shape ({type(error).__name__}: {error})"


class Reader:
    """Lines of a file with their numbers; keeps account of the malformed."""

    def __init__(self, path: Path, *, strict: bool) -> None:
        self.path = path
        self.strict = strict
        self.lines = 0
        self.bad = 0
        self.problems: list[str] = []

    def text(self) -> Iterator[str]:
        try:
            opened = gzip.open(self.path, "rt") if self.path.suffix == ".gz" else self.path.open()  # noqa: SIM115
            with opened as stream:
                for line in stream:
                    self.lines += 1
                    yield line
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise UsageError(
                f"cannot read {self.path}: {error}", remedy="name a readable text or .gz file"
            ) from error

    def objects(self) -> Iterator[dict[str, Any]]:
        for line in self.text():
            if not line.strip():
                continue
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise Malformed("not a JSON object")
                yield value
            except (json.JSONDecodeError, Malformed) as error:
                self.complain(str(error))

    def complain(self, why: str) -> None:
        self.bad += 1
        problem = f"{self.path.name}:{self.lines}: {why}"
        if self.strict:
            raise UsageError(problem, remedy="mend the line, or leave --strict away to skip it")
        if len(self.problems) < PROBLEMS_KEPT_MAX:
            self.problems.append(problem)


def read(path: str | Path, *, strict: bool = False, limit: int | None = None) -> Import:
    """The programs of a file, at most `limit` root programs."""
    reader = Reader(Path(path), strict=strict)
    kind = _detect(reader)
    reader.lines = 0
    plans = list(_IMPORTERS[kind](reader))
    if not plans:
        why = f" ({reader.problems[0]})" if reader.problems else ""
        raise UsageError(
            f"{path} holds no usable program{why}", remedy="check that it is a trace of a known format"
        )
    plans = _limited(plans, limit)
    workload = Workload(name=Path(path).name, programs=plans, shared_tokens=_shared_tokens(plans))
    return Import(workload, kind, reader.lines, reader.bad, reader.problems)


def _detect(reader: Reader) -> str:
    first = next(reader.text(), "").strip()
    if first.startswith("{"):
        try:
            keys = set(json.loads(first))
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{reader.path}: line 1 is not JSON: {error}", remedy="give a JSONL or CSV trace"
            ) from error
        if "hash_ids" in keys:
            return "mooncake"
        if "requests" in keys:
            return "kv-cache-tester"
        if "schema" in keys or "turns" in keys:
            return "agent_programs"
    head = {h.strip().lower() for h in first.split(",")}
    if {"timestamp", "contexttokens", "generatedtokens"} <= head:
        return "azure"
    if {"timestamp", "request tokens", "response tokens"} <= head:
        return "burstgpt"
    raise UsageError(
        f"{reader.path} is in no known format",
        remedy="known are agentserve export, agent_programs, Mooncake, kv-cache-tester, Azure and BurstGPT",
    )


def _limited(plans: list[ProgramPlan], limit: int | None) -> list[ProgramPlan]:
    """The first `limit` roots with their families, indices mended."""
    if limit is None:
        return plans
    keep: set[int] = set()
    roots = 0
    for index, plan in enumerate(plans):
        if plan.parent is None:
            roots += 1
            if roots > limit:
                continue
            keep.add(index)
        elif plan.parent in keep:
            keep.add(index)
    place = {old: new for new, old in enumerate(sorted(keep))}
    out = []
    for old in sorted(keep):
        plan = plans[old]
        steps = tuple(
            dataclasses.replace(s, children=tuple(place[c] for c in s.children if c in place))
            for s in plan.steps
        )
        parent = place[plan.parent] if plan.parent is not None else None
        out.append(dataclasses.replace(plan, steps=steps, parent=parent))
    return out


def _shared_tokens(plans: Iterable[ProgramPlan]) -> int:
    shared: dict[int, int] = {}
    for plan in plans:
        for run in plan.shared:
            shared[run.key] = run.tokens
    return sum(shared.values())


def _count(value: Any, what: str, *, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise Malformed(f"{what} is {value!r}, not a number")
    if not least <= value <= TOKENS_MAX:
        raise Malformed(f"{what} is {value}, outside {least} to {TOKENS_MAX}")
    return int(value)


def _seconds(value: Any, what: str) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or value < 0:
        raise Malformed(f"{what} is {value!r}, not seconds")
    return min(float(value), GAP_S_MAX)


# -- agent programs: turns with their gaps and tools


def _agent_programs(reader: Reader) -> Iterator[ProgramPlan]:
    index = 0
    for row in reader.objects():
        if "schema" in row:
            continue
        try:
            plan = _agent_program(row, index)
        except (Malformed, KeyError, TypeError, ValueError) as error:
            reader.complain(fault(error))
            continue
        index += 1
        yield plan


def _agent_program(row: dict[str, Any], index: int) -> ProgramPlan:
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns:
        raise Malformed("a program without turns")
    prompts = [_count(t["in"], "in", least=1) for t in turns]
    # the common head of a source's programs is its system prompt and tools; what is known of it is only that
    # a first prompt is at least as long
    source = str(row.get("source", "file"))
    head = min(8_000, min(prompts) // 2)
    steps = []
    before = head
    for k, turn in enumerate(turns):
        output = _count(turn.get("out") or 1, "out", least=0) or 1
        compact = None
        new = prompts[k] - before
        if new < 1:
            # the context shrank: compaction, or another conversation; the own text starts anew
            compact = max(prompts[k] - head - 1, 0)
            new = 1
        tools = tuple(
            ToolPlan(
                name=str(t[0]),
                argument_class=str(t[1] or ""),
                seconds=_seconds(t[3] if t[3] is not None else t[2], "tool seconds"),
            )
            for t in turn.get("tools") or ()
        )
        last = k == len(turns) - 1
        gap = 0.0 if last else _seconds(turn.get("gap"), "gap")
        longest = max((t.seconds for t in tools), default=0.0)
        if longest > gap:
            tools = tuple(dataclasses.replace(t, seconds=min(t.seconds, gap)) for t in tools)
            longest = gap
        steps.append(
            StepPlan(
                new_tokens=new,
                output_tokens=output,
                tools=() if last else tools,
                think_s=gap - longest,
                human=turn.get("gap_k") == "human",
                compact_to=compact,
            )
        )
        before = prompts[k] + output
    return ProgramPlan(
        id=str(row.get("id") or f"program-{index}"),
        steps=tuple(steps),
        tenant=str(row.get("tenant", "default")),
        workflow=str(row.get("workflow") or row.get("set") or source),
        role=_stable(source),
        shared=(Run(_stable(source), head),) if head else (),
        own=OWN_KEYS + index,
        # which it was offered is not recorded; at least those that it called
        tools_offered=len({tool.name for step in steps for tool in step.tools}),
    )


def _stable(text: str) -> int:
    """A small key from a word, the same in every process."""
    value = 7
    for byte in text.encode():
        value = (value * 257 + byte) % 1_000_003
    return value + 1_000_000


# -- Mooncake: requests with the hashes of their 512-token blocks


def _mooncake(reader: Reader) -> Iterator[ProgramPlan]:
    """Requests whose blocks begin with all of an earlier request's are the next step of its program."""
    rows = []
    for row in reader.objects():
        try:
            ids = row["hash_ids"]
            if not isinstance(ids, list) or not ids or not all(isinstance(h, int) for h in ids):
                raise Malformed("hash_ids is not a list of numbers")
            start = (
                _count(row["timestamp"], "timestamp")
                if row["timestamp"] < TOKENS_MAX
                else int(row["timestamp"])
            )
            length = _count(row["input_length"], "input_length", least=1)
            rows.append(
                (start / 1000.0, length, _count(row["output_length"], "output_length", least=1), tuple(ids))
            )
        except (Malformed, KeyError, TypeError) as error:
            reader.complain(fault(error))
    ends: dict[tuple[int, ...], int] = {}
    programs: list[list[tuple[float, int, int, tuple[int, ...]]]] = []
    for request in rows:
        ids = request[3]
        # the last block of a prompt is partial, so its hash changes as the conversation grows
        known = next((ends[ids[:n]] for n in range(len(ids) - 1, 0, -1) if ids[:n] in ends), None)
        if known is None or len(ids) <= 2:
            known = len(programs)
            programs.append([])
        programs[known].append(request)
        if len(ids) > 2:
            ends[ids[:-1]] = known
    for index, requests in enumerate(programs):
        yield _mooncake_program(index, requests)


def _mooncake_program(index: int, requests: list[tuple[float, int, int, tuple[int, ...]]]) -> ProgramPlan:
    steps = []
    for k, (at, length, output, ids) in enumerate(requests):
        runs = []
        left = length
        for position, block in enumerate(ids):
            tokens = min(MOONCAKE_BLOCK, left)
            key = block + 1 if position < 1 else OWN_KEYS * 2 + block
            runs.append(Run(key, tokens))
            left -= tokens
        gap = 0.0
        if k + 1 < len(requests):
            # the trace has arrivals only: of the time between them, a rough service time is not the client's
            gap = max(requests[k + 1][0] - at - REPLY_S_PER_TOKEN * output, 0.0)
        steps.append(
            StepPlan(
                new_tokens=0,
                output_tokens=output,
                contents=tuple(runs),
                think_s=min(gap, GAP_S_MAX),
                human=True,
            )
        )
    return ProgramPlan(
        id=f"mooncake-{index}",
        steps=tuple(steps),
        workflow="conversation",
        own=OWN_KEYS + index,
        arrives_s=requests[0][0],
    )


# -- kv-cache-tester (Weka): Claude Code traces with runs of 64-token block hashes


def _weka(reader: Reader) -> Iterator[ProgramPlan]:
    index = 0
    for row in reader.objects():
        try:
            family = _weka_family(row, index)
        except (Malformed, KeyError, TypeError, ValueError) as error:
            reader.complain(fault(error))
            continue
        index += len(family)
        yield from family


def _weka_family(row: dict[str, Any], index: int) -> list[ProgramPlan]:
    """A trace and its sub-agents; a sub-agent runs while its parent's next request waits for it."""
    block = _count(row.get("block_size", 64), "block_size", least=1)
    name = str(row.get("id") or f"trace-{index}")
    children: list[ProgramPlan] = []
    steps: list[StepPlan] = []
    scope = OWN_KEYS * (4 + index)
    offered = _weka_tools(row)
    before: dict[str, Any] | None = None
    for request in row["requests"]:
        if request.get("type") == "subagent":
            inner = [r for r in request.get("requests") or () if r.get("type") == "n"]
            if inner and steps:
                child = index + 1 + len(children)
                children.append(
                    ProgramPlan(
                        id=f"{name}/{request.get('agent_id', child)}",
                        steps=_weka_steps(inner, block, scope, _weka_tools(request)),
                        workflow=str(request.get("subagent_type") or "subagent"),
                        own=OWN_KEYS + child,
                        parent=index,
                        tools_offered=_weka_tools(request),
                    )
                )
                steps[-1] = _starting(steps[-1], child)
            continue
        if before is not None and not steps[-1].children:
            steps[-1] = _weka_step(before, request, block, scope, offered)
        steps.append(_weka_step(request, None, block, scope, offered))
        before = request
    if not steps:
        raise Malformed("a trace without requests")
    lead = ProgramPlan(
        id=name, steps=tuple(steps), workflow="claude-code", own=OWN_KEYS + index, tools_offered=offered
    )
    return [lead, *children]


def _weka_tools(traced: dict[str, Any]) -> int:
    """How many tools an agent was offered, by what their definitions weighed in its prompt."""
    return -(-_count(traced.get("tool_tokens") or 0, "tool_tokens") // DEFINITION_TOKENS)


def _starting(step: StepPlan, child: int) -> StepPlan:
    """The step whose reply asked for one more sub-agent, and waits for it."""
    children = (*step.children, child)
    return dataclasses.replace(
        step, children=children, tools=(SUB_AGENT,) * len(children), think_s=0.0, human=False
    )


def _weka_steps(
    requests: Sequence[dict[str, Any]], block: int, scope: int, offered: int
) -> tuple[StepPlan, ...]:
    following = (*requests[1:], None)
    return tuple(_weka_step(r, f, block, scope, offered) for r, f in zip(requests, following, strict=True))


def _weka_step(
    request: dict[str, Any], following: dict[str, Any] | None, block: int, scope: int, offered: int
) -> StepPlan:
    """A request and the gap after it: a person's where the turn had ended, else that of a tool.

    Tools are not named, so all have one name. Of a few streams no end was recorded; they are followed as soon as
    replies with tool calls are, and so taken for such.
    """
    length = _count(request["in"], "in", least=1)
    output = max(_count(request.get("out") or 1, "out"), 1)
    runs = []
    left = length
    for first, count in request.get("h") or ():
        tokens = min(int(count) * block, left)
        if tokens > 0:
            # runs of consecutive hashes are equal text as far as they agree; name them by their first block
            runs.append(Run(scope + int(first), tokens))
            left -= tokens
    if left > 0:
        runs.append(Run(scope + (1 << 30) + length, left))
    gap = 0.0
    if following is not None:
        served = float(request.get("api_time") or REPLY_S_PER_TOKEN * output)
        gap = min(max(float(following["t"]) - float(request["t"]) - served, 0.0), GAP_S_MAX)
    ended = request.get("stop") == "end_turn"
    called = bool(offered) and following is not None and not ended
    return StepPlan(
        new_tokens=0,
        output_tokens=output,
        contents=tuple(runs),
        tools=(ToolPlan(name="tool", seconds=gap),) if called else (),
        think_s=0.0 if called else gap,
        human=ended,
    )


# -- arrivals with token counts: one-shot requests


def _csv_rows(reader: Reader) -> Iterator[dict[str, str]]:
    for row in csv.DictReader(reader.text()):
        yield {(k or "").strip().lower(): (v or "").strip() for k, v in row.items() if isinstance(v, str)}


def _one_shots(reader: Reader, prompt: str, output: str, at: Callable[[str], float]) -> Iterator[ProgramPlan]:
    first: float | None = None
    index = 0
    for row in _csv_rows(reader):
        try:
            arrives = at(row["timestamp"])
            first = arrives if first is None else first
            step = StepPlan(
                new_tokens=_count(float(row[prompt]), prompt, least=1),
                output_tokens=max(_count(float(row[output]), output), 1),
            )
        except (Malformed, KeyError, ValueError) as error:
            reader.complain(fault(error))
            continue
        yield ProgramPlan(
            id=f"request-{index}",
            steps=(step,),
            workflow="request",
            own=OWN_KEYS + index,
            arrives_s=max(arrives - first, 0.0),
            kind="chat",
        )
        index += 1


def _clock(text: str) -> float:
    """Seconds of a `YYYY-MM-DD HH:MM:SS.fffffff` stamp; only differences matter."""
    day, _, clock = text.partition(" ")
    year, month, date = (int(p) for p in day.split("-"))
    hours, minutes, seconds = clock.split(":")
    return ((year * 372 + month * 31 + date) * 24 + int(hours)) * 3600.0 + int(minutes) * 60 + float(seconds)


_IMPORTERS: dict[str, Callable[[Reader], Iterable[ProgramPlan]]] = {
    "agent_programs": _agent_programs,
    "mooncake": _mooncake,
    "kv-cache-tester": _weka,
    "azure": lambda r: _one_shots(r, "contexttokens", "generatedtokens", _clock),
    "burstgpt": lambda r: _one_shots(r, "request tokens", "response tokens", float),
}
