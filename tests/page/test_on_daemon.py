"""The page of a real daemon, and the report of what it did."""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from envfabric.cli.report import document
from envfabric.cli.tallies import tally
from support.fabric import Fabric, RunningDaemon
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo
from support.waiting import wait_for

Open = Callable[..., Page]
PICTURES = ["Build times", "Hits", "Bytes saved over time", "Slowest specs", "Failures by reason"]


@dataclass
class Scene:
    """A daemon that has built what it could."""

    fabric: Fabric
    daemon: RunningDaemon

    def events(self) -> list[dict[str, Any]]:
        """The trail's events, read without the code under test."""
        files = sorted((self.fabric.root / "history").glob("*.jsonl"))
        return [json.loads(line) for one in files for line in one.read_text().splitlines()]

    def accounts(self, sequence: int) -> list[dict[str, Any]]:
        """The trail's accounts of the store since that publication."""
        return [one for one in self.events() if one["event"] == "figures" and one["sequence"] >= sequence]

    def report(self, out: Path) -> dict[str, Any]:
        """Writes the report and gives its figures."""
        done = self.fabric.command("report", "--root", self.fabric.root, "--out", out, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, packages: SimpleIndex) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("fabric")
    fabric = Fabric(folder, packages, SpecRepo(folder / "specs"))
    for name, requires in (("a", ["alpha"]), ("b", ["beta"]), ("same", ["alpha"]), ("bad", ["gamma==9"])):
        fabric.repo.spec(f"wf/{name}", requires)
    first = fabric.repo.commit()
    with fabric.daemon() as daemon:
        daemon.wait_for_index(first)
        # What comes later finds what it needs.
        fabric.repo.spec("wf/later", ["alpha"])
        sequence = daemon.wait_for_index(fabric.repo.commit())["sequence"]
        made = Scene(fabric, daemon)
        # The trail follows the index: its account of this publication is the last that is told of it.
        wait_for(lambda: made.accounts(sequence), message="the trail has no account of what is published")
        yield made


def test_page_of_a_daemon(scene: Scene, visit: Open) -> None:
    """A daemon's page has what its index says, sizes, and logs that open."""
    page = visit(scene.daemon.url)
    index = scene.fabric.index()

    def sized() -> bool:
        # A page does not wait for sizes for long: the next one has them.
        page.reload()
        told = page.locator("#table tbody tr[data-n]").filter(has_not_text="wf/bad").locator("td.number")
        expect(told.first).to_be_visible()
        return all(one != "–" for one in told.all_inner_texts())

    wait_for(sized, message="no sizes")
    expect(page.locator("#found")).to_have_text("5 environments")
    assert page.locator(".role").inner_text() == "writer"
    assert index["revision"] in page.locator("header").inner_text()
    first, *others = page.locator("#table tbody tr[data-n]").all()
    assert first.locator("th").inner_text() == "wf/bad"
    first.click()
    assert index["environments"]["wf/bad"]["error"]["message"] in page.locator("#details").inner_text()
    page.keyboard.press("Escape")
    for row in others:
        size, saved = (float(one.split()[0]) for one in row.locator("td.number").all_inner_texts()[1:3])
        assert size > 0
        assert saved <= size
    page.get_by_role("link", name="failure").first.click()
    page.wait_for_url("**/logs/failures/wf/bad")
    log = (scene.fabric.root / "failures/wf/bad.log").read_text()
    assert page.locator("body").inner_text().split() == log.split()
    page.go_back()
    page.get_by_role("link", name="build").first.click()
    page.wait_for_url("**/logs/builds/*")
    assert page.locator("body").inner_text().strip()


