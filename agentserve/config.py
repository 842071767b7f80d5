"""Settings: one frozen object from `agentserve.toml`, the environment and flags, in rising precedence.

Rule: this module is the only reader of the environment. A key that is not known is an error that names
the nearest one that is. Each value remembers where it came from, so that `--print-config` can say.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agentserve.coercion import coerce
from agentserve.errors import ConfigError

ENV_PREFIX = "AGENTSERVE_"
# Variables with our prefix that belong to the client SDK, not to the gateway.
SDK_VARIABLES = frozenset({"URL", "API_KEY", "PROGRAM_ID", "DISABLED", "WORKFLOW", "DEBUG", "CONFIG"})
# What Kubernetes gives every pod beside a Service that is called `agentserve…`: addresses, and no settings.
OF_A_SERVICE = re.compile(r"(^|_)(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
A_SERVICES_PORT = ("tcp://", "udp://", "sctp://")
DEFAULT_FILE = "agentserve.toml"


def secret(default: Any = None) -> Any:
    """A field whose value is never printed."""
    return field(default=default, metadata={"secret": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """The listening side."""

    host: str = "127.0.0.1"
    port: int = 8400
    workers: int = 1  # above 1, so many processes keep the clients' connections and relay streams
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    response_headers: bool = True  # x-agentserve-… on every step
    drain_timeout_s: float = 30.0
    allow_open: bool = False  # serve without keys beyond loopback; said loudly


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """The bound of everything that could grow."""

    body_bytes_max: int = 32 * 1024 * 1024
    bodies_bytes_max: int = 1024 * 1024 * 1024  # of requests that are still arriving
    header_bytes_max: int = 64 * 1024
    waiting_steps_max: int = 10_000
    waiting_bytes_max: int = 1024 * 1024 * 1024  # of the requests of steps that wait
    live_programs_max: int = 200_000
    queue_timeout_s: float = 600.0
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 600.0
    idle_stream_timeout_s: float = 120.0
    overall_timeout_s: float = 3600.0
    upstream_connections_max: int = 1024
    stored_responses_max: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """Which policy decides, and its constants."""

    policy: str = "agentserve"
    prefer: Literal["mean", "tail"] = "mean"
    seed: int = 1
    program_idle_s: float = 1800.0  # a program unheard of for this long is over
    learned_steps_per_s: float = 200.0  # of a workflow that takes more, a random share teaches the forecasts
    time_scale: float = 1.0  # its seconds to one of the clock: for emulated engines that run so much faster
    check_invariants: bool = False  # run `check()` after every event: for tests and for hunting bugs
    params: Mapping[str, Any] = field(default_factory=dict)  # handed to the policy, which knows its own


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Where the journal is kept."""

    url: str = secret("sqlite+aiosqlite:///agentserve.db")
    flush_interval_s: float = 0.25
    queue_rows_max: int = 50_000
    batch_rows_max: int = 1_000
    retention_days: float = 30.0
    size_mb_max: int = 10_000
    keep_prompts: bool = False
    prompt_bytes_max: int = 64 * 1024
    responses_days: float = 0.0
    responses_mb_max: int = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """What is shown to other systems."""

    metrics: bool = True
    traces: Literal["off", "console", "otlp"] = "off"
    otlp_endpoint: str = "http://127.0.0.1:4318/v1/traces"
    trace_sample: float = 1.0
    semconv: Literal["latest", "1.36"] = "latest"
    label_values_max: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedSettings:
    """The embedded emulated engine of `agentserve up` without `--engine`."""

    profile: str = "llama-3.1-8b-h100"
    time_scale: float = 1.0
    kv_tokens: int | None = None
    block_tokens: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """One `[[engines]]` entry."""

    url: str
    id: str = ""
    kind: str = "auto"
    models: tuple[str, ...] = ()
    kv_tokens: int | None = None
    api_key: str | None = secret()
    api_key_env: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSettings:
    """One `[[tenants]]` entry: shares and ceilings."""

    id: str
    weight: float = 1.0
    priority_max: Literal["interactive", "standard", "batch"] = "interactive"
    programs_max: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    pin_share_max: float = 1.0
    program_tokens_max: int | None = None
    program_steps_max: int | None = None
    cache_salt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of it."""

    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    emulated: EmulatedSettings = field(default_factory=EmulatedSettings)
    engines: tuple[EngineSettings, ...] = ()
    tenants: tuple[TenantSettings, ...] = ()
    # "section.key" -> "default" | file name | variable name | flag
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


_TABLES = {
    f.name: typing.get_type_hints(Settings)[f.name]
    for f in dataclasses.fields(Settings)
    if dataclasses.is_dataclass(typing.get_type_hints(Settings)[f.name])
}
_LISTS: dict[str, type] = {"engines": EngineSettings, "tenants": TenantSettings}


def load(
    *,
    file: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Sequence[tuple[str, Any, str]] = (),
    engine_urls: Sequence[str] = (),
) -> Settings:
    """The effective settings. `flags` are `(section.key, value, flag text)`; `engine_urls` replace the file's."""
    values: dict[str, dict[str, Any]] = {name: {} for name in _TABLES}
    lists: dict[str, list[Any]] = {name: [] for name in _LISTS}
    origins: dict[str, str] = {}
    environ = os.environ if environ is None else environ
    _read_file(file, values, lists, origins)
    _read_environment(environ, values, origins)
    for dotted, value, flag in flags:
        _put(values, origins, dotted, value, flag)
    if engine_urls:
        lists["engines"] = [EngineSettings(url=url) for url in engine_urls]
        origins["engines"] = "--engine"
    lists["engines"] = [_with_key(engine, environ) for engine in _name_engines(lists["engines"])]
    return Settings(
        **{name: cls(**values[name]) for name, cls in _TABLES.items()},
        engines=tuple(lists["engines"]),
        tenants=tuple(lists["tenants"]),
        origins=origins,
    )


