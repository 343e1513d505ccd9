"""What a hand changes under ROOT is found by a look and repaired, with no commit and no restart."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fabric import Fabric, RunningDaemon
from support.saved import Saved
from support.simple_index import SimpleIndex
from support.waiting import wait_for


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, packages: SimpleIndex) -> Saved:
    """Two specs of one closure, and a third of another."""

    def make(fabric: Fabric) -> None:
        fabric.repo.spec("wf/a", ["gamma==1.0"])
        fabric.repo.spec("wf/b", ["gamma==1.0"])
        fabric.repo.spec("wf/c", ["alpha"])
        fabric.repo.commit()
        fabric.run_once()

    return Saved(tmp_path_factory.mktemp("drift"), packages, make)


@pytest.fixture
def fabric(saved: Saved) -> Fabric:
    return saved.again()


@pytest.fixture
def daemon(fabric: Fabric) -> Iterator[RunningDaemon]:
    """A daemon on them, with a look five times a second."""
    fabric.settings["interval"] = 0.2
    with pytest.MonkeyPatch.context() as patch, fabric.daemon() as daemon:
        # Interpreters of closures run in these tests, and must write nothing into them.
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        daemon.wait_for_index(fabric.repo.head)
        daemon.wait_for_metric("envfabric_specs", 3, state="ready")
        # What is gone before it has looked around is no drift, but what it finds at its start.
        looked = "envfabric_reconcile_last_success_timestamp_seconds"
        wait_for(lambda: daemon.metric(looked) > 0, message="it does not look around")
        yield daemon


def remove(path: Path) -> None:
    subprocess.run(["chmod", "-R", "u+w", str(path)], check=True)
    subprocess.run(["rm", "-rf", str(path)], check=True)


def changed(fabric: Fabric, before: dict[str, Any], *ids: str) -> dict[str, Any]:
    """The index once these specs are ready under other closures or generations than before."""

    def look() -> dict[str, Any] | None:
        index = fabric.index()
        old, new = before["environments"], index["environments"]
        done = all(new[one]["state"] == "ready" and new[one] != old[one] for one in ids)
        return index if done and index["complete"] else None

    return wait_for(look, timeout=90, message=f"{ids} were not repaired")


def file_of(fabric: Fabric, spec_id: str, number: int, name: str) -> Path:
    return fabric.root / "generations" / spec_id / str(number) / name


def test_lost_closure(fabric: Fabric, daemon: RunningDaemon) -> None:
    """It is taken out of the index and built again for all that serve it, as it was; the others are left alone."""
    before = fabric.index()
    lost = before["environments"]["wf/a"]["serving"]
    builds = daemon.metric("envfabric_builds_total")
    sequence = before["sequence"]
    remove(fabric.root / "store" / lost)
    wait_for(lambda: daemon.metric("envfabric_builds_total") == builds + 1, message="it is not built again")
    daemon.wait_for_metric("envfabric_specs", 3, state="ready")
    index = wait_for(
        lambda: (
            found if (found := fabric.index())["sequence"] > sequence and len(found["python"]) == 3 else None
        ),
        message="what was lost is not served again",
    )
    for spec_id in ("wf/a", "wf/b"):
        assert fabric.python(spec_id, "import gamma; print(gamma.VERSION)") == "1.0"
        assert index["environments"][spec_id]["generation"] == 1
        assert index["environments"][spec_id]["error"] is None
    assert index["environments"]["wf/c"] == before["environments"]["wf/c"]
    assert daemon.metric("envfabric_builds_total") == builds + 1
    assert daemon.metric("envfabric_drift_total", kind="closure") == 1
    assert daemon.metric("envfabric_reconcile_failures_total") == 0


def test_broken_seal(fabric: Fabric, daemon: RunningDaemon) -> None:
    """A closure without its manifest is proven, marked, and built again beside; it is served until then."""
    before = fabric.index()
    name = before["environments"]["wf/c"]["serving"]
    remove(fabric.root / "store" / name / "manifest")
    index = changed(fabric, before, "wf/c")
    assert index["environments"]["wf/c"]["serving"] == f"{name}-2"
    assert daemon.metric("envfabric_drift_total", kind="seal") == 1
    assert index["environments"]["wf/a"] == before["environments"]["wf/a"]
    fabric.python("wf/c", "import alpha")


@pytest.mark.parametrize("what", ["metadata.json", "pyproject.toml", ".venv"])
def test_damaged_generation(fabric: Fabric, daemon: RunningDaemon, what: str) -> None:
    """A generation that lacks a file is written anew with the lock that it had, without a build or a question to the
    package index; its number is not given again."""
    before, asked = fabric.index(), fabric.packages.requests
    builds = daemon.metric("envfabric_builds_total")
    lock = file_of(fabric, "wf/a", 1, "uv.lock").read_bytes()
    os.unlink(file_of(fabric, "wf/a", 1, what))
    entry = changed(fabric, before, "wf/a")["environments"]["wf/a"]
    assert (entry["generation"], entry["serving"]) == (2, before["environments"]["wf/a"]["serving"])
    assert file_of(fabric, "wf/a", 2, "uv.lock").read_bytes() == lock
    assert json.loads(file_of(fabric, "wf/a", 2, "metadata.json").read_bytes())["lock_origin"] == "resolved"
    assert file_of(fabric, "wf/a", 2, ".venv/bin/python").exists()
    assert not file_of(fabric, "wf/a", 1, "").exists()
    assert daemon.metric("envfabric_drift_total", kind="generation") == 1
    wait_for(
        lambda: os.readlink(fabric.root / "envs/wf/a").endswith("/2"), message="the path for people is stale"
    )
    assert daemon.metric("envfabric_builds_total") == builds
    assert fabric.packages.requests == asked


@pytest.mark.parametrize("what", ["1", ""], ids=["one", "all"])
def test_lost_generation(fabric: Fabric, daemon: RunningDaemon, what: str) -> None:
    """rm -rf of a generation, or of all of a spec's: it has one again, of another number, and the closure stays."""
    before = fabric.index()
    remove(fabric.root / "generations/wf/b" / what)
    entry = changed(fabric, before, "wf/b")["environments"]["wf/b"]
    assert (entry["generation"], entry["serving"]) == (2, before["environments"]["wf/b"]["serving"])
    assert file_of(fabric, "wf/b", 2, "uv.lock").exists()
    assert fabric.entry("wf/a") == before["environments"]["wf/a"]


