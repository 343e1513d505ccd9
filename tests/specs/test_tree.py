"""Which folders of a commit are specs: read from real git trees, the odd ones written with git's plumbing."""

import subprocess
from pathlib import Path

import pytest

from envfabric.core.errors import Reason
from envfabric.specs.repository import Repository, SourceError
from envfabric.specs.tree import MAX_PROBLEMS, Problem, Wanted, find_specs
from support.spec_repo import SpecRepo


@pytest.fixture
def repo(tmp_path: Path) -> SpecRepo:
    return SpecRepo(tmp_path / "specs")


def wanted(repo: SpecRepo, spec_path: str = "") -> Wanted:
    """What the last commit asks for."""
    with Repository(repo.path, spec_path=spec_path) as source:
        return find_specs(source.tree(repo.head))


def commit_index(repo: SpecRepo) -> None:
    """Commits the index as it is, whatever the work tree holds."""
    repo.git("commit", "--quiet", "--allow-empty", "--message", "odd")


def add(repo: SpecRepo, mode: str, path: str | bytes, content: str = "[project]\n") -> None:
    """Puts an entry of any mode and name into the index; a submodule's object need not exist."""
    oid = "1" * 40
    if mode != "160000":
        repo.write(".git/content", content)
        oid = repo.git("hash-object", "-w", ".git/content")
    name = path.encode() if isinstance(path, str) else path
    line = f"{mode} {oid}\t".encode() + name + b"\0"
    command = ["git", "update-index", "-z", "--index-info"]
    subprocess.run(command, cwd=repo.path, input=line, check=True, capture_output=True)


def only_problem(found: Wanted) -> Problem:
    (problem,) = found.problems
    assert found.specs == {}
    assert problem.reason is Reason.INVALID_SPEC
    return problem


def test_spec_is_two_folders_deep(repo: SpecRepo) -> None:
    """<workflow>/<node>/ with a pyproject.toml is a spec: its tree id is git's, its files are its blobs."""
    repo.spec("wf-1/node.A", lock=b"lock", python="3.11")
    repo.write("wf-1/node.A/README.md", "words")
    repo.write("wf-1/node.A/src/uv.lock", "not the spec's")
    repo.write("wf-1/notes/README.md", "no spec")
    repo.write("wf-1/only-lock/uv.lock", "no spec")
    repo.commit()
    found = wanted(repo)
    assert found.problems == []
    (ref,) = found.specs.values()
    assert (ref.id, ref.tree) == ("wf-1/node.A", repo.git("rev-parse", "HEAD:wf-1/node.A"))
    names = ("pyproject.toml", "uv.lock", ".python-version")
    assert dict(ref.blobs) == {name: repo.git("rev-parse", f"HEAD:wf-1/node.A/{name}") for name in names}
    assert ref.refused is None


def test_no_files_no_specs(repo: SpecRepo) -> None:
    """An empty commit asks for nothing and has no problems."""
    repo.commit()
    assert wanted(repo) == Wanted()


@pytest.mark.parametrize(
    "path",
    ["pyproject.toml", ".github/pyproject.toml", ".venv/lib/pyproject.toml", "wf/.cache/pyproject.toml",
     "wf/.cache/deep/pyproject.toml", "wf/a/.tox/x/pyproject.toml", "uv.lock", "wf/README.md"],
)  # fmt: skip
def test_ignored_without_a_word(repo: SpecRepo, path: str) -> None:
    """The spec directory's own pyproject.toml and everything in dot folders are nobody's business."""
    repo.write(path, "[project]\n")
    repo.commit()
    assert wanted(repo) == Wanted()


@pytest.mark.parametrize("deeper", ["src", "a/b/c", ".hidden/x", "uv.lock.d"])
def test_deeper_file_belongs_to_its_spec(repo: SpecRepo, deeper: str) -> None:
    """A pyproject.toml below a spec is part of that spec's folder: no spec, and no problem."""
    repo.spec("wf/a")
    repo.write(f"wf/a/{deeper}/pyproject.toml", "broken")
    repo.commit()
    found = wanted(repo)
    assert (list(found.specs), found.problems) == (["wf/a"], [])


