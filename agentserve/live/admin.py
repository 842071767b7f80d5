"""The admin API, version 1: what runs, why, and the few things an operator changes at run time.

Rule: looking needs a key with the scope `read`, changing one with `admin`; paths only grow within a version. Handlers
read the live records through `views`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from agentserve.coercion import WEIGHT_MAX, WEIGHT_MIN
from agentserve.config import EngineSettings, TenantSettings
from agentserve.errors import BadRequest, ConfigError, NotAuthorised, NotFound, Overloaded
from agentserve.live import holdings, insight, rows, views
from agentserve.live.auth import ADMIN, READ
from agentserve.live.engines import Engine
from agentserve.live.foretold import calibration
from agentserve.live.programs import NUMBER_MAX, mapping, number, only, program_name
from agentserve.live.replies import json_body, json_response
from agentserve.live.wire import printable_id

if TYPE_CHECKING:
    from agentserve.live.app import Gateway
    from agentserve.live.services import Services

ROOT = "/admin/v1"
KEEPALIVE_S = 15.0
PRIORITIES = ("interactive", "standard", "batch")


class Admin:
    """Its handlers."""

    def __init__(self, gateway: Gateway, services: Services) -> None:
        self._gateway = gateway
        self._services = services

    def routes(self) -> list[Route]:
        """Where they are."""
        return [
            Route(f"{ROOT}/me", self.me),
            Route(f"{ROOT}/summary", self.summary),
            Route(f"{ROOT}/programs", self.programs),
            Route(f"{ROOT}/programs/{{key:path}}/decisions", self.decisions),
            Route(f"{ROOT}/programs/{{key:path}}", self.program, methods=["GET"]),
            Route(f"{ROOT}/programs/{{key:path}}", self.end_program, methods=["DELETE"]),
            Route(f"{ROOT}/steps", self.steps),
            Route(f"{ROOT}/pins", self.pins),
            Route(f"{ROOT}/engines", self.engines, methods=["GET"]),
            Route(f"{ROOT}/engines", self.add_engine, methods=["POST"]),
            Route(f"{ROOT}/engines/{{engine:path}}", self.engine, methods=["GET"]),
            Route(f"{ROOT}/engines/{{engine:path}}", self.remove_engine, methods=["DELETE"]),
            Route(f"{ROOT}/engines/{{engine:path}}/drain", self.drain_engine, methods=["POST"]),
            Route(f"{ROOT}/engines/{{engine:path}}/resume", self.resume_engine, methods=["POST"]),
            Route(f"{ROOT}/tenants", self.tenants),
            Route(f"{ROOT}/tenants/{{tenant:path}}", self.tenant, methods=["GET"]),
            Route(f"{ROOT}/tenants/{{tenant:path}}", self.put_tenant, methods=["PUT"]),
            Route(f"{ROOT}/workflows", self.workflows),
            Route(f"{ROOT}/graphs", self.graphs),
            Route(f"{ROOT}/graphs/{{tenant}}/{{name:path}}", self.graph),
            Route(f"{ROOT}/forecasts", self.forecasts),
            Route(f"{ROOT}/shares", self.shares),
            Route(f"{ROOT}/events", self.events),
        ]

    # -- reading

    async def summary(self, request: Request) -> Response:
        """The gateway at a glance."""
        self._may(request)
        gateway = self._gateway
        told = views.summary(
            self._board,
            gateway.engines,
            open_requests=len(gateway.relay.open),
            healthy=gateway.driver.healthy,
            draining=gateway.relay.draining,
        )
        policy = gateway.driver.scheduler.policy
        return json_response(
            {**told, "balance": insight.balance(policy), "direct": insight.against_direct(gateway.direct)}
        )

    async def me(self, request: Request) -> Response:
        """Whom the key stands for, and what it may do."""
        who = self._services.authorise(request, READ)
        return json_response({"tenant": who.tenant, "scopes": sorted(who.scopes)})

    async def programs(self, request: Request) -> Response:
        """Live programs by pages, the latest active first or as asked; `q` is looked for in id, workflow and engine."""
        self._may(request)
        listed = rows.programs(self._board, rows.asked(request.query_params))
        now, pins = self._gateway.driver.now(), self._gateway.pins
        shown = [views.program(found, now, self._board, pins) for found in listed.page]
        return json_response({"data": shown, "matching": listed.matching, "total": listed.total})

    async def program(self, request: Request) -> Response:
        """One live program, by its key `tenant/name`."""
        self._may(request)
        found = self._gateway.program_view(request.path_params["key"])
        if found is None:
            raise NotFound(f"there is no live program {request.path_params['key']!r}")
        now, key = self._gateway.driver.now(), found["key"]
        outlook = insight.outlook(self._board, self._gateway.pins, key, now)
        return json_response({**found, "outlook": outlook, "foretold": self._gateway.foretold.gaps(key)})

    async def end_program(self, request: Request) -> Response:
        """Declare a program over."""
        self._may(request)
        known = self._gateway.end_program(request.path_params["key"], "told")
        return json_response({"ended": known})

    async def decisions(self, request: Request) -> Response:
        """What happened to a program and what was decided, with reasons."""
        self._may(request)
        key = request.path_params["key"]
        story = self._gateway.feed.story(key)
        if not story and self._board.programs.get(key) is None:
            raise NotFound(f"nothing is remembered of a program {key!r}")
        return json_response({"program": key, "story": story})

    async def steps(self, request: Request) -> Response:
        """Open steps, the longest waiting first."""
        self._may(request)
        now, limit = self._gateway.driver.now(), rows.limit(request.query_params)
        steps = sorted(self._board.steps.values(), key=lambda s: (s.arrived_at, s.id))
        return json_response({"data": [views.step(s, now) for s in steps[:limit]], "total": len(steps)})

    async def pins(self, request: Request) -> Response:
        """Programs in a gap whose KV is kept, and whether a pin protects it."""
        self._may(request)
        kept = holdings.kept(self._board, self._gateway.pins, self._gateway.driver.now())
        return json_response({"data": kept[: rows.limit(request.query_params)], "total": len(kept)})

    async def workflows(self, request: Request) -> Response:
        """Declared step graphs."""
        self._may(request)
        declared = self._gateway.workflows.of(request.query_params.get("tenant"))
        return json_response(
            {
                "data": [
                    {
                        "tenant": one.tenant,
                        "name": one.name,
                        "nodes": len(one.graph.nodes),
                        "edges": len(one.graph.edges),
                        "steps_expected": one.whole.steps,
                        "declared_at": one.at,
                    }
                    for one in declared
                ]
            }
        )

    async def graphs(self, request: Request) -> Response:
        """Workflows of which a step graph is known, declared or learned."""
        self._may(request)
        return json_response({"data": insight.graphs(self._gateway.graphs, self._gateway.workflows)})

    async def graph(self, request: Request) -> Response:
        """A workflow's step graph, drawn."""
        self._may(request)
        tenant, name = tenant_and_name(request.scope["raw_path"])
        drawn = insight.drawing(self._gateway.graphs, self._gateway.workflows, tenant, name)
        return Response(drawn, media_type="image/svg+xml", headers={"cache-control": "no-store"})

    async def forecasts(self, request: Request) -> Response:
        """When programs that called a tool are back, and of gaps and lengths what was forecast beside what came."""
        self._may(request)
        gateway = self._gateway
        return json_response(
            {
                "data": insight.tools(self._board, gateway.feed.tools()),
                "calibration": calibration(self._board),
                "gaps": gateway.foretold.gaps(),
                "lengths": gateway.foretold.lengths(),
            }
        )

    async def shares(self, request: Request) -> Response:
        """Tenants with their weight, the service they had, and the largest gap between those that waited."""
        self._may(request)
        driver = self._gateway.driver
        return json_response(insight.shares(self._board, driver.scheduler.policy, driver.now()))

    async def events(self, request: Request) -> Response:
        """A server-sent stream of what happens; with `after`, first what is remembered of later than that number."""
        self._may(request)
        if self._gateway.feed.full:
            raise Overloaded("too many watch already", remedy="close another stream", retry_after_s=10.0)
        after = rows.whole(request.query_params, "after", most=rows.SERIAL_MAX)
        return StreamingResponse(
            self._stream(request, request.query_params.get("tenant"), after),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )

    async def _stream(self, request: Request, tenant: str | None, after: int | None) -> AsyncIterator[bytes]:
        """Who watches is asked for the key again with each message: one that is revoked sees no more."""
        yield b": watching\n\n"
        watching = self._gateway.feed.watch(tenant=tenant, after=after)
        waiting: asyncio.Task[Any] | None = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(anext(watching))
                done, _ = await asyncio.wait([waiting], timeout=KEEPALIVE_S)
                if not done:
                    yield b": still here\n\n"
                    continue
                ended, waiting = waiting, None
                try:
                    self._may(request)
                    entry = ended.result()
                except (StopAsyncIteration, NotAuthorised):
                    return
                yield b"event: %b\ndata: %b\n\n" % (
                    entry["event"]["type"].encode(),
                    msgspec.json.encode(entry),
                )
        finally:
            if waiting is not None:
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waiting
            await watching.aclose()

    # -- engines

    async def engines(self, request: Request) -> Response:
        """All engines."""
        self._may(request)
        return json_response({"data": self._shown(*self._gateway.engines)})

    async def engine(self, request: Request) -> Response:
        """One engine."""
        self._may(request)
        (shown,) = self._shown(self._gateway.engines[request.path_params["engine"]])
        return json_response(shown)

    async def add_engine(self, request: Request) -> Response:
        """Take an engine in; it gets steps once it has answered."""
        self._may(request)
        said = mapping(await json_body(request))
        try:
            engine = await self._gateway.engines.add(engine_settings(said))
        except ConfigError as error:
            raise BadRequest(error.message, remedy=error.remedy) from error
        return json_response(self._shown(engine)[0], 201)

    async def drain_engine(self, request: Request) -> Response:
        """Give the engine nothing new."""
        self._may(request)
        engine = self._gateway.engines.drain(request.path_params["engine"])
        return json_response(self._shown(engine)[0])

    async def resume_engine(self, request: Request) -> Response:
        """Give the engine steps again."""
        self._may(request)
        engine = self._gateway.engines.drain(request.path_params["engine"], on=False)
        return json_response(self._shown(engine)[0])

    async def remove_engine(self, request: Request) -> Response:
        """Take the engine out; what runs there goes elsewhere or ends with an error."""
        self._may(request)
        await self._gateway.engines.remove(request.path_params["engine"])
        return json_response({"removed": request.path_params["engine"]})

    def _shown(self, *engines: Engine) -> list[dict[str, Any]]:
        kv = holdings.by_engine(self._board, self._gateway.pins, self._gateway.driver.now())
        return [views.engine(engine, self._board, kv.get(engine.id)) for engine in engines]

    # -- tenants

    async def tenants(self, request: Request) -> Response:
        """Tenants with limits of their own."""
        self._may(request)
        return json_response({"data": [tenant_view(t) for t in self._gateway.quotas.tenants()]})

    async def tenant(self, request: Request) -> Response:
        """One tenant's limits."""
        self._may(request)
        return json_response(tenant_view(self._gateway.quotas.settings_of(request.path_params["tenant"])))

    async def put_tenant(self, request: Request) -> Response:
        """Replace a tenant's limits, until the gateway is restarted."""
        self._may(request)
        said = mapping(await json_body(request))
        settings = tenant_settings(program_name(request.path_params["tenant"], "tenant"), said)
        self._gateway.set_tenant(settings)
        return json_response(tenant_view(settings))

    def _may(self, request: Request) -> None:
        """Looking needs the scope `read`, changing anything `admin`, which includes it."""
        self._services.authorise(request, READ if request.method == "GET" else ADMIN)

    @property
    def _board(self) -> Any:
        return self._gateway.driver.scheduler.board


