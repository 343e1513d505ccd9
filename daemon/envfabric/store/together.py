"""One flush for all who write at the same time: a thousand small files are made durable by a few system calls.

Who writes alone has each of its files synced by itself, and waits for nobody's data; a crowd shares one flush of
the whole file system, as a database's group commit does, where that flush is sure to reach the server. Knows nothing
of what is written.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from envfabric.store.files import Files

CROWD = 4
"""Writers at a time from which on a shared flush is the cheaper way."""


@dataclass(slots=True)
class Member:
    """One writer among those who write now."""

    alone: bool
    """Whether it has to sync each of its files by itself."""
    failures: int
    """How many flushes had failed when it began."""


class Together:
    """The writers of one folder's file system. Safe for threads."""

    def __init__(self, files: Files, folder: Path) -> None:
        self._files = files
        self._folder = folder
        self._turn = threading.Condition()
        self._present = 0
        self._descriptor = -1
        self._shares: bool | None = None
        self._begun = self._ended = 0
        self._failures = 0
        self._error: OSError | None = None

    @contextlib.contextmanager
    def member(self) -> Iterator[Member]:
        """Entered before the first write. Raises `OSError`."""
        with self._turn:
            if self._descriptor < 0:
                # Older than every write of those who are here: no failed one is missed. Held no longer than they
                # are, because a held descriptor keeps a NAS from being unmounted.
                self._descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                self._shares = None
            member = Member(self._present + 1 < CROWD or not self._can_share(), self._failures)
            self._present += 1
        try:
            yield member
        finally:
            with self._turn:
                self._present -= 1
                if self._present == 0:
                    self._let_go()

    def flush(self, member: Member) -> None:
        """Makes durable what a member wrote without syncing it; returns once it is. Raises `OSError`."""
        if member.alone:
            return
        with self._turn:
            # One that is under way may have begun before the last of these writes.
            enough = self._begun + 1
            while self._ended < enough:
                if self._begun > self._ended:
                    self._turn.wait()
                else:
                    self._begin()
            if self._failures > member.failures and self._error is not None:
                # The system tells of a failed write once, to whoever asks first: it may have been anybody's.
                raise OSError(self._error.errno, self._error.strerror, str(self._folder))

    def _begin(self) -> None:
        """Flushes for all who wait, in the thread of the first of them, without keeping others from writing."""
        self._begun += 1
        self._turn.release()
        # Whatever ends the flush early, nothing that waited for it is taken for durable.
        error: OSError | None = OSError(errno.EIO, "the flush was cut off")
        stale = False
        try:
            stale = not os.path.samestat(os.fstat(self._descriptor), os.stat(self._folder))
            if stale:
                # Unmounted and mounted anew under the writers: a flush of the old mount says nothing of the new.
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            self._files.flush(self._descriptor, self._folder)
            error = None
        except OSError as found:
            error = found
        finally:
            self._turn.acquire()
            self._ended += 1
            if error is not None:
                self._failures += 1
                self._error = error
            if stale:
                # All who are here fail for this, whatever they still write; the next one opens what is there now.
                self._let_go()
            self._turn.notify_all()

    def _let_go(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _can_share(self) -> bool:
        """Whether one flush of the file system makes durable what all have written to it. Raises `OSError`."""
        if self._shares is None:
            # A file system in a user's process hears of a file's sync, and of a flush of the whole only by leave.
            self._shares = not kind_of(os.fstat(self._descriptor).st_dev).startswith("fuse")
        return self._shares


def kind_of(device: int) -> str:
    """The type of the file system of a device number, as /proc/self/mountinfo has it; empty where it has none."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", errors="surrogateescape") as mounts:
        for line in mounts:
            before, _, after = line.partition(" - ")
            if before.split(" ")[2] == number:
                return after.split(" ")[0]
    return ""
