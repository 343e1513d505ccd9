"""The manifest: what it says of each path, and that a damaged one is never believed."""

import errno
import hashlib
import json
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from envfabric.store import sealing
from envfabric.store.manifest import DEEPEST, Lines, read_manifest, write_manifest
from envfabric.store.sealing import Hashes, Inventory, TooDeep, seal_folders, take_inventory
from store.small_venv import ODD_NAMES, PACKAGES


@pytest.fixture
def closure(tmp_path: Path) -> Path:
    """An unsealed folder with a package that is linked, one that is a copy, and what uv writes itself."""
    top = tmp_path / "closure"
    site = top / PACKAGES
    (site / "linked").mkdir(parents=True)
    (site / "copied").mkdir()
    (site / "linked-1.0.dist-info").mkdir()
    (top / ".venv/bin").mkdir()
    for name in ("a.py", "b.so"):
        (tmp_path / name).write_text(name)
        os.link(tmp_path / name, site / "linked" / name)
    (site / "linked" / "b.so").chmod(0o4700)
    for odd in ODD_NAMES:
        Path(os.fsdecode(os.fsencode(site / "copied") + b"/" + odd)).write_bytes(odd)
    (site / "_virtualenv.py").write_text("of uv")
    (site / "_virtualenv.pth").write_text("of uv")
    (site / "linked-1.0.dist-info" / "RECORD").write_text("of uv")
    (top / ".venv/bin/tool").write_text("script")
    (top / ".venv/bin/tool").chmod(0o755)
    (top / ".venv/bin/odd").symlink_to(os.fsdecode(b"to \xff\n\"'"))
    return top


def seal(closure: Path, hashes: Hashes | None = None) -> Inventory:
    """All of a closure's folder sealed and listed."""
    found = take_inventory(closure, hashes or Hashes())
    seal_folders(found)
    return found


def sealed(raw: bytes) -> bytes:
    """These lines with a last line that proves them."""
    return raw + f'["sha256", "{hashlib.sha256(raw).hexdigest()}"]\n'.encode()


def test_manifest_says_what_is_there(closure: Path) -> None:
    """Every path stands in it once, with its mode, size, content and target; reading gives what was written."""
    found = seal(closure)
    entries = read_manifest(write_manifest(found.lines))
    lines = {str(entry[1]): entry for entry in entries}
    assert len(lines) == len(entries)
    assert found.digests == {str(entry[1]): entry[4] for entry in entries if entry[0] == "f"}
    on_disk = {os.path.relpath(path, closure) for path in closure.rglob("*")}
    assert set(lines) == on_disk
    assert lines[".venv/bin"] == ["d", ".venv/bin", "0o555"]
    assert lines[".venv/bin/odd"] == ["l", ".venv/bin/odd", os.readlink(closure / ".venv/bin/odd")]
    digest = hashlib.sha256(b"b.so").hexdigest()
    assert lines[f"{PACKAGES}/linked/b.so"] == ["f", f"{PACKAGES}/linked/b.so", "0o555", 4, digest]
    for name in ODD_NAMES:
        path = os.fsdecode(f"{PACKAGES}/copied/".encode() + name)
        assert lines[path] == ["f", path, "0o444", len(name), hashlib.sha256(name).hexdigest()]


def test_lines_are_plain_json(closure: Path) -> None:
    """Anybody can read it: ASCII, one JSON array a line, sorted by path, the last one proves the others."""
    raw = write_manifest(seal(closure).lines)
    *lines, last = raw.decode("ascii").splitlines(keepends=True)
    parsed = [json.loads(line) for line in lines]
    assert [f"{json.dumps(entry)}\n" for entry in parsed] == lines
    paths = [entry[1] for entry in parsed]
    assert paths == sorted(paths)
    assert json.loads(last) == ["sha256", hashlib.sha256("".join(lines).encode()).hexdigest()]


def test_links_and_copies_are_counted(closure: Path) -> None:
    """Files of packages count as linked or copied; scripts, .dist-info and what uv writes as neither."""
    found = seal(closure)
    assert (found.linked, found.copied) == (2, len(ODD_NAMES))


def test_files_beside_the_environment_are_listed(closure: Path) -> None:
    """build.log and metadata.json get lines and inodes of their own, in the order of paths."""
    found = seal(closure)
    for name in ("metadata.json", "build.log", ".first"):
        (closure / name).write_text(name)
        (closure / name).chmod(0o444)
        found.list_file(closure, name)
    entries = read_manifest(write_manifest(found.lines))
    lines = {str(entry[1]): entry for entry in entries}
    content = hashlib.sha256(b"build.log").hexdigest()
    assert lines["build.log"] == ["f", "build.log", "0o444", 9, content]
    assert next(iter(lines)) == ".first"
    assert {(closure / name).stat().st_ino for name in ("metadata.json", "build.log")} <= found.inodes.keys()


def test_only_a_file_is_listed_as_one(closure: Path) -> None:
    """A symlink or folder beside the environment is refused, a missing file told."""
    (closure / "link").symlink_to(".venv/bin/tool")
    for name in ("link", ".venv"):
        with pytest.raises(OSError, match="is no file"):
            Inventory().list_file(closure, name)
    with pytest.raises(FileNotFoundError):
        Inventory().list_file(closure, "gone")


