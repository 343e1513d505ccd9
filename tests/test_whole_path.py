"""A commit becomes an index entry whose interpreter runs: the way through every room, with real parts."""

import json
import os
import stat
import subprocess
from pathlib import Path

from support.fabric import Fabric
from support.spec_repo import SpecRepo
from support.waiting import wait_for


def test_one_shot_publishes_every_spec(fabric: Fabric) -> None:
    """`run --once` builds what is committed, publishes it, and exits 0."""
    fabric.repo.spec("wf-001/node-A", ["beta"])
    fabric.repo.spec("wf-001/node-B", ["gamma==1.0"])
    commit = fabric.repo.commit()
    index = fabric.run_once()
    assert index["schema"] == 1
    assert index["revision"] == commit
    assert index["complete"] is True
    assert index["problems"] == []
    assert index["root"] == str(fabric.root)
    assert sorted(index["python"]) == ["wf-001/node-A", "wf-001/node-B"]
    entry = index["environments"]["wf-001/node-A"]
    assert entry["state"] == "ready"
    assert entry["generation"] == 1
    assert entry["error"] is None
    assert index["python"]["wf-001/node-A"] == f"{fabric.root}/store/{entry['serving']}/.venv/bin/python"
    assert fabric.python("wf-001/node-A", "import alpha, beta; print(alpha.VERSION)") == "1.0"
    assert fabric.python("wf-001/node-B", "import gamma; print(gamma.VERSION)") == "1.0"


def test_running_daemon_follows_commits(fabric: Fabric) -> None:
    """Without a restart: a commit is built, another changes it, a removal withdraws it."""
    # The last spec is removed, which is held back otherwise.
    fabric.settings["prune"] = {"share": 1.0}
    fabric.repo.spec("wf/a", ["gamma==1.0"])
    first = fabric.repo.commit()
    with fabric.daemon() as daemon:
        one = daemon.wait_for_index(first)
        fabric.repo.spec("wf/a", ["gamma==2.0"])
        two = daemon.wait_for_index(fabric.repo.commit())
        assert two["sequence"] > one["sequence"]
        assert two["environments"]["wf/a"]["generation"] == 2
        assert fabric.python("wf/a", "import gamma; print(gamma.VERSION)") == "2.0"
        assert os.path.exists(one["python"]["wf/a"]), "a running job's interpreter stays"
        fabric.repo.remove("wf/a")
        three = daemon.wait_for_index(fabric.repo.commit())
        assert three["environments"] == {}
        assert three["python"] == {}
        wait_for(lambda: not (fabric.root / "envs" / "wf").exists(), message="the link for people stays")


def test_uncommitted_edit_is_never_built(fabric: Fabric) -> None:
    """A half-edited work tree does not matter; neither does what is only staged."""
    fabric.repo.spec("wf/a", ["alpha"])
    commit = fabric.repo.commit()
    fabric.repo.spec("wf/a", ["gamma"])
    fabric.repo.spec("wf/b", ["gamma"])
    fabric.repo.git("add", "-A")
    index = fabric.run_once()
    assert index["revision"] == commit
    assert sorted(index["environments"]) == ["wf/a"]
    fabric.python("wf/a", "import alpha, importlib.util as u; assert u.find_spec('gamma') is None")


def test_equal_requirements_share_one_closure(fabric: Fabric) -> None:
    """Two specs that ask for the same get one directory, and each a lock of its own that uv accepts."""
    fabric.repo.spec("wf/a", ["beta", "gamma"])
    fabric.repo.spec("zz/z", ["gamma", "beta"])
    fabric.repo.commit()
    index = fabric.run_once()
    one, two = (index["environments"][name] for name in ("wf/a", "zz/z"))
    assert one["serving"] == two["serving"]
    assert len(list((fabric.root / "store").iterdir())) == 1
    for spec_id, name in (("wf/a", "wf-a"), ("zz/z", "zz-z")):
        generation = fabric.root / "generations" / spec_id / "1"
        assert f'name = "{name}"' in (generation / "uv.lock").read_text()
        fabric.lock(
            copy_of(generation, fabric.folder / name), "--check", "--default-index", fabric.packages.url
        )


