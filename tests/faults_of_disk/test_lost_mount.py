"""A NAS that turns read-only, goes away, or comes back as another mount, under the running daemon."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from faults_of_disk.mounts import Disk, bind, empty, unmount
from support.fabric import Fabric, RunningDaemon
from support.waiting import wait_for

pytestmark = pytest.mark.root


@pytest.fixture
def served(small_fabric: Fabric) -> Fabric:
    """A fabric that looks often, with a commit, whose ROOT is yet to be mounted."""
    small_fabric.repo.spec("wf/a", ["alpha"])
    small_fabric.repo.commit()
    return small_fabric


def epoch(root: Path) -> int:
    return max(int(path.name.removeprefix("epoch-")) for path in (root / "locks").glob("epoch-*"))


def still_serves(daemon: RunningDaemon, sequence: int) -> None:
    """Fails where the daemon is not alive, or shows something else than what was published last."""
    assert daemon.get("/healthz")[0] == 200
    assert daemon.get("/readyz")[0] == 200
    assert f'"sequence": {sequence}' in daemon.get("/index.json")[1]


def reports(daemon: RunningDaemon, *events: str) -> None:
    """Waits until the daemon has said that something is wrong, in its log and its metrics."""
    wait_for(
        lambda: any(daemon.events(event) for event in events), timeout=60, message="nothing is said of it"
    )
    wait_for(lambda: daemon.metric("envfabric_reconcile_failures_total") > 0, message="no metric tells of it")


def ready(fabric: Fabric, commit: str, spec_id: str) -> None:
    """Waits until a commit is published and a spec of it ready: a failed build waits for its retry."""

    def there() -> bool:
        try:
            index = fabric.index()
        except OSError:
            return False
        entry = index["environments"].get(spec_id, {})
        return bool(index["revision"] == commit and entry.get("state") == "ready")

    wait_for(there, timeout=150, message=f"{spec_id} is not made ready")
    assert Path(fabric.index()["python"][spec_id]).exists()


def test_read_only(served: Fabric, make_disk: Callable[..., Disk]) -> None:
    """On a ROOT that turns read-only the daemon says so and serves on; writable again, it writes by itself."""
    make_disk(48).mount(served.root)
    served.init()
    with served.daemon() as daemon:
        before = daemon.wait_for_index(served.repo.head)
        bind(served.root, served.root, read_only=True)
        served.repo.spec("wf/d", ["beta"])
        commit = served.repo.commit()
        reports(daemon, "index not published", "look failed")
        assert any("Read-only file system" in line for line in daemon.lines)
        still_serves(daemon, before["sequence"])
        assert served.index() == before
        unmount(served.root)
        ready(served, commit, "wf/d")
        daemon.wait_for_metric("envfabric_writer", 1)


@pytest.mark.parametrize("between", ["nothing", "another"])
def test_same_disk_comes_back(served: Fabric, make_disk: Callable[..., Disk], between: str) -> None:
    """A disk that is unmounted lazily and mounted again: nothing gets below its mount point, and work goes on."""
    disk = make_disk(48)
    disk.mount(served.root)
    served.init()
    with served.daemon() as daemon:
        before = daemon.wait_for_index(served.repo.head)
        unmount(served.root)
        if between == "another":
            empty(served.root)
        served.repo.spec("wf/d", ["beta"])
        commit = served.repo.commit()
        reports(daemon, "look failed", "turn as the writer ended")
        still_serves(daemon, before["sequence"])
        assert os.listdir(served.root) == []
        if between == "another":
            unmount(served.root)
            assert os.listdir(served.root) == []
        disk.mount(served.root)
        ready(served, commit, "wf/d")
        daemon.wait_for_metric("envfabric_writer", 1)
        unmount(served.root)
        assert os.listdir(served.root) == []
        disk.mount(served.root)


@pytest.mark.parametrize("between", ["nothing", "another"])
def test_other_mount_of_the_same_content_comes_back(
    served: Fabric, make_disk: Callable[..., Disk], between: str
) -> None:
    """Where the lock's path leads to another file after a remount, the daemon gives its lock up and claims anew."""
    old, new = served.folder / "old", served.folder / "new"
    make_disk(96).mount(served.folder / "disk")
    old, new = served.folder / "disk/old", served.folder / "disk/new"
    old.mkdir()
    served.root.mkdir()
    bind(old, served.root)
    served.init()
    with served.daemon() as daemon:
        before = daemon.wait_for_index(served.repo.head)
        first = epoch(old)
        unmount(served.root)
        if between == "another":
            empty(served.root)
        served.repo.spec("wf/d", ["beta"])
        commit = served.repo.commit()
        reports(daemon, "look failed", "turn as the writer ended")
        still_serves(daemon, before["sequence"])
        assert os.listdir(served.root) == []
        # As a server gives it after its restart: the same names and content, other files.
        subprocess.run(["cp", "-a", old, new], check=True)
        if between == "another":
            unmount(served.root)
        bind(new, served.root)
        ready(served, commit, "wf/d")
        assert epoch(new) > first
        assert epoch(old) == first
        assert (old / "index.json").read_bytes() != (new / "index.json").read_bytes()
        assert f'"revision": "{before["revision"]}"' in (old / "index.json").read_text()
        assert daemon.events("turn as the writer ended")
        daemon.wait_for_metric("envfabric_writer", 1)
        # The stale lock was given up: whoever finds the old files may take it.
        lock = old / "locks" / "writer.lock"
        assert subprocess.run(["flock", "--nonblock", lock, "true"], check=False).returncode == 0
        unmount(served.root)
        assert os.listdir(served.root) == []
        bind(new, served.root)


def test_standby_outlives_a_lost_mount(served: Fabric, make_disk: Callable[..., Disk]) -> None:
    """A standby whose ROOT goes away waits for it, and takes over when it is back and the writer is gone."""
    disk = make_disk(48)
    disk.mount(served.root)
    served.init()
    with served.daemon() as writer, served.daemon() as standby:
        before = writer.wait_for_index(served.repo.head)
        wait_for(lambda: standby.events("standby"), message="it does not stand by")
        wait_for(lambda: standby.get("/readyz")[0] == 200, message="it shows nothing")
        unmount(served.root)
        wait_for(lambda: standby.events("standby can't see ROOT"), message="nothing is said of it")
        still_serves(standby, before["sequence"])
        writer.kill()
        assert os.listdir(served.root) == []
        disk.mount(served.root)
        served.repo.spec("wf/d", ["beta"])
        ready(served, served.repo.commit(), "wf/d")
        standby.wait_for_metric("envfabric_writer", 1)