@pytest.mark.parametrize("path", ["wf/pyproject.toml", "wf/a/src/pyproject.toml", "wf/a/b/c/pyproject.toml"])
def test_misplaced_file_is_a_problem(repo: SpecRepo, path: str) -> None:
    """A pyproject.toml at any other depth is a problem that says where it belongs."""
    repo.write(path, "[project]\n")
    repo.commit()
    problem = only_problem(wanted(repo))
    assert problem.path == path
    assert "<workflow>/<node>/pyproject.toml" in problem.message


def test_problem_hides_no_spec(repo: SpecRepo) -> None:
    """Good specs beside misplaced files and bad names are found; the problems come in order."""
    for spec_id in ("wf/good", "wf/bad name", "zz/also.good"):
        repo.write(f"{spec_id}/pyproject.toml", "[project]\n")
    repo.write("wf/pyproject.toml", "[project]\n")
    repo.write("aa/b/c/pyproject.toml", "[project]\n")
    repo.commit()
    found = wanted(repo)
    assert list(found.specs) == ["wf/good", "zz/also.good"]
    paths = [problem.path for problem in found.problems]
    assert paths == ["aa/b/c/pyproject.toml", "wf/bad name/pyproject.toml", "wf/pyproject.toml"]


@pytest.mark.parametrize(
    "part", ["_a", "-a", "a b", "a\nb", "a\x1b[31m", "a\u202eb", "é", "a:b", "a\\b", "$(id)", "a" * 101]
)
@pytest.mark.parametrize("place", ["{}/node", "wf/{}"])
def test_illegal_names_are_problems(repo: SpecRepo, part: str, place: str) -> None:
    """A folder whose name can't be part of an id is a problem; nothing unprintable gets into the message."""
    add(repo, "100644", f"{place.format(part)}/pyproject.toml")
    commit_index(repo)
    problem = only_problem(wanted(repo))
    assert "can't be a spec id" in problem.message
    assert "Rename the folder" in problem.message
    assert (problem.path + problem.message).isprintable()
    assert len(problem.message) < 500


def test_name_that_is_not_utf8_is_a_problem(repo: SpecRepo) -> None:
    """A name in another encoding is a problem whose text can be written as UTF-8."""
    add(repo, "100644", b"wf/caf\xe9/pyproject.toml")
    commit_index(repo)
    problem = only_problem(wanted(repo))
    assert (problem.path + problem.message).encode("ascii", "strict")
    assert "caf" in problem.path


@pytest.mark.parametrize("part", ["a" * 100, "0", "A.b_c-d", "a..b", "a.", "con", "a.lock"])
def test_longest_and_oddest_legal_names(repo: SpecRepo, part: str) -> None:
    """What the alphabet allows is a spec, up to the greatest length."""
    add(repo, "100644", f"{part}/{part}/pyproject.toml")
    commit_index(repo)
    found = wanted(repo)
    assert (list(found.specs), found.problems) == ([f"{part}/{part}"], [])


@pytest.mark.parametrize("name", ["..", "."])
def test_names_that_climb_are_never_ids(repo: SpecRepo, name: str) -> None:
    """A tree that was made with '..' as a name, which git itself would refuse, leads nowhere."""
    repo.write(".git/content", "[project]\n")
    blob = repo.git("hash-object", "-w", ".git/content")
    inner = tree(repo, ("100644", "pyproject.toml", blob))
    for top in (
        tree(repo, ("40000", "wf", tree(repo, ("40000", name, inner)))),
        tree(repo, ("40000", name, tree(repo, ("40000", "a", inner)))),
    ):
        with Repository(repo.path) as source:
            found = find_specs(source.tree(repo.git("commit-tree", top, "-m", "climbs")))
        assert found.specs == {}


