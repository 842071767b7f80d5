"""The composition root of the gateway: settings in, everything wired and started out.

Rule: this is the only place where store, telemetry, core, driver and live path meet. Engine adapters are found by entry
point; none is named here but the embedded emulated one, which stands in when no engine is configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import difflib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from agentserve.cli.shapes import profile_of
from agentserve.config import EngineSettings, Settings
from agentserve.core.board import Board, Limits, Share
from agentserve.core.identity import Resolver
from agentserve.core.ids import TenantId
from agentserve.core.learned import Learned
from agentserve.core.policies import make_policy
from agentserve.core.policies.policy import Policy
from agentserve.core.policies.working_set import WorkingSet
from agentserve.core.scheduler import Scheduler
from agentserve.core.workflow import StepGraphs
from agentserve.errors import AgentServeError, ConfigError
from agentserve.live.app import Gateway, build_app
from agentserve.live.auth import Keys, OpenKeys, is_loopback
from agentserve.live.driver import Driver
from agentserve.live.engines import Engines
from agentserve.ports import EngineAdapter, EngineOptions
from agentserve.store.store import Store
from agentserve.store.summaries import Summaries
from agentserve.telemetry import Recorder

log = logging.getLogger("agentserve.gateway")

ADAPTERS = "agentserve.adapters"
DETECTORS = "agentserve.detectors"
DETECT_S = 3.0  # less than a probe may take, since an engine may be recognised within one
PLAINEST = "openai_http"
EMBEDDED = "emulated"


@dataclasses.dataclass(slots=True, kw_only=True)
class Composed:
    """A gateway and what it stands on."""

    settings: Settings
    gateway: Gateway
    store: Store
    scheduler: Scheduler
    telemetry: Recorder
    open: bool  # no keys are asked for


@contextlib.asynccontextmanager
async def composed(settings: Settings) -> AsyncIterator[Composed]:
    """Everything wired and the store open; serve `gateway`, and leave to close it all."""
    settings = with_engines(settings)
    check_engines(settings.engines)
    settings = await with_kinds(settings)
    store = await Store.open(settings)
    try:
        made = _compose(settings, store)
        await made.telemetry.start()
        try:
            yield made
        finally:
            await made.telemetry.stop()
    finally:
        await store.close()


def _compose(settings: Settings, store: Store) -> Composed:
    scale = settings.scheduler.time_scale
    if not 0 < scale < math.inf:
        raise ConfigError(f"scheduler.time_scale is {scale}", remedy="give a positive number; 1 is real time")
    now = epoch_clock(scale)
    foresight = Learned(steps_per_s=settings.scheduler.learned_steps_per_s)
    _restore_forecasts(foresight, store.recovered.forecasts)
    board = Board(
        foresight=foresight,
        seed=settings.scheduler.seed,
        limits=Limits(
            waiting_steps_max=settings.limits.waiting_steps_max,
            live_programs_max=settings.limits.live_programs_max,
            queue_timeout_s=settings.limits.queue_timeout_s * scale,  # of the client's clock
            program_idle_s=settings.scheduler.program_idle_s,
        ),
        shares=shares_of(settings),
    )
    policy = make_policy(settings.scheduler.policy, board, policy_params(settings))
    scheduler = Scheduler(board, policy)
    idle_s = settings.scheduler.program_idle_s
    telemetry = Recorder(
        settings.telemetry,
        version=version(),
        program_idle_s=idle_s,
        programs_max=settings.limits.live_programs_max,
        prefill=board.fleet.prefill_rate,
    )
    driver = Driver(
        scheduler,
        journal=store.journal,
        telemetry=telemetry,
        clock=now,
        time_scale=scale,
        check=settings.scheduler.check_invariants,
    )
    if scale == 1.0:  # else what was written down is of another clock
        telemetry.restore(store.recovered.lives)
    telemetry.on_fact(store.journal.known)
    driver.listen(telemetry.watch)
    for name, ask in store.figures().items():
        telemetry.pull(name, ask)
    resolver = Resolver(
        programs_max=settings.limits.live_programs_max, idle_s=settings.scheduler.program_idle_s
    )
    resolver.restore(store.recovered.chains)
    keys: Keys = store.keys
    # without the database nobody knows whether there are keys: then it is closed
    stranger = not is_loopback(settings.gateway.host) and not settings.gateway.allow_open
    openly = not store.away and not len(store.keys) and not stranger
    if openly:
        keys = OpenKeys(here_only=not settings.gateway.allow_open)
    gateway = build_app(
        settings=settings,
        driver=driver,
        resolver=resolver,
        engines=Engines(make_adapter, settings.limits, detect=with_kind),
        journal=store.journal,
        telemetry=telemetry,
        keys=keys,
    )
    gateway.responses.archived_in(store.archive, whole=settings.store.responses_days > 0)
    gateway.summaries = Summaries(store.database)
    graphs = StepGraphs(program_idle_s=idle_s)
    for kept in store.recovered.graphs:
        if kept.kind == "learned":
            graphs.restore(kept.tenant, kept.name, kept.body)
    driver.hear(graphs.hears)
    gateway.graphs = graphs
    for kept in store.recovered.graphs:
        if kept.kind == "declared":
            gateway.workflows.restore(kept.tenant, kept.name, kept.body, at=now())
    for name, pulled in gauges(driver, foresight, policy).items():
        telemetry.pull(name, pulled)
    telemetry.pull("requests_open", lambda: float(len(gateway.relay.open)))
    _keep(store, resolver, foresight, policy, graphs, now)
    return Composed(
        settings=settings, gateway=gateway, store=store, scheduler=scheduler, telemetry=telemetry, open=openly
    )


def _keep(
    store: Store,
    resolver: Resolver,
    foresight: Learned,
    policy: Policy,
    graphs: StepGraphs,
    now: Callable[[], float],
) -> None:
    """From now on forecasts, graphs, accounts and open programs survive a restart."""
    accounts = None
    if isinstance(policy, WorkingSet):
        books = policy.accounts
        books.restore({TenantId(t): s for t, s in store.recovered.accounts.items()}, now())

        def accounts() -> Mapping[str, float]:
            return {str(t): s for t, s in books.services(now()).items()}

    store.snapshots(
        chain_of=resolver.record,
        forecasts=foresight.states(),
        accounts=accounts,
        graphs=lambda: {(tenant, name): body for tenant, name, body in graphs.take_changed()},
    )


Gauge = Callable[[], float | Mapping[tuple[str, ...], float]]


def gauges(driver: Driver, foresight: Learned, policy: Policy) -> dict[str, Gauge]:
    """Figures of the core that are asked for at each scrape."""
    board = driver.scheduler.board
    calibrations = {"gap": foresight.gaps_calibration, "output": foresight.outputs_calibration}

    def coverage() -> dict[tuple[str, ...], float]:
        return {
            (forecast, name.removeprefix("coverage_")): value
            for forecast, calibration in calibrations.items()
            for name, value in calibration.numbers().items()
            if name.startswith("coverage_")
        }

    def loss() -> dict[tuple[str, ...], float]:
        out: dict[tuple[str, ...], float] = {}
        for forecast, calibration in calibrations.items():
            for name, value in calibration.numbers().items():
                if name.endswith("loss_p90"):
                    out[forecast, "naive" if name.startswith("naive") else "ours"] = value
        return out

    def oldest_wait_s() -> float:
        first = next(iter(board.waiting.values()), None)  # by arrival
        return 0.0 if first is None else max(driver.now() - first.arrived_at, 0.0)

    made: dict[str, Gauge] = {
        "steps_waiting": lambda: float(len(board.waiting)),
        "oldest_wait_seconds": oldest_wait_s,
        "steps_running": lambda: {(e.id,): float(len(e.steps)) for e in board.fleet},
        "scheduler_healthy": lambda: float(driver.healthy),
        "forecast_coverage": coverage,
        "forecast_loss": loss,
        "forecast_ln_error": lambda: {
            (n,): found["ln_error"] for n, c in calibrations.items() if "ln_error" in (found := c.numbers())
        },
        "forecast_steps_left_out": lambda: float(foresight.share.left_out),
        "forecast_samples": lambda: {(n,): c.numbers().get("outcomes", 0.0) for n, c in calibrations.items()},
    }
    if isinstance(policy, WorkingSet):
        accounts = policy.accounts
        made["seat_events"] = lambda: {(event,): n for event, n in policy.counts.items()}
        made["programs_queued"] = lambda: float(policy.queued)
        made["programs_seated"] = lambda: {(e,): float(n) for e, (n, _) in policy.seats().items()}
        made["seated_tokens"] = lambda: {(e,): float(n) for e, (_, n) in policy.seats().items()}
        made["fairness_gap_token_seconds"] = lambda: accounts.gap_max
        made["tenant_service_token_seconds"] = lambda: {
            (t,): s for t, s in accounts.services(driver.now()).items()
        }
    return made


def _restore_forecasts(foresight: Learned, kept: Mapping[str, bytes]) -> None:
    try:
        foresight.restore(kept)
    except (ValueError, TypeError, KeyError) as error:
        log.warning("kept forecasts cannot be read and are learned anew: %s", error)


def epoch_clock(time_scale: float = 1.0) -> Callable[[], float]:
    """Epoch seconds that never go back: the loop's clock, set once by the wall's, and from then on so much faster."""
    loop = asyncio.get_running_loop()
    began, base, read = loop.time(), time.time(), loop.time
    if time_scale == 1.0:  # nearly always, and asked some times in each call
        offset = base - began
        return lambda: offset + read()
    return lambda: base + (read() - began) * time_scale


def policy_params(settings: Settings) -> dict[str, Any]:
    """The policy's constants; `prefer = "tail"` is program-FCFS order for ours."""
    params = dict(settings.scheduler.params)
    if settings.scheduler.prefer == "tail" and settings.scheduler.policy == WorkingSet.name:
        params.setdefault("beta", 0.0)
        params.setdefault("gamma", 0.0)
    return params


