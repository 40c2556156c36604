"""Short ways to say what a panel shows. What every panel must have is an argument without a default."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy.prometheus.thresholds import LATENCY_QUANTILE
from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.models import common as c
from grafana_foundation_sdk.models import dashboard as d

# A variable, so that a dashboard works in any Grafana
DATASOURCE = d.DataSourceRef(type_val="prometheus", uid="${datasource}")
# Wide enough for two scrapes at any zoom, which a fixed window is not
WINDOW = "$__rate_interval"
COLUMNS = 24

type Panel = timeseries.Panel | stat.Panel | statetimeline.Panel


@dataclass(frozen=True)
class Query:
    """A PromQL expression, and what its series are called: a template of labels."""

    expr: str
    legend: str


def rates(metric: str, selector: str, label: str = "") -> Query:
    """Returns how much a counter grows per second, one series per value of label."""
    legend = f"{{{{{label}}}}}" if label else "all"
    return Query(f"rate({metric}{{{selector}}}[{WINDOW}])", legend)


def increases(metric: str, selector: str, label: str) -> Query:
    """Returns how often something happened around each moment: for what is too rare for a rate."""
    return Query(f"increase({metric}{{{selector}}}[{WINDOW}])", f"{{{{{label}}}}}")


def quantiles(histogram: str, selector: str, *of: float) -> list[Query]:
    """Returns one series per quantile of a histogram."""
    buckets = f"rate({histogram}_bucket{{{selector}}}[{WINDOW}])"
    return [Query(f"histogram_quantile({quantile}, {buckets})", f"p{quantile * 100:g}") for quantile in of]


def slow(histogram: str, selector: str, label: str) -> Query:
    """Returns a high quantile of a histogram, one series per value of label."""
    buckets = f"rate({histogram}_bucket{{{selector}}}[{WINDOW}])"
    return Query(f"histogram_quantile({LATENCY_QUANTILE}, {buckets})", f"{{{{{label}}}}}")


def means(histogram: str, selector: str, label: str = "") -> Query:
    """Returns the mean of a histogram, one series per value of label. Means of parts add up to the whole's."""
    total, count = (f"rate({histogram}_{part}{{{selector}}}[{WINDOW}])" for part in ("sum", "count"))
    return Query(f"{total} / {count}", f"{{{{{label}}}}}" if label else "mean")


def graph(title: str, unit: str, description: str, *queries: Query, stacked: bool = False) -> timeseries.Panel:
    """Returns lines over time, from zero."""
    panel = timeseries.Panel().fill_opacity(10).line_width(1).show_points(c.VisibilityMode.NEVER).min(0)
    legend = common.VizLegendOptions().show_legend(True).placement(c.LegendPlacement.BOTTOM)
    panel.legend(legend.display_mode(c.LegendDisplayMode.LIST).calcs([]))
    panel.tooltip(common.VizTooltipOptions().mode(c.TooltipDisplayMode.MULTI).sort(c.SortOrder.DESCENDING))
    if stacked:
        panel.stacking(common.StackingConfig().mode(c.StackingMode.NORMAL)).fill_opacity(40)
    return _finish(panel, title, unit, description, queries)


def number(title: str, unit: str, description: str, query: Query, bad: float | None = None) -> stat.Panel:
    """Returns one number with its recent past, red from bad on."""
    panel = stat.Panel().color_mode(c.BigValueColorMode.VALUE).graph_mode(c.BigValueGraphMode.AREA).min(0)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    steps = [d.Threshold(value=None, color="green")]
    if bad is not None:
        steps.append(d.Threshold(value=bad, color="red"))
    panel.thresholds(dashboard.ThresholdsConfig().mode(d.ThresholdsMode.ABSOLUTE).steps(steps))
    return _finish(panel, title, unit, description, [query])


def name(title: str, description: str, query: Query) -> stat.Panel:
    """Returns the query's legend, large: for facts that are labels."""
    panel = stat.Panel().text_mode(c.BigValueTextMode.NAME).graph_mode(c.BigValueGraphMode.NONE)
    panel.color_mode(c.BigValueColorMode.NONE).reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return _finish(panel, title, "short", description, [query])


def states(title: str, description: str, metric: str, selector: str, colors: Mapping[str, str]) -> statetimeline.Panel:
    """Returns a row per state of a gauge that is 1 for the state it is in, coloured while it is."""
    panel = statetimeline.Panel().show_value(c.VisibilityMode.NEVER).row_height(0.9).fill_opacity(80)
    panel.legend(common.VizLegendOptions().show_legend(False).placement(c.LegendPlacement.BOTTOM).calcs([]))
    for state, color in colors.items():
        here = d.ValueMap({"1": d.ValueMappingResult(text=state, color=color, index=0)})
        elsewhere = d.ValueMap({"0": d.ValueMappingResult(text="-", color="transparent", index=1)})
        panel.override_by_name(state, [d.DynamicConfigValue("mappings", [here, elsewhere])])
    # A query per state keeps the rows in the order in which they are given
    queries = [Query(f'{metric}{{{selector}, state="{state}"}}', state) for state in colors]
    return _finish(panel, title, "short", description, queries)


@dataclass(frozen=True)
class Variable:
    """What a person picks from a list at the top: a label of a metric."""

    name: str
    title: str
    metric: str


def board(title: str, description: str, variable: Variable, rows: Mapping[str, Sequence[Panel]]) -> dashboard.Dashboard:
    """Returns a dashboard whose panels share the width of their row."""
    result = dashboard.Dashboard(title).description(description).tags(["longarm"]).readonly()
    # The browser's time zone: whoever looks stands beside the robot
    result.time("now-15m", "now").refresh("5s").timezone("browser").tooltip(d.DashboardCursorSync.CROSSHAIR)
    others = dashboard.DashboardLink("Longarm").type(d.DashboardLinkType.DASHBOARDS).tags(["longarm"])
    result.link(others.as_dropdown(True).keep_time(True))
    result.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    choice = dashboard.QueryVariable(variable.name).label(variable.title).datasource(DATASOURCE)
    choice.query(f"label_values({variable.metric}, {variable.name})").sort(d.VariableSort.ALPHABETICAL_ASC)
    result.with_variable(choice.refresh(d.VariableRefresh.ON_TIME_RANGE_CHANGED))
    numbers = itertools.count(1)
    for heading, panels in rows.items():
        result.with_row(dashboard.Row(heading).id(next(numbers)))
        height = 4 if all(isinstance(panel, stat.Panel) for panel in panels) else 8
        width, rest = divmod(COLUMNS, len(panels))
        for panel in panels:
            # The last takes what does not divide
            last = panel is panels[-1]
            result.with_panel(panel.id(next(numbers)).span(width + rest if last else width).height(height))
    return result


def _finish[P: Panel](panel: P, title: str, unit: str, description: str, queries: Sequence[Query]) -> P:
    panel.title(title).unit(unit).description(description).datasource(DATASOURCE)
    for number_, query in enumerate(queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).range().datasource(DATASOURCE)
        panel.with_target(target.ref_id(chr(ord("A") + number_)))
    return panel