def test_edited_generation(fabric: Fabric, daemon: RunningDaemon) -> None:
    """A lock that was edited is not served on as the generation's; one that was only touched is."""
    before = fabric.index()
    path = file_of(fabric, "wf/a", 1, "uv.lock")
    lock = path.read_bytes()

    def edited() -> dict[str, Any] | None:
        # Until it was seen once, nothing tells an edited file from another.
        with contextlib.suppress(FileNotFoundError):
            os.chmod(path, 0o644)
            path.write_bytes(path.read_bytes() + b"\n")
        index = fabric.index()
        return index if index["environments"]["wf/a"]["generation"] == 2 else None

    wait_for(edited, timeout=90, message="an edited lock stays")
    assert file_of(fabric, "wf/a", 2, "uv.lock").read_bytes() == lock
    assert fabric.entry("wf/b") == before["environments"]["wf/b"]


def test_edited_index(fabric: Fabric, daemon: RunningDaemon) -> None:
    """It is published again, also where its size and its mtime say that nothing happened."""
    path = fabric.root / "index.json"
    before, status = fabric.index(), path.stat()
    text = path.read_text().replace('"state": "ready"', '"state": "stale"')
    with path.open("r+") as file:
        file.write(text)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (status.st_mtime_ns, status.st_size)
    wait_for(lambda: fabric.index()["sequence"] > before["sequence"], message="not published again")
    assert fabric.index()["environments"] == before["environments"]
    daemon.wait_for_metric("envfabric_specs", 3, state="ready")


def test_edited_index_at_a_start(fabric: Fabric) -> None:
    """What was edited while no daemon ran is not taken for true, although the entries are as they were."""
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.commit()
    before = fabric.run_once()
    path = fabric.root / "index.json"
    content = fabric.index()
    content["python"]["wf/a"] = "/bin/false"
    path.write_text(json.dumps(content))
    after = fabric.run_once()
    assert after["python"] == before["python"]
    assert after["environments"] == before["environments"]
    assert fabric.run_once()["sequence"] == after["sequence"]


@pytest.mark.parametrize("how", ["gone", "other"])
def test_changed_link(fabric: Fabric, daemon: RunningDaemon, how: str) -> None:
    """The path for people leads to what is served again; the index is not published for that."""
    link = fabric.root / "envs/wf/a"
    before = fabric.index()
    link.unlink()
    if how == "other":
        link.symlink_to("../../generations/wf/c/1")
    wait_for(
        lambda: link.is_symlink() and os.readlink(link) == "../../generations/wf/a/1",
        message="it is not flipped back",
    )
    assert fabric.index() == before