def tenant_and_name(raw_path: bytes) -> tuple[str, str]:
    """Whose graph of which name is asked for. A tenant may be called `a/b`: quoted, its slash does not end it."""
    tenant, _, name = raw_path.partition(b"/graphs/")[2].partition(b"/")
    return unquote(tenant.decode("utf-8", "replace")), unquote(name.decode("utf-8", "replace"))


def engine_settings(said: Mapping[str, Any]) -> EngineSettings:
    """An engine as the API takes it."""
    only(said, ("id", "url", "kind", "models", "kv_tokens"))
    engine_id, url = printable_id(said.get("id")), said.get("url")
    if engine_id is None:
        raise BadRequest("an engine needs an id", field="id")
    if not isinstance(url, str) or not url.startswith(("http://", "https://")) or not url.isprintable():
        raise BadRequest("an engine's url begins with http:// or https://", field="url")
    models = said.get("models", [])
    if not isinstance(models, list) or not all(isinstance(m, str) and m for m in models):
        raise BadRequest("models is a list of names", field="models")
    kv_tokens = said.get("kv_tokens")
    if kv_tokens is not None and (
        not isinstance(kv_tokens, int) or isinstance(kv_tokens, bool) or not 1 <= kv_tokens <= NUMBER_MAX
    ):
        raise BadRequest("kv_tokens is a whole number of 1 or more", field="kv_tokens")
    kind = said.get("kind", "auto")
    if not isinstance(kind, str):
        raise BadRequest("kind is a text", field="kind")
    return EngineSettings(id=engine_id, url=url, kind=kind, models=tuple(models), kv_tokens=kv_tokens)