def render(settings: Settings) -> str:
    """The effective settings as text: `section.key = value  # origin`, secrets masked."""
    lines = []
    for name in _TABLES:
        section = getattr(settings, name)
        for f in dataclasses.fields(section):
            value = getattr(section, f.name)
            shown = _mask(value) if f.metadata.get("secret") else _show(value)
            origin = settings.origins.get(f"{name}.{f.name}", "default")
            lines.append(f"{name}.{f.name} = {shown}  # {origin}")
    for name in _LISTS:
        for i, entry in enumerate(getattr(settings, name)):
            pairs = ", ".join(
                f"{f.name}={_mask(v) if f.metadata.get('secret') else _show(v)}"
                for f in dataclasses.fields(entry)
                if (v := getattr(entry, f.name)) not in (None, (), {})
            )
            lines.append(f"{name}[{i}] = {{{pairs}}}  # {settings.origins.get(name, 'default')}")
    return "\n".join(lines)


def _read_file(
    file: str | Path | None,
    values: dict[str, dict[str, Any]],
    lists: dict[str, list[Any]],
    origins: dict[str, str],
) -> None:
    path = Path(file) if file is not None else Path(DEFAULT_FILE)
    if not path.is_file():
        if file is not None:
            raise ConfigError(f"there is no settings file {path}", remedy="check the path given to --config")
        return
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}", remedy="let this user read it") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} is not valid TOML: {exc}", remedy="mend the line it names") from exc
    for name, content in tree.items():
        if name in _LISTS:
            if not isinstance(content, list):
                raise ConfigError(f"{path}: `{name}` is a list of tables", remedy=f"write [[{name}]]")
            lists[name] = [_entry(name, _LISTS[name], e, str(path)) for e in content]
            if name == "tenants":
                _check_tenants(lists[name], str(path))
            origins[name] = str(path)
        elif name in _TABLES:
            if not isinstance(content, dict):
                raise ConfigError(f"{path}: `{name}` is a table", remedy=f"write [{name}]")
            for key, value in content.items():
                _put(values, origins, f"{name}.{key}", value, str(path))
        else:
            raise _unknown(name, [*_TABLES, *_LISTS], f"{path}: section")


