"""The probe: what a file system lacks is refused or stated, on real mounts where there can be one."""

import ctypes
import errno
import fcntl
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from envfabric.core.errors import ConfigError
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.mounts import Mount, shortages
from envfabric.store.prepare import init_root, prepare
from envfabric.store.probe import MOST_LINKS, Probe, probe
from envfabric.store.root import FOLDERS, MARKER, Root
from store.faults import Steps, each_kill, exit_code, in_process, start

NOBODY = 65534
_NEW_MOUNTS, _PRIVATE = 0x20000, 0x4000 | 0x40000


def found_below(root: Root) -> list[str]:
    """All names that are neither folders of the layout nor the marker."""
    return sorted(
        str(path.relative_to(root.path))
        for path in root.path.rglob("*")
        if path.relative_to(root.path).as_posix() not in {*FOLDERS, MARKER}
    )


def refused(root: Root, told: str, files: Files | None = None) -> None:
    """The probe refuses ROOT in these words, and leaves nothing behind."""
    before = found_below(root)
    with pytest.raises(ConfigError, match=told) as caught:
        probe(root, files or Files(), 5)
    assert str(root.path) in str(caught.value)
    assert found_below(root) == before


def failing(operation: str, code: int, part: str = "") -> Files:
    """Files of a system that lacks an operation, everywhere or on paths with `part` in them."""

    def step(seen: str, path: Path) -> None:
        if seen == operation and part in str(path):
            raise OSError(code, os.strerror(code), str(path))

    return Files(step)


class FewLinks(Files):
    """Files of a server that says `code` from the link on with which a file would have more than `most` names."""

    def __init__(self, most: int, code: int = errno.EMLINK) -> None:
        super().__init__()
        self.most = most
        self.code = code

    def link(self, source: str | Path, target: str | Path) -> None:
        if os.stat(source).st_nlink >= self.most:
            raise OSError(self.code, os.strerror(self.code), str(source))
        super().link(source, target)


class FixedModes(Files):
    """Files of a mount where each file has the same mode."""

    def __init__(self, mode: int) -> None:
        super().__init__()
        self.mode = mode

    def write_new(self, path: Path, data: bytes, mode: int = 0o644, *, durable: bool = False) -> None:
        super().write_new(path, data, self.mode, durable=durable)


def mount(kind: str, at: Path, options: str, source: str = "none") -> None:
    subprocess.run(["mount", "-t", kind, "-o", options, source, str(at)], check=True)


def apart(action: Callable[[], None]) -> None:
    """Runs an action that mounts things: in a process whose mounts nobody else sees and that end with it."""

    def unshared() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_NEW_MOUNTS) or libc.mount(b"none", b"/", None, _PRIVATE, None):
            raise OSError(ctypes.get_errno(), "no mounts of its own")
        action()

    assert in_process(unshared) == 0


def as_user(uid: int, action: Callable[[], None]) -> None:
    """Runs an action as an ordinary user: another one where this is root, else this one."""

    def changed() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
        action()

    assert exit_code(start(changed)) == 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can get to; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def test_good_storage_is_described(root: Root) -> None:
    """The type is the mount's, figures are statvfs's, and nothing is left of the probe."""
    found = probe(root, Files())
    kind = subprocess.run(
        ["stat", "--file-system", "--format=%T", root.path], capture_output=True, text=True, check=True
    ).stdout.strip()
    # stat can't tell the ext family apart.
    assert found.file_system == kind or kind.startswith(found.file_system[:3])
    space = os.statvfs(root.path)
    assert found.free_bytes == pytest.approx(space.f_bavail * space.f_frsize, rel=0.2)
    assert found.free_inodes is None if space.f_files == 0 else found.free_inodes
    assert found.link_limit is None
    assert [one for one in found.degraded if not one.startswith(("Only", f"{root.path} is on tmpfs"))] == []
    assert found_below(root) == []


def test_probe_is_cheap(root: Root) -> None:
    """On a NAS each operation takes milliseconds: there is one for each link, and 40 besides."""
    steps = Steps()
    probe(root, Files(steps))
    assert len(steps.seen) <= MOST_LINKS + 40


def test_probe_proves_what_the_store_does(root: Root) -> None:
    """Links out of the cache into staging, renames from there to the store and trash: all are done."""
    steps = Steps()
    probe(root, Files(steps))
    done = {(operation, path.relative_to(root.path).parts[0]) for operation, path in steps.seen}
    assert done >= {("link", "staging"), ("rename", "store"), ("rename", "trash"), ("symlink", "staging")}


