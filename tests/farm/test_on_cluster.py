"""Builds on the nodes of a real cluster, and what becomes of them when a part of it is lost."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog

from envfabric.build.environment import Builder, Recipe
from envfabric.build.farm.executor import Farm, Terms, site_of
from envfabric.build.scope import Scope
from envfabric.telemetry.metrics import Metrics
from farm.conftest import HoldingIndex
from farm.ray_cluster import VARIABLES, RayCluster, words_of
from support.fabric import Fabric, RunningDaemon
from support.namespace import descendants
from support.place import Place
from support.waiting import wait_for

LONG = 180.0


def nodes_of(daemon: RunningDaemon) -> list[str]:
    """The nodes that builds were given to so far, in order."""
    return [one["node"].partition(" ")[0] for one in daemon.events("build on node")]


def uv_processes(root: Path) -> list[int]:
    """The uv processes that build below a ROOT."""
    pids = [int(one) for one in os.listdir("/proc") if one.isdecimal()]
    staging = f"{root}/staging/"
    found = []
    for pid in pids:
        try:
            there = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            continue
        if there.startswith(staging):
            found.append(pid)
    return found


def left(fabric: Fabric) -> list[str]:
    return [one.name for folder in ("staging", "trash") for one in (fabric.root / folder).iterdir()]


def check_clean(fabric: Fabric) -> None:
    """Nothing is left of what was begun, and what is in the store is whole."""
    wait_for(lambda: not left(fabric), timeout=LONG, message=f"left behind: {left(fabric)}")
    done = fabric.command("verify", "--config", fabric.configure())
    assert done.returncode == 0, done.stdout + done.stderr


def the_driver(daemon: RunningDaemon) -> int:
    """The daemon's process in the cluster."""
    (pid,) = (
        one for one in descendants(daemon.process.pid) if "envfabric.build.farm.driver" in words_of(one)
    )
    return pid


def sealed(fabric: Fabric) -> dict[str, list[str]]:
    """The manifests of a fabric's closures by digest, without what tells of the build itself."""
    return {
        one.name: [line for line in (one / "manifest").read_text().splitlines() if '".venv' in line]
        for one in (fabric.root / "store").iterdir()
    }


def test_builds_run_on_all_nodes_and_come_to_the_same(
    farm: Fabric, index: HoldingIndex, tmp_path: Path
) -> None:
    """No node has more builds than the settings say; what comes of them is what the daemon's host would make, linked
    from one cache, and their logs lie in the closures. Neither daemon has loaded Ray."""
    names = ("first", "second", "third")
    releases = [index.hold_download(name) for name in names]
    for name in names:
        farm.repo.spec(f"wf/{name}", [name])
    commit = farm.repo.commit()
    with farm.daemon() as daemon:
        wait_for(lambda: len(nodes_of(daemon)) == 2, timeout=LONG, message="two builds did not begin")
        assert sorted(nodes_of(daemon)) == ["one", "two"]
        for release in releases:
            release.set()
        made = daemon.wait_for_index(commit, timeout=LONG)
        assert {one["state"] for one in made["environments"].values()} == {"ready"}
        assert len(nodes_of(daemon)) == 3
        assert daemon.metric("envfabric_link_fallbacks_total") == 0
        assert "/ray/" not in Path(f"/proc/{daemon.process.pid}/maps").read_text()
    for spec in ("wf/first", "wf/third"):
        closure = farm.root / "store" / made["environments"][spec]["serving"]
        log = (closure / "build.log").read_text()
        assert "# on node " in log and "uv sync" in log
        assert json.loads((closure / "metadata.json").read_bytes())["linked"] > 0
    check_clean(farm)

    local = Fabric(tmp_path / "local", index, farm.repo)
    local.folder.mkdir()
    with local.daemon() as daemon:
        daemon.wait_for_index(commit, timeout=LONG)
        assert "/ray/" not in Path(f"/proc/{daemon.process.pid}/maps").read_text()
    assert sealed(local) == sealed(farm)


