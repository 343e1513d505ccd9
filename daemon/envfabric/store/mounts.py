"""What ROOT's mount says of itself without anything being tried, and what to tell of what it refuses.

Nothing here changes anything on ROOT.
"""

import contextlib
import errno
import os
import pwd
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from envfabric.core.errors import ConfigError
from envfabric.store.root import Root

FULL = {errno.ENOSPC, errno.EDQUOT}
"""What a system says that has no space left for this user."""

_TOGETHER = ("uv_cache", "store", "staging", "generations", "trash", "bytecode")
_LOW = 0.05
_MEMORY = {"tmpfs", "ramfs"}


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo."""

    kind: str
    point: str
    options: frozenset[str]


def one_mount(root: Root) -> Mount:
    """The mount that all folders lie on between which files are linked and renamed.

    Raises `ConfigError` where there are several, and `OSError`.
    """
    listed = _mounts()
    groups: dict[tuple[int, int], list[str]] = {}
    for name in _TOGETHER:
        descriptor = os.open(root.path / name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Between two mounts of one device nothing can be linked, nor between two btrfs subvolumes of
            # one mount: the device alone does not tell, and neither does the mount.
            found = re.search(r"^mnt_id:\s*([0-9]+)", _read(f"/proc/self/fdinfo/{descriptor}"), re.MULTILINE)
            key = int(found[1]) if found else 0, os.fstat(descriptor).st_dev
        finally:
            os.close(descriptor)
        groups.setdefault(key, []).append(f"{name}/")
    unknown = Mount("unknown", "an unlisted mount", frozenset())
    mounts = [listed.get(mount_id, unknown) for mount_id, _ in groups]
    if len(groups) > 1:
        told = "; ".join(
            f"{', '.join(names)} on {mount.kind} at {mount.point}"
            for names, mount in zip(groups.values(), mounts, strict=True)
        )
        raise ConfigError(
            f"{root.path} is not one file system: {told}. Files are hardlinked and renamed between these "
            "folders: put them on one mount of one file system, without mounts or symlinks below ROOT."
        )
    return mounts[0]


def _mounts() -> dict[int, Mount]:
    found = {}
    for line in _read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        number, _, _, _, point, options, *_ = before.split(" ")
        kind, _, more = after.split(" ", 2)
        # Blanks and the like stand as \040 there.
        point = re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), point)
        found[int(number)] = Mount(kind, point, frozenset(f"{options},{more}".split(",")))
    return found


def shortages(root: Root, mount: Mount, space: os.statvfs_result) -> Iterator[str]:
    """What the mount and its free space say without trying anything."""
    if mount.kind in _MEMORY:
        yield (
            f"{root.path} is on {mount.kind}, which is memory: a restart of this machine loses everything, and "
            "no other machine sees it. Use it for trials only."
        )
    if {"nolock", "local_lock=all", "local_lock=flock", "localflock"} & mount.options:
        yield (
            f"{mount.point} is mounted with locks that hold on this host only: a daemon on another host would "
            "not stand by. Mount it with NFS 4 or without nolock (Lustre: with flock), or run the daemon "
            "on one host only."
        )
    for what, free, total in (
        ("space", space.f_bavail, space.f_blocks),
        ("inodes", space.f_favail, space.f_files),
    ):
        if total and free / total < _LOW:
            amount = f"{free * space.f_frsize / 1e9:.2f} GB" if what == "space" else str(free)
            yield (
                f"Only {100 * free / total:.1f} % of the {what} of {mount.point} is free ({amount}): builds "
                "will soon end with no-space. Run envfabric gc, or enlarge the file system."
            )


def refusal(path: Path, error: OSError, doing: str) -> ConfigError:
    """What to tell of a ROOT at `path` with which an operation failed while `doing` something."""
    said = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''} while {doing}"
    if error.errno == errno.EROFS:
        return ConfigError(
            f"{path} is read-only: {said}. Mount it read-write, and check how the NAS exports it to this host."
        )
    if error.errno in FULL:
        return ConfigError(f"{path} is full: {said}. Free space or inodes on it, or raise the quota.")
    if error.errno == errno.ENOENT:
        return ConfigError(
            f"{path}: {said}. Mount the NAS, or have what is missing made: envfabric init {path}"
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return ConfigError(f"{path}: no permission: {said}. {_whose(path, error)}")
    return ConfigError(f"{path} can't be used: {said}. Check the NAS and its mount.")


def _whose(path: Path, error: OSError) -> str:
    """Whom the nearest folder belongs to that could be looked at, and what follows from it."""
    start = Path(error.filename) if isinstance(error.filename, str) else path
    folder, status = Path("/"), os.stat("/")
    for one in (start, *start.parents):
        with contextlib.suppress(OSError):
            folder, status = one, one.stat()
            break
    me = os.geteuid()
    told = (
        f"{folder} belongs to {user(status.st_uid)} and has mode {stat.S_IMODE(status.st_mode):04o}; this "
        f"is {user(me)}."
    )
    if status.st_uid != me:
        told += f" Run envfabric as uid {status.st_uid}, or give {path} to uid {me}."
    else:
        told += " Give its owner permission to write there."
    if me == 0:
        told += " NFS servers take root for nobody, as a rule: run as the user who owns the folder."
    return told


def user(uid: int) -> str:
    """A user as people know them."""
    try:
        return f"uid {uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return f"uid {uid}"


def _read(path: str) -> str:
    return Path(path).read_text(errors="surrogateescape")
