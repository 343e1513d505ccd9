"""new, add and remove: what they write, and that nothing else changes."""

import stat
import sys
import tomllib
from pathlib import Path

import pytest

from envfabric.specs.writing import add, remove
from support.fabric import Fabric

from .conftest import Run

STYLED = """\
# The training environment; ask Ada before you change it.
[project]
name = "wf-train"   # as in the dashboards
version = '0.1.0'
requires-python = ">=3.11"
dependencies = [
    # numbers
    "alpha>=1",   # arrays
    'gamma>=1,<3', # frames
    "only-source"
    # end
]
readme = "README.md"

# Tools follow.
[tool.envfabric]
suspend   =   false
"""


@pytest.fixture
def styled(fabric: Fabric) -> Path:
    """A spec whose author has a style of their own."""
    return fabric.repo.write("wf/train/pyproject.toml", STYLED)


def test_new_writes_a_spec_that_the_daemon_builds(fabric: Fabric, run: Run) -> None:
    """`new` makes a spec from an id and requirements, says what to do next, commits nothing, and it builds."""
    done = run("new", "wf-1/node_A", "alpha>=1", "gamma<2")
    assert (fabric.repo.work / "wf-1/node_A/pyproject.toml").read_text() == (
        "[project]\n"
        'name = "wf-1-node-a"\n'
        'version = "0.1.0"\n'
        f'requires-python = ">=3.{sys.version_info.minor}"\n'
        "dependencies = [\n"
        '    "alpha>=1",\n'
        '    "gamma<2",\n'
        "]\n"
    )
    assert "git add" in done.stdout
    assert "?? wf-1/" in fabric.repo.git("status", "--short")
    run("check")
    fabric.repo.commit()
    assert fabric.run_once()["environments"]["wf-1/node_A"]["state"] == "ready"


