"""What dashboards, rules and alerts ask for, read from the committed files as Grafana and Prometheus read them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "dashboards" / "grafana" / "dashboards"
PROMETHEUS = ROOT / "dashboards" / "prometheus"

# what Grafana puts in before it asks
VARIABLES = {"$__rate_interval": "1m", "$__range": "10m", "$tenant": ".*", "$workflow": ".*", "$engine": ".*"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One expression and where it stands."""

    where: str
    expr: str

    @property
    def filled(self) -> str:
        """With the variables put in."""
        expr = self.expr
        for name, value in VARIABLES.items():
            expr = expr.replace(name, value)
        return expr


def boards() -> dict[str, Any]:
    """Every committed dashboard, by its file's name."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DASHBOARDS.iterdir())}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Its panels, rows left out."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def of_panels() -> Iterator[Asked]:
    """What the panels ask."""
    for name, board in boards().items():
        for panel in panels(board):
            for target in panel["targets"]:
                yield Asked(where=f"{name}: {panel['title']} {target['refId']}", expr=target["expr"])


def rules() -> list[dict[str, Any]]:
    """Recording rules and alerts."""
    return [
        rule
        for path in (PROMETHEUS / "rules.yml", PROMETHEUS / "alerts.yml")
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    ]


def of_rules() -> Iterator[Asked]:
    """What rules and alerts ask."""
    for rule in rules():
        yield Asked(where=rule.get("record") or rule["alert"], expr=rule["expr"])


def series_in(expr: str) -> set[str]:
    """The names of series in an expression."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\boffset \w+", "", bare)
    words = re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\(|[a-zA-Z0-9_:])", bare)
    return {word for word in words if word not in {"or", "and", "unless", "bool", "offset", "inf", "nan"}}


def labels_in(expr: str) -> set[str]:
    """The labels that an expression matches or groups by."""
    matched = re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)\s*\"", expr)
    grouped = [
        label.strip()
        for group in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", expr)
        for label in group.split(",")
    ]
    return {label for label in (*matched, *grouped) if label}
