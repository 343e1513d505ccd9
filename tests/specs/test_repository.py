"""Reading a repository with real git: every kind of it, and nothing in it is ever run or trusted."""

import os
import random
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from envfabric.core.errors import ConfigError
from envfabric.specs.repository import Repository, SourceError
from support.git_front import before_git
from support.spec_repo import SpecRepo


@pytest.fixture
def repo(tmp_path: Path) -> SpecRepo:
    """A repository with one commit: wf/a, and a file that compression can't make small."""
    repo = SpecRepo(tmp_path / "specs")
    repo.spec("wf/a", ["one"])
    repo.write("wf/a/big", random.Random(1).randbytes(100_000))
    repo.commit()
    return repo


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """What is entered here is closed at the end of the test."""
    with ExitStack() as stack:
        yield stack


def blob(source: Repository, path: str) -> str:
    """The object id of a file at the head."""
    head = source.head()
    assert head is not None
    return next(item.oid for item in source.tree(head) if item.path == path)


def object_file(repo: SpecRepo, oid: str) -> Path:
    return repo.path / ".git" / "objects" / oid[:2] / oid[2:]


@pytest.mark.parametrize("kind", ["work-tree", "bare", "linked", "symlinked"])
def test_every_kind_of_repository_is_read(tmp_path: Path, opened: ExitStack, kind: str) -> None:
    """A work tree, a bare repository, a linked work tree and a symlink to one give head, tree and content."""
    repo = SpecRepo(tmp_path / "specs", bare=kind == "bare")
    repo.spec("wf/a", ["one"])
    commit = repo.commit()
    path = repo.path
    if kind == "linked":
        path = tmp_path / "linked"
        repo.git("worktree", "add", "--quiet", "-b", "side", str(path))
    elif kind == "symlinked":
        path = tmp_path / "link"
        path.symlink_to(repo.path)
    source = opened.enter_context(Repository(path))
    assert source.head() == commit
    assert [item.path for item in source.tree(commit)] == ["wf", "wf/a", "wf/a/pyproject.toml"]
    oid = blob(source, "wf/a/pyproject.toml")
    content = (repo.work / "wf/a/pyproject.toml").read_bytes()
    assert (source.read(oid), source.size(oid)) == (content, len(content))


def test_linked_work_tree_follows_its_own_head(repo: SpecRepo, tmp_path: Path, opened: ExitStack) -> None:
    """A linked work tree has its own HEAD: commits on the main one's branch don't move it."""
    first = repo.head
    repo.git("worktree", "add", "--quiet", "-b", "side", str(tmp_path / "linked"))
    second = repo.commit()
    assert opened.enter_context(Repository(tmp_path / "linked")).head() == first
    assert opened.enter_context(Repository(tmp_path / "linked", branch="main")).head() == second


def test_named_branch_is_followed_wherever_head_is(repo: SpecRepo, opened: ExitStack) -> None:
    """With a branch, its commits count and HEAD's don't; without one HEAD counts, detached too."""
    main = repo.head
    repo.branch("feature/x")
    side = repo.commit()
    assert opened.enter_context(Repository(repo.path, branch="main")).head() == main
    assert opened.enter_context(Repository(repo.path, branch="feature/x")).head() == side
    source = opened.enter_context(Repository(repo.path))
    assert source.head() == side
    repo.git("checkout", "--quiet", "--detach", main)
    assert source.head() == main


@pytest.mark.parametrize("name", ["missing", "HEAD", "v1", "mai"])
def test_branch_that_is_not_there_has_no_commit(repo: SpecRepo, opened: ExitStack, name: str) -> None:
    """A branch that does not exist gives None, and neither a tag nor HEAD stands in for it."""
    repo.git("tag", "v1")
    assert opened.enter_context(Repository(repo.path, branch=name)).head() is None


def test_repository_without_commits_has_no_head(tmp_path: Path, opened: ExitStack) -> None:
    """A new repository can be opened; its head is None until the first commit, which is seen."""
    repo = SpecRepo(tmp_path / "specs")
    source = opened.enter_context(Repository(repo.path))
    assert source.head() is None
    assert repo.commit() == source.head()


@pytest.mark.parametrize("where", ["missing", "plain", "specs/wf", "specs/wf/a/pyproject.toml"])
def test_what_is_no_repository_is_refused(repo: SpecRepo, tmp_path: Path, where: str) -> None:
    """A folder inside a repository is not taken for it; the message says what to give instead."""
    (tmp_path / "plain").mkdir()
    with pytest.raises(ConfigError, match=r"is no git repository.*--path"):
        Repository(tmp_path / where)