_WHOLE = (
    "programs_max",
    "requests_per_minute",
    "tokens_per_minute",
    "program_tokens_max",
    "program_steps_max",
)

_FIELDS = ("id", "weight", "priority_max", "pin_share_max", "cache_salt", *_WHOLE)


def tenant_settings(tenant: str, said: Mapping[str, Any]) -> TenantSettings:
    """A tenant's limits as the API takes them."""
    only(said, _FIELDS)
    whole: dict[str, int | None] = {}
    for name in _WHOLE:
        value = said.get(name)
        if value is not None and (
            not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= NUMBER_MAX
        ):
            raise BadRequest(f"a whole number from 1 to {NUMBER_MAX:g} is expected", field=name)
        whole[name] = value
    weight = number(said.get("weight", 1.0), "weight") or 0.0
    share = number(said.get("pin_share_max", 1.0), "pin_share_max")
    if not WEIGHT_MIN <= weight <= WEIGHT_MAX:
        raise BadRequest(f"a weight is from {WEIGHT_MIN:.15g} to {WEIGHT_MAX:.15g}", field="weight")
    if share is None or share > 1.0:
        raise BadRequest("a share is from 0 to 1", field="pin_share_max")
    priority_max = said.get("priority_max", "interactive")
    if priority_max not in PRIORITIES:
        raise BadRequest(f"a priority is one of {', '.join(PRIORITIES)}", field="priority_max")
    if not isinstance(said.get("cache_salt", False), bool):
        raise BadRequest("cache_salt is true or false", field="cache_salt")
    return TenantSettings(
        id=tenant,
        weight=weight,
        priority_max=priority_max,
        pin_share_max=share,
        cache_salt=said.get("cache_salt", False),
        **whole,
    )


def tenant_view(settings: TenantSettings) -> dict[str, Any]:
    """A tenant's limits as the API shows them."""
    return {name: getattr(settings, name) for name in _FIELDS}
