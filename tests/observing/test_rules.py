"""The rules as Prometheus' own tool sees them: each alert fires when it should, and not when it should not."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from observing.cases import BY_INSTANCE, CASES, Series
from observing.shipped import RULES, everywhere, named, rules, sections
from support.tools import tool

ALERTS = {rule["alert"]: rule for rule in rules("alerts")}
RECORDS = [rule["record"] for rule in rules("recording")]


def promtool(*arguments: str | Path) -> str:
    """Runs promtool; fails where it does, or warns."""
    program = tool("promtool", package="prometheus")
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def rendered(text: str, labels: dict[str, str]) -> str:
    """An annotation as an alert with these labels has it: the shipped ones ask for labels only."""
    found = re.sub(r"{{ \$labels\.(\w+) }}", lambda one: labels[one[1]], text)
    assert "{{" not in found
    return found


def series(values: Series) -> list[dict[str, str]]:
    """The series as promtool takes them, with the job and instance that a scrape adds."""
    found = []
    for selector, text in values.items():
        name, _, own = selector.rstrip("}").partition("{")
        added = "" if 'job="' in own else ", ".join(f'{one}="{text}"' for one, text in BY_INSTANCE.items())
        found.append({"series": f"{name}{{{', '.join(filter(None, [own, added]))}}}", "values": text})
    return found


def unit_tests(alert: str) -> list[dict[str, Any]]:
    """promtool's unit tests of one alert: under sick series before and after it fires, and under well ones."""
    case, rule = CASES[alert], ALERTS[alert]
    expected = {
        "exp_labels": case.labels | rule["labels"],
        "exp_annotations": {name: rendered(text, case.labels) for name, text in rule["annotations"].items()},
    }

    def when(minutes: int, *firing: dict[str, Any]) -> dict[str, Any]:
        return {"eval_time": f"{minutes}m", "alertname": alert, "exp_alerts": list(firing)}

    sick = {
        "interval": "1m",
        "input_series": series(case.sick),
        "alert_rule_test": [when(case.before), when(case.fires, expected)],
    }
    healthy = [
        {
            "interval": "1m",
            "input_series": series(one),
            "alert_rule_test": [when(case.before), when(case.fires)],
        }
        for one in case.well
    ]
    return [sick, *healthy]


def test_files_are_clean() -> None:
    """promtool finds nothing to complain about in the rules and in the example configuration."""
    told = promtool(
        "check", "rules", "--lint=all", "--lint-fatal", RULES / "recording.yml", RULES / "alerts.yml"
    )
    assert f"{len(ALERTS)} rules found" in told
    told = promtool("check", "config", RULES / "prometheus.yml")
    assert "2 rule files found" in told


def test_each_alert_has_its_cases() -> None:
    """No alert goes without a test that it fires and one that it does not, and no case without its alert."""
    assert CASES.keys() == ALERTS.keys()
    assert all(case.sick and case.well and case.before < case.fires for case in CASES.values())


def test_alerts_fire_and_do_not_fire(tmp_path: Path) -> None:
    """Each fires under sick series, with its labels and texts; not before its time, and never under well ones."""
    files = []
    for every in {case.every for case in CASES.values()}:
        content = {
            "rule_files": [str(RULES / name) for name in ("recording.yml", "alerts.yml")],
            "evaluation_interval": every,
            "tests": [
                one for alert, case in CASES.items() if case.every == every for one in unit_tests(alert)
            ],
        }
        files.append(tmp_path / f"{every}.yml")
        # YAML has JSON within it.
        files[-1].write_text(json.dumps(content), encoding="utf-8")
    assert promtool("test", "rules", *files).count("SUCCESS") == len(files)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_tells_what_it_is_about(alert: str) -> None:
    """How bad it is, what happened, and where to read what to do: under an anchor that is there."""
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    told = rule["annotations"]
    assert set(told) == {"summary", "description", "runbook_url"}
    assert len(told["description"]) > 40 and len(told["summary"]) > 20
    address, _, anchor = told["runbook_url"].partition("#")
    assert address.endswith("/docs/runbooks.md")
    assert anchor == alert.lower()
    section = sections()[anchor]
    for part in ("**It means:**", "**Look", "**Do:**"):
        assert part in section or "**Look and do:**" in section, f"{anchor}: {part} is missing"


def test_recording_rules_are_named_and_used() -> None:
    """level:metric:operation, of a metric that exists by that name in the expression; and something asks for each."""
    assert len(set(RECORDS)) == len(RECORDS)
    asked = set().union(*(named(expr) for _, expr in everywhere()))
    for record in RECORDS:
        level, metric, operation = record.split(":")
        assert level.split("_")[0] == "job"
        assert metric.startswith("envfabric_")
        assert operation
    assert set(RECORDS) == {one for one in asked if ":" in one}


def test_the_runbooks_have_no_section_without_its_alert() -> None:
    """What is renamed or removed leaves nothing behind that nobody is led to."""
    assert {one for one in sections() if one.startswith("envfabric")} == {one.lower() for one in ALERTS}


def test_links_within_the_runbooks_lead_somewhere() -> None:
    """Each anchor and each file that the runbooks name is there."""
    text = (RULES.parent.parent / "docs" / "runbooks.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        assert not file or (RULES.parent.parent / "docs" / file).is_file(), target
        assert not anchor or anchor in sections(), target