@pytest.mark.parametrize("most", [2, 5, 177])
def test_link_limit_is_found_and_stated(root: Root, most: int) -> None:
    """The number of names that one file can have, and for how many environments one copy then does."""
    found = probe(root, FewLinks(most))
    assert found.link_limit == most
    assert f"allows {most} hard links" in found.degraded[0]
    assert f"once for every {most - 1} of them" in found.degraded[0]
    assert found_below(root) == []


def test_links_are_tried_up_to_the_bound(root: Root) -> None:
    """A limit at the bound is found, one above it is not looked for."""
    assert probe(root, FewLinks(10), 10).link_limit == 10
    assert probe(root, FewLinks(11), 10).link_limit is None


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSPC, errno.EINVAL], ids=errno.errorcode.get)
def test_limit_in_other_words_is_a_limit(root: Root, code: int) -> None:
    """Some servers don't say EMLINK: where another file can still be linked, this one's limit was met."""
    assert probe(root, FewLinks(7, code)).link_limit == 7


def test_refused_link_that_is_no_limit_is_told(root: Root) -> None:
    """Where nothing can be linked any more, it was not the file's limit."""
    refused(root, "no permission: Operation not permitted", failing("link", errno.EPERM, "/links/"))


@pytest.mark.parametrize(
    "code", [errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV], ids=errno.errorcode.get
)
def test_missing_hardlinks_are_refused(root: Root, code: int) -> None:
    """Without hardlinks every environment would be a copy: that is no store."""
    refused(root, "can't hardlink from uv_cache/ to staging/", failing("link", code))


