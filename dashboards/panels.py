"""The few kinds of panel that the dashboards are made of, on the Grafana foundation SDK.

Rule: a panel cannot be made without a sentence that says how to read it, and one thing looks the same everywhere.
Queries are plain PromQL; the variables `$datasource`, `$tenant`, `$workflow` and `$engine` are the only ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

with warnings.catch_warnings():
    # The SDK would have us write the newer layout, which Grafana before 13 cannot read from files; the classic one is
    # read by every version.
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.builders import bargauge, heatmap, prometheus, stat, timeseries
    from grafana_foundation_sdk.builders import common as common_builders
    from grafana_foundation_sdk.builders import dashboard as builders
    from grafana_foundation_sdk.models import dashboard as model

GREEN, AMBER, RED, BLUE = "green", "orange", "red", "blue"
DATASOURCE = common.DataSourceRef(type_val="prometheus", uid="$datasource")
# Of the 24 columns; half a screen, a third, a quarter, a sixth
HALF, THIRD, QUARTER, SIXTH = 12, 8, 6, 4
TALL, SHORT = 8, 4

# What Grafana writes after a figure, where its own list has nothing better: a factor, and seconds of every second.
TIMES, BUSY = "suffix:×", "suffix:s/s"

Panel = Builder[model.Panel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL expression and what its lines are called."""

    expr: str
    legend: str = ""
    exemplars: bool = False  # dots on the lines that open the trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A heading and the panels under it."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A dashboard."""

    uid: str
    title: str
    what: str  # the question that it answers
    rows: Sequence[Row]
    variables: Sequence[str] = ()  # names of labels to choose by

    @property
    def filename(self) -> str:
        """Of its JSON."""
        return f"{self.uid}.json"


def q(expr: str, legend: str = "", *, exemplars: bool = False) -> Query:
    """A query, its white space levelled so that it may be written over several lines."""
    return Query(expr=" ".join(expr.split()), legend=legend, exemplars=exemplars)


def counted(noun: str) -> str:
    """The unit of so many of them, thousands as K."""
    return f"count:{noun}"


def each_second(noun: str) -> str:
    """The unit of so many of them a second."""
    return f"count:{noun}/s"


def or_none(expr: str, label: str) -> str:
    """The expression, and only where it finds nothing a line at 0 that is called `none`."""
    return f'{expr} or on() label_replace(vector(0), "{label}", "none", "", "")'


def quantiles(
    histogram: str, *, by: str = "", where: str = "", of: Sequence[float] = (0.5, 0.95)
) -> list[Query]:
    """The quantiles of a histogram, by a label where one is given."""
    labels = f"le, {by}" if by else "le"
    name = f" {{{{{by}}}}}" if by else ""
    return [
        q(
            f"histogram_quantile({quantile}, sum by ({labels}) "
            f"(rate({histogram}_bucket{{{where}}}[$__rate_interval])))",
            f"p{100 * quantile:g}{name}",
            exemplars=not by,
        )
        for quantile in of
    ]