@pytest.mark.parametrize(
    "branch", ["--upload-pack=x", "-h", "a..b", "a\nb", "a:b", "x*", "a.lock", "/a", "a/", "a b", "a@{1}"]
)
def test_branch_that_git_could_misread_is_refused(repo: SpecRepo, branch: str) -> None:
    """A branch that would be an option or a range for git is wrong configuration."""
    with pytest.raises(ConfigError, match="is not a branch name"):
        Repository(repo.path, branch=branch)


@pytest.mark.parametrize("path", ["..", "wf/../..", "/../x"])
def test_spec_path_stays_inside(repo: SpecRepo, path: str) -> None:
    """A spec directory that climbs out of the repository is wrong configuration."""
    with pytest.raises(ConfigError, match="must stay inside"):
        Repository(repo.path, spec_path=path)


@pytest.mark.parametrize("path", ["gone", "wf/a/pyproject.toml", "wf/gone"])
def test_missing_spec_path_is_told(repo: SpecRepo, opened: ExitStack, path: str) -> None:
    """A commit without the spec directory has no entries, and says that it is for this reason."""
    source = opened.enter_context(Repository(repo.path, spec_path=path))
    assert not source.has_spec_path(repo.head)
    assert source.tree(repo.head) == []
    assert opened.enter_context(Repository(repo.path, spec_path="wf/a")).has_spec_path(repo.head)


def test_damaged_spec_path_is_an_error(repo: SpecRepo, opened: ExitStack) -> None:
    """A folder on the way that can't be read is an error of the source: it must not look like one without specs."""
    source = opened.enter_context(Repository(repo.path, spec_path="wf/a"))
    oid = repo.git("rev-parse", "HEAD:wf")
    (repo.path / ".git" / "objects" / oid[:2] / oid[2:]).unlink()
    for ask in (source.has_spec_path, source.tree):
        with pytest.raises(SourceError, match="git ls-tree"):
            ask(repo.head)


@pytest.mark.parametrize("path", ["wf", "/wf/", "./wf", "wf//"])
def test_spec_path_is_written_as_people_do(repo: SpecRepo, opened: ExitStack, path: str) -> None:
    """Slashes around the spec directory make no difference; entries are relative to it."""
    source = opened.enter_context(Repository(repo.path, spec_path=path))
    assert {item.path for item in source.tree(repo.head)} == {"a", "a/big", "a/pyproject.toml"}


def test_root_commit_is_the_same_in_a_clone(repo: SpecRepo, tmp_path: Path, opened: ExitStack) -> None:
    """The first commit names the repository: in a clone, on every branch, after every further commit."""
    first = repo.head
    second = repo.commit()
    repo.git("clone", "--quiet", "--bare", str(repo.path), str(tmp_path / "clone"))
    clone = opened.enter_context(Repository(tmp_path / "clone"))
    assert clone.head() == second
    assert clone.root_commits(second) == clone.root_commits(first) == [first]
    other = SpecRepo(tmp_path / "other")
    assert opened.enter_context(Repository(other.path)).root_commits(other.commit("another")) != [first]


def test_nothing_of_the_repository_is_run(repo: SpecRepo, tmp_path: Path, opened: ExitStack) -> None:
    """Hooks, a file system monitor, filters and pagers that the repository names are not started."""
    trace = tmp_path / "trace"
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\necho "$0 $*" >> {trace}\ncat\n')
    program.chmod(0o755)
    names = (
        "post-checkout",
        "post-index-change",
        "reference-transaction",
        "pre-auto-gc",
        "fsmonitor-watchman",
    )
    for name in names:
        (repo.path / ".git" / "hooks").mkdir(exist_ok=True)
        (repo.path / ".git" / "hooks" / name).symlink_to(program)
    repo.write(".gitattributes", "* filter=odd diff=odd\n")
    repo.git("add", ".gitattributes")
    repo.git("commit", "--quiet", "--message", "attributes")
    for key in ("core.fsmonitor", "core.pager", "filter.odd.smudge", "diff.odd.textconv"):
        repo.git("config", key, str(program))
    trace.unlink(missing_ok=True)
    source = opened.enter_context(Repository(repo.path))
    commit = source.head()
    assert commit == repo.head
    oid = blob(source, "wf/a/pyproject.toml")
    assert source.size(oid) == len(source.read(oid))
    assert source.root_commits(commit)
    assert not trace.exists(), trace.read_text()
    # The trap is live: an ordinary git command springs it.
    repo.git("status")
    assert trace.exists()


