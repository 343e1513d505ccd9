"""Who may write to ROOT: the lock decides who should, the epoch decides whose writing counts.

The lock frees itself when its holder dies, on this host or another (NFS 4). The epoch closes what
a lock leaves open: a holder that was cut off and comes back later finds a higher epoch and stops.
"""

import contextlib
import os
import re
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from envfabric.core.errors import ConfigError, StoreError
from envfabric.store.files import Files
from envfabric.store.mounts import FULL
from envfabric.store.root import Root, check_schema

_EPOCH = re.compile(r"epoch-([0-9]{1,18})")
_EPOCHS_KEPT = 8
_TOKEN_AGE = 3600.0
"""Seconds after which a claim's token is nobody's any more."""


class Busy(StoreError):
    """Another writer holds ROOT."""


class LostWriter(StoreError):
    """This process no longer is the writer: a higher epoch was claimed, or the lock's file is another."""


class Writer:
    """The writer's lock on one ROOT with the epoch claimed under it."""

    def __init__(self, root: Root, files: Files) -> None:
        self._root = root
        self._files = files
        self._path = root.locks / "writer.lock"
        # A lock that silently turns into a lock file would not exclude another host.
        self._lock = FileLock(
            self._path,
            mode=0o644,
            thread_local=False,
            fallback_to_soft=False,
            preserve_lock_file=True,
            on_acquired=self._remember,
        )
        self._descriptor: int | None = None
        self.epoch = 0

    def acquire(self) -> Self:
        """Takes the lock at once and claims the next epoch.

        Raises `Busy` where another holds it, and `StoreError` where ROOT is away or of a newer form.
        """
        self._root.require_marker()
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise Busy(f"another daemon or command is writing to {self._root.path} ({self._path})") from None
        try:
            # Now, and not at the start alone: a standby may be of an older release than the writer that it follows.
            check_schema(self._root)
            self.epoch = self._claim()
        except ConfigError as error:
            self.release()
            raise StoreError(str(error)) from error
        except BaseException:
            self.release()
            raise
        return self

    def release(self) -> None:
        """Gives the lock back."""
        self._descriptor = None
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def check(self) -> None:
        """Before each publication: still the lock's holder, still the highest epoch, ROOT still there.

        Raises `LostWriter` or `StoreError`.
        """
        self._root.require_marker()
        if self._descriptor is None:
            raise LostWriter(f"the lock on {self._root.path} is not held")
        held = os.fstat(self._descriptor)
        try:
            named = self._path.stat()
        except OSError as error:
            raise LostWriter(f"{self._path}: {error.strerror}") from error
        # After a remount the held descriptor still works, on a file that nobody else locks.
        if (held.st_dev, held.st_ino) != (named.st_dev, named.st_ino):
            raise LostWriter(f"{self._path} is another file than the one locked; was ROOT remounted?")
        highest = max(self._epochs(), default=0)
        if highest > self.epoch:
            raise LostWriter(f"epoch {highest} was claimed over this writer's epoch {self.epoch}")

    def _remember(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def _epochs(self) -> list[int]:
        names = os.listdir(self._root.locks)
        return [int(match[1]) for name in names if (match := _EPOCH.fullmatch(name))]

    def _claim(self) -> int:
        token = self._root.locks / f".claim.{uuid.uuid4().hex}"
        try:
            self._make_token(token)
            while True:
                epoch = max(self._epochs(), default=0) + 1
                try:
                    # link() fails where the name is another's, on every file system and between hosts.
                    self._files.link(token, self._epoch_path(epoch))
                except FileExistsError:
                    continue
                # Between the look and the link others may have claimed so many that this number was trimmed.
                if max(self._epochs()) == epoch:
                    break
                self._files.unlink(self._epoch_path(epoch))
        finally:
            self._remove_tokens(token)
        for old in sorted(self._epochs())[:-_EPOCHS_KEPT]:
            self._files.unlink(self._epoch_path(old))
        if self._epochs() == [epoch]:
            # For the next claim, should the disk be full by then: see _make_token.
            with contextlib.suppress(OSError):
                self._files.write_new(self._epoch_path(epoch - 1), b"")
        return epoch

    def _make_token(self, token: Path) -> None:
        """Makes the file whose links are this claim's, also where there is room for no file any more.

        A daemon that was killed on a full disk has to come back to empty what it left in staging/.
        """
        try:
            self._files.write_new(token, f"{os.uname().nodename} {os.getpid()}\n".encode())
        except OSError as error:
            if error.errno not in FULL:
                raise
            # The file of an epoch that is over is as unique, and renaming it takes no room.
            over = sorted(self._epochs())[:-1]
            if over:
                self._files.rename(self._epoch_path(over[0]), token)
            else:
                self._files.write_new(token, b"")

    def _remove_tokens(self, own: Path) -> None:
        """Removes this claim's token, and those of claims that were killed half-way long ago."""
        with contextlib.suppress(FileNotFoundError):
            # Both times are the file server's: hosts' clocks need not agree.
            now = own.stat().st_mtime
            for left in self._root.locks.glob(".claim.*"):
                if now - left.stat().st_mtime > _TOKEN_AGE:
                    self._files.unlink(left)
        own.unlink(missing_ok=True)

    def _epoch_path(self, epoch: int) -> Path:
        return self._root.locks / f"epoch-{epoch}"
