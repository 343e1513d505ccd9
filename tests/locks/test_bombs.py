"""A wheel that unfolds to far more than is allowed is stopped while it unfolds, and nothing of it stays on ROOT."""

import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from envfabric.build import room
from envfabric.build.environment import Builder, recipe_of
from envfabric.core.errors import Reason, SpecError
from support.place import Place
from support.wheels import make_wheel

MOST = 8 << 20


def bomb(place: Place, files: int, size: int) -> None:
    """A small wheel whose files have `size` zeros each."""
    path = make_wheel(place.index.folder, "bomb", "1.0")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(files):
            archive.writestr(f"bomb/{number}.bin", bytes(size))
    assert path.stat().st_size < MOST


def taken(folder: Path) -> int:
    """Bytes on disk below a folder, each inode once."""
    found = {}
    for at, _, names in os.walk(folder):
        for name in names:
            status = Path(at, name).lstat()
            found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def refused(place: Place, names: list[str], reason: Reason) -> SpecError:
    spec = place.spec(names)
    found = place.get(spec)
    builder = Builder(place.closures, place.files, place.uv())
    with pytest.raises(SpecError) as caught:
        builder.build(recipe_of(spec, found), lambda phase: None)
    assert caught.value.reason is reason, caught.value.message
    assert list(place.root.staging.iterdir()) == []
    assert list(place.root.store.iterdir()) == []
    return caught.value


@pytest.mark.parametrize(("files", "size"), [(1, 1 << 28), (600, 1 << 20)])
def test_bomb_is_stopped_while_it_unfolds(place: Place, files: int, size: int) -> None:
    """One huge file or very many: uv is ended at the bound, with the setting's name, and the cache is as before."""
    place.policy = replace(place.policy, max_bytes=MOST)
    place.build(place.spec(["alpha"]), place.get(place.spec(["alpha"])))
    for closure in place.root.store.iterdir():
        place.files.remove_tree(closure)
    before = taken(place.root.path)
    bomb(place, files, size)
    error = refused(place, ["bomb", "alpha"], Reason.POLICY)
    assert f"more than the {MOST} bytes that are allowed" in error.message
    assert "policy.max_bytes" in error.message
    assert list(place.root.uv_cache.glob(".tmp*")) == []
    assert taken(place.root.path) < before + MOST // 4
    # What others may use was not taken from them.
    requests = len(place.index.requests)
    place.build(place.spec(["alpha"]), place.get(place.spec(["alpha"])))
    assert not [path for path in place.index.requests[requests:] if path.startswith("/files/alpha")]


def test_too_large_environment_leaves_nothing_in_the_cache(place: Place) -> None:
    """One that uv could unpack, and that is larger than allowed, does not stay unpacked for nobody."""
    bomb(place, 3, MOST // 2)
    place.policy = replace(place.policy, max_bytes=MOST)
    error = refused(place, ["bomb"], Reason.POLICY)
    assert "bytes on disk" in error.message
    assert taken(place.root.path) < MOST


def test_room_is_left_on_the_nas(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where less is free than has to stay, uv is ended with a reason that passes, and what it unpacked is gone."""
    monkeypatch.setattr(room, "_STEP", 1 << 20)
    # All of the file system has to stay free: some of it never is.
    monkeypatch.setattr(room, "_LEFT", 1 << 62)
    monkeypatch.setattr(room, "_SHARE", 1)
    bomb(place, 400, 1 << 20)
    error = refused(place, ["bomb"], Reason.NO_SPACE)
    assert "bytes are free on the NAS" in error.message
    assert error.reason.passing
    assert list(place.root.uv_cache.glob(".tmp*")) == []
    assert taken(place.root.path) < MOST


def test_links_need_no_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the cache already is linked however little is free: it takes nothing."""
    bomb(place, 3, 1 << 20)
    spec = place.spec(["bomb"])
    found = place.get(spec)
    place.build(spec, found)
    monkeypatch.setattr(room, "_STEP", 1 << 20)
    monkeypatch.setattr(room, "_LEFT", 1 << 62)
    monkeypatch.setattr(room, "_SHARE", 1)
    place.build(place.spec(["bomb", "alpha"]), place.get(place.spec(["bomb", "alpha"])))