@pytest.mark.parametrize("name", ["wf/b/pyproject.toml", "b/pyproject.toml"])
def test_names_with_slashes_cost_nobody_else(repo: SpecRepo, name: str) -> None:
    """A tree that was made with slashes in a name, which git itself never does, is no spec and hides none."""
    repo.spec("zz/good")
    repo.write(".git/content", "[project]\n")
    blob = repo.git("hash-object", "-w", ".git/content")
    repo.commit()
    good = repo.git("rev-parse", "HEAD:zz")
    odd = ("100644", name, blob)
    if name == "b/pyproject.toml":
        odd = ("40000", "wf", tree(repo, odd))
    commit = repo.git("commit-tree", tree(repo, odd, ("40000", "zz", good)), "-m", "slashes")
    with Repository(repo.path) as source:
        found = find_specs(source.tree(commit))
    assert list(found.specs) == ["zz/good"]
    assert found.specs["zz/good"].refused is None
    assert [problem.path for problem in found.problems] == ["wf/b/pyproject.toml"]


def tree(repo: SpecRepo, *entries: tuple[str, str, str]) -> str:
    """Writes a tree of (mode, name, object id) that git would not check, and gives its id."""
    raw = b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(oid) for mode, name, oid in entries)
    command = ["git", "hash-object", "-t", "tree", "-w", "--literally", "--stdin"]
    made = subprocess.run(command, cwd=repo.path, input=raw, check=True, capture_output=True)
    return made.stdout.decode().strip()


@pytest.mark.parametrize("file", ["pyproject.toml", "uv.lock", ".python-version"])
@pytest.mark.parametrize(("mode", "kind"), [("120000", "symlink"), ("160000", "submodule")])
def test_spec_files_are_regular(repo: SpecRepo, file: str, mode: str, kind: str) -> None:
    """A symlink or submodule in the place of a spec's file refuses that spec and names the file."""
    add(repo, "100644", "wf/a/pyproject.toml")
    add(repo, mode, f"wf/a/{file}", "../../../secret")
    add(repo, "100644", "wf/b/pyproject.toml")
    commit_index(repo)
    found = wanted(repo)
    refused = found.specs["wf/a"].refused
    assert refused is not None
    assert f"wf/a/{file} is a {kind}; commit it as a regular file" in refused
    assert found.specs["wf/b"].refused is None


@pytest.mark.parametrize("mode", ["100644", "100755"])
def test_executable_bit_does_not_matter(repo: SpecRepo, mode: str) -> None:
    """A pyproject.toml that is marked executable is a regular file."""
    add(repo, mode, "wf/a/pyproject.toml")
    commit_index(repo)
    assert wanted(repo).specs["wf/a"].refused is None


@pytest.mark.parametrize(("mode", "kind"), [("120000", "symlink"), ("160000", "submodule")])
@pytest.mark.parametrize(
    ("path", "place"), [("wf", "workflow"), ("v1.2", "workflow"), ("wf/a", "spec"), ("wf/a.2", "spec")]
)
def test_linked_folders_are_problems(repo: SpecRepo, path: str, place: str, mode: str, kind: str) -> None:
    """A symlink or submodule in the place of a workflow or a spec is not followed, and is a problem that says so."""
    add(repo, "100644", "other/b/pyproject.toml")
    add(repo, mode, path, "other/b")
    commit_index(repo)
    found = wanted(repo)
    (problem,) = found.problems
    assert (list(found.specs), problem.path) == (["other/b"], path)
    assert f"a {kind} in the place of a {place} is not followed" in problem.message


@pytest.mark.parametrize("path", ["README.md", "wf/README.md", "wf/common.yaml", ".github", "wf/.hidden"])
def test_linked_file_is_nobodys_business(repo: SpecRepo, path: str) -> None:
    """A symlink with a file's name, or one with a dot before it, is no problem."""
    add(repo, "120000", path, "../README.md")
    commit_index(repo)
    assert wanted(repo) == Wanted()


