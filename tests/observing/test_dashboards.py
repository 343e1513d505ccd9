"""The dashboards: made from Python, fit for provisioning, and by the checklist of Grafana's dashboard-linter."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from envfabric.telemetry.metrics import Metrics
from observing.shipped import BOARDS, DASHBOARDS, board, everywhere, listed, named, rules, sections, targets
from observing.shipped import variables as variables_of

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RANGES = {"[$__rate_interval]", "[$__range]"}
PANELS = [(name, panel) for name in BOARDS for panel in board(name)["panels"]]
SHOWN = {
    "health": {
        "Environments": ["{{state}}"],
        "Daemons": ["writing", "standing by", "held back"],
        "Age": ["last good look", "index"],
        "Commit to index": ["median", "95 %", "read and plan, mean"],
        "Builds and failures": ["builds", "{{reason}}"],
        "Build time": ["{{phase}}"],
        "Queue": ["waiting", "building"],
        "Looks, fetches and restarts": ["looks", "looks failed", "fetches", "fetches failed", "restarts"],
    },
    "storage": {
        "Shared": ["found in the store", "disk saved"],
        "Room left": ["space", "inodes"],
        "Disk": ["logical", "physical", "saved", "bytecode", "free"],
        "Closures": ["in the store", "leased"],
        "Inodes": ["store", "bytecode"],
        "Bytecode": ["linked", "compiled"],
        "Copies and drift": ["copied, not linked", "drift: {{kind}}"],
        "Collector": ["collections", "failed", "closures removed", "given back"],
    },
    "cluster": {
        "In use now": ["leases", "hosts", "closures"],
        "Oldest in use": ["built"],
        "Versions": ["{{version}}, uv {{uv}}, Python {{python}}"],
        "Leases": ["leases", "hosts"],
        "Which generations": ["{{use}}"],
        "Share of the store in use": ["leased"],
        "Farm": ["builds lost", "nodes unfit"],
    },
}
"""What each panel has a line or a number for. Whoever removes one says so here, too."""


def kinds() -> dict[str, str]:
    """Each exported metric's type by its name."""
    return {
        one.name + ("_total" if one.type == "counter" else ""): one.type
        for one in Metrics().registry.collect()
    }


def labels() -> dict[str, set[str]]:
    """Each exported metric's labels by its name, with those that a scrape adds."""
    found: dict[str, set[str]] = {"envfabric_build_info": {"version", "uv", "python"}}
    for metric in Metrics().registry.collect():
        for sample in metric.samples:
            name = metric.name + ("_total" if metric.type == "counter" else "")
            found.setdefault(name, set()).update(sample.labels)
    return {name: own | {"job", "instance"} for name, own in found.items()}