def test_hardlink_that_is_a_copy_is_refused(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that reports success and copies is found by its inode."""
    monkeypatch.setattr(os, "link", shutil.copyfile)
    refused(root, "a hardlink became a copy")


@pytest.mark.parametrize(
    ("operation", "part", "told"),
    [
        ("symlink", "", "can't make symlinks"),
        ("rename", "program", "can't replace a file by renaming another over it"),
        ("rename", "/store/", "can't rename folders from staging/ to store/"),
        ("rename", "/trash/", "can't rename folders from store/ to trash/"),
        ("rename", "/trash/.*/gone", "can't rename folders from staging/ to trash/"),
    ],
)
def test_missing_operation_is_refused(root: Root, operation: str, part: str, told: str) -> None:
    """Each operation that the store relies on is named when the file system does not have it."""

    def step(seen: str, path: Path) -> None:
        if seen == operation and re.search(part, str(path)):
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    refused(root, told, Files(step))


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK], ids=errno.errorcode.get)
def test_missing_locks_are_refused(root: Root, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """A mount without locks can't have one writer only; no lock file takes their place."""

    def none(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", none)
    refused(root, r"can't lock files \(flock\)")


def test_lock_that_does_nothing_is_refused(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that says yes to everybody is worse than none."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    refused(root, "does not exclude a second one")


def test_modes_that_are_not_kept_are_stated(root: Root) -> None:
    """Where each file can be written and run, sealing can't be seen: usable, and said."""
    found = probe(root, FixedModes(0o777), 5)
    assert "does not keep modes (0444 became 0777" in found.degraded[0]


def test_programs_that_lose_their_mode_are_refused(root: Root) -> None:
    """Where nothing is executable, no environment works."""
    refused(root, "made with mode 0755 has mode 0644", FixedModes(0o644))


def test_missing_folder_says_what_to_do(root: Root) -> None:
    """A folder of the layout that somebody removed is named, and so is the command that makes it."""
    root.bytecode.rmdir()
    refused(root, f"{root.bytecode}.*envfabric init {root.path}")


@pytest.mark.parametrize("folder", ["uv_cache", "store", "staging", "generations", "trash", "bytecode"])
def test_folder_on_another_file_system_is_refused(root: Root, folder: str) -> None:
    """A folder that a symlink leads to another file system is named, with where it really is."""
    (root.path / folder).rmdir()
    # Two of them are on every Linux machine; the test's own folder may be on one.
    other = next(one for one in ("/dev", "/proc") if os.stat(one).st_dev != root.path.stat().st_dev)
    (root.path / folder).symlink_to(other)
    refused(root, f"is not one file system: .*{folder}/ on [a-z]+ at {other}")


def test_full_disk_does_not_refuse_what_is_served(root: Root) -> None:
    """A prepared ROOT without space still serves: that it could not be probed is stated; a new one is refused."""
    found = probe(root, failing("write", errno.ENOSPC), 5)
    assert "No space left on device" in found.degraded[0]
    assert found.link_limit is None
    root.marker.unlink()
    refused(root, "is full: No space left on device", failing("write", errno.ENOSPC))


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EROFS], ids=errno.errorcode.get)
def test_each_fault_is_told(root: Root, code: int) -> None:
    """Whichever step fails, the probe says with what, and the next one finds everything as it was."""
    number = 0
    while True:
        steps = Steps(number, code)
        try:
            probe(root, Files(steps), 4)
        except ConfigError as error:
            assert os.strerror(code) in str(error)
        else:
            assert not steps.failed
            return
        probe(root, Files(), 4)
        assert found_below(root) == []
        number += 1


def probe_few(root: Root, files: Files) -> None:
    probe(root, files, 4)


def test_killed_probe_leaves_nothing(root: Root) -> None:
    """Whenever a probe is killed, the next one removes what it left; so does recovery in staging/."""
    seen = set()
    for _, run in each_kill():
        run(partial(probe_few, root))
        seen |= {path.split("/")[0] for path in found_below(root)}
        probe(root, Files(), 4)
        assert found_below(root) == []
        run(partial(probe_few, root))
        assert Closures(root, Files()).recover() == set()
        assert os.listdir(root.staging) == []
        probe(root, Files(), 4)
        assert found_below(root) == []
    assert seen == {"staging", "uv_cache", "store", "trash", "locks"}


def test_two_probes_leave_each_other_alone(root: Root) -> None:
    """Two daemons that start at one moment: neither takes the other's probe for a dead one's."""
    inner: list[Probe] = []

    def step(operation: str, path: Path) -> None:
        if operation in {"link", "rename"} or path.name.startswith(".probe."):
            inner.append(probe(root, Files(), 2))
            assert Closures(root, Files()).recover() == {
                name.removesuffix(".lock") for name in os.listdir(root.staging)
            }

    assert probe(root, Files(step), 4).link_limit is None
    assert len(inner) > 5
    assert found_below(root) == []


def test_own_files_of_that_name_stay(root: Root) -> None:
    """Only names that a probe gives are removed."""
    kept = root.uv_cache / ".probe.mine"
    kept.touch()
    probe(root, Files(), 4)
    assert found_below(root) == ["uv_cache/.probe.mine"]


def test_folder_without_permission_names_its_owner(open_folder: Path) -> None:
    """Who may not write is told whose the folder is, and which user to run as."""
    closed = open_folder / "nas"
    closed.mkdir(mode=0o755)
    closed.chmod(0o555)
    owner = os.geteuid()

    def prepared() -> None:
        me = os.geteuid()
        advice = "Give its owner permission" if me == owner else f"Run envfabric as uid {owner}"
        told = rf"nas belongs to uid {owner}\b.* has mode 0555; this is uid {me}\b.*{advice}"
        with pytest.raises(ConfigError, match=told):
            init_root(closed, Files())

    as_user(NOBODY, prepared)
    assert os.listdir(closed) == []


def test_own_folder_without_permission_is_told(open_folder: Path) -> None:
    """Nor does an owner hear to run as himself."""
    closed = open_folder / "nas"
    closed.mkdir()
    if os.geteuid() == 0:
        os.chown(closed, NOBODY, NOBODY)
    closed.chmod(0o555)

    def prepared() -> None:
        with pytest.raises(ConfigError, match=r"no permission: .*Give its owner permission"):
            init_root(closed, Files())

    as_user(NOBODY, prepared)


@pytest.mark.root
def test_cache_of_another_user_is_stated(root: Root) -> None:
    """Builders of two users silently copy instead of linking: the probe says as whom to run."""
    os.chown(root.uv_cache, NOBODY, NOBODY)
    (told,) = probe(root, Files(), 5).degraded
    assert f"uv_cache/ belongs to uid {NOBODY}" in told
    assert "Run all builders as" in told


@pytest.mark.root
def test_memory_is_stated(tmp_path: Path) -> None:
    """On tmpfs it works, and is lost at the next restart."""

    def action() -> None:
        mount("tmpfs", tmp_path, "size=20m")
        found = prepare(tmp_path / "nas", Files())[1]
        assert found.file_system == "tmpfs"
        assert "which is memory" in found.degraded[0]
        assert 19e6 < found.free_bytes < 21e6

    apart(action)
    assert os.listdir(tmp_path) == []


@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "told"), [("ro", "is read-only: Read-only file"), ("noexec", "mounted noexec")]
)
def test_unfit_mount_is_refused(tmp_path: Path, options: str, told: str) -> None:
    """A mount that nothing can be written to, or run from, holds no fabric; the mount is named."""

    def action() -> None:
        mount("tmpfs", tmp_path, "size=20m")
        root = prepare(tmp_path / "nas", Files())[0]
        mount("tmpfs", tmp_path, f"remount,{options}")
        refused(root, told)
        with pytest.raises(ConfigError, match=told):
            init_root(tmp_path / "nas", Files())
        with pytest.raises(ConfigError, match=told):
            init_root(tmp_path / "other", Files())
        assert not (tmp_path / "other" / MARKER).exists()

    apart(action)