def test_safe_settings_reach_git(repo: SpecRepo, opened: ExitStack) -> None:
    """What the reader sets wins over the repository's own configuration."""
    repo.git("config", "core.fsmonitor", "/bin/false")
    repo.git("config", "core.hooksPath", "hooks")
    source = opened.enter_context(Repository(repo.path))
    shown = source._repo.git.config("--get-regexp", "core.(fsmonitor|hookspath)").splitlines()
    assert shown[-2:] == [f"core.hookspath {os.devnull}", "core.fsmonitor false"]


def test_replaced_object_is_read_as_committed(repo: SpecRepo, opened: ExitStack) -> None:
    """refs/replace/ changes neither what a commit holds nor what a file says."""
    commit = repo.head
    path = repo.work / "wf/a/pyproject.toml"
    before = path.read_bytes()
    old = repo.git("rev-parse", "HEAD:wf/a/pyproject.toml")
    path.write_bytes(b"replaced")
    repo.git("replace", old, repo.git("hash-object", "-w", str(path)))
    repo.spec("wf/b")
    repo.git("replace", commit, repo.commit())
    source = opened.enter_context(Repository(repo.path))
    assert source.read(old) == before
    assert "wf/b" not in [item.path for item in source.tree(commit)]


@pytest.mark.parametrize("damage", ["missing", "garbage", "empty"])
def test_damaged_object_is_one_error(repo: SpecRepo, opened: ExitStack, damage: str) -> None:
    """An object that can't be read is a SourceError; what is read after it is right."""
    source = opened.enter_context(Repository(repo.path))
    good, bad = blob(source, "wf/a/pyproject.toml"), blob(source, "wf/a/big")
    file = object_file(repo, bad)
    file.unlink()
    if damage != "missing":
        file.write_bytes(b"garbage" if damage == "garbage" else b"")
    content = (repo.work / "wf/a/pyproject.toml").read_bytes()
    for _ in range(2):
        with pytest.raises(SourceError, match=bad):
            source.read(bad)
        assert source.read(good) == content


def test_dead_git_process_costs_one_read(repo: SpecRepo, opened: ExitStack) -> None:
    """When the git process that is kept for reading dies, at most one read fails; a new one takes over."""
    source = opened.enter_context(Repository(repo.path))
    oid = blob(source, "wf/a/pyproject.toml")
    content = source.read(oid)
    reader = source._repo.git.cat_file_all
    assert reader is not None
    reader.proc.kill()
    reader.proc.wait()
    with suppress(SourceError):
        source.read(oid)
    assert source.read(oid) == content


def test_damaged_tree_is_an_error_of_the_source(repo: SpecRepo, opened: ExitStack) -> None:
    """A commit whose tree is gone can't be listed: it must not look like one without specs."""
    object_file(repo, repo.git("rev-parse", "HEAD:wf")).unlink()
    source = opened.enter_context(Repository(repo.path))
    with pytest.raises(SourceError, match="ls-tree"):
        source.tree(repo.head)


def test_names_come_as_git_has_them(repo: SpecRepo, opened: ExitStack) -> None:
    """Line breaks, tabs, quotes and bytes that are no UTF-8 in names are neither quoted nor split."""
    names = ["a\nb", "a\tb", 'a"b', "é", "x\udce9"]
    for name in names:
        (repo.work / os.fsdecode(name)).write_bytes(b"")
    source = opened.enter_context(Repository(repo.path))
    assert set(names) <= {item.path for item in source.tree(repo.commit())}


