"""Profiles and samples as files: a name or a JSON file becomes a profile, a CSV file the iterations to fit one to.

Rule: a file is read whole or refused with the place that is wrong; a misspelt factor is never passed over.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from agentserve.engine import Accelerator, Model, Profile, Sample, profile
from agentserve.errors import UsageError

HELP = "a profile's name (`agentserve profile` lists them) or a JSON file"
COLUMNS = tuple(f.name for f in dataclasses.fields(Sample))


def profile_of(text: str) -> str | Profile:
    """A known name as it is, checked; the profile in a file, whose `base` it may start from."""
    if not text.endswith(".json"):
        return profile(text).name
    try:
        said = json.loads(Path(text).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{text} cannot be read: {error.strerror}", remedy=f"give {HELP}") from error
    except ValueError as error:
        raise UsageError(f"{text} is not JSON: {error}", remedy="see `agentserve profile NAME`") from error
    return from_plain(said, text)


def from_plain(said: Any, where: str) -> Profile:
    """A profile from plain values: whole, or what differs from the profile named under `base`."""
    if not isinstance(said, dict):
        raise UsageError(f"{where} is not a JSON object", remedy="see `agentserve profile NAME`")
    rest = dict(said)
    base = rest.pop("base", None)
    plain: dict[str, Any] = {} if base is None else to_plain(profile(str(base)))
    for kind, part in ((Model, "model"), (Accelerator, "accelerator")):
        inner = rest.pop(part, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{where}: `{part}` is not an object", remedy="see `agentserve profile NAME`")
        _known(inner, kind, f"{where}: {part}")
        plain[part] = {**plain.get(part, {}), **inner}
    _known(rest, Profile, where)
    try:
        made = msgspec.convert({**plain, **rest}, Profile)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {error}", remedy="see `agentserve profile NAME`") from error
    for name in ("mfu", "mfu_attention", "mbu", "parallel_efficiency", "memory_utilisation"):
        if not 0 < getattr(made, name) <= 1.5:
            raise UsageError(
                f"{where}: {name} is {getattr(made, name):g}", remedy="it is a share of the peak, above 0"
            )
    if made.count < 1 or made.kv_tokens() < 1:
        raise UsageError(
            f"{where}: the accelerators hold no KV beside the weights", remedy="give it more of them"
        )
    return made


def to_plain(shape: Profile) -> dict[str, Any]:
    """What `from_plain` reads."""
    return dataclasses.asdict(shape)


def _known(said: Mapping[str, Any], kind: type[Any], where: str) -> None:
    names = {f.name for f in dataclasses.fields(kind)}
    for name in said:
        if name not in names:
            raise UsageError(f"{where} has no `{name}`", remedy=f"known are {', '.join(sorted(names))}")


def read_samples(path: str) -> list[Sample]:
    """Timed iterations from a CSV file with a header."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            missing = {"seconds"} - set(rows.fieldnames or ())
            unknown = set(rows.fieldnames or ()) - set(COLUMNS)
            if missing or unknown:
                raise UsageError(
                    f"{path} has the columns {', '.join(rows.fieldnames or ('none',))}",
                    remedy=f"its header names seconds and some of {', '.join(COLUMNS[:-1])}",
                )
            return [_sample(row, f"{path} line {rows.line_num}") for row in rows]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", remedy="give a CSV file") from error


def _sample(row: Mapping[str, str | None], where: str) -> Sample:
    counts = {}
    try:
        for name in COLUMNS[:-1]:
            counts[name] = int(row.get(name) or 0)
        return Sample(**counts, seconds=float(row["seconds"] or ""))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{where} is no sample: {error}", remedy="whole tokens, and seconds") from error


def write_samples(path: str, samples: list[Sample]) -> None:
    """As `read_samples` reads them."""
    try:
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(COLUMNS)
            rows.writerows([getattr(sample, name) for name in COLUMNS] for sample in samples)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", remedy="name another file") from error
