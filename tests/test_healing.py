"""What a hand, another daemon or a neighbour spoils is found, mended, and costs nobody else anything."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import envfabric
from support.fabric import Fabric
from support.spec_repo import SpecRepo
from support.waiting import wait_for


def remove(path: Path) -> None:
    """rm -rf of a sealed folder, as its owner does it."""
    subprocess.run(["chmod", "-R", "u+w", path], check=True)
    shutil.rmtree(path)


def test_half_removed_closure_is_made_anew(fabric: Fabric) -> None:
    """An interrupted rm -rf leaves a damaged closure, which somebody may lease: the next start builds it beside."""
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.commit()
    before = fabric.run_once()
    name = before["environments"]["wf/a"]["serving"]
    closure = fabric.root / "store" / name
    remove(closure / ".venv")
    (closure / "metadata.json").unlink()
    fabric.repo.spec("wf/b", ["alpha"])
    fabric.repo.commit()
    index = fabric.run_once()
    assert {one["serving"] for one in index["environments"].values()} == {f"{name}-2"}
    fabric.python("wf/a", "import alpha")
    assert {path.name for path in closure.iterdir()} == {"build.log", "manifest"}
    assert list((fabric.root / "trash").iterdir()) == []


def test_closure_removed_under_a_running_daemon(fabric: Fabric) -> None:
    """A spec that needs a closure which was removed meanwhile gets it built, not a dead path."""
    fabric.repo.spec("wf/a", ["alpha"])
    first = fabric.repo.commit()
    with fabric.daemon() as daemon:
        before = daemon.wait_for_index(first)
        # The gauges follow the index by a moment.
        physical = wait_for(
            lambda: daemon.metric("envfabric_store_physical_bytes"), message="nothing counted"
        )
        remove(fabric.root / "store" / before["environments"]["wf/a"]["serving"])
        fabric.repo.spec("wf/b", ["alpha"])
        index = daemon.wait_for_index(fabric.repo.commit())
        assert index["environments"]["wf/b"]["state"] == "ready"
        fabric.python("wf/b", "import alpha")
        daemon.wait_for_metric("envfabric_store_physical_bytes", physical)


def test_removed_or_replaced_index_is_published_again(fabric: Fabric) -> None:
    """A look finds that index.json is not the one that was written; the sequence goes on, never back."""
    fabric.settings["interval"] = 0.2
    fabric.repo.spec("wf/a", ["alpha"])
    first = fabric.repo.commit()
    path = fabric.root / "index.json"
    with fabric.daemon() as daemon:
        one = daemon.wait_for_index(first)
        old = path.read_bytes()
        path.unlink()
        two = wait_for(
            lambda: fabric.index() if path.exists() else None, message="the index did not come back"
        )
        assert two["sequence"] > one["sequence"]
        assert two["python"] == one["python"]
        (fabric.folder / "late").write_bytes(old)
        os.replace(fabric.folder / "late", path)
        wait_for(lambda: fabric.index()["sequence"] > two["sequence"], message="a late index stays")


def test_known_content_waits_behind_no_resolution(fabric: Fabric) -> None:
    """With more specs hanging in uv than there are slots, one whose closure exists is still served."""
    fabric.settings["builders"] = 1
    fabric.repo.spec("wf/a", ["alpha"])
    first = fabric.repo.commit()
    names = [f"hanging-{number}" for number in range(8)]
    holds = [fabric.packages.hold(name) for name in names]
    try:
        with fabric.daemon() as daemon:
            daemon.wait_for_index(first)
            for name in names:
                fabric.packages.add_wheel(name, "1.0")
                fabric.repo.spec(f"slow/{name}", [name])
            fabric.repo.spec("wf/known", ["alpha"])
            fabric.repo.commit()
            wait_for(lambda: "wf/known" in fabric.index()["python"], message="it waits behind the others")
            states = {fabric.entry(f"slow/{name}")["state"] for name in names}
            assert states == {"pending"}
    finally:
        for hold in holds:
            hold.set()


def test_dead_lock_of_one_does_not_fail_another(fabric: Fabric) -> None:
    """Two locks for the same wheels, one with dead addresses: only the spec whose lock it is fails."""
    url = fabric.packages.url
    fabric.packages.add_wheel("shared-wheel", "1.0")
    for spec_id in ("aa/dead", "zz/good"):
        folder = fabric.repo.spec(spec_id, ["shared-wheel"], index=url).parent
        fabric.lock(folder)
    dead = fabric.repo.work / "aa/dead/uv.lock"
    dead.write_text(dead.read_text().replace("/files/", "/gone/"))
    good = fabric.repo.work / "zz"
    good.rename(fabric.folder / "zz")
    fabric.repo.commit()
    hold = fabric.packages.hold(kind="gone")
    try:
        with fabric.daemon() as daemon:
            wait_for(lambda: daemon.events("build") or None, message="the dead one is not built")
            (fabric.folder / "zz").rename(good)
            commit = fabric.repo.commit()
            # The good one wants the same closure, and joins the build that will fail.
            daemon.wait_for_metric("envfabric_closure_requests_total", 2)
            hold.set()
            index = daemon.wait_for_index(commit)
            assert index["environments"]["aa/dead"]["state"] == "failed"
            assert "installing aa/dead" in index["environments"]["aa/dead"]["error"]["message"]
            assert index["environments"]["zz/good"]["state"] == "ready"
            fabric.python("zz/good", "import shared_wheel")
    finally:
        hold.set()


def test_content_that_flips_during_its_build(fabric: Fabric) -> None:
    """Content that goes away and comes back while it is built is served once, as one generation."""
    hold = fabric.packages.hold("flipping")
    fabric.packages.add_wheel("flipping", "1.0")
    fabric.repo.spec("wf/a", ["flipping"])
    fabric.repo.commit()

    def noticed(sha: str) -> bool:
        return (fabric.root / "index.json").exists() and fabric.index()["revision"] == sha

    try:
        with fabric.daemon() as daemon:
            for requirement in ("alpha", "flipping", "gamma", "flipping"):
                fabric.repo.spec("wf/a", [requirement])
                commit = fabric.repo.commit()
                wait_for(partial(noticed, commit), message="not noticed")
            hold.set()
            entry = daemon.wait_for_index(commit)["environments"]["wf/a"]
            assert (entry["state"], entry["error"]) == ("ready", None)
            fabric.python("wf/a", "import flipping")
            assert daemon.metric("envfabric_build_failures_total", reason="store") == 0
    finally:
        hold.set()


def test_shared_question_without_an_answer(fabric: Fabric) -> None:
    """Specs that ask for the same impossible thing are all told so, each by its own name, after one question."""
    for number in range(20):
        fabric.repo.spec(f"wf/spec-{number}", ["no-such-thing"])
    commit = fabric.repo.commit()
    with fabric.daemon() as daemon:
        index = daemon.wait_for_index(commit)
    for spec_id, entry in index["environments"].items():
        assert entry["error"]["reason"] == "unresolvable"
        assert f"resolving {spec_id}:" in entry["error"]["message"]


def test_obstacle_in_envs_hinders_nobody(fabric: Fabric) -> None:
    """A folder where a link for people belongs costs that link only."""
    fabric.init()
    (fabric.root / "envs/wf/b/in-the-way").mkdir(parents=True)
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.spec("wf/b", ["alpha"])
    fabric.repo.commit()
    index = fabric.run_once()
    assert sorted(index["python"]) == ["wf/a", "wf/b"]
    assert (fabric.root / "envs/wf/a/.venv/bin/python").exists()
    assert (fabric.root / "envs/wf/b/in-the-way").is_dir()


def test_exchanged_refs_are_watched_again(fabric: Fabric) -> None:
    """refs/ that was exchanged for another folder is watched like the first one, without the periodic look."""
    fabric.settings["interval"] = 3600
    fabric.repo.spec("wf/a", ["alpha"])
    first = fabric.repo.commit()
    refs = fabric.repo.path / ".git" / "refs"
    with fabric.daemon() as daemon:
        daemon.wait_for_index(first)
        shutil.copytree(refs, refs.with_name("refs-new"))
        refs.rename(refs.with_name("refs-old"))
        refs.with_name("refs-new").rename(refs)
        fabric.repo.spec("wf/b", ["alpha"])
        assert "wf/b" in daemon.wait_for_index(fabric.repo.commit())["python"]
        fabric.repo.spec("wf/c", ["alpha"])
        assert "wf/c" in daemon.wait_for_index(fabric.repo.commit())["python"]


def test_interrupted_one_shot_is_no_success(fabric: Fabric) -> None:
    """`run --once` that was stopped before the revision was true exits 1."""
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.commit()
    fabric.run_once()
    hold = fabric.packages.hold("once-held")
    fabric.packages.add_wheel("once-held", "1.0")
    fabric.repo.spec("wf/a", ["once-held"])
    fabric.repo.commit()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "envfabric", "run", "--once", "--config", str(fabric.configure())],
            env=fabric.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: list((fabric.root / "staging").iterdir()) or None, message="no step began")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 1
    finally:
        hold.set()


def test_other_source_is_refused_beside_a_daemon(fabric: Fabric) -> None:
    """A daemon for another repository does not stand by for a ROOT that it may never write."""
    fabric.repo.spec("wf/a", ["alpha"])
    commit = fabric.repo.commit()
    other = SpecRepo(fabric.folder / "other")
    other.commit("another beginning")
    with fabric.daemon() as daemon:
        daemon.wait_for_index(commit)
        done = fabric.command("run", "--config", fabric.configure(), "--repo", other.path)
        assert done.returncode == 2
        assert "--adopt" in done.stderr


def test_standby_shows_what_is_published(fabric: Fabric) -> None:
    """A standby answers /readyz and /index.json with the writer's index."""
    fabric.repo.spec("wf/a", ["alpha"])
    commit = fabric.repo.commit()
    with fabric.daemon() as writer:
        index = writer.wait_for_index(commit)
        with fabric.daemon() as standby:
            wait_for(lambda: standby.get("/readyz")[0] == 200, message="the standby is not ready")
            wait_for(
                lambda: f'"sequence": {index["sequence"]}' in standby.get("/index.json")[1],
                message="the standby shows another index",
            )


