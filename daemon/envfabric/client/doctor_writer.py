"""What `envfabric doctor` says of ROOT's writer: who holds its lock, since when, and when something was published.

The lock is never taken, not for a moment: a daemon that tried it then would stand by. Who holds it is read from
/proc/locks, or asked of the server (F_GETLK), which knows of holders on other hosts. Standard library only.
"""

import contextlib
import fcntl
import os
import re
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from envfabric.client.doctor_mount import mount_of
from envfabric.client.findings import Finding

_EPOCH = re.compile(r"epoch-([0-9]{1,18})")
_LOCK = struct.Struct("hhqqi4x")
"""struct flock of Linux, 64 bits: type, whence, start, length, pid."""
_CLOCKS = 60.0
"""Seconds by which this machine's clock may be behind what was published."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The highest epoch: whoever claimed it is the writer, or was the last one."""

    epoch: int
    host: str
    pid: int
    since: float
    """By the file server's clock."""

    def __str__(self) -> str:
        return f"epoch {self.epoch}, pid {self.pid} on {self.host or '?'} since {moment(self.since)}"


def of_writer(root: Path) -> list[Finding]:
    """Whether somebody writes to ROOT, and who. Raises `OSError`."""
    check, path = "writer", root / "locks" / "writer.lock"
    claim = last_claim(root)
    if claim is None:
        return [Finding(check, "warning", "nobody ever wrote here", "Start the daemon: `envfabric run`.")]
    here = claim.host == os.uname().nodename
    try:
        holders, elsewhere = _holders(path)
    except FileNotFoundError:
        do = "Restart the daemon: two of them could write at once, and both would say that they are the one."
        return [Finding(check, "problem", f"{path} is not there, and {claim} wrote", do)]
    except PermissionError:
        return [
            Finding(check, "info", f"{path} is not this user's to read; {claim}", "Run this as its owner.")
        ]
    if elsewhere:
        return [Finding(check, "ok", f"held: {claim}")]
    if holders:
        if not (here and claim.pid in holders):
            told = f"pid {', '.join(map(str, sorted(holders)))} holds the lock here, and the last claim is {claim}"
            do = "A command, or a writer that another one overtook: it stops by itself; if it does not, end it."
            return [Finding(check, "warning", told, do)]
        return [Finding(check, "ok", f"held: {claim}")]
    if not here:
        told = f"nobody is seen to hold it from here; the last one is {claim}"
        return [
            Finding(check, "info", told, f"Look there: `envfabric doctor` on {claim.host or 'its host'}.")
        ]
    told = f"nobody holds it; the last writer was {claim}, which {_fate(claim.pid)}"
    return [
        Finding(check, "warning", told, "Start the daemon: systemctl start envfabric, or `envfabric run`.")
    ]


def of_publication(index: Mapping[str, Any]) -> list[Finding]:
    """How old what is published is, and whether a clock is wrong by it."""
    try:
        at = datetime.fromisoformat(str(index["published_at"])).timestamp()
    except (KeyError, ValueError):
        return [
            Finding(
                "published",
                "warning",
                "the index does not say when",
                "`envfabric doctor` on the daemon's host.",
            )
        ]
    age = time.time() - at
    if age < -_CLOCKS:
        told = f"the index is of {moment(at)}, {-age:.0f} s from now: this machine's clock or the daemon's is wrong"
        return [
            Finding(
                "clock", "warning", told, "Set both by NTP (timedatectl); leases go by the server's clock."
            )
        ]
    running = sum(one.get("state") in {"pending", "building"} for one in index["environments"].values())
    bad = sorted(
        name for name, one in index["environments"].items() if one.get("state") in {"failed", "stale"}
    )
    told = f"{moment(at)}, {_ago(age)} ago; {running} being built, {len(bad)} not as committed"
    if bad:
        # Of the specs, not of the installation: no problem of this machine.
        return [Finding("published", "info", told, f"`envfabric status {bad[0]}` says why.")]
    return [Finding("published", "ok", told)]


def last_claim(root: Path) -> Claim | None:
    """The highest epoch there is. Raises `OSError`."""
    folder = root / "locks"
    epochs = [int(match[1]) for name in os.listdir(folder) if (match := _EPOCH.fullmatch(name))]
    if not epochs:
        return None
    path = folder / f"epoch-{max(epochs)}"
    # On a full disk a claim may be an empty file.
    words = ""
    with contextlib.suppress(PermissionError):
        words = path.read_text("utf-8", "replace")
    host, _, pid = words.strip().partition(" ")
    return Claim(max(epochs), host, int(pid) if pid.isdecimal() else 0, path.stat().st_mtime)


def moment(seconds: float) -> str:
    """A time as everywhere: UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _holders(path: Path) -> tuple[set[int], bool]:
    """The processes of this host that hold a lock on a file, and whether another host's does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        devices = {f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}", mount_of(path).device}
        names = {f"{device}:{status.st_ino}" for device in devices}
        holders = set()
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            # A line with -> waits for the one above.
            if fields[1] != "->" and fields[5] in names:
                holders.add(int(fields[4]))
        asked = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        try:
            # NFS turns flock into what this asks for; a disk's own flock stands in /proc/locks alone.
            answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, asked)
        except OSError:
            return holders, False
        kind, *_, pid = _LOCK.unpack(answer)
        return holders, kind != fcntl.F_UNLCK and pid not in holders
    finally:
        os.close(descriptor)


def _fate(pid: int) -> str:
    return "still runs, without the lock" if pid and os.path.exists(f"/proc/{pid}") else "has ended"


def _ago(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(seconds, 0):.0f} s"
