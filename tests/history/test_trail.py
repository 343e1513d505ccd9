"""What the loop tells the trail, beside the loop: it never waits for git."""

import threading
from pathlib import Path

import pytest

from envfabric.loop.trail import Trail
from envfabric.specs.repository import Repository
from envfabric.specs.tree import find_specs
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.history import History
from envfabric.store.root import Root
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