def shares_of(settings: Settings) -> dict[TenantId, Share]:
    """What each configured tenant is entitled to."""
    return {
        TenantId(t.id): Share(weight=t.weight, priority_max=t.priority_max, pin_share_max=t.pin_share_max)
        for t in settings.tenants
    }


def version() -> str:
    """Of the installed distribution."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("agentserve-gateway")
    except PackageNotFoundError:
        return "unknown"


# -- engines


def with_engines(settings: Settings) -> Settings:
    """Without any engine, the embedded emulated one."""
    if settings.engines:
        return settings
    emulated = settings.emulated
    extra = {
        "profile": profile_of(emulated.profile),
        "time_scale": emulated.time_scale,
        "block_tokens": emulated.block_tokens,
    }
    engine = EngineSettings(id=EMBEDDED, url="", kind=EMBEDDED, kv_tokens=emulated.kv_tokens, extra=extra)
    return dataclasses.replace(settings, engines=(engine,))


def check_engines(engines: Iterable[EngineSettings]) -> None:
    """Refuse what cannot be an engine, before anything is begun or changed."""
    for engine in engines:
        if engine.api_key_env is not None and engine.api_key is None:
            raise ConfigError(
                f"engine {engine.id}: the variable {engine.api_key_env} of `api_key_env` is not set",
                remedy="set it where the gateway runs",
            )
        make_adapter(options_of(engine))


def options_of(engine: EngineSettings) -> EngineOptions:
    """An engine as its adapter is told of it."""
    return EngineOptions(
        id=engine.id,
        kind=engine.kind,
        url=engine.url,
        models=engine.models,
        api_key=engine.api_key,
        kv_tokens=engine.kv_tokens,
        extra=engine.extra,
    )


async def with_kinds(settings: Settings) -> Settings:
    """Engines whose kind is `auto` are asked what they are; those that cannot say now are asked when they answer."""
    engines = await asyncio.gather(*(with_kind(engine) for engine in settings.engines))
    return dataclasses.replace(settings, engines=tuple(engines))


async def with_kind(engine: EngineSettings) -> EngineSettings:
    """The engine with its kind, which stays `auto` while it does not say what it is."""
    if engine.kind != "auto":
        return engine
    for point in entry_points(group=DETECTORS):
        try:
            async with asyncio.timeout(DETECT_S):
                found = await point.load()(engine.url, api_key=engine.api_key)
                return dataclasses.replace(engine, kind=found.kind)
        except (AgentServeError, TimeoutError, OSError) as error:
            log.debug("%s does not say what it is (%s)", engine.url, error)
    return engine


def adapters() -> dict[str, EntryPoint]:
    """What is installed, by kind."""
    return {point.name: point for point in entry_points(group=ADAPTERS)}


def make_adapter(options: EngineOptions) -> EngineAdapter:
    """The adapter of an engine of this kind."""
    installed = adapters()
    kind = PLAINEST if options.kind == "auto" else options.kind
    if kind not in installed:
        near = difflib.get_close_matches(kind, installed, n=1)
        remedy = f"did you mean `{near[0]}`?" if near else f"installed are {', '.join(sorted(installed))}"
        raise ConfigError(f"there is no adapter for engines of kind `{kind}`", remedy=remedy)
    made: EngineAdapter = installed[kind].load()(options)
    return made
