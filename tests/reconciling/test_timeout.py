"""The limit of a build is that of all its steps' processes together, and what it ends is tried again later."""

import pytest

from support.children import uv_children
from support.fabric import Fabric
from support.waiting import wait_for


@pytest.mark.parametrize("step", ["resolve", "build"])
def test_a_step_that_hangs_is_ended_in_its_time(fabric: Fabric, step: str) -> None:
    """A spec that hangs fails with `timeout` and a retry, no process of it is left, and its slot serves the others."""
    fabric.settings |= {"builders": 1, "build_timeout": 8}
    name = f"endless-{step}"
    fabric.packages.add_wheel(name, "1.0")
    folder = fabric.repo.spec("wf/a", [name], index=fabric.packages.url).parent
    if step == "build":
        fabric.lock(folder)
    hold = fabric.packages.hold(name, kind="files" if step == "build" else None)
    fabric.repo.commit()
    try:
        with fabric.daemon() as daemon:
            wait_for(
                lambda: (fabric.root / "index.json").exists() and fabric.entry("wf/a")["state"] == "failed",
                message="it is not ended",
            )
            error = fabric.entry("wf/a")["error"]
            assert error["reason"] == "timeout"
            doing = "resolving" if step == "resolve" else "building"
            assert error["message"].startswith(f"{doing} wf/a ran longer than 8 s and was ended, during uv ")
            assert "raise build_timeout" in error["message"]
            assert error["retry_at"]
            assert not uv_children(daemon.process.pid, "lock")
            assert not uv_children(daemon.process.pid, "sync")
            daemon.wait_for_metric("envfabric_build_failures_total", 1, reason="timeout")
            daemon.wait_for_metric("envfabric_builds_in_progress", 0)
            fabric.repo.spec("wf/b", ["alpha"])
            fabric.repo.commit()
            wait_for(lambda: "wf/b" in fabric.index()["python"], message="the slot is not free")
            hold.set()
            # By itself: the index answers by now.
            wait_for(lambda: "wf/a" in fabric.index()["python"], timeout=90, message="it is not tried again")
            assert fabric.entry("wf/a")["error"] is None
    finally:
        hold.set()