def test_report_counts_what_the_trail_tells(scene: Scene, tmp_path: Path) -> None:
    """The report's figures are those of the trail, counted otherwise, and those that the metrics have."""
    found = scene.report(tmp_path / "report.html")
    events = scene.events()
    built = [one for one in events if one["event"] == "built"]
    assert found["builds"]["count"] == len(built) == scene.daemon.metric("envfabric_builds_total") == 2
    assert {one["id"]: one["longest_seconds"] for one in found["slowest"]} == {
        one["spec"]: one["seconds"]["total"] for one in built
    }
    assert found["closures"] == {
        "requests": scene.daemon.metric("envfabric_closure_requests_total"),
        "hits": scene.daemon.metric("envfabric_closure_hits_total"),
    }
    assert found["closures"]["hits"] >= 1
    failed = Counter(one["reason"] for one in events if one["event"] == "failed")
    assert found["failures"] == dict(failed) == {"unresolvable": 1}
    last = found["store"][-1]
    assert last["logical_bytes"] == scene.daemon.metric("envfabric_store_logical_bytes")
    assert last["physical_bytes"] == scene.daemon.metric("envfabric_store_physical_bytes")
    assert last["saved_bytes"] == scene.daemon.metric("envfabric_disk_saved_bytes")
    assert found["published"]["states"] == {"ready": 4, "failed": 1}
    assert sum(one["builds"] for one in found["slots"]) == 2
    assert sum(one["requests"] for one in found["slots"]) == found["closures"]["requests"]
    assert sum(one["failures"] for one in found["slots"]) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_opens(scene: Scene, visit: Open, tmp_path: Path, scheme: str) -> None:
    """The file has its pictures, each with a title and the same as a table, and asks nobody for anything."""
    found = scene.report(tmp_path / "report.html")
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]
    page = visit(f"file://{tmp_path}/report.html", color_scheme=scheme)
    pictures = page.get_by_role("img")
    assert [one.locator("> title").text_content() for one in pictures.all()] == PICTURES
    assert page.locator("svg[role=img] .one").count() >= 2
    for details in page.locator("details").all():
        details.locator("summary").click()
        assert details.locator("tbody tr").count() >= 1
    text = page.locator("body").inner_text()
    assert f"{found['closures']['hits']} of {found['closures']['requests']} closures" in text
    assert found["slowest"][0]["id"] in text
    assert "unresolvable" in text
    assert page.locator("script").count() == 0
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert dark is (scheme == "dark")


def test_report_of_nothing(fabric: Fabric, visit: Open) -> None:
    """A NAS folder on which nothing has happened has a report that says so."""
    fabric.init()
    out = fabric.folder / "report.html"
    done = fabric.command("report", "--root", fabric.root, "--out", out)
    assert done.returncode == 0, done.stderr
    page = visit(f"file://{out}")
    assert page.get_by_role("img").count() == 0
    assert page.get_by_text("Nothing is in the trail yet.").count() == len(PICTURES)


def test_report_needs_to_know_where_to(scene: Scene) -> None:
    """Without --out and --json it is wrong usage; a folder that is not there is named."""
    done = scene.fabric.command("report", "--root", scene.fabric.root)
    assert done.returncode == 2
    assert "--out FILE" in done.stderr
    nowhere = scene.fabric.folder / "nowhere" / "report.html"
    done = scene.fabric.command("report", "--root", scene.fabric.root, "--out", nowhere)
    assert done.returncode == 1
    assert str(nowhere.parent) in done.stderr


def test_report_of_a_long_trail() -> None:
    """Years in a trail are drawn in few slots, a single event in one, and what a hand wrote into it is read over."""
    account = {"event": "figures", "requests": 4, "hits": 3, "logical_bytes": 9, "physical_bytes": 5}
    events: list[dict[str, Any]] = []
    for n in range(2000):
        at = f"{2020 + n // 365}-{n // 31 % 12 + 1:02}-{n % 28 + 1:02}T10:00:00.000Z"
        events.append({"at": at, "event": "built", "spec": f"wf/{n % 30}<b>", "seconds": {"total": n / 7}})
        events.append({"at": at, **account, "closures": n})
    events.sort(key=lambda one: str(one["at"]))
    odd: list[dict[str, Any]] = [
        {"at": "yesterday", "event": "built", "spec": "wf/x", "seconds": {"total": 1}},
        {"at": "2021-01-01T00:00:00Z", "event": "built", "spec": "wf/x", "seconds": 7},
        {"at": "2021-01-01T00:00:00Z", "event": "failed", "reason": None},
        {"at": "2021-01-01T00:00:00Z", "event": "figures", "requests": "4"},
    ]
    found = tally([*events, *odd], None)
    assert found["builds"]["count"] == 2000
    assert found["closures"] == {"requests": 8000, "hits": 6000}
    assert len(found["slots"]) <= 80
    assert sum(one["builds"] for one in found["slots"]) == 2000
    assert len(found["store"]) <= 240
    assert found["store"][-1]["at"] == events[-1]["at"]
    assert [one["id"] for one in found["slowest"][:1]] == [f"wf/{1999 % 30}<b>"]
    text = document(found, "/nas")
    assert "<b>wf" not in text
    assert "wf/19<b>" not in text
    assert not re.search(r"\b(nan|inf)\b", text)
    assert sys.getsizeof(text) < 300_000
    single = tally(events[-2:], None)
    assert len(single["slots"]) == 1
    assert document(single, "/nas").count('role="img"') == 4
