"""The one seam through which the project changes files on ROOT.

Each function is a step that can fail or be the last one before a crash; `Files.step` is called
before each, so that a test can make it so. Everything that readers may meet appears by rename.
"""

import contextlib
import ctypes
import errno
import os
import stat
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)

Step = Callable[[str, Path], None]
Stamp = tuple[int, int, int]
"""What tells a written file from every other: inode, mtime in ns, size."""


def _no_fault(operation: str, path: Path) -> None:
    """The daemon's own step: nothing happens."""


@dataclass(slots=True)
class Freed:
    """Bytes on disk and inodes that a removal gave back: those that had no other link."""

    bytes: int = 0
    inodes: int = 0

    def add(self, status: os.stat_result) -> None:
        """Counts a file that is removed now."""
        if status.st_nlink == 1 or stat.S_ISDIR(status.st_mode):
            self.bytes += status.st_blocks * 512
            self.inodes += 1


class Files:
    """File operations on ROOT. All raise `OSError` as the system gave it."""

    def __init__(self, step: Step = _no_fault) -> None:
        self._step = step

    def make_folder(self, path: Path, within: Path | None = None) -> None:
        """Makes `path`, readable by others whatever the umask, and what is missing between it and `within`.

        `within`, by default the parent, has to be there: below a mount point that lost its NAS nothing is
        made.
        """
        if path.is_dir():
            return
        if within is not None and path.parent != within:
            if not path.is_relative_to(within):
                raise ValueError(f"{path} is not below {within}")
            self.make_folder(path.parent, within)
        self._step("mkdir", path)
        path.mkdir(exist_ok=True)
        path.chmod(0o755)

    def write_atomic(
        self, path: Path, data: bytes, mode: int = 0o644, *, durable: bool = True, via: Path | None = None
    ) -> Stamp:
        """Replaces `path` by a file with `data`: readers see the old content or the new one, whole.

        What is not `durable` may be lost with the machine's power. `via` is the folder in which the file
        is written first, by default its own. Gives the stamp of what was written, which a later file of
        that name can't have.
        """
        # The name is hidden, and unique: two writers never share a half-written file.
        temporary = (via or path.parent) / f".{path.name}.{uuid.uuid4().hex}"
        self._step("write", path)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
                # Not by name after the rename: another writer may have replaced it by then.
                status = os.fstat(file.fileno())
            self._step("rename", path)
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if durable:
            self.sync_folder(path.parent)
        return stamp(status)

    def write_new(self, path: Path, data: bytes, mode: int = 0o644, *, durable: bool = False) -> None:
        """Writes a file into a folder that nobody looks at yet; `durable` before that folder is published."""
        self._step("write", path)
        with path.open("xb") as file:
            try:
                file.write(data)
                os.fchmod(file.fileno(), mode)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            except OSError:
                # Half of it would be in the way of the next try.
                with contextlib.suppress(OSError):
                    path.unlink()
                raise

    def create(self, path: Path, mode: int = 0o600) -> int:
        """Makes an empty file that is new, and gives its descriptor, open for reading and writing."""
        self._step("write", path)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)

    def append(self, path: Path, data: bytes) -> None:
        """Appends to a file that has one writer; a crash may lose or cut what was appended last."""
        self._step("append", path)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(descriptor, 0o644)
            # A disk that is nearly full takes a part, and says why with the next.
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        finally:
            os.close(descriptor)

    def make_new_folder(self, path: str | Path) -> None:
        """Makes a folder in a place that nobody looks at yet, in one step; raises `FileExistsError`."""
        self._take("mkdir", path)
        os.mkdir(path)

    def link(self, source: str | Path, target: str | Path) -> None:
        """Hardlinks `source` at `target`; raises `FileExistsError` where that name is another file's."""
        self._take("link", target)
        try:
            os.link(source, target)
        except FileExistsError:
            # NFS: the answer to the first try was lost, and the second one found its own work. A symlink in
            # its place is another's, wherever it leads.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.lstat(source), os.lstat(target)):
                    return
            raise

    def _take(self, operation: str, path: str | Path) -> None:
        # A path as a string is one of thousands: no object for each.
        if self._step is not _no_fault:
            self._step(operation, Path(path))

    def rename(self, source: Path, target: Path) -> None:
        """Renames within ROOT and makes the new name durable."""
        self._step("rename", target)
        source.rename(target)
        self.sync_folder(target.parent)

    def symlink(self, path: Path, target: str) -> None:
        """Makes a symlink in a folder that nobody looks at yet."""
        self._step("symlink", path)
        path.symlink_to(target)

    def flip_symlink(self, path: Path, target: str, via: Path | None = None) -> None:
        """Points the symlink `path` at `target`, by rename: at no instant is it missing.

        `via` is the folder in which the link is made first, by default its own.
        """
        temporary = (via or path.parent) / f".{path.name}.{uuid.uuid4().hex}"
        self._step("symlink", path)
        temporary.symlink_to(target)
        try:
            self._step("rename", path)
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def unlink(self, path: Path) -> None:
        """Removes a file or symlink, or nothing where it is gone already."""
        self._step("unlink", path)
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Removes an empty folder; raises `OSError` (ENOTEMPTY) where something came into it."""
        self._step("rmdir", path)
        path.rmdir()

    def flush(self, descriptor: int, path: Path) -> None:
        """Makes everything durable that this host wrote to the file system of `descriptor`, in one call.

        An fsync of each linked file would cost a round trip each, and uv has closed them already. A write
        that failed since the descriptor was opened is an error here, and one before is not: it has to be
        older than what is flushed. `path` is what the error is about.
        """
        self._step("flush", path)
        if _LIBC.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))

    def sync_folder(self, path: Path) -> None:
        """Makes the names in a folder durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def server_time(self, folder: Path) -> float:
        """The file server's clock, in seconds: all ages on ROOT are judged by it, hosts' clocks differ."""
        path = folder / f".time.{uuid.uuid4().hex}"
        self._step("write", path)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            # Not one inode is left: the folder's own times are set by the same clock.
            os.utime(folder)
            return folder.stat().st_mtime
        try:
            # Of an empty file some clients would give their own time.
            os.write(descriptor, b".")
            os.fsync(descriptor)
            return os.fstat(descriptor).st_mtime
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            # A full disk is when the collector is needed most; setting the times takes no room.
            os.utime(descriptor)
            return os.fstat(descriptor).st_mtime
        finally:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()

    def remove_tree(self, path: Path) -> Freed:
        """Removes a folder with all below it, sealed folders too. Follows no symlink.

        Gives what came back on disk. Without recursion: what is removed may be nested deeper than a
        builder allows.
        """
        freed = Freed()
        folders: list[str] = []
        waiting = [str(path)]
        while waiting:
            here = waiting.pop()
            self._step("remove", Path(here))
            try:
                status = os.lstat(here)
                if not stat.S_ISDIR(status.st_mode):
                    os.unlink(here)
                    freed.add(status)
                    continue
                # Without write permission on the folder an ordinary user can't remove what is in it.
                os.chmod(here, stat.S_IRWXU)
                entries = list(os.scandir(here))
            except FileNotFoundError:
                continue
            folders.append(here)
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    os.unlink(entry.path)
                    freed.add(status)
        for folder in reversed(folders):
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(folder)
                os.rmdir(folder)
                freed.add(status)
        return freed


def stamp(status: os.stat_result) -> Stamp:
    """The stamp of a file by its status."""
    return status.st_ino, status.st_mtime_ns, status.st_size
