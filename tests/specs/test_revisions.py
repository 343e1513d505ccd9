"""A revision that is read by its difference to the last one asks for what it asks for when read as a whole."""

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from envfabric.specs import revisions
from envfabric.specs.repository import Repository
from envfabric.specs.revisions import Revision, read_revision
from support.spec_repo import SpecRepo

FLOWS = ["wf", "WF", "w.x", ".dot", "bad name", ":(glob)*", "-f", "ä", "other"]
NODES = ["a", "A", "b", "pyproject.toml", ".hid", "*", "no good"]
FILES = [
    "pyproject.toml",
    "uv.lock",
    ".python-version",
    "README.md",
    "src/pyproject.toml",
    ".git-not/pyproject.toml",
]
MODES = ["100644"] * 6 + ["100755", "120000", "160000"]


class Drawn:
    """Commits that are made of a listing of files, without a work tree: anything may become anything else."""

    def __init__(self, repo: SpecRepo, seed: int) -> None:
        self.repo = repo
        self.random = random.Random(seed)
        self.files: dict[str, tuple[str, str]] = {}
        self.blobs = []
        for number in range(6):
            repo.write(".git/content", f"{number}")
            self.blobs.append(repo.git("hash-object", "-w", ".git/content"))

    def put(self, path: str, mode: str = "100644") -> None:
        parts = path.split("/")
        above = {"/".join(parts[:n]) for n in range(1, len(parts))}
        self.files = {
            one: entry
            for one, entry in self.files.items()
            if one not in above and not one.startswith(f"{path}/")
        }
        self.files[path] = (mode, self.random.choice(self.blobs))

    def drop(self, path: str) -> None:
        self.files = {
            one: entry for one, entry in self.files.items() if one != path and not one.startswith(f"{path}/")
        }

    def edit(self, top: str) -> None:
        """One edit: a file comes, changes, goes or becomes a folder, a folder goes or becomes a file."""
        flow, node = self.random.choice(FLOWS), self.random.choice(NODES)
        place = self.random.choice(
            [f"{top}{flow}/{node}"] * 7 + [f"{top}{flow}"] * 2 + [f"{top}pyproject.toml"]
        )
        kind = self.random.random()
        if kind < 0.6:
            self.put(f"{place}/{self.random.choice(FILES)}", self.random.choice(MODES))
        elif kind < 0.7:
            self.put(place, self.random.choice(MODES))
        elif kind < 0.85 and self.files:
            self.drop(self.random.choice(sorted(self.files)))
        elif kind < 0.97:
            self.drop(place)
        else:
            self.drop(top.rstrip("/") or flow)

    def commit(self) -> str:
        lines = (f"{mode} {oid}\t{path}\0" for path, (mode, oid) in self.files.items())
        self.repo.git("read-tree", "--empty")
        command = ["git", "update-index", "-z", "--index-info"]
        subprocess.run(
            command, cwd=self.repo.path, input="".join(lines).encode(), check=True, capture_output=True
        )
        return self.repo.git("commit-tree", "-m", "drawn", self.repo.git("write-tree"))


@pytest.fixture
def repo(tmp_path: Path) -> SpecRepo:
    return SpecRepo(tmp_path / "specs")


@pytest.fixture
def source(repo: SpecRepo) -> Iterator[Repository]:
    with Repository(repo.path) as source:
        yield source


def tree(repo: SpecRepo, *entries: tuple[str, str, str]) -> str:
    """Writes a tree of (mode, name, object id) that git would not check, and gives its id."""
    raw = b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(oid) for mode, name, oid in entries)
    command = ["git", "hash-object", "-t", "tree", "-w", "--literally", "--stdin"]
    made = subprocess.run(command, cwd=repo.path, input=raw, check=True, capture_output=True)
    return made.stdout.decode().strip()


def same_either_way(source: Repository, commit: str, last: Revision | None) -> Revision:
    """Reads a commit in both ways, and fails where they differ."""
    whole = read_revision(source, commit)
    found = read_revision(source, commit, last)
    assert found.wanted == whole.wanted
    assert found.wanted.places == whole.wanted.places
    if last is not None and found.wanted.touched is not None:
        old, new = last.wanted.specs, found.wanted.specs
        differing = {one for one in old.keys() | new.keys() if old.get(one) != new.get(one)}
        assert differing <= found.wanted.touched
    return found


@pytest.mark.parametrize(("seed", "top"), [(1, ""), (2, ""), (3, "deep/specs/"), (4, "deep/specs/")])
def test_any_row_of_edits_reads_the_same(repo: SpecRepo, seed: int, top: str) -> None:
    """Whatever files, folders, links and submodules become of each other, and wherever history jumps to."""
    drawn = Drawn(repo, seed)
    last: Revision | None = None
    commits: list[str] = []
    by_difference = 0
    with Repository(repo.path, spec_path=top) as source:
        for _ in range(120):
            for _ in range(drawn.random.choice([1, 1, 1, 2, 5])):
                drawn.edit(top)
            # Sometimes the branch is set to what it was long ago.
            commit = (
                drawn.commit() if drawn.random.random() < 0.9 or not commits else drawn.random.choice(commits)
            )
            commits.append(commit)
            last = same_either_way(source, commit, last)
            by_difference += last.wanted.touched is not None
    assert by_difference > 80


