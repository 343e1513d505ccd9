"""A real Prometheus scrapes real daemons while commits, failures and faults happen: what is shipped fits that."""

import subprocess
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from observing.prom import SHORTER, shortened
from observing.scene import MAIN, OTHER, Scene, told
from observing.shipped import BOARDS, everywhere, named, rules, targets, variables
from support.tools import tool

FIRED = [
    ("EnvfabricAbsent", None),
    ("EnvfabricReconcileStuck", MAIN),
    ("EnvfabricBuildsFailing", OTHER),
    ("EnvfabricIndexStale", MAIN),
    ("EnvfabricPublishSlow", MAIN),
]
NOTHING_HAPPENED = {
    "held back", "fetches", "fetches failed", "restarts", "copied, not linked", "failed", "builds lost",
    "nodes unfit",
}  # fmt: skip
"""Lines of which the story has only the zero: no remote repository, farm or failing collection is in it."""
TOO_SHORT = {"building"}
"""Lines whose moments may fall between two scrapes: these builds take a fraction of a second."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The story of observing/scene, told once."""
    with told(tmp_path_factory.mktemp("scene")) as made:
        yield made


def asked(expr: str, job: str = MAIN) -> str:
    """A panel's query as Grafana sends it."""
    text = expr.replace("$__rate_interval", "5s").replace("$__range", "5m")
    return text.replace("$job", job).replace("$instance", ".+")


def exported(text: str) -> set[str]:
    """The names of what a daemon answers, as queries name them."""
    found = text_string_to_metric_families(text)
    return {one.name + ("_total" if one.type == "counter" else "") for one in found}


@pytest.mark.parametrize("board", BOARDS)
def test_every_panel_shows_data(scene: Scene, board: str) -> None:
    """Each query of each panel parses and gives numbers in the story that it is there for, and not only zeros."""
    for one in targets():
        if one.board == board:
            numbers = scene.prometheus.values(asked(one.expr), scene.began)
            assert numbers, f"{one.panel}: {one.legend}: nothing"
            if one.legend in TOO_SHORT:
                continue
            assert any(numbers) == (one.legend not in NOTHING_HAPPENED), (
                f"{one.panel}: {one.legend}: {max(numbers)}"
            )


def test_panels_show_what_happened(scene: Scene) -> None:
    """Figures that the story says beforehand are those that the panels show."""
    by_legend = {(one.panel, one.legend): asked(one.expr) for one in targets()}

    def most(panel: str, legend: str) -> float:
        return max(scene.prometheus.values(by_legend[panel, legend], scene.began))

    assert most("Daemons", "writing") == 1
    assert most("Daemons", "standing by") == 1
    assert most("In use now", "leases") == 2
    assert most("In use now", "hosts") == 2
    assert most("In use now", "closures") == 2
    assert most("Closures", "in the store") >= 4
    use = scene.prometheus.get(
        "query_range", query=by_legend["Which generations", "{{use}}"], start=scene.began,
        end=scene.began + 600, step="1s",
    )["result"]  # fmt: skip
    found = {one["metric"]["use"]: float(one["values"][-1][1]) for one in use}
    assert found == {"served": 1, "superseded": 1, "absent": 0}


def test_variables_find_their_values(scene: Scene) -> None:
    """The variables' queries name a metric and a label that are there."""
    for board in BOARDS:
        for name in ("job", "instance"):
            query = variables(board)[name]["query"]
            match, _, label = query.removeprefix("label_values(").removesuffix(")").rpartition(", ")
            found = scene.prometheus.get(f"label/{label}/values", **{"match[]": asked(match)})
            assert found == ([MAIN] if name == "job" and "$job" in match else found)
            expected = {MAIN, OTHER} if name == "job" else {scene.writer_at, scene.standby_at}
            assert set(found) == expected


def test_every_metric_that_is_named_is_scraped(scene: Scene) -> None:
    """What panels and rules name is what a real daemon answers, the standby's too, or a rule records."""
    records = {rule["record"] for rule in rules("recording")}
    names = {one for _, expr in everywhere() for one in named(expr)}
    assert names - records <= exported(scene.exported)
    assert exported(scene.standby) == exported(scene.exported)
    for record in records:
        assert scene.prometheus.values(record, scene.began), f"{record}: nothing"


@pytest.mark.parametrize("whose", ["exported", "standby"])
def test_promtool_accepts_what_is_exported(scene: Scene, whose: str) -> None:
    """Names, types and texts are as Prometheus wants them."""
    done = subprocess.run(
        [tool("promtool", package="prometheus"), "check", "metrics"],
        input=getattr(scene, whose), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_standby_shows_what_is_true(scene: Scene) -> None:
    """It says that it does not write, what is published, and how much room ROOT has."""
    both = [
        {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        for text in (scene.exported, scene.standby)
    ]
    writer, standby = both
    assert (writer["envfabric_writer",], standby["envfabric_writer",]) == (1, 0)
    assert standby["envfabric_root_size_bytes",] == writer["envfabric_root_size_bytes",] > 0
    assert standby["envfabric_root_free_bytes",] > 0
    for state in ("ready", "failed", "stale"):
        assert standby["envfabric_specs", state] == writer["envfabric_specs", state]
    last = "envfabric_index_last_publish_timestamp_seconds"
    assert abs(standby[last,] - writer[last,]) < 60


def test_nothing_fires_on_an_ordinary_day(scene: Scene) -> None:
    """Commits, leases, a collection and a link that a hand has bent wake nobody."""
    # Others may: a busy machine is slow when minutes are seconds, one spec is wrong, and the disk is the machine's.
    assert scene.quiet.isdisjoint(
        {
            "EnvfabricTwoWriters",
            "EnvfabricRestarting",
            "EnvfabricFetchFailing",
            "EnvfabricRevisionHeldBack",
            "EnvfabricLinkFallback",
            "EnvfabricCollectorFailing",
            "EnvfabricCollectorIdle",
            "EnvfabricDrift",
            "EnvfabricLeasedClosureAbsent",
            "EnvfabricFarmLosing",
        }
    )


@pytest.mark.parametrize(("alert", "job"), FIRED)
def test_alerts_fire_for_real(scene: Scene, alert: str, job: str | None) -> None:
    """Each fires when what it is about happens, of that job only, and its texts are whole."""
    fired = scene.fired[alert]
    assert fired["labels"].get("job") == job
    for text in fired["annotations"].values():
        assert text
        assert "{{" not in text
        assert "<error" not in text
        assert "no value" not in text
    if job is not None:
        assert job in fired["annotations"]["summary"]


def test_only_durations_are_changed_for_that() -> None:
    """The rules that fired are the shipped ones: with the durations put back they are equal."""
    for alert, _ in FIRED:
        (rule,) = [one for one in rules("alerts") if one["alert"] == alert]
        made = shortened(rule)
        assert {name for name in rule if rule[name] != made[name]} <= {"for", "expr"}
        assert made["for"] == f"{int(rule['for'].removesuffix('m')) * 60_000 // SHORTER}ms"
    changed = [shortened(rule)["expr"] for rule in rules("alerts")]
    assert "job:envfabric_look_age_seconds:min > 10" in changed
    assert "job:envfabric_commit_to_publish_seconds:p95_1h > 10" in changed
    assert any(one.endswith("job:envfabric_index_age_seconds:min > 30") for one in changed)
