"""What a new revision, or a publication that failed half-way, must not make the loop forget."""

import json

import pytest

from envfabric.core.errors import StoreError
from envfabric.loop.reconciler import Reconciler
from envfabric.specs.revisions import read_revision
from envfabric.store.generations import Generation
from envfabric.store.root import Root
from envfabric.store.writer import Writer
from loop.conftest import MakeLoop
from support.spec_repo import SpecRepo

MADE = Generation("wf/a", 1, "d1", "", "", "", "at", "3.11.7", None, "resolved", {}, {})


def adopt(loop: Reconciler, repo: SpecRepo) -> None:
    """Commits, and makes that commit the revision."""
    loop._adopt(read_revision(loop._repository, repo.commit()))


def test_commit_elsewhere_keeps_the_heal_of_a_refused_spec(repo: SpecRepo, make_loop: MakeLoop) -> None:
    """A refused spec whose closure is to be healed still waits for that after any number of commits to others."""
    loop = make_loop(False)
    repo.spec("wf/a")
    repo.commit()
    repo.spec("WF/A")
    adopt(loop, repo)
    assert loop.board.refs["wf/a"].refused
    # As an order to repair does it.
    loop.board.heal["wf/a"] = 1
    loop.work.add("wf/a")
    for number in range(2):
        repo.spec(f"wf/other{number}")
        adopt(loop, repo)
        assert loop.work.has("wf/a")
        assert not loop.work.has("WF/A"), "it is refused, and nothing of it is lost"


def test_index_whose_links_failed_is_told_all_the_same(
    root: Root, writer: Writer, repo: SpecRepo, make_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit trail says what is served although envs/ could not be brought up to date just after."""
    loop = make_loop(False)
    repo.spec("wf/a")
    adopt(loop, repo)
    loop.board.serve("wf/a", MADE)
    check = writer.check
    failed: list[bool] = []

    def check_once() -> None:
        check()
        if root.index.exists() and not failed:
            failed.append(True)
            raise StoreError("the lock can't be looked at")

    monkeypatch.setattr(writer, "check", check_once)
    loop._publish()
    assert failed
    assert not (root.envs / "wf" / "a").is_symlink()
    loop._publish()
    assert (root.envs / "wf" / "a").is_symlink()
    loop._trail.flush()
    (trail,) = root.history.iterdir()
    told = [json.loads(line) for line in trail.read_text().splitlines()]
    served = [one for one in told if one["event"] != "figures"]
    assert [(one["event"], one["spec"], one["sequence"]) for one in served] == [("serves", "wf/a", 1)]