def test_sealed_inode_costs_no_call(closure: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is sealed already is neither chmodded nor read again."""
    hashes = Hashes()
    first = seal(closure, hashes)

    real = os.chmod

    def chmod(path: str, mode: int) -> None:
        assert os.path.isdir(path), f"sealed again: {path}"
        real(path, mode)

    def fail(*args: object) -> None:
        pytest.fail(f"read again: {args}")

    monkeypatch.setattr(os, "chmod", chmod)
    monkeypatch.setattr(sealing, "_sha256", fail)
    assert seal(closure, hashes) == first


def test_folder_without_rights_is_sealed(closure: Path) -> None:
    """A folder that a wheel made unreadable, also to its owner, becomes readable and is listed."""
    (closure / PACKAGES / "copied").chmod(0)
    (closure / PACKAGES / "linked" / "a.py").chmod(0)
    found = seal(closure)
    assert stat.S_IMODE((closure / PACKAGES / "copied").stat().st_mode) == 0o555
    assert sum(path.startswith(f"{PACKAGES}/copied/") for path in found.lines) == len(ODD_NAMES)


def test_special_file_is_refused(closure: Path) -> None:
    """A pipe or socket can't be described: the error names it."""
    os.mkfifo(closure / ".venv/pipe")
    with pytest.raises(OSError, match=r"neither file, folder nor symlink.*pipe"):
        seal(closure)


def test_folders_nested_too_deep_are_refused(closure: Path) -> None:
    """As many folders as are allowed are listed; one more is an error that says so, not an endless recursion."""
    deepest = closure.joinpath(*["d"] * DEEPEST)
    deepest.mkdir(parents=True)
    assert max(path.count("/") for path in seal(closure).lines) == DEEPEST - 1
    deepest.chmod(0o755)
    (deepest / "d").mkdir()
    with pytest.raises(TooDeep, match="more than 200 folders lie one in the other") as caught:
        seal(closure)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_empty_manifest_is_one() -> None:
    """A closure without a single path has a manifest, too; an empty file is none."""
    assert read_manifest(write_manifest(Lines())) == []
    with pytest.raises(ValueError, match="no checksum"):
        read_manifest(b"")


def test_any_flipped_bit_is_found(closure: Path) -> None:
    """No bit of a manifest can be turned around unnoticed."""
    raw = write_manifest(seal(closure).lines)
    draw = random.Random(3)
    places = {*draw.sample(range(len(raw)), 300), *range(len(raw) - 80, len(raw))}
    for place in places:
        damaged = bytearray(raw)
        damaged[place] ^= 1 << draw.randrange(8)
        with pytest.raises(ValueError):
            read_manifest(bytes(damaged))


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1],
        lambda raw: raw[:-2],
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[raw.index(b"\n") + 1 :],
        lambda raw: raw[: raw.rindex(b"\n", 0, -1) + 1],
        lambda raw: raw + b"\n",
        lambda raw: raw + b'["f", "x", "0o444", 0, ""]\n',
        lambda raw: raw + raw,
        lambda raw: raw + raw.splitlines(keepends=True)[-1],
        lambda raw: raw.replace(b"\n", b"\r\n"),
        lambda raw: raw[:-1] + b"\0",
        lambda raw: b"\n" + raw,
        lambda raw: b"\0" * len(raw),
    ],
)
def test_broken_manifest_is_refused(closure: Path, damage: Callable[[bytes], bytes]) -> None:
    """Cut off, added to, repeated, other line ends: none of it is believed."""
    raw = write_manifest(seal(closure).lines)
    with pytest.raises(ValueError, match="checksum"):
        read_manifest(damage(raw))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('["d", "ä", "0o555"]\n'.encode(), "ASCII"),
        (b"\xff\n", "ASCII"),
        (b"no json\n", "JSON"),
        (b"\n", "JSON"),
        (b'["d", "a", "0o555"]\n\n["d", "b", "0o555"]\n', "JSON"),
        (b'["d", "a", "0o555"], ["d", "b", "0o555"]\n', "JSON"),
        (b'["x", "a", "0o555"]\n', "not known"),
        (b'["d", "a"]\n', "not known"),
        (b'["d", "a", 365]\n', "not known"),
        (b'["f", "a", "0o444", "0", ""]\n', "not known"),
        (b'["f", "a", "0o444", true, ""]\n', "not known"),
        (b'[["d"], "a", "0o555"]\n', "not known"),
        (b"[]\n", "not known"),
        (b"7\n", "not known"),
        (b'{"d": 1}\n', "not known"),
        (b'["d", "b", "0o555"]\n["d", "a", "0o555"]\n', "not sorted"),
        (b'["d", "a", "0o555"]\n["d", "a", "0o555"]\n', "not sorted"),
    ],
)
def test_proven_lines_are_still_checked(lines: bytes, message: str) -> None:
    """A right checksum does not make sense of lines that this release does not write."""
    with pytest.raises(ValueError, match=message):
        read_manifest(sealed(lines))