def test_the_committed_json_is_what_the_code_makes(tmp_path: Path) -> None:
    """Whoever changes one and not the other fails here: run `python dashboards/generate.py`."""
    done = subprocess.run(
        [sys.executable, "-B", str(DASHBOARDS / "generate.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = {one.name: one.read_text(encoding="utf-8") for one in tmp_path.iterdir()}
    committed = {one.name: one.read_text(encoding="utf-8") for one in DASHBOARDS.glob("*.json")}
    assert set(made) == {f"{name}.json" for name in BOARDS}
    assert made == committed


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_can_be_provisioned(name: str) -> None:
    """Dropped into a provisioning folder it finds its data source: no import dialog, and nothing to edit by hand."""
    made = board(name)
    assert made["uid"] == f"envfabric-{name}"
    assert made["title"].startswith("Environment Fabric: ")
    assert made["description"]
    assert made["tags"] == ["envfabric"]
    assert made["editable"] is False
    assert "__inputs" not in made
    assert "id" not in made or made["id"] is None
    assert 1 <= len(made["panels"]) <= 8


@pytest.mark.parametrize("name", BOARDS)
def test_no_panel_has_lost_a_query(name: str) -> None:
    """Each shows all that it is there for."""
    shown = {
        panel["title"]: [one["legendFormat"] for one in panel["targets"]] for panel in board(name)["panels"]
    }
    assert shown == SHOWN[name]


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_has_its_variables(name: str) -> None:
    """The data source, the job and the instance are chosen on it, and follow the time that is shown."""
    found = variables_of(name)
    assert list(found) == ["datasource", "job", "instance"]
    assert found["datasource"]["type"] == "datasource"
    assert found["datasource"]["query"] == "prometheus"
    for one in ("job", "instance"):
        variable = found[one]
        assert variable["datasource"] == SOURCE
        assert variable["label"] == one.capitalize()
        assert variable["multi"] and variable["includeAll"]
        assert variable["allValue"] == ".+"
        assert variable["refresh"] == 2
        assert f", {one})" in variable["query"]


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_leads_to_the_runbooks(name: str) -> None:
    """To a section that is there, at the address that the alerts have; and to the other dashboards."""
    links = board(name)["links"]
    (runbooks,) = [one for one in links if one["type"] == "link"]
    address, _, anchor = runbooks["url"].partition("#")
    assert anchor in sections()
    assert {one["annotations"]["runbook_url"].partition("#")[0] for one in rules("alerts")} == {address}
    (others,) = [one for one in links if one["type"] == "dashboards"]
    assert others["tags"] == ["envfabric"]


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=[f"{name}: {one['title']}" for name, one in PANELS])
def test_a_panel_explains_itself(name: str, panel: dict[str, Any]) -> None:
    """Each says what it shows and in which unit, asks the chosen data source, and hides no query."""
    assert panel["title"]
    assert len(panel["description"]) > 20
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert len({one["refId"] for one in panel["targets"]}) == len(panel["targets"])
    for source in (panel["datasource"], *(one["datasource"] for one in panel["targets"])):
        assert source == SOURCE
    for one in panel["targets"]:
        assert one["expr"] and one["legendFormat"]
        assert not one.get("hide")
    for override in panel["fieldConfig"]["overrides"]:
        assert override["matcher"]["options"] in {one["legendFormat"] for one in panel["targets"]}


@pytest.mark.parametrize("name", BOARDS)
def test_panels_have_their_own_place(name: str) -> None:
    """Panels have ids of their own, stay within Grafana's 24 columns, and none covers another."""
    panels = board(name)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_queries_follow_the_variables_and_the_shown_time() -> None:
    """Each metric is asked of the chosen jobs and instances, and each range is one that Grafana fits to the graph."""
    for one in targets():
        where = f"{one.board}: {one.panel}: {one.expr}"
        asked = re.findall(r"\b(?:envfabric|process)_\w+(\{[^}]*\})?", one.expr)
        assert asked, where
        for selector in asked:
            assert 'job=~"$job", instance=~"$instance"' in selector, where
        assert set(re.findall(r"\[[^\]]*\]", one.expr)) <= RANGES, where
        if "[$__range]" in one.expr:
            (panel,) = [panel for name, panel in PANELS if (name, panel["title"]) == (one.board, one.panel)]
            assert panel["type"] == "stat", where


def test_counters_are_rated_and_gauges_are_not() -> None:
    """A counter's own height says nothing, and a gauge has no rate; a start time's changes are counted."""
    types = kinds()
    for where, expr in everywhere():
        for name in named(expr):
            if ":" in name:
                continue
            pattern = rf"(\w+)\(\s*{name}(?:_bucket|_sum|_count)?(?:\{{[^}}]*\}})?\["
            rated = re.findall(pattern, expr)
            times = len(re.findall(rf"\b{name}(?:_bucket|_sum|_count)?\b", expr))
            if types[name] == "gauge":
                assert not rated or (rated == ["changes"] and name == "process_start_time_seconds"), where
            else:
                assert len(rated) == times and set(rated) <= {"rate", "increase"}, where
                assert name.endswith("_total") == (types[name] == "counter"), where


def test_labels_that_are_asked_for_exist() -> None:
    """What a query groups or matches by is a label of the metric, and no legend stays empty."""
    known = labels()
    for where, expr in everywhere():
        for name in named(expr):
            if ":" in name:
                continue
            for selector in re.findall(rf"\b{name}(?:_bucket|_sum|_count)?\{{([^}}]*)\}}", expr):
                matched = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector))
                assert matched <= known[name] | {"le"}, where
        groups = {one for by in re.findall(r"\bby \(([^)]*)\)", expr) for one in by.split(", ")}
        if groups and not any(":" in name for name in named(expr)):
            assert groups <= set.union(*(known[name] for name in named(expr))) | {"le"}, where
    for one in targets():
        for label in re.findall(r"{{(\w+)}}", one.legend):
            assert re.search(rf"by \([^)]*\b{label}\b", one.expr), one


def test_every_metric_that_is_named_is_exported() -> None:
    """In a panel, a variable, a rule and in the runbooks' tables alike."""
    known = set(kinds()) | {rule["record"] for rule in rules("recording")}
    for where, expr in everywhere():
        found = named(expr)
        assert found or "up{" in expr or where.endswith("$datasource"), where
        assert found <= known, where
    assert listed("what-is-exported") | listed("not-on-a-dashboard-and-in-no-rule") == set(kinds())


def test_every_exported_metric_is_used_or_said_to_be_not() -> None:
    """Nothing is exported for nobody: it is on a dashboard or in a rule, or the runbooks say why it is not."""
    used = set().union(*(named(expr) for _, expr in everywhere()))
    unused = listed("not-on-a-dashboard-and-in-no-rule")
    assert set(kinds()) - used == unused