def test_twins_come_and_go(repo: SpecRepo, source: Repository) -> None:
    """A spec is refused while a twin is there, and wanted again, or refused for its own reason, when it goes."""
    repo.spec("wf/a")
    repo.spec("wf/b")
    last = same_either_way(source, repo.commit(), None)
    repo.spec("WF/A")
    last = same_either_way(source, repo.commit(), last)
    assert last.wanted.touched == frozenset({"wf/a", "WF/A"})
    refused = last.wanted.specs["wf/a"].refused
    assert refused == "wf/a and WF/A differ only by case or by dots at the end; rename all but one."
    repo.remove("WF/A")
    last = same_either_way(source, repo.commit(), last)
    assert last.wanted.specs["wf/a"].refused is None


def test_last_commit_that_is_gone(repo: SpecRepo, source: Repository) -> None:
    """After a rewritten history the last commit may not exist any more: the new one is read as a whole."""
    repo.spec("wf/a")
    last = read_revision(source, repo.commit())
    repo.spec("wf/b")
    found = read_revision(source, repo.commit(), Revision("1" * 40, last.wanted))
    assert sorted(found.wanted.specs) == ["wf/a", "wf/b"]
    assert found.wanted.touched is None


def test_many_changes_are_read_as_a_whole(
    repo: SpecRepo, source: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many changed folders that naming each would cost more than reading all make no difference."""
    monkeypatch.setattr(revisions, "MOST", 1)
    last = read_revision(source, repo.commit())
    repo.spec("wf/a")
    last = same_either_way(source, repo.commit(), last)
    assert last.wanted.touched == frozenset({"wf/a"})
    repo.spec("wf/b")
    repo.spec("wf/c")
    assert same_either_way(source, repo.commit(), last).wanted.touched is None


@pytest.mark.parametrize("names", [["n" * 140_000], ["n" * 5000], [f"{n}" + "n" * 1000 for n in range(120)]])
def test_names_too_long_for_a_command_line(repo: SpecRepo, source: Repository, names: list[str]) -> None:
    """Git keeps names that no program can be told: a commit with one stops nothing, nor do those that follow it."""
    repo.spec("zz/good")
    last = same_either_way(source, repo.commit(), None)
    first, blob, good = (
        repo.head,
        *(repo.git("rev-parse", f"HEAD:zz{rest}") for rest in ("/good/pyproject.toml", "")),
    )
    flow = tree(repo, *(("40000", name, tree(repo, ("100644", "pyproject.toml", blob))) for name in names))
    long = repo.git("commit-tree", tree(repo, ("40000", "wf", flow), ("40000", "zz", good)), "-m", "long")
    last = same_either_way(source, long, last)
    assert list(last.wanted.specs) == ["zz/good"] or len(names) > 1
    assert list(same_either_way(source, first, last).wanted.specs) == ["zz/good"]


def test_edits_elsewhere_touch_nothing(repo: SpecRepo) -> None:
    """A commit that changes nothing below the spec folder, or only its own files, touches no spec."""
    repo.spec_dir = "specs"
    repo.spec("wf/a")
    with Repository(repo.path, spec_path="specs") as source:
        last = same_either_way(source, repo.commit(), None)
        repo.write("elsewhere/wf/a/pyproject.toml", "[project]\n")
        repo.write("specs/README.md", "words")
        last = same_either_way(source, repo.commit(), last)
        assert last.wanted.touched == frozenset()
        assert sorted(last.wanted.specs) == ["wf/a"]


@pytest.mark.parametrize("name", ["wf/b/pyproject.toml", "b/pyproject.toml", "..", "."])
def test_forged_names_read_the_same(repo: SpecRepo, source: Repository, name: str) -> None:
    """Names that git itself never writes come and go: they hide no spec in either way."""
    repo.spec("zz/good")
    last = same_either_way(source, repo.commit(), None)
    first, blob = repo.head, repo.git("rev-parse", "HEAD:zz/good/pyproject.toml")
    good = ("40000", "zz", repo.git("rev-parse", "HEAD:zz"))
    inner = ("40000", "wf", tree(repo, ("100644", name, blob) if "/" in name else ("40000", name, good[2])))
    odd = inner if not name.startswith("wf") else ("100644", name, blob)
    forged = repo.git("commit-tree", tree(repo, odd, good), "-m", "forged")
    last = same_either_way(source, forged, last)
    assert list(last.wanted.specs) == ["zz/good"]
    assert same_either_way(source, first, last).wanted.problems == []
