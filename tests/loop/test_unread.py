"""A newest revision that can't be read is said in the index: as one that passes, or as one that is held back."""

import pytest

from envfabric.client.waiting import FAILED, READY, _all, wait
from envfabric.core.errors import Reason
from envfabric.index.document import Index
from envfabric.loop import gate
from envfabric.loop.reconciler import Reconciler
from envfabric.specs.revisions import Revision, read_revision
from envfabric.store.root import Root
from loop.conftest import MakeLoop
from support.spec_repo import SpecRepo


def looked(loop: Reconciler) -> Index:
    """What is published after a look."""
    loop._look()
    if loop._publication_wait() is not None:
        loop._publish()
    assert loop.published is not None
    return loop.published


def begun(repo: SpecRepo, make_loop: MakeLoop) -> tuple[Reconciler, str]:
    """A loop that has published one revision."""
    loop = make_loop(False)
    loop._begin()
    repo.spec("wf/a")
    first = repo.commit()
    assert looked(loop).problems == ()
    return loop, first


def test_what_can_not_be_read_for_longer_is_a_problem(repo: SpecRepo, make_loop: MakeLoop) -> None:
    """From the second look on, told once, and gone when it is over; what is in force stays."""
    loop, first = begun(repo, make_loop)
    repo.spec("wf/b")
    second = repo.commit()
    lost = repo.path / ".git/objects" / second[:2] / second[2:]
    away = lost.rename(repo.path / "away")
    assert looked(loop).problems == ()
    index = looked(loop)
    (problem,) = index.problems
    assert (problem.path, problem.reason) == (".", Reason.FETCH)
    assert problem.message.startswith("the newest revision can't be read: ")
    assert (index.revision, set(index.entries)) == (first, {"wf/a"})
    assert looked(loop).sequence == index.sequence
    away.rename(lost)
    index = looked(loop)
    assert (index.revision, index.problems) == (second, ())


def test_what_is_gone_by_the_next_look_is_no_problem(repo: SpecRepo, make_loop: MakeLoop) -> None:
    """However often it happens: git may tidy up just while it is asked."""
    loop, _ = begun(repo, make_loop)
    sequence = looked(loop).sequence
    folder, away = repo.path / ".git", repo.path / "away"
    for _ in range(3):
        folder.rename(away)
        loop._look()
        away.rename(folder)
        assert looked(loop).sequence == sequence


def test_more_than_is_read_is_held_back(
    root: Root, repo: SpecRepo, make_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays so: whoever waits for that commit hears it at once, and it is read no more; the next one is."""
    loop, first = begun(repo, make_loop)
    read: list[str] = []

    def reading(source: object, commit: str, last: Revision | None = None) -> Revision:
        read.append(commit)
        return read_revision(loop._repository, commit, last)

    monkeypatch.setattr(gate, "read_revision", reading)
    monkeypatch.setattr("envfabric.specs.tree.MAX_SPECS", 1)
    path = repo.spec("wf/b")
    second = repo.commit()
    index = looked(loop)
    (problem,) = index.problems
    assert problem.reason == Reason.POLICY
    assert problem.message.startswith(
        f"commit {second[:12]} is held back: the revision has 2 specs; at most 1 "
    )
    assert index.revision == first
    assert wait([], root.path, commit=second, repo=str(repo.path)) == FAILED
    assert looked(loop).sequence == index.sequence
    assert read == [second]
    path.unlink()
    third = repo.commit()
    index = looked(loop)
    assert (index.revision, index.problems) == (third, ())


@pytest.mark.parametrize(("reason", "code"), [("fetch", READY), ("policy", FAILED), ("invalid-spec", FAILED)])
def test_waiting_for_what_is_published(reason: str, code: int) -> None:
    """What can't be read now says nothing against the revision that is served."""
    problem = {"path": ".", "reason": reason, "message": "why"}
    assert _all({"environments": {}, "complete": True, "revision": "c", "problems": [problem]}) == code
