"""Who changed a spec: the commit that made its files what they are, by git's own word."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from envfabric.specs import authors
from envfabric.specs.authors import Change, who_changed
from envfabric.specs.repository import Repository, SourceError
from envfabric.specs.tree import find_specs
from support.git_front import before_git
from support.spec_repo import SpecRepo

BEA = "Bea B <bea@example.com>"


@pytest.fixture(params=["", "specs/here"], ids=["top", "folder"])
def repo(request: pytest.FixtureRequest, tmp_path: Path) -> SpecRepo:
    return SpecRepo(tmp_path / "specs", spec_dir=request.param)


@pytest.fixture
def source(repo: SpecRepo) -> Iterator[Repository]:
    with Repository(repo.path, None, repo.spec_dir) as source:
        yield source


def by_bea(repo: SpecRepo, message: str = "Bea's", *flags: str) -> str:
    """Commits everything in Bea's name."""
    repo.git("add", "--all")
    repo.git("commit", "--quiet", "--author", BEA, "--message", message, *flags)
    return repo.head


def who(source: Repository, before: str | None = None) -> dict[str, Change]:
    """Who changed each spec of HEAD."""
    commit = source.head()
    assert commit is not None
    specs = find_specs(source.tree(commit)).specs
    return who_changed(source, commit, before, {one: dict(ref.blobs) for one, ref in specs.items()})


def test_each_spec_has_the_newest_commit_that_changed_it(repo: SpecRepo, source: Repository) -> None:
    """Author and committer, dates and subject; a commit to other files or other specs is not meant."""
    repo.spec("wf/a")
    repo.spec("wf/b")
    first = repo.commit("both")
    repo.spec("wf/a", ["alpha"])
    changed = by_bea(repo, "a needs alpha\n\nand this is a body")
    repo.write(f"{repo.spec_dir}/wf/a/README.md".lstrip("/"), "about")
    repo.commit("words")
    for before in (None, first):
        found = who(source, before)
        assert found["wf/b"].commit == first
        one = found["wf/a"]
        assert (one.commit, one.author, one.email) == (changed, "Bea B", "bea@example.com")
        assert (one.committer, one.committer_email) == ("Spec Author", "author@example.com")
        assert one.subject == "a needs alpha"
        assert one.touches
        assert one.authored_at == repo.git("log", "-1", "--format=%aI", changed)


def test_file_that_went_is_a_change(repo: SpecRepo, source: Repository) -> None:
    """A lock that was removed made the spec what it is."""
    repo.spec("wf/a", lock=b"version = 1\n", python="3.11")
    first = repo.commit()
    repo.remove(f"{repo.spec_dir}/wf/a/uv.lock".lstrip("/"))
    removed = by_bea(repo)
    assert who(source, first)["wf/a"].commit == removed


def test_merge_names_who_wrote_not_who_merged(repo: SpecRepo, source: Repository) -> None:
    """A branch's commit is its author's; what a merge did not take is nobody's; a mixture is the merger's."""
    repo.spec("wf/a", ["alpha"], table="[tool.envfabric]\nray = false")
    repo.spec("wf/b")
    base = repo.commit()
    repo.branch("topic")
    repo.spec("wf/a", ["beta"], table="[tool.envfabric]\nray = false")
    topic = by_bea(repo)
    repo.branch("main")
    repo.spec("wf/b", ["alpha"])
    repo.commit()
    repo.git("merge", "--quiet", "--no-ff", "-m", "merged", "topic")
    assert who(source, base)["wf/a"].commit == topic
    merged = repo.head
    repo.branch("other")
    repo.spec("wf/a", ["gamma"])
    by_bea(repo, "not taken")
    repo.branch("main")
    repo.commit("so that there is something to merge")
    repo.git("merge", "--quiet", "--no-ff", "-s", "ours", "-m", "ours", "other")
    assert who(source, base)["wf/a"].commit == topic
    assert who(source, merged)["wf/a"].commit == topic, "found before the range"
    repo.branch("third")
    repo.spec("wf/b", ["gamma"])
    by_bea(repo)
    repo.branch("main")
    repo.commit("again")
    repo.git("merge", "--quiet", "--no-ff", "--no-commit", "third")
    repo.spec("wf/b", ["beta", "gamma"])
    mixed = repo.commit("a merge with a change of its own")
    assert who(source, merged)["wf/b"].commit == mixed


def test_rewritten_history(repo: SpecRepo, source: Repository) -> None:
    """After a branch was set back, or to another history, or the last revision is gone, it is told all the same."""
    repo.spec("wf/a")
    first = by_bea(repo)
    repo.spec("wf/a", ["alpha"])
    dropped = repo.commit()
    repo.git("reset", "--quiet", "--hard", first)
    assert who(source, dropped)["wf/a"].commit == first
    assert who(source, "e" * 40)["wf/a"].commit == first
    repo.spec("wf/a", ["beta"])
    pushed = by_bea(repo, "anew")
    assert who(source, dropped)["wf/a"].commit == pushed


