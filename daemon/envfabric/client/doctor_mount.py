"""What `envfabric doctor` says of ROOT's file system: its kind, its options, its space and who may read it.

What is known of a kind or an option is written down here once; nothing is tried and nothing is written (with --write
the daemon's probe tries it). Reads /proc/self/mountinfo and the modes of some folders. Standard library only.
"""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from envfabric.client.findings import Finding, Level, owner

_LOW, _LAST = 0.05, 0.01
"""Shares of space or inodes that are free: said from the first on, a problem from the second on."""
_LONG = 60
"""Seconds for which the NFS client remembers a folder by default (acdirmax)."""
_NO_LINKS = (
    {"cifs", "smb3", "vfat", "exfat", "msdos", "hfsplus"}
    | {f"fuse.{one}" for one in ("s3fs", "gcsfuse", "goofys", "mountpoint-s3", "blobfuse", "blobfuse2")}
    | {f"fuse.{one}" for one in ("rclone", "sshfs")}
)
_HERE = {"ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs"}
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """The mount that a path is in, as this process sees it."""

    kind: str
    point: str
    source: str
    options: frozenset[str]
    device: str = ""
    """Major and minor number as in /proc/locks: those of the file system, which stat need not show (btrfs)."""

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written by it."""
        return "ro" in self.options

    def value(self, name: str) -> str | None:
        """What stands behind `name=` among its options."""
        return next((one.partition("=")[2] for one in self.options if one.startswith(f"{name}=")), None)


def mount_of(path: Path, table: str | None = None) -> Mount:
    """The mount of a path by /proc/self/mountinfo, or by a `table` of the same form."""
    found = Mount("unknown file system", "?", "?", frozenset())
    real = os.path.realpath(path)
    if table is None:
        try:
            table = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
        except OSError:
            return found
    longest = 0
    for line in table.splitlines():
        left, _, right = line.partition(" - ")
        fields, more = left.split(" "), right.split(" ")
        where = _plain(fields[4])
        inside = real == where or real.startswith(where.rstrip("/") + "/")
        # Of two at one place the later one is seen.
        if inside and len(where) >= longest:
            # Read-only may be the mount's own word or the file system's.
            options = frozenset((*fields[5].split(","), *more[-1].split(",")))
            major, _, minor = fields[2].partition(":")
            device = f"{int(major):02x}:{int(minor):02x}"
            found, longest = Mount(more[0], where, _plain(more[1]), options, device), len(where)
    return found


def of_mount(mount: Mount) -> list[Finding]:
    """What is known of the file system and of the options that it is mounted with."""
    check, told = "file system", f"{mount.kind} at {mount.point}"
    found = [*_of_options(mount), *_of_nfs(mount)]
    if mount.kind in _NO_LINKS:
        do = "Put ROOT on NFS 4 or on a file system with hard links, symlinks, modes and locks (docs/nas.md)."
        found.append(Finding(check, "problem", f"{told} has no hard links, or no locks that hold", do))
    elif mount.kind in {"tmpfs", "ramfs"}:
        do = "Use it for trials only: no other machine sees it, and a restart loses everything."
        found.append(Finding(check, "warning", f"{told} is memory", do))
    elif mount.kind == "overlay":
        do = "Mount a volume there: a container's own layer goes with it, and no other machine sees it."
        found.append(Finding(check, "warning", f"{told} is a container's own layer", do))
    elif mount.kind in _HERE:
        found.append(
            Finding(check, "ok", f"{told}, a disk of this machine: others see it where it is exported")
        )
    elif mount.kind.startswith("fuse") or mount.kind in {"9p", "virtiofs", "unknown file system"}:
        do = "Try it: `envfabric doctor --write` tries links, renames and locks, on one machine."
        found.append(Finding(check, "info", f"{told}: nothing is known of its links and locks", do))
    elif not any(one.level in {"warning", "problem"} for one in found):
        found.append(Finding(check, "ok", told + (", read-only" if mount.read_only else "")))
    return found


def _of_options(mount: Mount) -> list[Finding]:
    check, where = "file system", mount.point
    found = []
    if loose := sorted(
        {"nolock", "local_lock=all", "local_lock=flock", "noflock", "localflock"} & mount.options
    ):
        # Where nothing can be written nobody locks.
        level: Level = "info" if mount.read_only else "problem"
        told = f"{where} is mounted with {', '.join(loose)}: locks hold on this machine only, and two daemons may write"
        do = "Mount it with NFS 4, or NFS 3 with its lock service, or run the daemon on this machine alone."
        found.append(Finding(check, level, told, do))
    return found


def _of_nfs(mount: Mount) -> list[Finding]:
    if not mount.kind.startswith("nfs"):
        return []
    check, where = "file system", mount.point
    found = []
    if {"soft", "softerr"} & mount.options:
        told = (
            f"{where} is mounted soft: where the server is slow, programs and builds fail instead of waiting"
        )
        found.append(Finding(check, "warning", told, "Mount it hard, which is the default."))
    if "noac" in mount.options or mount.value("acregmax") == "0":
        told = f"{where} is mounted without memory of attributes (noac): each import asks the server for each file"
        do = "Take noac or actimeo=0 away; actimeo=1 shows changes within a second, too (docs/nas.md)."
        found.append(Finding(check, "warning", told, do))
    if (longest := mount.value("acdirmax") or "").isdecimal() and int(longest) > _LONG:
        told = f"{where} is mounted with acdirmax={longest}: plain readers of index.json see an old one for as long"
        found.append(
            Finding(check, "warning", told, f"Leave it at {_LONG}, or read through the client (docs/nas.md).")
        )
    if "nocto" in mount.options:
        told = f"{where} is mounted nocto: opening a file need not show its newest content"
        found.append(Finding(check, "warning", told, "Take nocto away."))
    if (limit := link_limit(mount)) is not None:
        whose, most = limit
        told = f"{where} is {whose}, which allows {most} names of one file"
        do = f"Allow for the space: what many environments share is stored once for each {most - 1} of them."
        found.append(Finding(check, "info", told, do))
    return found


def link_limit(mount: Mount) -> tuple[str, int] | None:
    """Whose storage it is by its address, and how many names a file can have there; None where that is not known."""
    host = mount.source.partition(":")[0].lower()
    # Amazon's own mount helper goes through a tunnel on this machine.
    tunnel = host.startswith("127.") and re.fullmatch(r"20[0-9]{3}", mount.value("port") or "")
    if tunnel or re.search(r"(^|\.)fs-[0-9a-f]+\.efs\.[a-z0-9-]+\.amazonaws\.com(\.cn)?$", host):
        return "Amazon EFS", 177
    if host.endswith((".file.core.windows.net", ".file.storage.azure.net")):
        return "Azure Files", 178
    return None


def of_space(root: Path) -> list[Finding]:
    """Free space and inodes. Raises `OSError`."""
    space = os.statvfs(root)
    found, told = [], []
    for what, free, total in (
        ("space", space.f_bavail, space.f_blocks),
        ("inodes", space.f_favail, space.f_files),
    ):
        if not total:
            # NFS servers and btrfs need not count inodes.
            continue
        amount = f"{free * space.f_frsize / 1e9:.1f} GB" if what == "space" else f"{free}"
        text = f"{amount} ({100 * free / total:.0f} %) of the {what} free"
        told.append(text)
        if free / total < _LOW:
            level: Level = "problem" if free / total < _LAST else "warning"
            do = "`envfabric gc`, or enlarge the file system: builds end with no-space."
            found.append(Finding("space", level, f"{root}: {text}", do))
    return found or [Finding("space", "ok", ", ".join(told) or "the file system tells of none")]


def of_rights(root: Path) -> list[Finding]:
    """Whether workers, who run as other users, can read what is published. Raises `OSError`."""
    closed = []
    for path, needed in ((root, 0o5), (root / "store", 0o5), (root / "index.json", 0o4)):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            continue
        if mode & needed != needed:
            closed.append(f"{path} ({mode:04o})")
    whose = owner(root)
    if closed:
        do = f"As {whose}: chmod -R a+rX on it, and run the daemon with umask 0022 (the unit's UMask)."
        return [Finding("rights", "warning", f"closed for other users: {', '.join(closed)}", do)]
    return [Finding("rights", "ok", f"{root} belongs to {whose}, and others may read it")]


def _plain(text: str) -> str:
    # Blanks and the like stand as \040 there.
    return _ESCAPED.sub(lambda digits: chr(int(digits[1], 8)), text)
