"""The committed dashboards are what the generator makes, and ask only for what there is."""

from __future__ import annotations

import itertools
import re
import warnings
from typing import Any

import pytest

from agentserve.telemetry.metrics import PREFIX, PROCESS, TABLE, queryable
from tests.dashboards.queries import Asked, boards, labels_in, of_panels, of_rules, panels, rules, series_in

generate = pytest.importorskip("dashboards.generate", reason="needs the Grafana foundation SDK")

# Prometheus makes it itself
OF_PROMETHEUS = {"up"}
# labels that scraping and histograms add
ALWAYS = {"job", "instance", "le"}

LABELS = {series: set(metric.labels) for metric in TABLE for series in metric.series()}
LABELS |= {name: set() for name in (*PROCESS, *OF_PROMETHEUS)}


def test_the_committed_json_is_what_the_generator_makes() -> None:
    made = {board.filename: generate.text(board) for board in generate.BOARDS}
    stored = {p.name: p.read_text(encoding="utf-8") for p in generate.FOLDER.iterdir()}
    assert stored == made, "run `python -m dashboards.generate`"
    assert generate.main(["--check"]) == 0


def test_there_are_the_seven_dashboards_that_were_promised() -> None:
    assert {board["title"].removeprefix("agentserve: ") for board in boards().values()} == {
        "Overview", "Programs", "KV and pins", "Fairness and tenants", "Forecasts", "Engines", "Gateway health",
    }  # fmt: skip


@pytest.mark.parametrize("asked", [*of_panels(), *of_rules()], ids=lambda a: a.where)
def test_every_name_and_label_that_is_asked_for_is_in_the_metric_table(asked: Asked) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    found = series_in(asked.expr)
    assert found, "an expression that asks for nothing"
    assert found <= set(queryable()) | OF_PROMETHEUS | recorded
    known = set().union(*(LABELS.get(name, set()) for name in found))
    assert labels_in(asked.expr) <= known | ALWAYS


def test_every_metric_is_shown_somewhere() -> None:
    shown = set().union(*(series_in(asked.expr) for asked in [*of_panels(), *of_rules()]))
    missing = [metric.name for metric in TABLE if not shown & set(metric.series())]
    assert not missing, f"no dashboard shows {missing}"


def test_the_reader_of_expressions_finds_names_and_labels() -> None:
    expr = 'histogram_quantile(0.95, sum by (le, tool) (rate(a_bucket{x="y", z=~"b|c"}[5m]))) / on() (d:e > 0) or f'
    assert series_in(f"{expr} offset 1h") == {"a_bucket", "d:e", "f"}
    assert labels_in(expr) == {"le", "tool", "x", "z"}


@pytest.mark.parametrize("name", boards())
def test_a_dashboard_is_laid_out_explained_and_complete(name: str) -> None:
    board = boards()[name]
    assert board["uid"] == name.removesuffix(".json")
    assert board["description"].endswith("?")
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels(board):
        assert panel["description"].endswith("."), panel["title"]
        assert [t["refId"] for t in panel["targets"]] == list("ABCDEFGH")[: len(panel["targets"])]
        assert panel["fieldConfig"]["defaults"]["noValue"]
    for one, other in itertools.combinations([panel["gridPos"] for panel in board["panels"]], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
        assert one["x"] + one["w"] <= 24
    used = set(re.findall(r"\$([a-z]+)", str(board["panels"])))
    declared = {variable["name"] for variable in board["templating"]["list"]}
    assert used <= declared
    assert declared <= used | {"datasource"}


# What a panel's figures are in, told by what is asked for; the first that fits. A ratio may be any share or factor.
UNITS = (
    (r"/ ?\(?sum|/ ?avg|exp\(", ("percentunit", "suffix:×", "s", "short", "count:tokens")),
    (r"(rate|deriv)\(\w+_token_seconds", ("count:tokens",)),
    (r"rate\(\w+_tokens_total", ("count:tokens/s",)),
    (r"rate\(process_cpu_seconds_total", ("count:cores",)),
    (r"quantile\(.*_slowdown_bucket", ("suffix:×",)),
    (r"quantile\(.*_steps_bucket", ("count:steps",)),
    (r"quantile\(.*_seconds_bucket", ("s",)),
    (r"rate\(\w+_seconds_total", ("suffix:s/s",)),
    (r"rate\(\w+_total\W.*\* 3600", ("short",)),
    (r"rate\(\w+_total", ("count:\\w+/s",)),
    (r"increase\(\w+_seconds_total", ("s",)),
    (r"_token_seconds\W", ("count:token-seconds",)),
    (r"_tokens\W", ("count:tokens",)),
    (r"_rows\W", ("count:rows",)),
    (r"_seconds\W", ("s",)),
    (r"_bytes\W", ("bytes",)),
    (r"_(share|coverage)\W", ("percentunit",)),
    (r"", ("short",)),
)


@pytest.mark.parametrize("name", boards())
def test_every_panel_s_unit_is_that_of_what_it_asks_for(name: str) -> None:
    for panel in panels(boards()[name]):
        if panel["type"] == "heatmap":
            assert panel["options"]["yAxis"]["unit"] in ("s", "suffix:×")
            continue
        unit = panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            fits = next(units for asked, units in UNITS if re.search(asked, target["expr"] + " "))
            assert any(re.fullmatch(one, unit) for one in fits), (panel["title"], unit, fits)


@pytest.mark.parametrize("name", boards())
def test_the_json_survives_grafanas_own_types(name: str) -> None:
    # The SDK's types are made from Grafana's schemas; a field that they do not know would not come back.
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    board = boards()[name]
    read: Any = generate.levelled(Dashboard.from_json(board))
    again = generate.json.loads(generate.json.dumps(read, cls=JSONEncoder))
    assert again == board


def test_the_prefix_is_ours_alone() -> None:
    assert all(name.startswith((PREFIX, "process_")) for name in queryable())
