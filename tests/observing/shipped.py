"""The shipped dashboards and rules as data, and which metrics and labels an expression names."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

PROJECT = Path(__file__).resolve().parents[2]
DASHBOARDS = PROJECT / "dashboards"
RULES = DASHBOARDS / "prometheus"
RUNBOOKS = PROJECT / "docs" / "runbooks.md"
BOARDS = ("health", "storage", "cluster")

_STRING = re.compile(r'"[^"]*"')
_METRIC = re.compile(r"(?<![\w:])((?:envfabric|process)_\w+|[a-z_]+:envfabric_\w+:\w+)")
_HISTOGRAM = re.compile(r"_(bucket|sum|count)$")


class Target(NamedTuple):
    """One query of a panel."""

    board: str
    panel: str
    legend: str
    expr: str


def board(name: str) -> dict[str, Any]:
    """One committed dashboard."""
    loaded = json.loads((DASHBOARDS / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def targets() -> list[Target]:
    """The queries of all panels."""
    return [
        Target(name, panel["title"], one["legendFormat"], one["expr"])
        for name in BOARDS
        for panel in board(name)["panels"]
        for one in panel["targets"]
    ]


def variables(name: str) -> dict[str, dict[str, Any]]:
    """A dashboard's variables by name."""
    return {one["name"]: one for one in board(name)["templating"]["list"]}


def rules(name: str) -> list[dict[str, Any]]:
    """The rules of one shipped file."""
    loaded = yaml.safe_load((RULES / f"{name}.yml").read_text(encoding="utf-8"))
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def named(expr: str) -> set[str]:
    """The metrics that an expression names; a histogram by its own name."""
    return {_HISTOGRAM.sub("", one) for one in _METRIC.findall(_STRING.sub('""', expr))}


def everywhere() -> Iterator[tuple[str, str]]:
    """Every expression that is shipped, with where it stands."""
    for one in targets():
        yield f"{one.board}: {one.panel}: {one.legend}", one.expr
    for name in BOARDS:
        for variable in variables(name).values():
            yield f"{name}: ${variable['name']}", variable["query"]
    for file in ("recording", "alerts"):
        for rule in rules(file):
            yield f"{file}: {rule.get('alert') or rule['record']}", rule["expr"]


def sections() -> dict[str, str]:
    """The runbooks' sections by the anchor that GitHub and GitLab give them."""
    found: dict[str, str] = {}
    for part in re.split(r"^##+ ", RUNBOOKS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        found[re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")] = text
    return found


def listed(section: str) -> set[str]:
    """The metrics in the first column of a section's table."""
    rows = [line for line in sections()[section].splitlines() if line.startswith("| `")]
    for row in rows:
        assert len(row.split("|")[2].strip()) > 3, f"{row}: nothing is said of it"
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