def test_what_is_too_far_back_is_the_revisions(
    repo: SpecRepo, source: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search is bounded; what it does not find is put down to the revision, and says so."""
    repo.spec("wf/a")
    first = repo.commit("long ago")
    for number in range(4):
        repo.spec("wf/b", [f"alpha>={number}"])
        repo.commit()
    asked = tuple("--max-count=3" if one.startswith("--max-count") else one for one in authors._LOG)
    monkeypatch.setattr(authors, "_LOG", asked)
    found = who(source)
    assert (found["wf/a"].commit, found["wf/a"].touches) == (repo.head, False)
    assert (found["wf/b"].commit, found["wf/b"].touches) == (repo.head, True)
    monkeypatch.undo()
    assert who(source)["wf/a"].commit == first
    monkeypatch.setattr(authors, "MOST_BYTES", 20_000)
    for number in range(500):
        repo.write(f"{repo.spec_dir}/wf/b/{number}/{'x' * 200}".lstrip("/"), "")
    many = repo.commit("many files")
    found = who(source)
    assert (found["wf/a"].commit, found["wf/a"].touches) == (many, False)


def test_unreadable_commit_is_an_error(repo: SpecRepo, source: Repository) -> None:
    """A commit that is not there is said to be so, with git's words."""
    repo.commit()
    with pytest.raises(SourceError, match="git log"):
        who_changed(source, "e" * 40, None, {"wf/a": {}})


def test_what_people_write_is_harmless(repo: SpecRepo, source: Repository) -> None:
    """Control characters are escaped, credentials taken out, long texts cut; no text passes for another field."""
    repo.spec("wf/a")
    repo.git("add", "--all")
    subject = "\x1b[31mred :100644 see https://joe:hunter22@index.example/simple " + "x" * 5000
    repo.git("commit", "--quiet", "--author", "B\u202ead\x07 <bad@example.com>", "--message", subject)
    one = who(source)["wf/a"]
    assert one.subject.isprintable()
    assert one.author.isprintable()
    assert one.subject.startswith("\\x1b[31mred")
    assert "hunter22" not in one.subject
    assert len(one.subject) <= authors.SUBJECT_MOST
    repo.git("commit", "--quiet", "--allow-empty", "--allow-empty-message", "--message", "")
    repo.spec("wf/a", ["alpha"])
    repo.git("add", "--all")
    repo.git("commit", "--quiet", "--allow-empty-message", "--message", "")
    assert who(source)["wf/a"].subject == ""


def test_programs_of_the_repository_are_not_run(repo: SpecRepo, source: Repository, tmp_path: Path) -> None:
    """Its configuration may ask for signatures, pagers, drivers: nothing of it is run, and nothing is left out."""
    told = tmp_path / "was-run"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {told}\n")
    program.chmod(0o755)
    for key, value in {
        "log.showSignature": "true",
        "gpg.program": str(program),
        "core.pager": str(program),
        "diff.external": str(program),
        "diff.toml.textconv": str(program),
        "log.showRoot": "false",
        "diff.relative": "true",
        "diff.renames": "copies",
        "format.pretty": "oneline",
    }.items():
        repo.git("config", key, value)
    repo.write(".gitattributes", "*.toml diff=toml\n")
    repo.spec("wf/a")
    tree = repo.git("write-tree") if repo.git("add", "--all") == "" else ""
    signed = (
        f"tree {tree}\nauthor A <a@example.com> 1700000000 +0000\ncommitter A <a@example.com> 1700000000 +0000\n"
        "gpgsig -----BEGIN PGP SIGNATURE-----\n \n iQ==\n -----END PGP SIGNATURE-----\n\nsigned\n"
    )
    (tmp_path / "commit").write_text(signed)
    commit = repo.git("hash-object", "-t", "commit", "-w", str(tmp_path / "commit"))
    repo.git("reset", "--quiet", "--hard", commit)
    assert who(source)["wf/a"].commit == commit
    assert not told.exists()


def test_search_that_does_not_end_is_given_up(
    repo: SpecRepo, source: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A history that git walks without end keeps nobody: the change is put down to the revision, and says so."""
    repo.spec("wf/a")
    first = repo.commit()
    repo.spec("wf/b")
    newest = repo.commit()
    monkeypatch.setattr(authors, "MOST_SECONDS", 0.3)
    before_git(tmp_path, monkeypatch, 'case "$*" in *--no-patch*) ;; log*) sleep 600 & wait;; esac')
    found = who(source, first)
    assert {one: (change.commit, change.touches) for one, change in found.items()} == {
        "wf/a": (newest, False),
        "wf/b": (newest, False),
    }
    assert found["wf/a"].author == "Spec Author"


def test_long_subject_is_cut_by_git(
    repo: SpecRepo, source: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subject of any length takes no room from what else git says: the commit before it is found."""
    monkeypatch.setattr(authors, "MOST_BYTES", 20_000)
    repo.spec("wf/a")
    first = repo.commit()
    repo.git("add", "--all")
    (tmp_path / "message").write_text("x" * 300_000)
    repo.git("commit", "--quiet", "--allow-empty", "--file", str(tmp_path / "message"))
    repo.spec("wf/b")
    second = repo.commit()
    found = who(source)
    assert {one: (change.commit, change.touches) for one, change in found.items()} == {
        "wf/a": (first, True),
        "wf/b": (second, True),
    }