def test_white_box_for_people(fabric: Fabric) -> None:
    """envs/<id>/.venv/bin/python works and `source …/activate` does, in bash."""
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.commit()
    fabric.run_once()
    venv = fabric.root / "envs" / "wf" / "a" / ".venv"
    code = "import alpha, sys; print(sys.prefix)"
    direct = subprocess.run([venv / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
    assert "alpha" not in direct.stderr
    script = f'source {venv}/bin/activate && python -c "{code}" && echo "$VIRTUAL_ENV"'
    active = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert os.path.realpath(active.stdout.split()[1]) == os.path.realpath(venv)


def test_closure_is_sealed_and_described(fabric: Fabric) -> None:
    """Nothing below a closure is writable, its metadata say what it is made of, its manifest lists all."""
    fabric.repo.spec("wf/a", ["beta"])
    fabric.repo.commit()
    digest = fabric.run_once()["environments"]["wf/a"]["serving"]
    closure = fabric.root / "store" / digest
    for path in closure.rglob("*"):
        if not path.is_symlink():
            mode = path.stat().st_mode
            assert mode & 0o222 == 0, f"{path} is writable"
            assert mode & 0o444 == 0o444, f"{path} can't be read by all"
    assert stat.S_IMODE(closure.stat().st_mode) == 0o755
    metadata = json.loads((closure / "metadata.json").read_bytes())
    names = [one["name"] for one in metadata["inputs"]["distributions"]]
    assert names == ["alpha", "beta"]
    assert metadata["link_fallbacks"] == 0
    *lines, last = (json.loads(line) for line in (closure / "manifest").read_text().splitlines())
    there = {str(path.relative_to(closure)) for path in closure.rglob("*")}
    assert {line[1] for line in lines} == there - {"manifest"}
    assert last[0] == "sha256"
    module = next(closure.glob(".venv/lib/python*/site-packages/alpha/__init__.py"))
    assert module.stat().st_nlink == 2, "shared with the cache"


def test_committed_lock_is_taken_exactly(fabric: Fabric) -> None:
    """With a committed uv.lock the build takes its versions, although newer ones exist."""
    url = fabric.packages.url
    folder = fabric.repo.spec("wf/a", ["gamma<2"], index=url)
    fabric.lock(folder.parent)
    committed = (fabric.repo.work / "wf/a/uv.lock").read_bytes()
    text = (fabric.repo.work / "wf/a/pyproject.toml").read_text()
    assert b'version = "1.0"' in committed
    assert "gamma<2" in text
    fabric.repo.commit()
    index = fabric.run_once()
    assert index["environments"]["wf/a"]["state"] == "ready"
    assert (fabric.root / "generations/wf/a/1/uv.lock").read_bytes() == committed
    assert fabric.python("wf/a", "import gamma; print(gamma.VERSION)") == "1.0"


def test_known_content_needs_no_uv_and_is_quick(fabric: Fabric) -> None:
    """A spec whose closure exists is published without a build, with and without a committed lock."""
    url = fabric.packages.url
    fabric.repo.spec("wf/plain", ["beta"])
    fabric.repo.spec("wf/locked", ["gamma<2"], index=url)
    fabric.lock(fabric.repo.work / "wf/locked")
    first = fabric.repo.commit()
    with fabric.daemon() as daemon:
        daemon.wait_for_index(first)
        builds = daemon.metric("envfabric_builds_total")
        fabric.repo.spec("new/plain", ["beta"], name="another-plain")
        index = daemon.wait_for_index(fabric.repo.commit())
        assert index["python"]["new/plain"] == index["python"]["wf/plain"]
        lock = (fabric.repo.work / "wf/locked/uv.lock").read_bytes()
        renamed = lock.replace(b'name = "wf-locked"', b'name = "a-locked"')
        fabric.repo.spec("new/locked", ["gamma<2"], index=url, name="a-locked", lock=renamed)
        index = daemon.wait_for_index(fabric.repo.commit())
        assert index["python"]["new/locked"] == index["python"]["wf/locked"]
        assert daemon.metric("envfabric_builds_total") == builds
        assert daemon.metric("envfabric_closure_requests_total") == 4
        assert daemon.metric("envfabric_closure_hits_total") == 2


def test_retained_content_comes_back_under_its_number(fabric: Fabric) -> None:
    """A revert serves the old generation with its lock, and an edited README makes none."""
    fabric.repo.spec("wf/a", ["gamma==1.0"])
    one = fabric.repo.commit()
    with fabric.daemon() as daemon:
        digest = daemon.wait_for_index(one)["environments"]["wf/a"]["serving"]
        fabric.repo.spec("wf/a", ["gamma==2.0"])
        daemon.wait_for_index(fabric.repo.commit())
        builds = daemon.metric("envfabric_builds_total")
        index = daemon.wait_for_index(fabric.repo.revert())
        entry = index["environments"]["wf/a"]
        assert (entry["generation"], entry["serving"]) == (1, digest)
        fabric.repo.write("wf/a/README.md", "words")
        index = daemon.wait_for_index(fabric.repo.commit())
        assert index["environments"]["wf/a"]["generation"] == 1
        assert index["environments"]["wf/a"]["tree"] != entry["tree"]
        assert daemon.metric("envfabric_builds_total") == builds
        assert sorted(path.name for path in (fabric.root / "generations/wf/a").iterdir()) == ["1", "2"]
    assert os.readlink(fabric.root / "envs/wf/a") == "../../generations/wf/a/1"


def test_added_requirement_keeps_other_versions(fabric: Fabric, tmp_path: Path) -> None:
    """The daemon's own lock is the base of the next one: what was locked does not move by itself."""
    fabric.packages.add_wheel("moving", "1.0")
    fabric.repo.spec("wf/a", ["moving"])
    one = fabric.repo.commit()
    with fabric.daemon() as daemon:
        daemon.wait_for_index(one)
        fabric.packages.add_wheel("moving", "1.1")
        fabric.repo.spec("wf/a", ["moving", "alpha"])
        daemon.wait_for_index(fabric.repo.commit())
        assert fabric.python("wf/a", "import alpha, moving; print(moving.VERSION)") == "1.0"


def test_bare_repository_branch_and_folder(fabric: Fabric) -> None:
    """A bare repository on another branch, with the specs in a folder of it, is followed by its pushes."""
    repo = SpecRepo(fabric.folder / "bare.git", bare=True, spec_dir="deploy/envs")
    repo.spec("wf/main", ["alpha"])
    repo.commit()
    repo.branch("prod")
    repo.spec("wf/prod", ["gamma"])
    commit = repo.commit()
    fabric.repo = repo
    fabric.settings |= {"branch": "prod", "path": "deploy/envs"}
    with fabric.daemon() as daemon:
        assert sorted(daemon.wait_for_index(commit)["python"]) == ["wf/main", "wf/prod"]
        repo.spec("wf/more", ["alpha"])
        assert "wf/more" in daemon.wait_for_index(repo.commit())["python"]


def test_periodic_look_finds_what_no_notification_told(fabric: Fabric) -> None:
    """A ref that moves without an event, as on another host, is seen by the next periodic look."""
    fabric.settings["interval"] = 0.3
    fabric.repo.spec("wf/a", ["alpha"])
    first = fabric.repo.commit()
    refs = fabric.repo.path / ".git" / "refs"
    with fabric.daemon() as daemon:
        daemon.wait_for_index(first)
        # The watched folder is exchanged for another one: its watch sees nothing of what follows.
        refs.rename(refs.with_name("refs-old"))
        subprocess.run(["cp", "-a", refs.with_name("refs-old"), refs], check=True)
        fabric.repo.spec("wf/b", ["alpha"])
        assert "wf/b" in daemon.wait_for_index(fabric.repo.commit())["python"]


def test_notification_is_faster_than_the_interval(fabric: Fabric) -> None:
    """With a look only once an hour a commit is still seen at once, packed refs included."""
    fabric.settings["interval"] = 3600
    fabric.repo.spec("wf/a", ["alpha"])
    first = fabric.repo.commit()
    with fabric.daemon() as daemon:
        daemon.wait_for_index(first)
        fabric.repo.spec("wf/b", ["alpha"])
        assert "wf/b" in daemon.wait_for_index(fabric.repo.commit())["python"]
        fabric.repo.git("pack-refs", "--all")
        fabric.repo.spec("wf/c", ["alpha"])
        assert "wf/c" in daemon.wait_for_index(fabric.repo.commit())["python"]
        fabric.repo.git("checkout", "-q", "-b", "other")
        fabric.repo.spec("wf/d", ["alpha"])
        assert "wf/d" in daemon.wait_for_index(fabric.repo.commit())["python"], "HEAD is followed"


def test_restart_serves_on_without_work(fabric: Fabric) -> None:
    """A daemon that starts on what is published changes nothing: no sequence number, no build."""
    fabric.repo.spec("wf/a", ["alpha"])
    commit = fabric.repo.commit()
    before = fabric.run_once()
    with fabric.daemon() as daemon:
        wait_for(
            lambda: daemon.metric("envfabric_reconcile_last_success_timestamp_seconds") or None,
            message="no look",
        )
        daemon.wait_for_metric("envfabric_specs", 1, state="ready")
        assert daemon.metric("envfabric_builds_total") == 0
        assert daemon.metric("envfabric_store_physical_bytes") > 0
    after = fabric.index()
    assert after["revision"] == commit
    assert after == before


def test_killed_in_the_middle_of_a_build(fabric: Fabric) -> None:
    """kill -9 during a build leaves nothing published that is not whole; the next start finishes."""
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.commit()
    fabric.run_once()
    hold = fabric.packages.hold("slow")
    fabric.packages.add_wheel("slow", "1.0")
    fabric.repo.spec("wf/a", ["slow"])
    commit = fabric.repo.commit()
    try:
        with fabric.daemon() as daemon:
            wait_for(lambda: list((fabric.root / "staging").iterdir()) or None, message="no build began")
            daemon.kill()
        index = fabric.index()
        assert fabric.python("wf/a", "import alpha; print(1)") == "1"
        assert index["environments"]["wf/a"]["serving"]
    finally:
        hold.set()
    with fabric.daemon() as daemon:
        index = daemon.wait_for_index(commit)
        assert index["environments"]["wf/a"]["state"] == "ready"
        fabric.python("wf/a", "import slow")
        wait_for(
            lambda: not list((fabric.root / "staging").iterdir()) or None, message="staging was not emptied"
        )


def test_stop_during_a_build_is_prompt_and_clean(fabric: Fabric) -> None:
    """SIGTERM ends uv and the daemon within seconds, with exit code 0 and an empty staging folder."""
    hold = fabric.packages.hold("slow-stop")
    fabric.packages.add_wheel("slow-stop", "1.0")
    fabric.repo.spec("wf/a", ["slow-stop"])
    fabric.repo.commit()
    try:
        with fabric.daemon() as daemon:
            wait_for(lambda: list((fabric.root / "staging").iterdir()) or None, message="no build began")
            daemon.process.terminate()
            # The index holds its answer until the end of this test: uv would wait for its own time-outs.
            daemon.process.wait(timeout=60)
    finally:
        hold.set()
    assert list((fabric.root / "staging").iterdir()) == []


def copy_of(generation: Path, folder: Path) -> Path:
    """A generation's spec files, outside ROOT."""
    folder.mkdir()
    for name in ("pyproject.toml", "uv.lock"):
        (folder / name).write_bytes((generation / name).read_bytes())
    return folder
