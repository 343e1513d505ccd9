"""`wait --commit` asks the clone that it is told, whatever it inherits, and no longer than a moment."""

from pathlib import Path
from typing import Any

import pytest

from envfabric.client import waiting
from support.spec_repo import SpecRepo


@pytest.fixture
def repo(tmp_path: Path) -> SpecRepo:
    """A repository with two commits."""
    made = SpecRepo(tmp_path / "specs")
    for name in ("wf/a", "wf/b"):
        made.spec(name, ["alpha"])
        made.commit()
    return made


def published(revision: str) -> dict[str, Any]:
    return {"revision": revision, "problems": []}


def test_inherited_variables_of_git_lead_to_no_other_repository(
    repo: SpecRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a hook of git has them, or a CI job: the clone that was named is asked, and its history."""
    first = repo.git("rev-parse", "HEAD~1").strip()
    other = SpecRepo(tmp_path / "other")
    other.spec("wf/c", ["beta"])
    other.commit()
    head = repo.head
    monkeypatch.setenv("GIT_DIR", str(other.path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other.path))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(other.path / ".git/objects"))
    assert waiting._History("HEAD", str(repo.path)).commit == head
    # The published one is the later of the two, which only that clone's history says.
    waiting._History(first, str(repo.path)).reached(published(head))


def test_git_that_does_not_answer_is_as_none(
    repo: SpecRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clone on a mount that hangs: what can be told without it is, and the rest is not reached yet."""
    first, head = repo.git("rev-parse", "HEAD~1").strip(), repo.head
    hung = tmp_path / "bin/git"
    hung.parent.mkdir()
    hung.write_text("#!/bin/sh\nexec sleep 1000\n")
    hung.chmod(0o755)
    monkeypatch.setenv("PATH", str(hung.parent), prepend=":")
    monkeypatch.setattr(waiting, "_GIT_MOST", 0.5)
    history = waiting._History(first, str(repo.path))
    history.reached(published(first))
    with pytest.raises(waiting.Undecided, match="is not yet"):
        history.reached(published(head))