def test_a_build_ends_with_its_time_and_with_its_commit(farm: Fabric, index: HoldingIndex) -> None:
    """After `build_timeout` the processes on the node are ended, and so is what a newer commit does not want; the
    error is the one of a local build."""
    index.hold_download("slow")
    farm.repo.spec("wf/one", ["slow"])
    farm.repo.commit()
    with farm.daemon() as daemon:
        index.wait_for_download("slow")
        farm.repo.spec("wf/one", ["alpha"])
        second = farm.repo.commit()
        made = daemon.wait_for_index(second, timeout=LONG)
        assert made["environments"]["wf/one"]["state"] == "ready"
        assert daemon.events("superseded")
        wait_for(lambda: not uv_processes(farm.root), timeout=LONG, message="uv runs on")
    check_clean(farm)
    farm.settings["build_timeout"] = 30
    farm.repo.spec("wf/one", ["slow"])
    third = farm.repo.commit()
    with farm.daemon() as daemon:
        made = daemon.wait_for_index(third, timeout=LONG)
        error = made["environments"]["wf/one"]["error"]
        assert (error["reason"], made["environments"]["wf/one"]["state"]) == ("timeout", "stale")
        assert "building wf/one ran longer than 30 s" in error["message"]
        wait_for(lambda: not uv_processes(farm.root), timeout=LONG, message="uv runs on")
    check_clean(farm)


def test_a_killed_daemon_takes_its_builds_along(farm: Fabric, index: HoldingIndex) -> None:
    """After kill -9 of the daemon nothing goes on on any node; the next one makes the environment."""
    release = index.hold_download("slow")
    farm.repo.spec("wf/one", ["slow"])
    commit = farm.repo.commit()
    with farm.daemon() as daemon:
        index.wait_for_download("slow")
        assert uv_processes(farm.root)
        daemon.kill()
        wait_for(lambda: not uv_processes(farm.root), timeout=LONG, message="uv runs on")
        release.set()
    with farm.daemon() as daemon:
        made = daemon.wait_for_index(commit, timeout=LONG)
        assert made["environments"]["wf/one"]["state"] == "ready"
    check_clean(farm)


def test_a_lost_cluster_is_found_again(farm: Fabric, index: HoldingIndex) -> None:
    """Losing the connection to the cluster ends neither the daemon nor the build: it connects anew."""
    release = index.hold_download("slow")
    farm.repo.spec("wf/one", ["slow"])
    commit = farm.repo.commit()
    with farm.daemon() as daemon:
        index.wait_for_download("slow")
        os.kill(the_driver(daemon), signal.SIGKILL)
        index.wait_for_download("slow", 2)
        release.set()
        made = daemon.wait_for_index(commit, timeout=LONG)
        assert made["environments"]["wf/one"]["state"] == "ready"
        assert len(daemon.events("the farm's cluster is reached")) == 2
        assert daemon.metric("envfabric_farm_lost_builds_total") == 1
        check_clean(farm)


def test_a_node_dies_in_the_middle(farm: Fabric, index: HoldingIndex, cluster: RayCluster) -> None:
    """A build whose node is lost is done on another one. Nothing of the first try is left, and the store is whole."""
    release = index.hold_download("slow")
    farm.repo.spec("wf/one", ["slow"])
    commit = farm.repo.commit()
    with farm.daemon() as daemon:
        index.wait_for_download("slow")
        (first,) = nodes_of(daemon)
        before = uv_processes(farm.root)
        assert before
        cluster.lose_raylet(first)
        index.wait_for_download("slow", 2)
        wait_for(
            lambda: not set(before) & set(uv_processes(farm.root)), timeout=LONG, message="its uv runs on"
        )
        release.set()
        made = daemon.wait_for_index(commit, timeout=LONG)
        entry = made["environments"]["wf/one"]
        assert entry["state"] == "ready"
        second = nodes_of(daemon)[-1]
        assert second != first
        assert daemon.metric("envfabric_farm_lost_builds_total") >= 1
        assert daemon.events("a build is begun elsewhere")
        log = (farm.root / "store" / entry["serving"] / "build.log").read_text()
        assert "was lost" in log and f"# on node {second}" in log
        check_clean(farm)


HOG = """
import sys, time
from pathlib import Path
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
@ray.remote(num_cpus=2)
def hold(path):
    Path(path + ".held").touch()
    while not Path(path).exists():
        time.sleep(0.1)
ray.get([hold.options(resources={Path(one).name: 1}).remote(one) for one in sys.argv[2:]])
"""
"""Fills nodes, each until a file of its name is there."""


