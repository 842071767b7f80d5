"""Agents that run planned programs against base URLs over real HTTP, so many at a time; times in the engines' seconds.

Rule: the crowd behaves the same whatever stands before the engines; what differs (where a step is sent, and what is
added to it) is a `Door`. A step that fails is sent again after a second, as SDKs do, and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from agentserve.cli.conversation import Conversation, offered
from agentserve.errors import AgentServeError
from agentserve.live.upstream import Deadlines, Upstream, UpstreamReply
from agentserve.live.upstream.hosted import HostedUpstream
from agentserve.live.upstream.lean import LeanUpstream
from agentserve.sim.programs import ProgramPlan, StepPlan, Workload
from agentserve.sim.traces import ProgramTrace, Result, StepTrace

DEADLINES = Deadlines(first_byte_s=900.0, idle_s=900.0, overall_s=3600.0)  # real seconds; a queue may be long
CONNECTIONS_MAX = 4096
ERROR_BYTES_MAX = 300
RETRIES_MAX = 4
RETRY_S = 1.0  # of the engines' time
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
Post = Callable[[str, str, Any], Awaitable[int]]  # base URL, path, body: the status
REPLY_TOKENS_MAX = 4096  # what clients ask for: a limit, and no hint of how much will come


class Door:
    """Straight to the engines, each program on one of them: the best that a client can do alone."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = urls

    def url(self, program: int, request: int) -> str:
        """The base URL for the `request`th request of all, which is one of this program."""
        return self.urls[program % len(self.urls)]

    def headers(self, plan: ProgramPlan, k: int, parent: ProgramPlan | None) -> dict[str, str]:
        """Headers of step `k`, beside the content type."""
        return {}

    def body(self, plan: ProgramPlan, k: int, parent: ProgramPlan | None) -> dict[str, Any]:
        """Fields of the body of step `k`, beside those of the protocol."""
        return {}

    async def ended(self, post: Post, plan: ProgramPlan) -> None:
        """The program is over."""


def connected(url: str) -> Upstream:
    """The way to a server: lean where it is plain HTTP, so that the crowd is never what is measured."""
    if url.startswith("http://"):
        return LeanUpstream(url, connections_max=CONNECTIONS_MAX)
    return HostedUpstream(url, connections_max=CONNECTIONS_MAX)


