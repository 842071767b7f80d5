"""What clients say of their programs beside their calls: declaring, tool events, hints, the end, step graphs.

Rule: everything here only sharpens what the traffic shows; none of it is needed, and unknown fields are ignored. An
error names the field. Names are the tenant's own; nobody reaches another's program.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agentserve.core import events as ev
from agentserve.core.forecast import classify
from agentserve.core.identity import scoped
from agentserve.core.ids import ProgramId, TenantId
from agentserve.errors import BadRequest, NotFound, TooLarge
from agentserve.live.auth import CALL, READ
from agentserve.live.replies import json_body, json_response
from agentserve.live.wire import printable_id
from agentserve.live.wire.extensions import CLASSES
from agentserve.live.workflows import workflow_id

if TYPE_CHECKING:
    from agentserve.live.app import Gateway
    from agentserve.live.services import Services

BODY_BYTES_MAX = 256 * 1024
EVENTS_MAX = 1_000
SECONDS_MAX = 30 * 86_400.0
NUMBER_MAX = 1e12


class Programs:
    """The SDK's endpoints."""

    def __init__(self, gateway: Gateway, services: Services) -> None:
        self._gateway = gateway
        self._services = services

    def routes(self) -> list[Route]:
        """Where they are."""
        return [
            Route("/v1/programs", self.declare, methods=["POST"]),
            Route("/v1/programs/{program:path}", self.show, methods=["GET"]),
            Route("/v1/programs/{program:path}", self.end, methods=["DELETE"]),
            Route("/v1/programs/{program:path}/events", self.events, methods=["POST"]),
            Route("/v1/summaries/{program:path}", self.summary, methods=["GET"]),
            Route("/v1/workflows/{name:path}", self.put_workflow, methods=["PUT"]),
            Route("/v1/workflows/{name:path}", self.get_workflow, methods=["GET"]),
        ]

    async def declare(self, request: Request) -> Response:
        """Tell of a program; saying it twice changes nothing but what is new in it."""
        tenant = self._services.authorise(request, CALL).tenant
        said = mapping(await json_body(request, bytes_max=BODY_BYTES_MAX))
        name = (
            program_name(said.get("id")) if said.get("id") is not None else self._gateway.new_program_name()
        )
        parent = program_name(said["parent_id"], "parent_id") if said.get("parent_id") is not None else None
        workflow = workflow_id(said["workflow"]) if said.get("workflow") is not None else None
        steps_expected = None
        if said.get("graph") is not None:
            graph_name = workflow or name
            declared = self._gateway.workflows.put(
                tenant, graph_name, said["graph"], at=self._gateway.clock()
            )
            steps_expected = declared.whole.steps or None
        elif workflow is not None and (known := self._gateway.workflows.get(tenant, workflow)) is not None:
            steps_expected = known.whole.steps or None
        now = self._gateway.driver.now()
        program = self._gateway.resolver.declare(tenant=tenant, name=name, parent=parent, now=now)
        self._gateway.driver.tell(
            ev.ProgramDeclared(
                program=program,
                tenant=TenantId(tenant),
                workflow=workflow,
                parent=scoped(tenant, parent) if parent is not None else None,
                priority=priority(said.get("priority")),
                deadline_s=seconds(said, "deadline_ms", 1e-3),
                steps_expected=steps_expected,
            )
        )
        base = str(request.base_url).rstrip("/")
        headers = {"x-agentserve-program-id": name}
        if workflow is not None:
            headers["x-agentserve-workflow"] = workflow
        return json_response(
            {
                "id": name,
                "base_url": f"{base}/p/{quote(name, safe='')}/v1",
                "headers": headers,
                "workflow": workflow,
            },
            201,
        )

    async def events(self, request: Request) -> Response:
        """A batch of what happened in the program."""
        tenant = self._services.authorise(request, CALL).tenant
        name = program_name(request.path_params["program"])
        batch = await json_body(request, bytes_max=BODY_BYTES_MAX)
        if isinstance(batch, Mapping):
            batch = batch.get("events", [batch])
        if not isinstance(batch, list):
            raise BadRequest("the events are a list of objects")
        if len(batch) > EVENTS_MAX:
            raise TooLarge(f"more than {EVENTS_MAX} events at once", remedy="send them in several requests")
        program = scoped(tenant, name)
        told = [
            event
            for i, one in enumerate(batch)
            for event in self._told(program, mapping(one, f"[{i}]"), f"[{i}]")
        ]
        if self._gateway.resolver.find(program) is None:
            self._gateway.resolver.declare(tenant=tenant, name=name, now=self._gateway.driver.now())
            self._gateway.driver.tell(ev.ProgramDeclared(program=program, tenant=TenantId(tenant)))
        for event in told:
            if isinstance(event, ev.ProgramEnded):
                self._gateway.end_program(program, event.reason)
            else:
                if isinstance(event, ev.ToolStarted):
                    self._gateway.resolver.opens_tool(program, event.tool.id, event.tool.name)
                self._gateway.driver.tell(event)
        return json_response({"accepted": len(batch)}, 202)

    def _told(self, program: ProgramId, said: Mapping[str, Any], where: str) -> list[ev.AnyEvent]:
        kind = said.get("type")
        if kind in ("tool_start", "tool_end", "tool_error"):
            return [self._tool(program, said, where, ended=kind != "tool_start")]
        if kind == "next":
            return [ev.HintGiven(program=program, returns_in_s=seconds(said, "in_ms", 1e-3, where))]
        if kind == "hint":
            left = number(said.get("steps_left"), f"{where}.steps_left")
            return [
                ev.HintGiven(
                    program=program, returns_in_s=seconds(said, "in_ms", 1e-3, where), steps_left=left
                )
            ]
        if kind == "compacted":
            return [ev.HintGiven(program=program, compacted=True)]
        if kind == "end":
            status = printable_id(said.get("status")) or "told"
            return [ev.ProgramEnded(program=program, reason="failed" if status == "failed" else "told")]
        if not isinstance(kind, str):
            raise BadRequest("an event needs a type", field=f"{where}.type")
        return []  # `step_start`, and kinds that a newer SDK may send

    def _tool(self, program: ProgramId, said: Mapping[str, Any], where: str, *, ended: bool) -> ev.AnyEvent:
        tool_id = printable_id(said.get("tool_call_id", said.get("id")))
        if tool_id is None:
            raise BadRequest("a tool event needs the id of the call", field=f"{where}.tool_call_id")
        if ended:
            return ev.ToolEnded(
                program=program,
                tool_id=tool_id,
                duration_s=seconds(said, "duration_ms", 1e-3, where) or 0.0,
                ok=said.get("type") != "tool_error" and said.get("status") not in ("failed", "error"),
            )
        arguments = said.get("arguments")
        call = classify(
            printable_id(said.get("tool")) or "tool",
            arguments if isinstance(arguments, (str, Mapping)) else "",
        )
        expected_s = seconds(said, "eta_ms", 1e-3, where)
        return ev.ToolStarted(
            program=program,
            tool=ev.PendingTool(
                id=tool_id,
                name=call.name,
                argument_class=call.argument_class,
                exact_hash=call.exact_hash,
                pipes=call.pipes,
                chain=call.chain,
                timeout_s=seconds(said, "timeout_ms", 1e-3, where) or call.timeout_s,
                background=said.get("background") is True or call.background,
                kind=call.kind,
            ),
            expected_s=expected_s,
        )

    async def show(self, request: Request) -> Response:
        """What is known of one program of the caller's own."""
        tenant = self._services.authorise(
            request, READ if request.query_params.get("as") == "reader" else CALL
        ).tenant
        name = program_name(request.path_params["program"])
        shown = self._gateway.program_view(scoped(tenant, name))
        if shown is None:
            raise NotFound(f"there is no program {name!r}", remedy="it may be over, or have another name")
        return json_response(shown)

    async def summary(self, request: Request) -> Response:
        """A program and its sub-agents in a few sums, also once it is over: where its time went, what was spared."""
        tenant = self._services.authorise(request, CALL).tenant
        name = program_name(request.path_params["program"])
        summaries = self._gateway.summaries
        found = await summaries.summary(scoped(tenant, name)) if summaries is not None else None
        if found is None:
            raise NotFound(
                f"nothing is kept of a program {name!r}", remedy="a moment after its first step it is"
            )
        return json_response(found)

    async def end(self, request: Request) -> Response:
        """The program is over: let everything go that is kept for it."""
        tenant = self._services.authorise(request, CALL).tenant
        name = program_name(request.path_params["program"])
        known = self._gateway.end_program(scoped(tenant, name), "told")
        return json_response({"id": name, "ended": known})

    async def put_workflow(self, request: Request) -> Response:
        """Declare a step graph once; programs refer to it by name."""
        tenant = self._services.authorise(request, CALL).tenant
        sent = await json_body(request, bytes_max=BODY_BYTES_MAX)
        graph = sent.get("graph", sent) if isinstance(sent, Mapping) else sent
        put = self._gateway.workflows.put(
            tenant, request.path_params["name"], graph, at=self._gateway.clock()
        )
        return json_response({"name": put.name, "nodes": len(put.graph.nodes), "edges": len(put.graph.edges)})

    async def get_workflow(self, request: Request) -> Response:
        """The graph as it was declared."""
        tenant = self._services.authorise(request, CALL).tenant
        return json_response(self._gateway.workflows[tenant, request.path_params["name"]].sent)