def test_a_build_does_not_wait_for_a_node_that_others_fill(
    place: Place, recipe: Recipe, nodes: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that Ray has wait, for others' tasks, goes to another node as soon as that has room. The log tells of
    it, and waiting uses up nothing of the build's time."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("envfabric.build.farm.remote.PENDING", 1.0)
    events = list[dict[str, Any]]()
    log = structlog.wrap_logger(None, processors=[lambda _logger, _level, line: keep(events, line)])
    monkeypatch.setattr("envfabric.build.farm.remote.logs.get", lambda: log)
    farm = Farm(partial(site_of, place.uv(), 1, 0), Terms(nodes.address, per_node=1), Metrics())
    builder = Builder(place.closures, place.files, place.uv(), executor=farm)
    scope, built = Scope("building", 3600), list[str]()

    def build() -> None:
        with scope.entered():
            built.append(builder.build(recipe, lambda phase: None).name)

    def told(event: str) -> list[dict[str, Any]]:
        return [one for one in events if one["event"] == event]

    holds = {name: tmp_path / name for name in ("one", "two")}
    hog = subprocess.Popen([sys.executable, "-c", HOG, nodes.address, *map(str, holds.values())])
    thread = threading.Thread(target=build, daemon=True)
    try:
        for path in holds.values():
            wait_for(path.with_suffix(".held").exists, timeout=LONG, message="the nodes were not filled")
        thread.start()
        wait_for(lambda: told("a build waits for its node"), timeout=LONG, message="it does not wait")
        assert math.isinf(scope.deadline)
        (first,) = (one["node"].partition(" ")[0] for one in told("build on node"))
        (other,) = holds.keys() - {first}
        holds[other].touch()
        thread.join(LONG)
        assert len(built) == 1
        assert not math.isinf(scope.deadline)
        assert told("a build goes to another node")
        assert [one["node"].partition(" ")[0] for one in told("build on node")][-1] == other
        log_of = (place.root.closure(built[0]) / "build.log").read_text()
        assert f"# on node {other} " in log_of and f"# on node {first} " not in log_of
        assert os.listdir(place.root.staging) == []
    finally:
        for path in holds.values():
            path.touch()
        hog.wait(LONG)
        farm.stop()


def keep(events: list[dict[str, Any]], line: Any) -> Any:
    events.append(dict(line))
    raise structlog.DropEvent


@pytest.mark.root
def test_a_node_with_another_root_builds_nothing(
    farm: Fabric, index: HoldingIndex, cluster: RayCluster, tmp_path: Path
) -> None:
    """A node on which another folder lies at ROOT's path is passed over; where it is the only one, the error says
    what is wrong with it."""
    farm.init()
    other = tmp_path / "other"
    shutil.copytree(farm.root, other)
    (other / ".envfabric.json").write_text('{"schema": 1}')
    mount = f'mount --bind {other} {farm.root} && exec "$@"'
    cluster.start("unfit", within=("unshare", "--mount", "sh", "-c", mount, "sh"))
    cluster.joined("unfit")
    farm.repo.spec("wf/one", ["alpha"])
    commit = farm.repo.commit()
    farm.variables["ENVFABRIC_FARM__RESOURCES"] = '{"unfit": 0.1}'
    made = farm.run_once(expect=1)
    error = made["environments"]["wf/one"]["error"]
    assert error["reason"] == "store"
    assert "has another folder at" in error["message"] and str(farm.root) in error["message"]

    names = ("second", "third")
    releases = [index.hold_download(name) for name in names]
    for name in names:
        farm.repo.spec(f"wf/{name}", [name])
    commit = farm.repo.commit()
    del farm.variables["ENVFABRIC_FARM__RESOURCES"]
    with farm.daemon() as daemon:
        wait_for(lambda: daemon.events("a node can't build"), timeout=LONG, message="it was not refused")
        for release in releases:
            release.set()
        daemon.wait_for_index(commit, timeout=LONG)
        # The one that failed before has its next try a little later.
        wait_for(
            lambda: {one["state"] for one in farm.index()["environments"].values()} == {"ready"},
            timeout=LONG,
            message="not all are ready",
        )
        assert daemon.metric("envfabric_farm_refusals_total") == 1
    check_clean(farm)
