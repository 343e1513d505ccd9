"""ROOT: its layout, its marker, and what is refused before anything is written."""

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envfabric.core.errors import ConfigError, StoreError
from envfabric.store.files import Files
from envfabric.store.root import FOLDERS, MARKER, Root, claim_source, init_root, now, open_root
from store.faults import CODES, each_fault

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


def refuse_links(*_: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("link", [refuse_links, shutil.copyfile], ids=["refused", "copied"])
def test_file_system_without_hardlinks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: Callable[..., Any]
) -> None:
    """init proves hardlinks instead of believing in them, leaves no probe and no marker."""
    monkeypatch.setattr(os, "link", link)
    with pytest.raises(ConfigError, match=r"hard ?link"):
        init_root(tmp_path / "nas", Files())
    assert names(tmp_path / "nas" / "store") == names(tmp_path / "nas" / "uv_cache") == []
    assert not (tmp_path / "nas" / MARKER).exists()


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_half_an_init_is_no_root(tmp_path: Path, code: int) -> None:
    """Whichever step of init fails, it says so, and what is there can't be opened: the marker is last."""
    for steps in each_fault(code):
        path = tmp_path / f"nas-{steps.fail_at}"
        try:
            init_root(path, Files(steps))
        except ConfigError as error:
            assert os.strerror(code) in str(error)
            with pytest.raises(ConfigError, match="was not prepared"):
                open_root(path)
        else:
            assert not steps.failed
            assert open_root(path).path == path


def test_open_without_marker_writes_nothing(tmp_path: Path) -> None:
    """An unmounted NAS looks like an empty folder: open refuses it, says how to go on, and adds nothing."""
    with pytest.raises(ConfigError, match=f"envfabric init {tmp_path}"):
        open_root(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("marker", "told"),
    [
        (b'{"schema": 2}', "another version .schema 2, known: 1"),
        (b"{}", "schema None"),
        (b"[1]", "schema None"),
        (b"{", "can't be read"),
        (b"\xff", "can't be read"),
        (b"", "can't be read"),
    ],
)
def test_marker_that_is_not_understood_is_refused(root: Root, marker: bytes, told: str) -> None:
    """A marker of another release, or a damaged one, is never worked on."""
    root.marker.write_bytes(marker)
    with pytest.raises(ConfigError, match=told):
        open_root(root.path)
    with pytest.raises(ConfigError, match=told):
        claim_source(root, Files(), [COMMIT], "", adopt=True)
    assert root.marker.read_bytes() == marker


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


@pytest.mark.parametrize("exists", [True, False])
def test_unmounted_root_is_noticed(root: Root, exists: bool) -> None:
    """Where the mount point is empty or gone, require_marker stops everything."""
    root.require_marker()
    root.path.rename(root.path.with_name("away"))
    if exists:
        root.path.mkdir()
    with pytest.raises(StoreError, match="is the NAS mounted"):
        root.require_marker()


def test_stale_mount_is_a_store_error(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that answers with an error is told apart from an empty one, with what the system said."""

    def stale(*_: object, **__: object) -> os.stat_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "stat", stale)
    with pytest.raises(StoreError, match=r"Stale file handle\. Check the NAS mount"):
        root.require_marker()


def test_only_folders_of_the_layout_are_attributes(root: Root) -> None:
    """A mistyped folder is an error, not a new folder."""
    assert root.uv_cache == root.path / "uv_cache"
    with pytest.raises(AttributeError):
        _ = root.uvcache


def test_time_is_written_in_utc() -> None:
    """Times are ISO 8601 in UTC to the millisecond."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", now())
