"""`envfabric doctor`: what is said of a file system by its line in /proc/self/mountinfo, each kind and option once."""

import os
import stat
from collections import namedtuple
from pathlib import Path

import pytest

from doctor.conftest import Nas
from envfabric.client.doctor_mount import Mount, link_limit, mount_of, of_mount, of_rights, of_space
from envfabric.client.findings import Level

NFS = "rw,vers=4.2,rsize=1048576,hard,proto=tcp,timeo=600,clientaddr=10.0.0.2,local_lock=none,addr=10.0.0.1"
EFS = "fs-0123456789abcdef0.efs.eu-west-1.amazonaws.com:/"


def mount(kind: str, options: str = "rw,relatime", source: str = "server:/export") -> Mount:
    """As it is read from a table."""
    line = f"36 25 0:31 / /mnt/nas rw,relatime shared:1 - {kind} {source} {options}"
    return mount_of(Path("/mnt/nas/x"), f"25 1 8:1 / / rw - ext4 /dev/sda1 rw\n{line}\n")


@pytest.mark.parametrize(
    ("seen", "level", "words"),
    [
        (mount("nfs4", NFS), "ok", "nfs4 at /mnt/nas"),
        (mount("ext4"), "ok", "a disk of this machine"),
        (mount("nfs4", NFS.replace("hard", "soft")), "warning", "mounted soft"),
        (mount("nfs4", f"{NFS},noac"), "warning", "noac"),
        (mount("nfs4", f"{NFS},acregmin=0,acregmax=0,acdirmin=0,acdirmax=0"), "warning", "noac"),
        (mount("nfs4", f"{NFS},acdirmax=600"), "warning", "acdirmax=600"),
        (mount("nfs4", f"{NFS},nocto"), "warning", "nocto"),
        (mount("nfs", f"{NFS},nolock"), "problem", "two daemons"),
        (mount("nfs", NFS.replace("local_lock=none", "local_lock=all")), "problem", "local_lock=all"),
        (mount("nfs", f"{NFS.replace('rw', 'ro', 1)},nolock"), "info", "nolock"),
        (mount("lustre", "rw,noflock"), "problem", "noflock"),
        (mount("nfs4", NFS, EFS), "info", "177"),
        (mount("nfs4", f"{NFS},port=20487", "127.0.0.1:/"), "info", "Amazon EFS"),
        (mount("nfs4", NFS, "team.file.core.windows.net:/team/share"), "info", "178"),
        (mount("cifs"), "problem", "no hard links"),
        (mount("fuse.s3fs"), "problem", "no hard links"),
        (mount("fuse.glusterfs"), "info", "nothing is known"),
        (mount("tmpfs"), "warning", "memory"),
        (mount("overlay"), "warning", "container"),
    ],
)
def test_kind_and_options(seen: Mount, level: Level, words: str) -> None:
    """The worst that is said has this level and these words, and says what to do."""
    order = ("problem", "warning", "info", "ok")
    found = sorted(of_mount(seen), key=lambda one: order.index(one.level))
    assert found[0].level == level
    assert words in found[0].found
    assert (found[0].do is None) == (level == "ok")
    assert all(one.check == "file system" for one in found)


def test_options_that_are_well(nas: Nas) -> None:
    """Short memories of attributes and other tunnels than Amazon's are nothing to speak of."""
    for seen in (mount("nfs4", f"{NFS},acregmax=1,acdirmax=1"), mount("nfs4", NFS, "127.0.0.1:/")):
        assert [one.level for one in of_mount(seen)] == ["ok"]
    assert link_limit(mount("nfs4", NFS)) is None


def test_mount_that_a_path_is_in() -> None:
    """The longest point, of two the later one; names with blanks; nothing where a name only begins alike."""
    table = (
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        "2 1 0:40 / /mnt/my\\040nas rw,nosuid - nfs4 s:/one ro\n"
        "3 2 0:41 / /mnt/my\\040nas rw - nfs4 s:/two rw,soft\n"
    )
    seen = mount_of(Path("/mnt/my nas/deep/down"), table)
    assert (seen.source, seen.point, seen.device, seen.read_only) == ("s:/two", "/mnt/my nas", "00:29", False)
    assert mount_of(Path("/mnt/my nasty"), table).kind == "ext4"
    assert mount_of(Path("/mnt"), "").kind == "unknown file system"
    assert mount_of(Path("/proc/self")).kind == "proc"


Space = namedtuple("Space", "f_bavail f_blocks f_favail f_files f_frsize")


@pytest.mark.parametrize(
    ("space", "level", "words"),
    [
        (Space(50, 100, 50, 100, 4096), "ok", "(50 %) of the space free"),
        (Space(50, 100, 0, 0, 4096), "ok", "(50 %) of the space free"),
        (Space(4, 100, 50, 100, 4096), "warning", "of the space"),
        (Space(0, 100, 50, 100, 4096), "problem", "of the space"),
        (Space(50, 100, 3, 100, 4096), "warning", "3 (3 %) of the inodes"),
        (Space(50, 100, 0, 100, 4096), "problem", "of the inodes"),
    ],
)
def test_space_and_inodes(monkeypatch: pytest.MonkeyPatch, space: Space, level: Level, words: str) -> None:
    """Few of either are said before they end; a file system that counts no inodes has no lack of them."""
    # No test can fill a disk that others use.
    monkeypatch.setattr("envfabric.client.doctor_mount.os.statvfs", lambda path: space)
    (found,) = of_space(Path("/mnt/nas"))
    assert (found.level, words in found.found) == (level, True)


def test_who_may_read(nas: Nas) -> None:
    """ROOT, its store and its index, each one closed is named, and the owner who can open it."""
    assert [one.level for one in of_rights(nas.path)] == ["ok"]
    for path, closed in ((nas.path, 0o700), (nas.root.store, 0o750), (nas.root.index, 0o640)):
        before = stat.S_IMODE(path.stat().st_mode)
        path.chmod(closed)
        (found,) = of_rights(nas.path)
        path.chmod(before)
        assert found.level == "warning"
        assert f"{path} ({closed:04o})" in found.found
        assert found.do is not None
    nas.root.index.unlink()
    assert [one.level for one in of_rights(nas.path)] == ["ok"]
    assert os.path.basename(nas.path) in of_rights(nas.path)[0].found