# -- reading fields


def mapping(value: Any, where: str = "body") -> Mapping[str, Any]:
    """A JSON object."""
    if not isinstance(value, Mapping):
        raise BadRequest("a JSON object is expected here", field=where)
    return value


def only(said: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse a field that is not known: what it meant would not happen, and nobody would be told."""
    for key in said:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            remedy = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}"
            raise BadRequest(f"the field `{key}` is not known here", field=str(key), remedy=remedy)


def program_name(value: Any, field: str = "id") -> str:
    """A program's name as a client may choose it."""
    name = printable_id(value)
    if name is None:
        raise BadRequest("a program's id is a short printable text", field=field)
    return name


def number(value: Any, field: str) -> float | None:
    """A number that is not negative, or nothing. Bounded, since what is reckoned with it must stay a number."""
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= NUMBER_MAX:
        raise BadRequest(f"a number from 0 to {NUMBER_MAX:g} is expected", field=field)
    return float(value)


def seconds(said: Mapping[str, Any], key: str, scale: float, where: str = "") -> float | None:
    """A duration, bounded."""
    field = f"{where}.{key}" if where else key
    value = number(said.get(key), field)
    if value is None:
        return None
    if value * scale > SECONDS_MAX:
        raise BadRequest(f"a duration of at most {SECONDS_MAX:g} s is expected", field=field)
    return value * scale


def priority(value: Any) -> ev.PriorityClass | None:
    """A priority class by any of its names."""
    if value is None:
        return None
    known = CLASSES.get(value.strip().lower()) if isinstance(value, str) else None
    if known is None:
        raise BadRequest(f"a priority is one of {', '.join(sorted(set(CLASSES.values())))}", field="priority")
    return known