def test_client_waits_for_the_first_index(fabric: Fabric) -> None:
    """`wait` on a prepared ROOT waits for a daemon that has not published yet."""
    fabric.init()
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.commit()
    found: list[str] = []
    waiter = threading.Thread(
        target=lambda: found.append(envfabric.python("wf/a", root=fabric.root, wait=60))
    )
    waiter.start()
    fabric.run_once()
    waiter.join(timeout=60)
    assert found == [fabric.index()["python"]["wf/a"]]


def test_mount_that_went_away_is_not_written_to(fabric: Fabric) -> None:
    """With the NAS replaced by an empty folder nothing is written there, and all goes on when it is back."""
    fabric.settings["interval"] = 0.2
    fabric.repo.spec("wf/a", ["alpha"])
    first = fabric.repo.commit()
    away = fabric.folder / "away"
    with fabric.daemon() as daemon:
        daemon.wait_for_index(first)
        fabric.root.rename(away)
        fabric.root.mkdir()
        fabric.repo.spec("wf/b", ["gamma"], requires_python=">=3.10")
        commit = fabric.repo.commit()
        wait_for(lambda: daemon.events("look failed") or None, message="nothing was noticed")
        assert daemon.get("/healthz")[0] == daemon.get("/readyz")[0] == 200
        assert list(fabric.root.iterdir()) == []
        fabric.root.rmdir()
        away.rename(fabric.root)
        daemon.wait_for_index(commit)
        wait_for(
            lambda: "wf/b" in fabric.index()["python"], timeout=90, message="the build was not tried again"
        )
