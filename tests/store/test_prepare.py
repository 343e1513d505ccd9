"""A folder becomes ROOT: its layout, its marker, and what is refused before anything is written."""

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from envfabric.core.errors import ConfigError
from envfabric.store.files import Files
from envfabric.store.prepare import claim_source, init_root, prepare
from envfabric.store.root import FOLDERS, MARKER, Root, open_root
from store.faults import CODES, each_fault, each_kill

COMMIT, OTHER = "a" * 40, "b" * 40


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_init_makes_the_layout(tmp_path: Path, umask: int) -> None:
    """Every folder of the contract is there, readable by others, with a marker and nothing else."""
    root = init_root(tmp_path / "nas", Files())
    contract = {
        "envs", "generations", "store", "staging", "trash", "uv_cache", "bytecode", "pythons",
        "requests", "state", "history", "leases", "locks", "failures",
    }  # fmt: skip
    assert set(names(root.path)) == contract | {MARKER}
    for path in (root.path, *(root.path / name for name in contract)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    for name in contract:
        assert names(root.path / name) == []
    marker = json.loads(root.marker.read_bytes())
    assert marker["schema"] == 1
    assert re.fullmatch(r"[0-9a-f]{32}", marker["fabric"])
    assert stat.S_IMODE(root.marker.stat().st_mode) == 0o644


def test_init_again_is_harmless(root: Root) -> None:
    """A second init keeps the marker and everything that is there."""
    kept = root.store / "digest" / "file"
    kept.parent.mkdir()
    kept.write_text("sealed")
    root.index.write_text("{}")
    (root.path / "bytecode").rmdir()
    marker = root.marker.read_bytes()
    assert init_root(root.path, Files()) == root
    assert root.marker.read_bytes() == marker
    assert kept.read_text() == "sealed"
    assert root.index.read_text() == "{}"
    assert root.bytecode.is_dir(), "a folder that was lost is made again"
    assert names(root.store) == ["digest"]
    assert names(root.uv_cache) == []


def test_relative_root_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers are given absolute paths, however ROOT was named."""
    monkeypatch.chdir(tmp_path)
    root = init_root(Path("x/../nas"), Files())
    assert root.path == tmp_path / "nas"
    assert root.python("d" * 8) == f"{tmp_path}/nas/store/dddddddd/.venv/bin/python"


@pytest.mark.parametrize("name", ["a b", "a$b", "a;b", "ä", "a\nb", "~a", "a'b", "a*", "a:b", "a\\b", "a,b"])
@pytest.mark.parametrize("action", [lambda path: init_root(path, Files()), open_root], ids=["init", "open"])
def test_characters_that_a_shell_would_change_are_refused(
    tmp_path: Path, name: str, action: Callable[[Path], Root]
) -> None:
    """Ray passes the path through a shell unquoted: other characters are refused, nothing is made."""
    with pytest.raises(ConfigError, match="has characters besides"):
        action(tmp_path / name / "nas")
    assert names(tmp_path) == []


def test_all_allowed_characters_are_allowed(tmp_path: Path) -> None:
    """Letters, digits, dot, underscore and hyphen make a good ROOT."""
    assert init_root(tmp_path / "Az09._-", Files()).marker.is_file()


@pytest.mark.parametrize("above", [".", "..", "../.."])
def test_pyproject_above_is_refused(tmp_path: Path, above: str) -> None:
    """uv would take a pyproject.toml in ROOT or above for a workspace: the message names the file."""
    path = tmp_path / "one" / "two"
    path.mkdir(parents=True)
    wrong = Path(os.path.normpath(path / above / "pyproject.toml"))
    wrong.touch()
    with pytest.raises(ConfigError, match=re.escape(str(wrong))):
        init_root(path, Files())
    assert [one for one in names(path) if one != "pyproject.toml"] == []


@pytest.mark.parametrize("name", [*FOLDERS, "index.json"])
def test_our_names_without_marker_are_refused(tmp_path: Path, name: str) -> None:
    """A folder that looks like half a ROOT is not taken over: the NAS may be mounted wrongly."""
    (tmp_path / "nas" / name / "something").mkdir(parents=True)
    with pytest.raises(ConfigError, match=re.escape(f"holds {name}")):
        init_root(tmp_path / "nas", Files())
    assert names(tmp_path / "nas") == [name]


def test_init_that_failed_can_be_repeated(tmp_path: Path) -> None:
    """Folders without a marker and with nothing in them are of an init that did not get to its end."""

    def no_marker(operation: str, path: Path) -> None:
        if path.name == MARKER:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ConfigError, match="No space left"):
        init_root(tmp_path / "nas", Files(no_marker))
    assert names(tmp_path / "nas") == sorted(FOLDERS)
    assert init_root(tmp_path / "nas", Files()).marker.is_file()


def test_init_over_another_schema_is_refused(tmp_path: Path) -> None:
    """A ROOT that another release wrote is left as it is."""
    init_root(tmp_path / "nas", Files())
    marker = tmp_path / "nas" / MARKER
    marker.write_text('{"schema": 2}')
    with pytest.raises(ConfigError, match="schema 2"):
        init_root(tmp_path / "nas", Files())
    assert marker.read_text() == '{"schema": 2}'


def test_workspace_behind_a_symlink_is_found(tmp_path: Path) -> None:
    """uv sees real paths: a pyproject.toml above the folder that a link leads to counts."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "pyproject.toml").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "project")
    with pytest.raises(ConfigError, match="workspace"):
        init_root(tmp_path / "link" / "nas", Files())


def test_foreign_names_do_not_hinder(tmp_path: Path) -> None:
    """What file systems put into their top folder is left alone."""
    (tmp_path / "nas" / "lost+found").mkdir(parents=True)
    root = init_root(tmp_path / "nas", Files())
    assert (root.path / "lost+found").is_dir()
    assert root.marker.is_file()


def test_first_source_is_recorded_once(root: Root) -> None:
    """The first repository becomes ROOT's; saying the same again writes nothing; the rest is kept."""
    before = json.loads(root.marker.read_bytes())
    claim_source(root, Files(), [COMMIT], "deploy", adopt=False)
    status = root.marker.stat()
    marker = json.loads(root.marker.read_bytes())
    assert marker == before | {"source": {"root_commit": COMMIT, "path": "deploy"}}
    claim_source(root, Files(), [COMMIT], "deploy", adopt=False)
    assert root.marker.stat().st_ino == status.st_ino
    assert open_root(root.path) == root


@pytest.mark.parametrize(("commit", "path"), [(OTHER, ""), (COMMIT, "other"), (OTHER, "other")])
def test_another_source_needs_adopt(root: Root, commit: str, path: str) -> None:
    """Another repository, or another folder of it, is refused with both names; --adopt takes over."""
    claim_source(root, Files(), [COMMIT], "", adopt=False)
    before = root.marker.read_bytes()
    with pytest.raises(ConfigError, match=f"{COMMIT[:12]}.*{commit[:12]}.*--adopt"):
        claim_source(root, Files(), [commit], path, adopt=False)
    assert root.marker.read_bytes() == before
    claim_source(root, Files(), [commit], path, adopt=True)
    after = json.loads(root.marker.read_bytes())
    assert after["source"] == {"root_commit": commit, "path": path}
    assert after["fabric"] == json.loads(before)["fabric"]
    with pytest.raises(ConfigError, match="--adopt"):
        claim_source(root, Files(), [COMMIT], "", adopt=False)


def test_merged_history_is_the_same_source(root: Root) -> None:
    """A repository into which an unrelated one was merged has two beginnings, and is the same repository."""
    claim_source(root, Files(), [COMMIT], "", adopt=False)
    before = root.marker.read_bytes()
    claim_source(root, Files(), [OTHER, COMMIT], "", adopt=False)
    assert root.marker.read_bytes() == before


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_half_an_init_is_no_root(tmp_path: Path, code: int) -> None:
    """Whichever step of init fails, it says so, and what is there can't be opened: the marker is last.

    Only what may be a link limit is none: it is stated, after another file was linked.
    """
    for steps in each_fault(code):
        path = tmp_path / f"nas-{steps.fail_at}"
        try:
            _, found = prepare(path, Files(steps), 5)
        except ConfigError as error:
            assert os.strerror(code) in str(error)
            with pytest.raises(ConfigError, match="was not prepared"):
                open_root(path)
        else:
            assert not steps.failed or (code == errno.ENOSPC and found.link_limit is not None)
            assert open_root(path).path == path
        assert init_root(path, Files()).marker.is_file(), "the next try takes over what is there"


def make(path: Path, files: Files) -> None:
    prepare(path, files, 5)


def test_killed_init_can_be_repeated(tmp_path: Path) -> None:
    """Whenever init is killed, the next one makes a ROOT of what is there, with nothing left over."""
    for number, run in each_kill():
        path = tmp_path / f"nas-{number}"
        run(partial(make, path))
        root = prepare(path, Files(), 5)[0]
        assert set(names(root.path)) == {*FOLDERS, MARKER}
        assert [names(root.path / name) for name in FOLDERS if name != "staging"] == [[]] * 13
        # What a killed write of the marker leaves there is recovery's, see Closures.recover.
        assert [name for name in names(root.staging) if not name.startswith(f".{MARKER}.")] == []


def test_refused_folder_has_no_marker(tmp_path: Path) -> None:
    """The probe comes first: what it refuses was never a ROOT."""

    def no_links(operation: str, path: Path) -> None:
        if operation == "link":
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with pytest.raises(ConfigError, match="hardlink"):
        init_root(tmp_path / "nas", Files(no_links))
    assert names(tmp_path / "nas") == sorted(FOLDERS)
    assert all(names(tmp_path / "nas" / name) == [] for name in FOLDERS)


def test_init_again_probes_again(root: Root) -> None:
    """What storage can do changes: a prepared ROOT is probed as a new one is, and keeps its marker."""
    before = root.marker.read_bytes()
    seen = []
    same, found = prepare(root.path, Files(lambda operation, _: seen.append(operation)), 5)
    assert (same, found.link_limit) == (root, None)
    assert seen.count("link") == 5
    assert root.marker.read_bytes() == before


def test_root_that_is_lost_on_the_way_is_not_made_again(root: Root) -> None:
    """The NAS goes away while a prepared ROOT is prepared again: nothing is made below its mount point."""
    root.bytecode.rmdir()

    def lost(operation: str, path: Path) -> None:
        if path == root.bytecode:
            root.path.rename(root.path.with_name("away"))

    with pytest.raises(ConfigError, match="Mount the NAS"):
        init_root(root.path, Files(lost))
    assert not root.path.exists()
