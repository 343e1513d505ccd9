"""Real file systems for a test, in a mount namespace of its own: nothing of them is seen by others or stays."""

import ctypes
import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NEW_MOUNTS = 0x00020000
_ENDED_WITHIN = 60.0
"""Seconds in which a thread that is about to end has ended."""
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def own_mounts() -> Iterator[None]:
    """For this thread, and every process that it starts, a mount namespace of its own. Needs root."""
    old = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _call("unshare", _NEW_MOUNTS)
        try:
            _run("mount", "--make-rprivate", "/")
            yield
        finally:
            # With its last process the namespace goes, and with it all that was mounted in it.
            _go_back(old)
            os.fchdir(here)
    finally:
        os.close(old)
        os.close(here)


def _go_back(namespace: int) -> None:
    deadline = time.monotonic() + _ENDED_WITHIN
    while True:
        try:
            return _call("setns", namespace, _NEW_MOUNTS)
        except OSError as error:
            # A thread that read a process's output, and is about to end, has this one's working folder until then.
            if error.errno != errno.EINVAL or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


class Disk:
    """A small ext4 in a file, on a loop device that lives as long as this object is open."""

    def __init__(self, file: Path, megabytes: int, *, inodes: int | None = None) -> None:
        with file.open("xb") as new:
            new.truncate(megabytes << 20)
        # Nothing is reserved for root: full is full, as for everybody else.
        count = ["-N", str(inodes)] if inodes else []
        _run("mkfs.ext4", "-q", "-F", "-m", "0", *count, str(file))
        self._device = _run("losetup", "--find", "--show", str(file)).strip()
        # Held open, so that it stays while nothing of it is mounted; detached, so that it goes with us.
        self._held = os.open(self._device, os.O_RDONLY | os.O_CLOEXEC)
        _run("losetup", "--detach", self._device)

    def mount(self, where: Path) -> None:
        """Mounts it."""
        where.mkdir(exist_ok=True)
        _run("mount", self._device, str(where))

    def close(self) -> None:
        """Lets go of the device."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


def bind(folder: Path, where: Path, *, read_only: bool = False) -> None:
    """Mounts a folder at another place, on top of what is there."""
    _run("mount", "--bind", str(folder), str(where))
    if read_only:
        _run("mount", "-o", "remount,ro,bind", str(where))


def empty(where: Path) -> None:
    """Mounts an empty file system on top of what is there."""
    _run("mount", "-t", "tmpfs", "-o", "size=4m", "none", str(where))


def unmount(where: Path) -> None:
    """Takes the uppermost mount away at once, whoever uses it (`umount -l`)."""
    _run("umount", "--lazy", str(where))


def fill(folder: Path, leave: int = 0) -> Path:
    """Fills a file system's space until `leave` bytes are left; gives the file to remove."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        free = os.statvfs(folder)
        with suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - leave))
        if not leave:
            with suppress(OSError):
                file.seek(0, os.SEEK_END)
                while True:
                    file.write(b"x" * 4096)
                    file.flush()
    return ballast


def fill_inodes(folder: Path) -> Path:
    """Takes every inode of a file system; gives the folder to remove."""
    ballast = folder / "ballast"
    ballast.mkdir()
    number = 0
    with suppress(OSError):
        while True:
            (ballast / str(number)).touch()
            number += 1
    return ballast


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
