"""Faults of the repository and the store cost only those specs that they touch."""

from pathlib import Path

from envfabric.store.files import Files
from support.fabric import Fabric
from support.waiting import wait_for


def lose_blob(fabric: Fabric, path: str) -> Path:
    """Moves the object of a committed file away; gives where it belongs."""
    oid = fabric.repo.git("rev-parse", f"HEAD:{path}")
    file = fabric.repo.path / ".git" / "objects" / oid[:2] / oid[2:]
    file.rename(fabric.folder / oid)
    return file


def lose_closure(fabric: Fabric, spec_id: str) -> str:
    """Removes what serves a spec from the store; gives its digest."""
    digest = str(fabric.entry(spec_id)["serving"])
    Files().remove_tree(fabric.root / "store" / digest)
    return digest


def test_missing_blob_costs_one_spec(fabric: Fabric) -> None:
    """A file of one spec that git can't read fails that spec with `store`; all others are published."""
    for node, requirement in (("a", "alpha"), ("b", "beta"), ("c", "gamma")):
        fabric.repo.spec(f"wf/{node}", [requirement])
    commit = fabric.repo.commit()
    file = lose_blob(fabric, "wf/b/pyproject.toml")
    index = fabric.run_once(expect=1)
    assert (index["revision"], index["complete"]) == (commit, True)
    assert sorted(index["python"]) == ["wf/a", "wf/c"]
    entry = index["environments"]["wf/b"]
    assert (entry["state"], entry["error"]["reason"]) == ("failed", "store")
    assert file.parent.name + file.name in entry["error"]["message"]
    assert fabric.python("wf/c", "import gamma; print(gamma.VERSION)") == "2.0"
    (fabric.folder / (file.parent.name + file.name)).rename(file)
    assert sorted(fabric.run_once()["python"]) == ["wf/a", "wf/b", "wf/c"]


def test_missing_blob_leaves_what_is_served(fabric: Fabric) -> None:
    """A spec that serves already goes on doing so while git can't read its new content."""
    fabric.repo.spec("wf/a", ["gamma==1.0"])
    fabric.repo.spec("wf/b", ["alpha"])
    fabric.repo.commit()
    before = fabric.run_once()
    fabric.repo.spec("wf/a", ["gamma==2.0"])
    fabric.repo.commit()
    lose_blob(fabric, "wf/a/pyproject.toml")
    index = fabric.run_once(expect=1)
    assert index["python"] == before["python"]
    assert index["environments"]["wf/a"]["state"] == "stale"
    assert index["environments"]["wf/a"]["error"]["reason"] == "store"
    assert index["environments"]["wf/b"] == before["environments"]["wf/b"]


def test_vanished_closure_comes_back_as_it_was(fabric: Fabric) -> None:
    """A closure that is gone from the store is made again with the versions of its lock: the same digest."""
    fabric.packages.add_wheel("vanishing", "1.0")
    # Only the lock knows the versions: no resolution is shared.
    fabric.settings["resolution_max_age"] = 0
    fabric.repo.spec("wf/a", ["vanishing"])
    fabric.repo.commit()
    before = fabric.run_once()
    digest = lose_closure(fabric, "wf/a")
    fabric.packages.add_wheel("vanishing", "2.0")
    index = fabric.run_once()
    assert index["environments"]["wf/a"]["state"] == "ready"
    assert index["environments"]["wf/a"]["serving"] == digest
    assert index["python"] == before["python"]
    assert fabric.python("wf/a", "import vanishing; print(vanishing.VERSION)") == "1.0"


def test_vanished_closure_is_not_published(fabric: Fabric) -> None:
    """Before a closure that is gone is made again, the first index of a start names no path into it."""
    fabric.packages.add_wheel("vanishing-too", "1.0")
    fabric.repo.spec("wf/a", ["vanishing-too"])
    fabric.repo.spec("wf/b", ["alpha"])
    commit = fabric.repo.commit()
    before = fabric.run_once()
    digest = lose_closure(fabric, "wf/a")
    hold = fabric.packages.hold("vanishing-too")
    try:
        with fabric.daemon() as daemon:
            wait_for(
                lambda: fabric.index()["sequence"] > before["sequence"] or None,
                message="nothing is published",
            )
            index = fabric.index()
            assert list(index["python"]) == ["wf/b"]
            assert index["sequence"] == before["sequence"] + 1
            entry = index["environments"]["wf/a"]
            assert (entry["state"], entry["serving"], entry["generation"]) == ("pending", None, None)
            link = fabric.root / "envs" / "wf" / "a"
            wait_for(lambda: not link.is_symlink(), message="the path for people stays")
            hold.set()
            index = daemon.wait_for_index(commit)
            assert index["environments"]["wf/a"]["serving"] == digest
            assert index["python"] == before["python"]
    finally:
        hold.set()