def _read_environment(
    environ: Mapping[str, str], values: dict[str, dict[str, Any]], origins: dict[str, str]
) -> None:
    for variable in sorted(environ):
        rest = variable.removeprefix(ENV_PREFIX)
        if rest == variable or rest in SDK_VARIABLES or _of_a_service(rest, environ[variable]):
            continue
        section, _, key = rest.lower().partition("_")
        if section not in _TABLES:
            names = [f"{ENV_PREFIX}{s}_…".upper() for s in _TABLES]
            raise ConfigError(
                f"environment variable {variable} names no section",
                remedy=f"sections are {', '.join(names)}",
            )
        _put(values, origins, f"{section}.{key}", environ[variable], variable)


def _put(
    values: dict[str, dict[str, Any]], origins: dict[str, str], dotted: str, value: Any, origin: str
) -> None:
    section, _, key = dotted.partition(".")
    if section not in _TABLES:
        raise _unknown(section, list(_TABLES), f"{origin}: section")
    hints = typing.get_type_hints(_TABLES[section])
    if key not in hints:
        raise _unknown(key, list(hints), f"{origin}: key", within=section)
    values[section][key] = coerce(value, hints[key], f"{section}.{key}", origin)
    origins[dotted] = origin


def _entry(list_name: str, cls: type, content: Any, origin: str) -> Any:
    if not isinstance(content, dict):
        raise ConfigError(f"{origin}: `{list_name}` is a list of tables", remedy=f"write [[{list_name}]]")
    hints = typing.get_type_hints(cls)
    out = {}
    for key, value in content.items():
        if key not in hints:
            raise _unknown(key, list(hints), f"{origin}: key", within=list_name)
        out[key] = coerce(value, hints[key], f"{list_name}.{key}", origin)
    try:
        return cls(**out)
    except TypeError as exc:
        missing = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        raise ConfigError(
            f"{origin}: an entry of [[{list_name}]] lacks `{missing[0]}`", remedy=f"add {missing[0]} = …"
        ) from exc


def _name_engines(engines: Sequence[EngineSettings]) -> list[EngineSettings]:
    """Engines without an id are called e1, e2, …; an id stands once."""
    named: list[EngineSettings] = []
    for i, engine in enumerate(engines):
        unique = engine.id or f"e{i + 1}"
        if any(other.id == unique for other in named):
            raise ConfigError(f"two engines are called {unique!r}", remedy="give each [[engines]] its own id")
        named.append(dataclasses.replace(engine, id=unique))
    return named


def _with_key(engine: EngineSettings, environ: Mapping[str, str]) -> EngineSettings:
    """With the key that the variable of `api_key_env` holds. Verbs that call no engine do without."""
    if engine.api_key is not None or engine.api_key_env is None:
        return engine
    return dataclasses.replace(engine, api_key=environ.get(engine.api_key_env, "").strip() or None)


def _check_tenants(tenants: Sequence[TenantSettings], origin: str) -> None:
    """A tenant has a name, and stands once."""
    names = [tenant.id for tenant in tenants]
    for name in names:
        if not name or names.count(name) > 1:
            what = f"two [[tenants]] are called {name!r}" if name else "a [[tenants]] entry has an empty id"
            raise ConfigError(
                f"{origin}: {what}", remedy="each has the name that its keys have, and stands once"
            )


def _of_a_service(rest: str, value: str) -> bool:
    """Is this what Kubernetes tells of a Service of our name?"""
    of_a_port = rest == "PORT" or rest.endswith("_PORT")
    return OF_A_SERVICE.search(rest) is not None or (of_a_port and value.startswith(A_SERVICES_PORT))


def _unknown(key: str, known: list[str], what: str, *, within: str = "") -> ConfigError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    place = f" in [{within}]" if within else ""
    remedy = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(sorted(known))}"
    return ConfigError(f"{what} `{key}`{place} is not known", remedy=remedy)


def _mask(value: Any) -> str:
    """A secret, hidden. A URL keeps all but its password: the rest is what an operator needs to see."""
    if value is None:
        return "none"
    text = str(value)
    scheme, sep, rest = text.partition("://")
    if sep:
        userinfo, at, host = rest.rpartition("@")
        user = userinfo.partition(":")[0]
        return f"'{scheme}://{user + ':***@' if at else ''}{host}'"
    return "***"


def _show(value: Any) -> str:
    return "none" if value is None else repr(value)