def lines(
    title: str,
    *queries: Query,
    what: str,
    unit: str = "short",
    span: int = HALF,
    stacked: bool = False,
    top: float | None = None,
) -> Panel:
    """Lines over time; stacked where they are parts of a whole."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(what)
        .datasource(DATASOURCE)
        .unit(unit)
        .min(0)
        .span(span)
        .height(TALL)
        .line_width(1.5)
        .fill_opacity(35 if stacked else 8)
        .show_points(common.VisibilityMode.NEVER)
        .no_value("no data yet")
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["mean", "lastNotNull"])
        )
        .tooltip(
            common_builders.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
    )
    if stacked:
        panel = panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if top is not None:
        panel = panel.max(top)
    for place, query in enumerate(queries):
        panel = panel.with_target(_target(query, place).range())
    return panel


def number(
    title: str,
    query: Query,
    *,
    what: str,
    unit: str = "short",
    span: int = SIXTH,
    steps: Sequence[tuple[float | None, str]] = ((None, BLUE),),
    decimals: int | None = None,
    said: Mapping[str, str] | None = None,
) -> Panel:
    """One figure over the time that is looked at. `steps` colours it, `said` puts words for values."""
    panel = (
        stat.Panel()
        .title(title)
        .description(what)
        .datasource(DATASOURCE)
        .unit(unit)
        .span(span)
        .height(SHORT)
        .no_value("no data yet")
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.VALUE)
        .thresholds(_thresholds(steps))
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_target(query, 0).instant())
    )
    if said is not None:
        words = {value: model.ValueMappingResult(text=word) for value, word in said.items()}
        panel = panel.mappings([model.ValueMap(options=words)])
    return panel if decimals is None else panel.decimals(decimals)


def bars(
    title: str, query: Query, *, what: str, unit: str = "short", span: int = HALF, top: float | None = None
) -> Panel:
    """One bar for each label value, as it stands now."""
    panel = (
        bargauge.Panel()
        .title(title)
        .description(what)
        .datasource(DATASOURCE)
        .unit(unit)
        .min(0)
        .span(span)
        .height(TALL)
        .no_value("no data yet")
        .orientation(common.VizOrientation.HORIZONTAL)
        .display_mode(common.BarGaugeDisplayMode.BASIC)
        .color_scheme(builders.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC))
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_target(query, 0).instant())
    )
    return panel if top is None else panel.max(top)


def heat(
    title: str, histogram: str, *, what: str, unit: str = "s", where: str = "", span: int = HALF
) -> Panel:
    """A histogram over time: each column is a distribution."""
    query = q(f"sum by (le) (rate({histogram}_bucket{{{where}}}[$__rate_interval]))", "{{le}}")
    target = _target(query, 0).range().format(PromQueryFormat.HEATMAP)
    return (
        heatmap.Panel()
        .title(title)
        .description(what)
        .datasource(DATASOURCE)
        .span(span)
        .height(TALL)
        .no_value("no data yet")
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Blues")
            .scale(HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
            .fill("blue")
        )
        .with_target(target)
    )


def built(board: Board) -> model.Dashboard:
    """The dashboard as Grafana takes it, panels numbered and laid out row by row."""
    made = (
        builders.Dashboard(f"agentserve: {board.title}")
        .uid(board.uid)
        .description(board.what)
        .tags(["agentserve"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .readonly()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus").multi(False)
        )
        .link(
            builders.DashboardLink("agentserve")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags(["agentserve"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .annotation(_engine_losses())
    )
    for label in board.variables:
        made = made.with_variable(_variable(label))
    for row in board.rows:
        made = made.with_row(builders.Row(row.title))
        for panel in row.panels:
            made = made.with_panel(panel)
    dashboard = made.build()
    for number_, panel_ in enumerate(dashboard.panels or [], start=1):
        panel_.id_val = number_
    return levelled(dashboard)


def levelled(dashboard: model.Dashboard) -> model.Dashboard:
    """Without what the SDK gives every variable, though only intervals have it and Grafana's types do not know it."""
    templating = dashboard.templating
    for variable in (templating.list_val if templating is not None else None) or ():
        variable.auto = variable.auto_count = variable.auto_min = None
    return dashboard


def where(*labels: str) -> str:
    """The label matchers of the board's variables."""
    return ", ".join(f'{label}=~"${label}"' for label in labels)


# Which metric lists the values of a variable.
_LISTED_BY = {
    "tenant": "agentserve_programs_opened_total",
    "workflow": "agentserve_steps_total",
    "engine": "agentserve_engine_up",
}


def _variable(label: str) -> builders.QueryVariable:
    return (
        builders.QueryVariable(label)
        .label(label)
        .datasource(DATASOURCE)
        .query(f"label_values({_LISTED_BY[label]}, {label})")
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _engine_losses() -> builders.AnnotationQuery:
    return (
        builders.AnnotationQuery()
        .name("engine away")
        .datasource(DATASOURCE)
        .enable(True)
        .icon_color(RED)
        .target(_target(q("agentserve_engine_up == 0", "{{engine}}"), 0).range())
        .title_format("engine {{engine}} is away")
    )


def _thresholds(steps: Sequence[tuple[float | None, str]]) -> builders.ThresholdsConfig:
    return (
        builders.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(value=value, color=color) for value, color in steps])
    )


def _target(query: Query, place: int) -> prometheus.Dataquery:
    target = (
        prometheus.Dataquery()
        .expr(query.expr)
        .legend_format(query.legend or "__auto")
        .ref_id("ABCDEFGHIJ"[place])
        .datasource(DATASOURCE)
    )
    return target.exemplar(True) if query.exemplars else target
