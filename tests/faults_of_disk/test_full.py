"""A full disk: `no-space` where it is, everything published works, and all goes on once there is room again."""

import errno
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faults_of_disk.inside import daemon as inner_daemon
from faults_of_disk.inside import surroundings
from faults_of_disk.mounts import Disk, fill, fill_inodes
from support.fabric import Fabric, RunningDaemon
from support.waiting import wait_for

MakeDisk = Callable[..., Disk]


def entry(fabric: Fabric, spec_id: str) -> dict[str, Any]:
    """What the index says of a spec by now; nothing where it says nothing yet."""
    found: dict[str, Any] = fabric.index()["environments"].get(spec_id, {})
    return found


def failed_with(fabric: Fabric, spec_id: str, reason: str) -> dict[str, Any]:
    """Waits until a spec has failed, and gives the error; fails where the reason is another."""
    error: dict[str, Any] = wait_for(
        lambda: entry(fabric, spec_id).get("error"), timeout=60, message=f"{spec_id} does not fail"
    )
    assert error["reason"] == reason, error
    return error


def wait_until_ready(fabric: Fabric, *spec_ids: str) -> None:
    """Waits until specs are ready, as long as a few retries take."""
    for spec_id in spec_ids:
        wait_for(
            lambda spec_id=spec_id: entry(fabric, spec_id).get("state") == "ready",  # type: ignore[misc]
            timeout=150,
            message=f"{spec_id} is not made ready: {entry(fabric, spec_id)}",
        )


def check(fabric: Fabric, *spec_ids: str) -> None:
    """Fails where one of these does not run, by the index's path or the one for people."""
    index = fabric.index()
    for spec_id in spec_ids:
        assert index["python"][spec_id].startswith(f"{fabric.root}/store/")
        package = {"wf/a": "alpha", "wf/b": "big", "wf/c": "alpha", "wf/d": "beta"}[spec_id]
        fabric.python(spec_id, f"import sys; sys.dont_write_bytecode = True; import {package}")
        python = fabric.root / "envs" / spec_id / ".venv/bin/python"
        wait_for(python.exists, message=f"{python} is not there")


def serve_first(daemon: RunningDaemon, commit: str) -> None:
    """Waits for the first index, and for the path for people, which follows it by a moment."""
    daemon.wait_for_index(commit)
    link = daemon.fabric.root / "envs/wf/a"
    wait_for(link.is_symlink, message="the path for people is not made")


def begin(fabric: Fabric) -> str:
    """Prepares ROOT and commits the first spec; gives the commit."""
    fabric.init()
    fabric.repo.spec("wf/a", ["alpha"])
    return fabric.repo.commit()


@pytest.fixture(autouse=True)
def no_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    # As root an interpreter would write into the sealed environments.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")


@pytest.mark.root
def test_space_runs_out(small_fabric: Fabric, make_disk: MakeDisk) -> None:
    """On a full disk a build fails with `no-space`, what is published works, and it goes through with room again."""
    fabric = small_fabric
    make_disk(48).mount(fabric.root)
    commit = begin(fabric)
    with fabric.daemon() as daemon:
        serve_first(daemon, commit)
        ballast = fill(fabric.root, leave=2 << 20)
        fabric.repo.spec("wf/b", ["big"])
        fabric.repo.commit()
        error = failed_with(fabric, "wf/b", "no-space")
        assert "No space left" in error["message"]
        assert "Free space" in error["message"]
        assert error["retry_at"]
        # What needs little room is served all the same.
        fabric.repo.spec("wf/c", ["alpha"])
        fabric.repo.commit()
        wait_until_ready(fabric, "wf/c")
        check(fabric, "wf/a", "wf/c")
        assert daemon.get("/healthz")[0] == 200
        assert daemon.metric("envfabric_build_failures_total", reason="no-space") >= 1
        ballast.unlink()
        wait_until_ready(fabric, "wf/b")
        check(fabric, "wf/a", "wf/b", "wf/c")
        wait_for(lambda: not os.listdir(fabric.root / "staging"), message="something stays in staging/")


@pytest.mark.root
def test_not_a_byte_is_left(small_fabric: Fabric, make_disk: MakeDisk) -> None:
    """Where not even the index can be written, the old one stays true and served, and all follows with room again."""
    fabric = small_fabric
    make_disk(48).mount(fabric.root)
    commit = begin(fabric)
    with fabric.daemon() as daemon:
        serve_first(daemon, commit)
        before = fabric.index()
        ballast = fill(fabric.root)
        fabric.repo.spec("wf/c", ["alpha"])
        fabric.repo.spec("wf/d", ["beta"])
        commit = fabric.repo.commit()
        told = wait_for(lambda: daemon.events("index not published"), message="nothing was noticed")
        assert "No space left" in told[0]["error"]
        assert fabric.index() == before
        assert f'"sequence": {before["sequence"]}' in daemon.get("/index.json")[1]
        assert daemon.get("/healthz")[0] == 200
        wait_for(
            lambda: daemon.metric("envfabric_reconcile_failures_total") > 0, message="no metric tells of it"
        )
        check(fabric, "wf/a")
        ballast.unlink()
        daemon.wait_for_index(commit)
        wait_until_ready(fabric, "wf/c", "wf/d")
        check(fabric, "wf/a", "wf/c", "wf/d")


