"""Content that was published before is served again as it was: no uv, no question to an index, lock and digest too."""

from pathlib import Path
from typing import Any

import pytest

from support.fabric import Fabric, RunningDaemon

COUNTING = """
import os, sys

def note(event, arguments):
    if event == "subprocess.Popen":
        with open({log!r}, "a") as file:
            file.write(os.path.basename(os.fsdecode(arguments[1][0])) + "\\n")

sys.addaudithook(note)
"""
"""Python's own audit hook hears of every process that the daemon starts, however it finds the program."""


@pytest.fixture
def started(fabric: Fabric) -> Path:
    """The file with the names of all programs that the fabric's commands have started."""
    folder, log = fabric.folder / "counting", fabric.folder / "started"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(COUNTING.format(log=str(log)))
    fabric.variables["PYTHONPATH"] = str(folder)
    return log


def uv_runs(started: Path) -> int:
    """How often uv was started."""
    return started.read_text().split().count("uv")


def figures(fabric: Fabric, daemon: RunningDaemon) -> tuple[float, float, list[str]]:
    """What counts uv's work: builds, resolutions, and what the package index was asked."""
    builds = daemon.metric("envfabric_builds_total")
    return (
        builds,
        daemon.metric("envfabric_build_duration_seconds_count", phase="resolve"),
        fabric.packages.requests,
    )


def kept(fabric: Fabric, entry: dict[str, Any]) -> dict[str, bytes]:
    folder = fabric.root / "generations/wf/a" / str(entry["generation"])
    return {name: (folder / name).read_bytes() for name in ("pyproject.toml", "uv.lock", "metadata.json")}


@pytest.mark.parametrize("how", ["revert", "branch", "restored"])
def test_republished_as_it_was(fabric: Fabric, started: Path, how: str) -> None:
    """A `git revert`, a switch of the branch and back, a file that is restored by hand."""
    fabric.repo.spec("wf/a", ["gamma"])
    fabric.repo.commit()
    with fabric.daemon() as daemon:
        first = daemon.wait_for_index(fabric.repo.head)["environments"]["wf/a"]
        files = kept(fabric, first)
        if how == "branch":
            fabric.repo.branch("other")
        path = fabric.repo.spec("wf/a", ["gamma<2"])
        second = daemon.wait_for_index(fabric.repo.commit())["environments"]["wf/a"]
        assert second["serving"] != first["serving"]
        before, ran = figures(fabric, daemon), uv_runs(started)
        assert ran > 2, "uv's processes are not counted"
        requests = daemon.metric("envfabric_closure_requests_total")
        hits = daemon.metric("envfabric_closure_hits_total")
        if how == "revert":
            commit = fabric.repo.revert()
        elif how == "branch":
            fabric.repo.branch("main")
            commit = fabric.repo.head
        else:
            path.write_bytes(files["pyproject.toml"])
            commit = fabric.repo.commit("restored")
        index = daemon.wait_for_index(commit)
        entry = index["environments"]["wf/a"]
        assert (entry["generation"], entry["serving"]) == (first["generation"], first["serving"])
        assert kept(fabric, entry) == files
        assert figures(fabric, daemon) == before
        assert uv_runs(started) == ran
        daemon.wait_for_metric("envfabric_closure_requests_total", requests + 1)
        daemon.wait_for_metric("envfabric_closure_hits_total", hits + 1)
