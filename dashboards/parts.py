"""What the dashboards are made of: variables, panels and their units, each in one way for all of them.

Needs grafana-foundation-sdk and nothing of the daemon: a dashboard knows metrics by their names only, and
tests/observing holds these against what a daemon exports.
"""

from collections.abc import Sequence
from typing import NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as models

RUNBOOKS = "https://git.example/environment-fabric/docs/runbooks.md"
"""Where docs/runbooks.md can be read: replaced by whoever installs, see there."""
SELECTED = 'job=~"$job", instance=~"$instance"'
_SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_TAG = "envfabric"


class Ask(NamedTuple):
    """One query of a panel."""

    expr: str
    legend: str


def of(metric: str, *matchers: str) -> str:
    """A metric of the daemons that are chosen on the dashboard."""
    return f"{metric}{{{', '.join([*matchers, SELECTED])}}}"


def writers(metric: str, *matchers: str) -> str:
    """The same of those that write to ROOT: what a standby has left of its last turn is no figure of now."""
    return f"({of(metric, *matchers)} and on (job, instance) {of('envfabric_writer')} == 1)"


def grown(metric: str, *matchers: str) -> str:
    """By how much a counter has grown from one point of a graph to the next."""
    return f"increase({of(metric, *matchers)}[$__rate_interval])"


def board(uid: str, title: str, about: str, runbook: str) -> dashboard.Dashboard:
    """A dashboard without panels; `runbook` is the anchor of the section that it leads to first."""
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags([_TAG])
        .readonly()
        .timezone("browser")
        .refresh("1m")
        .time("now-24h", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Runbooks")
            .type(models.DashboardLinkType.LINK)
            .url(f"{RUNBOOKS}#{runbook}")
            .icon("doc")
            .target_blank(True)
        )
        .link(
            dashboard.DashboardLink("Environment Fabric")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([_TAG])
            .keep_time(True)
            .include_vars(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    asked = (("job", "Job", ""), ("instance", "Instance", '{job=~"$job"}'))
    for name, label, within in asked:
        made.with_variable(
            dashboard.QueryVariable(name)
            .label(label)
            .datasource(_SOURCE)
            .query(f"label_values(envfabric_build_info{within}, {name})")
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".+")
            .current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
        )
    return made


def number(
    title: str,
    about: str,
    unit: str,
    asks: Sequence[Ask],
    *,
    width: int = 8,
    steps: Sequence[tuple[float | None, str]] = ((None, "green"),),
) -> stat.Panel:
    """A panel of numbers of now; `steps` are the values from which on they have another colour."""
    made = (
        stat.Panel()
        .title(title)
        .description(about)
        .unit(unit)
        .datasource(_SOURCE)
        .grid_pos(models.GridPos(h=5, w=width))
        .color_mode(looks.BigValueColorMode.VALUE)
        .graph_mode(looks.BigValueGraphMode.NONE)
        .text_mode(looks.BigValueTextMode.VALUE_AND_NAME)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(
            dashboard.ThresholdsConfig()
            .mode(models.ThresholdsMode.ABSOLUTE)
            .steps([models.Threshold(value, colour) for value, colour in steps])
        )
    )
    for letter, ask in zip("ABCDEFGH", asks, strict=False):
        made.with_target(_target(letter, ask).instant())
    return made


def graph(
    title: str,
    about: str,
    unit: str,
    asks: Sequence[Ask],
    *,
    bars: bool = False,
    stacked: bool = False,
    most: float | None = None,
    units: Sequence[tuple[str, str]] = (),
) -> timeseries.Panel:
    """A panel over time; `bars` for what happens now and then, `units` for lines that have another one."""
    made = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .unit(unit)
        .min(0)
        .datasource(_SOURCE)
        .grid_pos(models.GridPos(h=8, w=12))
        .draw_style(looks.GraphDrawStyle.BARS if bars else looks.GraphDrawStyle.LINE)
        .line_width(1)
        .fill_opacity(60 if bars else 10)
        .show_points(looks.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(looks.LegendDisplayMode.TABLE)
            .placement(looks.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(
            common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING)
        )
    )
    if most is not None:
        made.max(most)
    if stacked:
        made.stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL).group("A"))
    for name, other in units:
        changed = [
            models.DynamicConfigValue("unit", other),
            models.DynamicConfigValue("custom.axisPlacement", "right"),
        ]
        made.override_by_name(name, changed)
    for letter, ask in zip("ABCDEFGH", asks, strict=False):
        made.with_target(_target(letter, ask).range())
    return made


def _target(letter: str, ask: Ask) -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(letter).datasource(_SOURCE).expr(ask.expr).legend_format(ask.legend)
