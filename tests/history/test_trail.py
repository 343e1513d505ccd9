"""What the loop tells the trail, beside the loop: it never waits for git."""

import threading
from pathlib import Path

import pytest

from envfabric.index.document import Entry, Index
from envfabric.loop.trail import Trail
from envfabric.specs.repository import Repository
from envfabric.specs.tree import find_specs
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.history import History, all_events
from envfabric.store.prepare import init_root
from envfabric.store.root import Root
from store.collection import World
from support.git_front import before_git
from support.spec_repo import SpecRepo
from support.waiting import wait_for


def test_loop_does_not_wait_for_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While git looks for who changed a spec, the loop goes on."""
    repo = SpecRepo(tmp_path / "specs")
    repo.spec("wf/a")
    commit = repo.commit()
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    waits = f"touch {begun}; while ! test -e {go_on}; do sleep 0.02; done"
    before_git(tmp_path, monkeypatch, f'case "$1" in log) {waits};; esac')
    root, files = Root(tmp_path / "nas"), Files()
    with Repository(repo.path) as source:
        trail = Trail(History(root, files), source, Generations(root, files))
        trail.adopted(None, commit, find_specs(source.tree(commit)).specs.values())
        flushing = threading.Thread(target=trail.flush)
        flushing.start()
        try:
            wait_for(begun.exists, message="git is not asked")
            flushing.join(60)
            assert not flushing.is_alive()
            assert not go_on.exists()
        finally:
            go_on.touch()
        flushing.join()
        trail.close(None)


def test_generation_of_a_newer_release_hides_no_other(tmp_path: Path) -> None:
    """A start that has to tell what was published tells of every spec, with all but the one file that it can't read."""
    root, files = init_root(tmp_path / "nas", Files()), Files()
    world = World(root)
    for spec_id in ("wf/a", "wf/b", "wf/c"):
        world.generation(spec_id, "a" * 40)
    metadata = root.generations / "wf/b/1/metadata.json"
    metadata.chmod(0o644)
    metadata.write_text(metadata.read_text().replace('"schema": 1', '"schema": 2', 1))
    entry = Entry("ready", "t", "c", serving="a" * 40, generation=1)
    index = Index("c", 3, "2026-01-01T00:00:00.000Z", dict.fromkeys(("wf/a", "wf/b", "wf/c"), entry))
    history = History(root, files)
    repo = SpecRepo(tmp_path / "specs")
    repo.spec("wf/a")
    repo.commit()
    with Repository(repo.path) as source:
        trail = Trail(history, source, Generations(root, files))
        trail.begin(index)
        trail.close(index)
    history.flush()
    told = [(one["event"], one.get("spec")) for one in all_events(root)]
    assert told == [
        ("generation", "wf/a"),
        ("serves", "wf/a"),
        ("serves", "wf/b"),
        ("generation", "wf/c"),
        ("serves", "wf/c"),
    ]