@pytest.mark.root
def test_mount_below_root_is_refused(root: Root) -> None:
    """Another file system in the store's place, and even the same one mounted there again: link(2) refuses both."""

    def action() -> None:
        subprocess.run(["mount", "--bind", str(root.store), str(root.store)], check=True)
        assert root.store.stat().st_dev == root.uv_cache.stat().st_dev
        refused(root, f"is not one file system: .*store/ on [a-z0-9]+ at {root.store}")
        mount("tmpfs", root.store, "size=1m")
        refused(root, f"store/ on tmpfs at {root.store}")

    apart(action)


@pytest.mark.root
def test_mount_point_with_a_blank_is_named(root: Root) -> None:
    """mountinfo writes blanks in octal; people don't."""
    odd = root.path.parent / "a b"
    odd.mkdir()
    root.trash.rmdir()
    root.trash.symlink_to(odd)

    def action() -> None:
        mount("tmpfs", odd, "size=1m")
        refused(root, f"trash/ on tmpfs at {odd}")

    apart(action)


@pytest.mark.root
@pytest.mark.parametrize("scarce", ["space", "inodes"])
def test_little_left_is_stated_and_nothing_left_too(tmp_path: Path, scarce: str) -> None:
    """On a real file system that runs out: below 5 % it is said, at none a new ROOT is refused."""
    image = tmp_path / "image"
    at = tmp_path / "mounted"
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-N", "512", image], check=True)

    def use_up(leave: float) -> None:
        space = os.statvfs(at)
        if scarce == "space":
            spare = space.f_bavail - int(space.f_blocks * leave)
            with (at / f"filler{leave}").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, spare * space.f_frsize)
        else:
            for number in range(space.f_favail - int(space.f_files * leave)):
                (at / f"{leave}-{number}").touch()

    def action() -> None:
        mount("ext4", at, "loop", str(image))
        root, found = prepare(at / "nas", Files(), 5)
        assert (found.file_system, found.degraded) == ("ext4", ())
        assert found.free_inodes is not None and 400 < found.free_inodes < 512
        use_up(0.04)
        (told,) = probe(root, Files(), 5).degraded
        assert re.match(rf"Only [0-4]\.\d % of the {scarce} of {at} is free", told)
        if scarce == "inodes":
            use_up(0)
            found = probe(root, Files(), 5)
            assert "No space left on device" in found.degraded[0]
            assert found.free_inodes == 0
            with pytest.raises(ConfigError, match="is full: No space left on device"):
                init_root(at / "other", Files())

    apart(action)


def test_folders_of_the_probe_are_readable_by_umask(root: Root, umask: int) -> None:
    """Under any umask modes come out as they were asked for: the probe does not blame the file system."""
    assert not any("modes" in told for told in probe(root, Files(), 5).degraded)
    assert stat.S_IMODE(root.store.stat().st_mode) == 0o755


@pytest.mark.parametrize("option", ["nolock", "local_lock=all", "local_lock=flock", "localflock"])
def test_locks_of_one_host_are_told(root: Root, option: str) -> None:
    """Of NFS and of Lustre: two daemons on two hosts would both hold such a lock."""
    space = os.statvfs(root.path)
    told = list(shortages(root, Mount("nfs", "/mnt", frozenset({"rw", option})), space))
    assert any("hold on this host only" in one for one in told)
    assert not any("locks" in one for one in shortages(root, Mount("nfs", "/mnt", frozenset({"rw"})), space))
