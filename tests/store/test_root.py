"""ROOT: what is opened, what its marker says, and that it is still there."""

import errno
import os
import re
from pathlib import Path

import pytest

from envfabric.core.errors import ConfigError, StoreError
from envfabric.store.files import Files
from envfabric.store.prepare import claim_source
from envfabric.store.root import Root, now, open_root, read_marker, write_marker

COMMIT = "a" * 40


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


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


def test_marker_is_replaced_only_where_root_is(root: Root) -> None:
    """Below a mount point that lost its NAS no marker is written, and the old one is replaced whole."""
    write_marker(root, Files(), {"fabric": "one"})
    assert read_marker(root) == {"schema": 1, "fabric": "one"}
    assert os.listdir(root.staging) == []
    root.path.rename(root.path.with_name("away"))
    root.path.mkdir()
    with pytest.raises(FileNotFoundError):
        write_marker(root, Files(), {"fabric": "two"})
    assert names(root.path) == []