class Crowd:
    """Every program of a workload, once."""

    def __init__(
        self,
        workload: Workload,
        door: Door,
        *,
        model: str,
        scale: float = 1.0,
        connect: Callable[[str], Upstream] = connected,
    ) -> None:
        self.workload = workload
        self.door = door
        self.model = model
        self.scale = scale
        self.result = Result()
        self._connect = connect
        self._ways: dict[str, Upstream] = {}
        self._began = 0.0
        self._requests = 0

    def _now(self) -> float:
        return (asyncio.get_running_loop().time() - self._began) * self.scale

    async def run(self, concurrency: int, progress: Callable[[int], None] = lambda done: None) -> Result:
        """All programs, `concurrency` root programs at a time."""
        self._began = asyncio.get_running_loop().time()
        queue = list(reversed(self.workload.roots))

        async def worker() -> None:
            while queue:
                await self._program(queue.pop())
                progress(len(self.result.programs))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(worker())
        except ExceptionGroup as errors:  # the first says why; the others are the same server's
            raise errors.exceptions[0] from None
        finally:
            for way in self._ways.values():
                await way.stop()
        self.result.ended_at = self._now()
        return self.result

    def _way(self, url: str) -> Upstream:
        if url not in self._ways:
            self._ways[url] = self._connect(url)
        return self._ways[url]

    async def _post(self, url: str, path: str, body: Any) -> int:
        """A call beside the steps; its reply's words do not matter."""
        reply = await self._send(url, path, msgspec.json.encode(body), {})
        try:
            while await reply.read():
                pass
        finally:
            reply.close()
        return reply.status

    async def _send(self, url: str, path: str, content: bytes, headers: dict[str, str]) -> UpstreamReply:
        raw = [(name.encode(), value.encode()) for name, value in (JSON | headers).items()]
        return await self._way(url).send("POST", path, raw, content, deadlines=DEADLINES)

    async def _program(self, index: int) -> None:
        plan = self.workload.programs[index]
        started = self._now()
        conversation = Conversation(plan)
        for k, step in enumerate(plan.steps):
            trace = StepTrace(program=index, index=k, sent_at=self._now())
            reply, usage = await self._step(index, k, conversation.prompt(k), trace)
            conversation.answered(k, reply)
            trace.prompt = int(usage.get("prompt_tokens") or 0)
            trace.output = int(usage.get("completion_tokens") or 0)
            trace.cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
            trace.fresh = max(trace.prompt - conversation.kept_tokens, 0)
            self.result.steps.append(trace)
            if k + 1 == len(plan.steps):
                break
            await asyncio.gather(self._gap(step, reply), *(self._program(child) for child in step.children))
        await self.door.ended(self._post, plan)
        self.result.programs.append(ProgramTrace(index=index, started_at=started, ended_at=self._now()))

    async def _gap(self, step: StepPlan, reply: dict[str, Any]) -> None:
        """Between a reply and the next step: its tools, and the client."""
        await asyncio.sleep(step.gap_s / self.scale)

    async def _step(
        self, index: int, k: int, messages: list[dict[str, Any]], trace: StepTrace
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The reply and its usage; `trace` gets the times."""
        plan = self.workload.programs[index]
        parent = self.workload.programs[plan.parent] if plan.parent is not None else None
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": REPLY_TOKENS_MAX,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"tools": tools} if (tools := offered(plan)) else {}),
            **self.door.body(plan, k, parent),
        }
        headers = self.door.headers(plan, k, parent)
        content = msgspec.json.encode(body)
        for attempt in range(RETRIES_MAX + 1):
            self._requests += 1
            url = self.door.url(index, self._requests - 1)
            try:
                return await self._ask(url, content, headers, trace)
            except AgentServeError as error:
                self.result.failed += 1
                if attempt == RETRIES_MAX:
                    raise AgentServeError(
                        f"{url}: {type(error).__name__}: {error}",
                        remedy="look at what this server says of it",
                    ) from error
                await asyncio.sleep(RETRY_S / self.scale)
        raise AssertionError("unreachable")

    async def _ask(
        self, url: str, content: bytes, headers: dict[str, str], trace: StepTrace
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        said: list[str] = []
        calls: dict[int, dict[str, Any]] = {}
        usage: dict[str, Any] = {}
        finish = None
        trace.first_at = 0.0
        reply = await self._send(url, CHAT, content, headers)
        try:
            if reply.status != 200:
                words = (await reply.read())[:ERROR_BYTES_MAX].decode(errors="replace")
                raise AgentServeError(f"status {reply.status}: {words}")
            trace.dispatched_at = trace.sent_at + queued_s(reply) * self.scale
            rest = b""
            while data := await reply.read():
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if not line.startswith(b"data: {"):
                        continue
                    chunk = msgspec.json.decode(line[6:])
                    if chunk.get("error"):
                        raise AgentServeError(f"an error in the stream: {chunk['error']}")
                    usage = chunk.get("usage") or usage
                    for choice in chunk.get("choices") or ():
                        if not trace.first_at:
                            trace.first_at = self._now()
                        said.append(choice["delta"].get("content") or "")
                        gather_calls(calls, choice["delta"].get("tool_calls") or ())
                        finish = choice.get("finish_reason") or finish
        finally:
            reply.close()
        if finish is None:
            raise AgentServeError("the stream ended before the reply did")
        trace.ended_at = self._now()
        message: dict[str, Any] = {"role": "assistant", "content": "".join(said)}
        if calls:
            message["tool_calls"] = [calls[i] for i in sorted(calls)]
        return message, usage


def queued_s(reply: UpstreamReply) -> float:
    """Real seconds that the step waited at the gateway, where one says so."""
    for name, value in reply.headers:
        if name == b"x-agentserve-queue-ms":
            return float(value) / 1000
    return 0.0


def gather_calls(calls: dict[int, dict[str, Any]], parts: Sequence[dict[str, Any]]) -> None:
    """Add the pieces of tool calls that a chunk holds."""
    for part in parts:
        function = part.get("function") or {}
        call = calls.setdefault(
            part.get("index", 0), {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = part.get("id") or call["id"]
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