def test_vanished_repository_is_not_another_one(
    repo: SpecRepo, tmp_path: Path, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository that is gone is an error, although the process stands inside another one."""
    source = opened.enter_context(Repository(repo.path))
    commit = source.head()
    assert commit is not None
    other = SpecRepo(tmp_path / "other")
    other.commit("another")
    monkeypatch.chdir(other.path)
    repo.path.rename(tmp_path / "away")
    for ask in (source.head, lambda: source.tree(commit), lambda: source.root_commits("HEAD")):
        with pytest.raises(SourceError):
            ask()
    (tmp_path / "away").rename(repo.path)
    assert source.head() == commit


def test_size_of_a_missing_object_is_an_error(repo: SpecRepo, opened: ExitStack) -> None:
    """Asking for the size of an object that is gone is a SourceError; what is asked after it is right."""
    source = opened.enter_context(Repository(repo.path))
    good, bad = blob(source, "wf/a/pyproject.toml"), blob(source, "wf/a/big")
    object_file(repo, bad).unlink()
    content = (repo.work / "wf/a/pyproject.toml").read_bytes()
    for _ in range(2):
        with pytest.raises(SourceError, match=bad):
            source.size(bad)
        assert (source.size(good), source.read(good)) == (len(content), content)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "exchanged"])
@pytest.mark.parametrize("path", ["wf/a/pyproject.toml", "wf/a/big"])
def test_content_that_is_not_the_objects_is_an_error(
    repo: SpecRepo, opened: ExitStack, path: str, damage: str
) -> None:
    """An object file that was cut off, changed by a bit or exchanged is never read as good content."""
    bad = repo.git("rev-parse", f"HEAD:{path}")
    good = repo.git("hash-object", "-w", str(repo.write(".git/other", "good")))
    file = object_file(repo, bad)
    raw = file.read_bytes()
    file.unlink()
    if damage == "truncated":
        file.write_bytes(raw[: len(raw) // 2])
    elif damage == "flipped":
        # Flipped in what is packed, with every checksum of the packing made anew.
        data = bytearray(zlib.decompress(raw))
        data[-2] ^= 1
        file.write_bytes(zlib.compress(bytes(data)))
    else:
        file.write_bytes(object_file(repo, good).read_bytes())
    source = opened.enter_context(Repository(repo.path))
    for _ in range(2):
        with pytest.raises(SourceError, match=bad):
            source.read(bad)
        assert source.read(good) == b"good"


@pytest.mark.parametrize("branch", [None, "main"])
def test_ref_to_a_missing_commit_is_an_error(repo: SpecRepo, opened: ExitStack, branch: str | None) -> None:
    """A branch whose commit is gone is no branch without commits: that would look like one not born yet."""
    source = opened.enter_context(Repository(repo.path, branch=branch))
    object_file(repo, repo.head).unlink()
    with pytest.raises(SourceError, match=r"no commit that can be read|bad object|fatal"):
        source.head()


def test_partial_clone_fetches_nothing(repo: SpecRepo, tmp_path: Path, opened: ExitStack) -> None:
    """What a partial clone has not fetched is missing: no program that the repository names is run for it."""
    trace = tmp_path / "trace"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho ran >> {trace}\nexit 1\n")
    program.chmod(0o755)
    oid = repo.git("rev-parse", "HEAD:wf/a/pyproject.toml")
    for key, value in {
        "core.repositoryFormatVersion": "1",
        "core.sshCommand": str(program),
        "extensions.partialClone": "origin",
        "remote.origin.url": "ssh://git.example/specs",
        "remote.origin.promisor": "true",
        "remote.origin.partialCloneFilter": "blob:none",
    }.items():
        repo.git("config", key, value)
    object_file(repo, oid).unlink()
    source = opened.enter_context(Repository(repo.path))
    assert oid in [item.oid for item in source.tree(repo.head)]
    for ask in (source.size, source.read):
        with pytest.raises(SourceError, match=oid):
            ask(oid)
    assert not trace.exists(), "the program was run"
    # The trap is live: an ordinary git command springs it.
    with pytest.raises(AssertionError):
        repo.git("cat-file", "-p", oid)
    assert trace.exists()


@pytest.mark.root
def test_repository_of_another_user_is_read(repo: SpecRepo, opened: ExitStack) -> None:
    """The operator named the repository, so git's doubt about its owner does not stop the reader."""
    for path in (repo.path, *repo.path.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    source = opened.enter_context(Repository(repo.path))
    assert source.head() is not None
    assert source.read(blob(source, "wf/a/pyproject.toml"))


def test_what_can_not_be_read_is_heard(repo: SpecRepo, opened: ExitStack) -> None:
    """Whoever keeps the repository hears of each object that can't be read, and of nothing else."""
    doubts: list[None] = []
    source = opened.enter_context(Repository(repo.path, doubted=lambda: doubts.append(None)))
    good, bad = blob(source, "wf/a/pyproject.toml"), blob(source, "wf/a/big")
    assert source.read(good)
    assert not Repository(repo.path, spec_path="none").has_spec_path(repo.head)
    assert doubts == []
    object_file(repo, bad).unlink()
    for ask in (source.read, source.size):
        with pytest.raises(SourceError):
            ask(bad)
    with pytest.raises(SourceError):
        source.tree("0" * 40)
    assert len(doubts) == 3


def test_tree_that_unfolds_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve small objects that stand for 10^12 files are not unfolded: the look ends with what to do, and git's
    own memory is bounded."""
    repo = SpecRepo(tmp_path / "specs")
    repo.write("README.md", "specs\n")
    before = repo.commit()
    oid = repo.git("hash-object", "-w", "README.md")
    line = f"100644 blob {oid}"
    for _ in range(12):
        entries = "".join(f"{line}\t{name}\n" for name in "abcdefghij")
        (tmp_path / "entries").write_text(entries)
        oid = repo.git("-c", "alias.make=!git mktree <" + str(tmp_path / "entries"), "make")
        line = f"040000 tree {oid}"
    bomb = repo.git("commit-tree", "-m", "a bomb", "-p", before, oid)
    with Repository(repo.path) as repository:
        with pytest.raises(SourceError, match=r"more than 1000000 entries.*--path"):
            repository.tree(bomb)
        # The limit itself takes ten seconds to be reached.
        monkeypatch.setattr("envfabric.specs.repository.MOST_MEMORY", 64 * 1024**2)
        with pytest.raises(SourceError, match="memory"):
            repository.changes(before, bomb)
        assert [item.path for item in repository.tree(before)] == ["README.md"]


def make_tree(repo: SpecRepo, tmp_path: Path, names: list[str]) -> str:
    """A commit with empty files of these names at its top, which need not fit on a disk."""
    oid = repo.git("hash-object", "-w", str(repo.write(".git/empty", "")))
    (tmp_path / "entries").write_text("".join(f"100644 blob {oid}\t{name}\n" for name in names))
    tree = repo.git("-c", f"alias.make=!git mktree <{tmp_path / 'entries'}", "make")
    return repo.git("commit-tree", "-m", "made", tree)


def test_name_that_no_host_could_have_is_left_out(repo: SpecRepo, tmp_path: Path, opened: ExitStack) -> None:
    """A path of more bytes than any file system takes is not read, and neither are the others lost for it."""
    names = ["a" * 4000, "b" * 4200, "c" * 1_000_000, "d"]
    commit = make_tree(repo, tmp_path, names)
    source = opened.enter_context(Repository(repo.path))
    assert [item.path for item in source.tree(commit)] == ["a" * 4000, "d"]
    assert source.changes(repo.head, commit) >= {"a" * 4000, "d", "wf"}
    assert max(map(len, source.changes(repo.head, commit))) == 4000


def test_bytes_of_all_names_are_bounded(
    repo: SpecRepo, tmp_path: Path, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few entries with long names are as much as many: they are told of as a whole, in the difference as well."""
    monkeypatch.setattr("envfabric.specs.repository.MOST_LISTED", 1 << 20)
    commit = make_tree(repo, tmp_path, [f"{number:03}{'x' * 3900}" for number in range(300)])
    source = opened.enter_context(Repository(repo.path))
    for ask in (lambda: source.tree(commit), lambda: source.changes(repo.head, commit)):
        with pytest.raises(SourceError, match=r"1 MB of paths.*--path"):
            ask()
    assert source.tree(repo.head)


def test_git_gets_an_environment_of_its_own(
    repo: SpecRepo, tmp_path: Path, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither secrets of the daemon nor GIT_ variables that it was started with reach a git process."""
    told = tmp_path / "told"
    before_git(tmp_path, monkeypatch, f"env >> {told}")
    monkeypatch.setenv("ENVFABRIC_RECONCILE_TOKEN", "hush-hush")
    monkeypatch.setenv("GIT_ALTERNATE_OBJECT_DIRECTORIES", str(tmp_path / "none"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "none"))
    source = opened.enter_context(Repository(repo.path))
    commit = source.head()
    assert commit is not None
    oid = blob(source, "wf/a/pyproject.toml")
    assert source.size(oid) == len(source.read(oid))
    assert source.root_commits(commit)
    environment = told.read_text()
    assert f"GIT_DIR={repo.path}/.git" in environment
    for word in ("hush-hush", "ENVFABRIC", "GIT_ALTERNATE", "GIT_INDEX_FILE"):
        assert word not in environment
