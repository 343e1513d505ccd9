"""Content that was published before is served again as it was: no uv, no question to an index, lock and digest too."""

from typing import Any

import pytest

from support.fabric import Fabric, RunningDaemon


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
def test_republished_as_it_was(fabric: Fabric, how: str) -> None:
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
        before = figures(fabric, daemon)
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
        daemon.wait_for_metric("envfabric_closure_requests_total", requests + 1)
        daemon.wait_for_metric("envfabric_closure_hits_total", hits + 1)