def test_many_problems_are_counted(repo: SpecRepo) -> None:
    """The first thousand problems of a revision are told one by one, the others by their number."""
    lines = "".join(f"100644 {{oid}}\twf/{n:04}/pyproject.toml\0" for n in range(3))
    lines += "".join(f"160000 {'1' * 40}\twf/x{n:04}\0" for n in range(MAX_PROBLEMS + 2))
    oid = repo.git("hash-object", "-w", ".git/HEAD")
    command = ["git", "update-index", "-z", "--index-info"]
    subprocess.run(command, cwd=repo.path, input=lines.format(oid=oid).encode(), check=True)
    commit_index(repo)
    found = wanted(repo)
    assert (len(found.specs), len(found.problems)) == (3, MAX_PROBLEMS + 1)
    assert found.problems[MAX_PROBLEMS - 1].path == f"wf/x{MAX_PROBLEMS - 1:04}"
    assert found.problems[-1].message.startswith("2 more problems of this kind are not listed.")


@pytest.mark.parametrize("file", ["pyproject.toml", "uv.lock", ".python-version"])
def test_folder_named_like_a_spec_file_refuses_the_spec(repo: SpecRepo, file: str) -> None:
    """A folder in the place of a spec's file is not passed over: the spec would be built without its lock."""
    if file != "pyproject.toml":
        add(repo, "100644", "wf/a/pyproject.toml")
    add(repo, "100644", f"wf/a/{file}/inner", "x")
    commit_index(repo)
    refused = wanted(repo).specs["wf/a"].refused
    assert refused is not None
    assert f"wf/a/{file} is a folder; commit it as a regular file" in refused


def test_ids_that_differ_by_last_dots_are_refused_together(repo: SpecRepo) -> None:
    """Some file systems drop dots at the end of a name: such ids are refused like those that differ by case."""
    for spec_id in ("wf/a", "wf/A..", "wf./a", "wf/a.b"):
        add(repo, "100644", f"{spec_id}/pyproject.toml")
    commit_index(repo)
    specs = wanted(repo).specs
    assert specs["wf/a.b"].refused is None
    assert all("dots at the end" in str(specs[one].refused) for one in ("wf/a", "wf/A..", "wf./a"))


def test_number_of_specs_is_bounded(repo: SpecRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revision of more specs than are read is told of as a whole, and says what to do."""
    monkeypatch.setattr("envfabric.specs.tree.MAX_SPECS", 2)
    for spec_id in ("wf/a", "wf/b", "wf/c"):
        add(repo, "100644", f"{spec_id}/pyproject.toml")
    commit_index(repo)
    with pytest.raises(SourceError, match=r"has 3 specs; at most 2 are read.*--path"):
        wanted(repo)


def test_ids_that_differ_only_by_case_are_refused_together(repo: SpecRepo) -> None:
    """Twins by case are all refused, each naming the others; a third spec is not touched."""
    for spec_id in ("wf/Node", "WF/node", "wf/node", "wf/other"):
        add(repo, "100644", f"{spec_id}/pyproject.toml")
    commit_index(repo)
    specs = wanted(repo).specs
    assert specs["wf/other"].refused is None
    for spec_id in ("wf/Node", "WF/node", "wf/node"):
        refused = specs[spec_id].refused
        assert refused is not None
        assert all(other in refused for other in ("wf/Node", "WF/node", "wf/node"))
        assert "differ only by case" in refused


def test_spec_directory_inside_the_repository(tmp_path: Path) -> None:
    """With a spec directory, only what is below it counts, and ids begin there."""
    repo = SpecRepo(tmp_path / "specs", spec_dir="deploy/envs")
    repo.spec("wf/a")
    repo.write("deploy/envs/pyproject.toml", "[project]\n")
    repo.write("pyproject.toml", "[project]\n")
    repo.write("deploy/other/wf/pyproject.toml", "[project]\n")
    repo.commit()
    found = wanted(repo, "deploy/envs")
    assert (list(found.specs), found.problems) == (["wf/a"], [])


def test_number_of_entries_is_bounded(repo: SpecRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree of more entries than are read is told of as a whole; a folder for the specs alone is the way out."""
    monkeypatch.setattr("envfabric.specs.repository.MAX_ENTRIES", 4)
    for path in ("wf/a/pyproject.toml", "wf/a/README.md", "other"):
        add(repo, "100644", path)
    commit_index(repo)
    with pytest.raises(SourceError, match=r"more than 4 entries .*no more are read.*--path"):
        wanted(repo)
    assert list(wanted(repo, "wf").specs) == []
