"""The one seam through which the project changes files on ROOT.

Each function is a step that can fail or be the last one before a crash; `Files.step` is called
before each, so that a test can make it so. Everything that readers may meet appears by rename.
"""

import ctypes
import os
import stat
import uuid
from collections.abc import Callable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)

Step = Callable[[str, Path], None]


def _no_fault(operation: str, path: Path) -> None:
    """The daemon's own step: nothing happens."""


class Files:
    """File operations on ROOT. All raise `OSError` as the system gave it."""

    def __init__(self, step: Step = _no_fault) -> None:
        self._step = step

    def make_folder(self, path: Path) -> None:
        """Makes `path` and its parents, readable by others whatever the umask."""
        if path.is_dir():
            return
        self.make_folder(path.parent)
        self._step("mkdir", path)
        path.mkdir(exist_ok=True)
        path.chmod(0o755)

    def write_atomic(self, path: Path, data: bytes, mode: int = 0o644, *, durable: bool = True) -> None:
        """Replaces `path` by a file with `data`: readers see the old content or the new one, whole.

        What is not `durable` may be lost with the machine's power.
        """
        # The name is hidden, and unique: two writers never share a half-written file.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        self._step("write", path)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            self._step("rename", path)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            self.sync_folder(path.parent)

    def write_new(self, path: Path, data: bytes, mode: int = 0o644, *, durable: bool = False) -> None:
        """Writes a file into a folder that nobody looks at yet; `durable` before that folder is published."""
        self._step("write", path)
        with path.open("xb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
            if durable:
                file.flush()
                os.fsync(file.fileno())

    def link(self, source: Path, target: Path) -> None:
        """Hardlinks `source` at `target`; raises `FileExistsError` where that name is taken."""
        self._step("link", target)
        os.link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """Renames within ROOT and makes the new name durable."""
        self._step("rename", target)
        source.rename(target)
        self.sync_folder(target.parent)

    def symlink(self, path: Path, target: str) -> None:
        """Makes a symlink in a folder that nobody looks at yet."""
        self._step("symlink", path)
        path.symlink_to(target)

    def flip_symlink(self, path: Path, target: str) -> None:
        """Points the symlink `path` at `target`, by rename: at no instant is it missing."""
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        self._step("symlink", path)
        temporary.symlink_to(target)
        try:
            self._step("rename", path)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def unlink(self, path: Path) -> None:
        """Removes a file or symlink, or nothing where it is gone already."""
        self._step("unlink", path)
        path.unlink(missing_ok=True)

    def flush(self, path: Path) -> None:
        """Makes everything durable that this host wrote to the file system of `path`, in one call.

        An fsync of each linked file would cost a round trip each, and uv has closed them already.
        """
        self._step("flush", path)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _LIBC.syncfs(descriptor) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), str(path))
        finally:
            os.close(descriptor)

    def sync_folder(self, path: Path) -> None:
        """Makes the names in a folder durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove_tree(self, path: Path) -> None:
        """Removes a folder with all below it, sealed folders too. Follows no symlink."""
        self._step("remove", path)
        try:
            if not stat.S_ISDIR(path.lstat().st_mode):
                path.unlink()
                return
            entries = list(os.scandir(path))
        except FileNotFoundError:
            return
        # Without write permission on the folder an ordinary user can't remove what is in it.
        path.chmod(stat.S_IRWXU)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                self.remove_tree(Path(entry.path))
            else:
                Path(entry.path).unlink(missing_ok=True)
        path.rmdir()
