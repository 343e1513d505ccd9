"""What the gate reads of a revision: nothing of a tree that nobody vouches for, and nothing twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from envfabric.core.errors import HeldBack
from envfabric.loop.gate import Gate, Limits
from envfabric.specs.repository import Repository, SourceError
from envfabric.specs.revisions import read_revision
from envfabric.store.root import Root
from envfabric.telemetry.metrics import Metrics
from support.spec_repo import SpecRepo

SPECS = ("wf/a", "wf/b")


@pytest.fixture
def repo(tmp_path: Path) -> SpecRepo:
    """Two specs, and a commit that removes both."""
    repo = SpecRepo(tmp_path / "specs")
    for spec_id in SPECS:
        repo.spec(spec_id)
    repo.commit()
    repo.remove("wf")
    repo.write("README.md", "gone\n")
    repo.commit()
    return repo


@pytest.fixture
def source(repo: SpecRepo) -> Iterator[Repository]:
    with Repository(repo.path) as source:
        yield source


def lose_tree(repo: SpecRepo) -> None:
    """Makes the newest tree unreadable: who reads it gets an error."""
    tree = repo.git("rev-parse", "HEAD^{tree}")
    (repo.path / ".git/objects" / tree[:2] / tree[2:]).unlink()


def test_unsigned_tree_is_not_read(repo: SpecRepo, source: Repository, tmp_path: Path) -> None:
    """The signature is looked at first: what an unsigned commit holds costs nothing."""

    def refuse(commit: str) -> None:
        raise HeldBack(f"{commit} is not signed")

    gate = Gate(Root(tmp_path / "nas"), source, refuse, Limits(0.5, 0), Metrics(), adopt=False)
    lose_tree(repo)
    with pytest.raises(HeldBack, match="is not signed"):
        gate.read(repo.head, None, SPECS, repo.git("rev-parse", "HEAD~1"))


def test_held_tree_is_read_once(repo: SpecRepo, source: Repository, tmp_path: Path) -> None:
    """What a revision removes is found out once; the next looks hold it back without reading, until it is confirmed."""
    gate = Gate(Root(tmp_path / "nas"), source, lambda commit: None, Limits(0.5, 0), Metrics(), adopt=False)
    last = repo.git("rev-parse", "HEAD~1")
    base = read_revision(source, last)
    with pytest.raises(HeldBack, match="removes 2 of 2 specs") as found:
        gate.read(repo.head, base, SPECS, last)
    assert gate.hold(repo.head, found.value)
    lose_tree(repo)
    with pytest.raises(HeldBack, match="removes 2 of 2 specs") as again:
        gate.read(repo.head, base, SPECS, last)
    assert not gate.hold(repo.head, again.value)
    assert gate.held is not None
    assert gate.held.confirmable
    gate.confirm(gate.held)
    with pytest.raises(SourceError):
        gate.read(repo.head, base, SPECS, last)
