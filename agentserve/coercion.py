"""What a setting takes: a value of its type, read from text where it is text, within its range.

Rule: nothing is guessed. What does not fit is an error that names the setting, where the value stood and what it takes.
"""

from __future__ import annotations

import math
import tomllib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from agentserve.errors import ConfigError

WEIGHT_MIN, WEIGHT_MAX = 1e-3, 1e6
# From where to where a number may be; any other is not negative.
RANGES: Mapping[str, tuple[float, float]] = {
    "gateway.port": (0, 65_535),
    "telemetry.trace_sample": (0, 1),
    "tenants.weight": (WEIGHT_MIN, WEIGHT_MAX),
    "tenants.pin_share_max": (0, 1),
    **dict.fromkeys(
        (
            *("engines.kv_tokens", "tenants.programs_max", "tenants.program_tokens_max"),
            *("tenants.requests_per_minute", "tenants.tokens_per_minute", "tenants.program_steps_max"),
        ),
        (1, math.inf),
    ),
}
_TRUTH = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)


def coerce(value: Any, hint: Any, name: str, origin: str) -> Any:
    """`value` as the type that the setting has; text from the environment and flags is read as TOML would be."""
    options = _alternatives(hint)
    wanted = " or ".join(_spell(o) for o in options)
    for option in options:
        ok, out = _as(value, option)
        if ok:
            _check_range(out, name, origin)
            return out
    raise ConfigError(f"{origin}: {name} is {value!r}", remedy=f"it takes {wanted}")


def _check_range(value: Any, name: str, origin: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low, high = RANGES.get(name, (0, math.inf))
    if not low <= value <= high:
        wanted = f"from {low:.15g} to {high:.15g}" if high < math.inf else f"of {low:g} or more"
        raise ConfigError(f"{origin}: {name} is {value}", remedy=f"it takes a number {wanted}")


def _alternatives(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [a for a in typing.get_args(hint) if a is not type(None)]
    return [hint]


def _as(value: Any, hint: Any) -> tuple[bool, Any]:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return (value in typing.get_args(hint)), value
    if hint is bool:
        if isinstance(value, str):
            found = _TRUTH.get(value.lower())
            return found is not None, found
        return isinstance(value, bool), value
    if hint in (int, float):
        return _number(value, hint)
    if hint is str:
        return isinstance(value, str), value
    if origin is tuple:
        parts = [p.strip() for p in value.split(",") if p.strip()] if isinstance(value, str) else value
        return isinstance(parts, list) and all(isinstance(p, str) for p in parts), tuple(parts or ())
    if isinstance(value, str):  # a table, as inline TOML
        try:
            value = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            return False, None
    return isinstance(value, dict), value


def _number(value: Any, hint: type) -> tuple[bool, Any]:
    if isinstance(value, bool):
        return False, None
    if isinstance(value, str):
        try:
            return True, hint(value)
        except ValueError:
            return False, None
    if hint is float and isinstance(value, int):
        return True, float(value)
    return isinstance(value, hint), value


def _spell(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return "a list of words"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(hint, "a table")