def test_new_takes_a_python(fabric: Fabric, run: Run) -> None:
    """A version is asked for exactly; bounds become requires-python; what is neither is refused."""
    run("new", "wf/a", "--python", "3.11")
    made = tomllib.loads((fabric.repo.work / "wf/a/pyproject.toml").read_text())
    assert made["project"]["requires-python"] == ">=3.11"
    assert made["tool"]["envfabric"] == {"python": "3.11"}
    run("new", "wf/b", "--python", ">=3.11,<3.13")
    made = tomllib.loads((fabric.repo.work / "wf/b/pyproject.toml").read_text())
    assert made["project"]["requires-python"] == ">=3.11,<3.13"
    assert "tool" not in made
    assert "requires-python" in run("new", "wf/c", "--python", "newest", expect=1).stderr
    assert not (fabric.repo.work / "wf/c").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("new", "../../etc/x"), 2, "no spec id"),
        (("new", "wf/.."), 2, "no spec id"),
        (("new", "wf/a\nb"), 2, "no spec id"),
        (("new", "wf/train"), 1, "envfabric add wf/train"),
        (("new", "WF/other"), 2, "only by case"),
        (("new", "wf/new", "not a requirement"), 2, "no requirement"),
        (("new", "wf/new", "x @ file:///etc/passwd"), 1, "URL or path"),
        (("new", "link/a"), 2, "symlink"),
        (("add", "wf/trian", "alpha"), 1, "envfabric new wf/trian"),
        (("add", "wf/train", "alpha ==== 1"), 2, "no requirement"),
        (("add", "wf/train", "x @ https://example.invalid/x.whl"), 1, "URL or path"),
        (("add", "wf/train", "alpha", "--extra", "a", "--group", "b"), 2, "not both"),
        (("add", "wf/linked", "alpha"), 1, "symlink"),
        (("remove", "wf/train", "gama"), 2, "did you mean 'gamma'?"),
        (("remove", "wf/train", "zzz"), 2, "it has alpha, gamma, only-source"),
        (("new", "wf/a", "--specs", "nowhere"), 2, "no such folder"),
    ],
)
def test_what_is_refused_changes_nothing(
    fabric: Fabric, run: Run, styled: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    """A wrong id, a way over a link, a broken requirement: one sentence, and no file is touched."""
    (fabric.folder / "elsewhere").mkdir()
    (fabric.repo.work / "link").symlink_to(fabric.folder / "elsewhere")
    (fabric.repo.work / "wf/linked").mkdir()
    (fabric.repo.work / "wf/linked/pyproject.toml").symlink_to(styled)
    before = _tree(fabric.folder)
    done = run(*arguments, expect=code)
    assert words in done.stderr
    assert _tree(fabric.folder) == before


def test_outside_of_a_clone_the_error_names_the_repository(fabric: Fabric, run: Run) -> None:
    """Without --specs, and outside of any git work tree, it says where the settings' specs are."""
    config = fabric.configure()
    done = run("new", "wf/a", "--config", config, cwd=fabric.folder, expect=2)
    assert "give --specs DIR" in done.stderr and f"on this machine: {fabric.repo.path}" in done.stderr
    run("new", "wf/a", "--config", config, "--specs", fabric.repo.path, cwd=fabric.folder)
    assert (fabric.repo.work / "wf/a/pyproject.toml").is_file()


def test_the_settings_folder_of_specs_is_found(fabric: Fabric, run: Run) -> None:
    """At the top of the repository that the settings name, `path` of the settings is the folder of specs."""
    fabric.settings["path"] = "specs"
    (fabric.repo.work / "specs").mkdir()
    run("new", "wf/a", "--config", fabric.configure())
    assert (fabric.repo.work / "specs/wf/a/pyproject.toml").is_file()
    assert "1 spec, no problems" in run("check", "--config", fabric.configure()).stdout


@pytest.mark.parametrize(
    ("arguments", "old", "new"),
    [
        (("add", "beta"), "    'gamma", '    "beta",\n    \'gamma'),
        (("add", "zeta>=1"), '    "only-source"\n', '    "only-source",\n    "zeta>=1",\n'),
        (("add", "aaa"), "[\n    # numbers\n", '[\n    "aaa",\n    # numbers\n'),
        (("add", "Gamma==2.0"), "'gamma>=1,<3'", "'Gamma==2.0'"),
        (("add", "alpha>=1"), "", ""),
        (("remove", "alpha"), '    "alpha>=1",   # arrays\n', ""),
        (("remove", "Only_Source"), '    "only-source"\n', ""),
        (("add", "beta", "--group", "dev"), "false\n", 'false\n\n[dependency-groups]\ndev = ["beta"]\n'),
        (
            ("add", "beta", "--extra", "gpu"),
            "false\n",
            'false\n\n[project.optional-dependencies]\ngpu = ["beta"]\n',
        ),
    ],
)
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_every_other_byte_stays(
    fabric: Fabric, run: Run, arguments: tuple[str, ...], old: str, new: str, line_break: str
) -> None:
    """Comments, order, quotes, spaces and line breaks survive; the mode stays; a sorted list stays sorted."""
    path = fabric.repo.write("wf/train/pyproject.toml", STYLED.replace("\n", line_break))
    path.chmod(0o640)
    command, *rest = arguments
    run(command, "wf/train", *rest)
    wanted = STYLED.replace(old, new, 1) if old else STYLED
    assert path.read_bytes() == wanted.replace("\n", line_break).encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(one.name for one in path.parent.iterdir()) == ["pyproject.toml"]


@pytest.mark.parametrize(
    ("before", "arguments", "after"),
    [
        ('["b", "d"]', ("add", "c"), '["b", "c", "d"]'),
        ('["b", "d"]', ("add", "a"), '["a", "b", "d"]'),
        ('["d", "b"]', ("add", "c"), '["d", "b", "c"]'),
        ("[ 'b', 'd', ]", ("add", "e"), "[ 'b', 'd', 'e', ]"),
        ("[]", ("add", "b", "a"), '["a", "b"]'),
        ("[\n]", ("add", "a"), '[\n    "a",\n]'),
        ('[\n\t"b",\n\t"d"]', ("add", "c"), '[\n\t"b",\n\t"c",\n\t"d"]'),
        ('[\n  "b", "d",\n  "f" # x\n]', ("add", "g"), '[\n  "b", "d",\n  "f", # x\n  "g",\n]'),
        ('[\n  "b", "d",\n  "f"\n]', ("remove", "d"), '[\n  "b",\n  "f"\n]'),
        ('["b", "d", "f"]', ("remove", "f", "b"), '["d"]'),
        ('["d"]', ("remove", "d"), "[]"),
        ("[\"a[x]>=1; python_version < '4'\"]", ("add", "b"), '["a[x]>=1; python_version < \'4\'", "b"]'),
    ],
)
def test_styles_of_lists(before: str, arguments: tuple[str, ...], after: str) -> None:
    """One line or many, trailing comma or none, either quotes, tabs: the list keeps its own way."""
    head = '[project]\nname = "x"\nversion = "1"\ndependencies = '
    command, *rest = arguments
    change = add if command == "add" else remove
    assert change(f"{head}{before}\n# end\n", rest)[0] == f"{head}{after}\n# end\n"


def test_a_spec_without_dependencies_gets_the_list_in_its_place(fabric: Fabric, run: Run) -> None:
    """Below the version, not behind what comes at the table's end."""
    text = '[project]\nname = "x"\nversion = "1"\n\n[project.scripts]\na = "b:c"\n'
    path = fabric.repo.write("wf/a/pyproject.toml", text)
    run("add", "wf/a", "alpha")
    assert path.read_text() == text.replace('version = "1"\n', 'version = "1"\ndependencies = ["alpha"]\n')


def test_a_committed_lock_is_said_to_be_stale(fabric: Fabric, run: Run, styled: Path) -> None:
    """A changed spec with a uv.lock beside it: what to run is said, and the lock is left alone."""
    lock = fabric.repo.write("wf/train/uv.lock", "version = 1\n")
    done = run("add", "wf/train", "beta")
    assert "uv lock" in done.stdout
    assert "envfabric lock wf/train" in done.stdout
    assert lock.read_text() == "version = 1\n"


def test_a_name_in_another_list_is_pointed_out(fabric: Fabric, run: Run, styled: Path) -> None:
    """Removing from the wrong list says which flag names the right one."""
    run("add", "wf/train", "beta", "--group", "dev")
    assert "--group dev" in run("remove", "wf/train", "beta", expect=2).stderr
    run("remove", "wf/train", "beta", "--group", "dev")
    assert "dev = []" in styled.read_text()


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git" not in path.parts
    }