@pytest.mark.root
@pytest.mark.parametrize("what", ["space", "inodes"])
def test_start_on_a_disk_that_a_dead_build_has_filled(
    small_fabric: Fabric, make_disk: MakeDisk, what: str
) -> None:
    """A daemon that comes back to a disk which its own leftovers fill empties them, and goes on, untouched by hand."""
    fabric = small_fabric
    make_disk(48, inodes=1500).mount(fabric.root)
    commit = begin(fabric)
    with fabric.daemon() as daemon:
        serve_first(daemon, commit)
        fabric.repo.spec("wf/d", ["beta"])
        hold = fabric.packages.hold("beta")
        fabric.repo.commit()
        wait_for(lambda: os.listdir(fabric.root / "staging") or None, message="no step began")
        daemon.kill()
    hold.set()
    left = fabric.root / "staging" / uuid.uuid4().hex
    left.mkdir()
    left.with_suffix(".lock").touch()
    (fill if what == "space" else fill_inodes)(left)
    with fabric.daemon() as daemon:
        daemon.wait_for_index(fabric.repo.head)
        wait_until_ready(fabric, "wf/a", "wf/d")
        check(fabric, "wf/a", "wf/d")
        assert not left.exists()


@pytest.mark.root
def test_start_on_a_disk_that_others_have_filled(small_fabric: Fabric, make_disk: MakeDisk) -> None:
    """A daemon that starts on a full disk says so, serves what is published, and writes once there is room."""
    fabric = small_fabric
    make_disk(48).mount(fabric.root)
    commit = begin(fabric)
    with fabric.daemon() as daemon:
        serve_first(daemon, commit)
    ballast = fill(fabric.root)
    fabric.repo.spec("wf/d", ["beta"])
    commit = fabric.repo.commit()
    with fabric.daemon() as daemon:
        wait_for(lambda: daemon.get("/readyz")[0] == 200, message="what is published is not shown")
        wait_for(lambda: any("No space left" in line for line in daemon.lines), message="nothing is said")
        check(fabric, "wf/a")
        ballast.unlink()
        daemon.wait_for_index(commit)
        wait_until_ready(fabric, "wf/d")


@pytest.mark.root
def test_inodes_run_out(small_fabric: Fabric, make_disk: MakeDisk) -> None:
    """Where files can't be made although there are bytes, it is `no-space` as well, and passes by itself."""
    fabric = small_fabric
    make_disk(48, inodes=1500).mount(fabric.root)
    commit = begin(fabric)
    with fabric.daemon() as daemon:
        serve_first(daemon, commit)
        ballast = fill_inodes(fabric.root)
        # A few for the index, too few for an environment.
        for number in range(12):
            (ballast / str(number)).unlink()
        fabric.repo.spec("wf/d", ["beta"])
        fabric.repo.commit()
        failed_with(fabric, "wf/d", "no-space")
        check(fabric, "wf/a")
        shutil.rmtree(ballast)
        wait_until_ready(fabric, "wf/d")
        check(fabric, "wf/a", "wf/d")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_space_or_quota_that_runs_out_for_a_while(small_fabric: Fabric, code: int) -> None:
    """Any user's daemon: what it can't write for a while fails with `no-space`, and is made by its own retry."""
    fabric = small_fabric
    begin(fabric)
    full = threading.Event()

    def step(operation: str, path: Path) -> None:
        if full.is_set() and operation in {"mkdir", "flush"} and path.is_relative_to(fabric.root / "staging"):
            raise OSError(code, os.strerror(code), str(path))

    with surroundings(fabric):
        one = inner_daemon(fabric, step)
        running = threading.Thread(target=one.run, args=(lambda _: None,))
        running.start()
        try:
            wait_for(
                lambda: (fabric.root / "index.json").exists(), timeout=60, message="nothing is published"
            )
            wait_until_ready(fabric, "wf/a")
            full.set()
            fabric.repo.spec("wf/b", ["big"])
            fabric.repo.commit()
            error = failed_with(fabric, "wf/b", "no-space")
            assert os.strerror(code) in error["message"]
            check(fabric, "wf/a")
            full.clear()
            wait_until_ready(fabric, "wf/b")
            check(fabric, "wf/a", "wf/b")
        finally:
            one.stop()
            running.join(60)
        assert not running.is_alive()
