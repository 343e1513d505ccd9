"""lock: the lock of what is served comes into the clone, and committing it changes nothing."""

from support.fabric import Fabric

from .conftest import Run


def test_from_new_to_a_committed_lock(fabric: Fabric, run: Run) -> None:
    """new, commit, build, lock, check, commit: the same generation, the same closure, and nothing is resolved again."""
    config = fabric.configure()
    run("new", "wf/a", "gamma", "--config", config)
    fabric.repo.commit()
    first = fabric.run_once()["environments"]["wf/a"]
    done = run("lock", "wf/a", "--config", config)
    assert "git add" in done.stdout
    lock = fabric.repo.work / "wf/a/uv.lock"
    kept = fabric.root / "generations/wf/a/1/uv.lock"
    assert lock.read_bytes() == kept.read_bytes()
    assert "already" in run("lock", "wf/a", "--config", config).stdout
    # The fleet's index is the daemon's, not the spec's: uv, asked by the spec alone, would lock elsewhere.
    fabric.packages.add_wheel("gamma", "3.0")
    try:
        assert "no problems" in run("check", "--config", config).stdout
        fabric.repo.spec("wf/a", ["gamma"], index=fabric.packages.url)
        fabric.repo.remove("wf/a/uv.lock")
        fabric.repo.commit()
        second = fabric.run_once()["environments"]["wf/a"]
        assert second["serving"] == first["serving"]
        run("lock", "wf/a", "--root", fabric.root)
        run("check", "--resolve", "--config", config)
        commit = fabric.repo.commit()
        third = fabric.run_once()["environments"]["wf/a"]
        assert fabric.index()["revision"] == commit
        assert (third["serving"], third["generation"], third["state"]) == (
            second["serving"],
            second["generation"],
            "ready",
        )
    finally:
        fabric.packages.remove("gamma-3.0-py3-none-any.whl")


def test_a_lock_of_something_else_is_not_taken(fabric: Fabric, run: Run) -> None:
    """Only the lock of exactly this pyproject.toml: otherwise it says what to do first."""
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.spec("wf/bad", ["no-such-thing"])
    fabric.repo.commit()
    fabric.run_once(expect=1)
    root = ("--root", fabric.root)
    run("add", "wf/a", "gamma")
    assert "Commit that" in run("lock", "wf/a", *root, expect=1).stderr
    assert "nothing of wf/bad is served" in run("lock", "wf/bad", *root, expect=1).stderr
    run("new", "wf/new", "alpha")
    assert "no environment 'wf/new'" in run("lock", "wf/new", *root, expect=1).stderr
    assert "envfabric new" in run("lock", "wf/none", *root, expect=1).stderr
    assert "envfabric init" in run("lock", "wf/a", "--root", fabric.folder, expect=2).stderr
    assert not list(fabric.repo.work.rglob("uv.lock"))


def test_a_linked_lock_is_not_written_through(fabric: Fabric, run: Run) -> None:
    """A uv.lock that is a symlink is refused, and what it points at stays."""
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.commit()
    fabric.run_once()
    outside = fabric.folder / "outside"
    outside.write_text("mine")
    (fabric.repo.work / "wf/a/uv.lock").symlink_to(outside)
    assert "symlink" in run("lock", "wf/a", "--root", fabric.root, expect=1).stderr
    assert outside.read_text() == "mine"
