"""Proves one sealed closure against its manifest: what was changed, is missing, or was added since.

It only reads, follows no symlink and repairs nothing. What can't be read is a finding like any other.
"""

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from envfabric.store.manifest import DEEPEST, MANIFEST, Entry, read_manifest

Kind = Literal["changed", "missing", "extra", "mode", "type", "link", "unreadable", "manifest"]
Stop = Callable[[], bool]
"""Says whether to end early; called by all threads."""
Tell = Callable[[int, int], None]
"""Is told how many paths were settled, and how many came up; called by all threads."""

_CHUNK = 1 << 20
_FILES_AT_ONCE = 64
"""Files that one thread takes: enough to be worth handing over, few enough to share out a small closure."""
_TYPES = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l"}
_WORDS = {"f": "file", "d": "folder", "l": "symlink"}
_RAN = "written after sealing: a process that may write there (root) ran from this environment"


@dataclass(frozen=True, slots=True)
class Finding:
    """One path of a closure that is not as it was sealed."""

    closure: str
    path: str
    """Relative to the closure's folder, as `os.fsdecode` gives it; `.` is that folder."""
    kind: Kind
    detail: str
    """What was found, in words, fit to be shown."""
    serves: tuple[str, ...] = ()
    """Ids of the specs that this closure serves."""

    def __str__(self) -> str:
        return f"{self.closure}/{shown(self.path)}: {self.kind}: {self.detail}"


class SeenHashes:
    """SHA-256 of the files that a run has read, by device and inode: a shared one is read once.

    Safe for threads. `pool` reads the files of one closure by several threads; it must not be the pool
    that `check` itself runs in.
    """

    def __init__(self, pool: Executor | None = None) -> None:
        self.files = 0
        self.bytes_read = 0
        self._pool = pool
        self._known: dict[tuple[int, int], str] = {}
        self._reading: set[tuple[int, int]] = set()
        self._turn = threading.Condition()

    def of(
        self, files: Sequence[tuple[str, os.stat_result]], stop: Stop, tell: Tell
    ) -> Iterator[str | OSError | None]:
        """For each path with the status it had: its digest, why it can't be read, or None once stopped."""
        parts = [files[start : start + _FILES_AT_ONCE] for start in range(0, len(files), _FILES_AT_ONCE)]

        def read(part: Sequence[tuple[str, os.stat_result]]) -> list[str | OSError | None]:
            found = [self._one(path, status, stop) for path, status in part]
            with self._turn:
                self.files += len(part)
            tell(len(part), 0)
            return found

        for found in self._pool.map(read, parts) if self._pool else map(read, parts):
            yield from found

    def _one(self, path: str, status: os.stat_result, stop: Stop) -> str | OSError | None:
        key = (status.st_dev, status.st_ino)
        if known := self._known.get(key):
            return known
        with self._turn:
            # Somebody reads it now. Where that fails it is tried again by this closure's own name for it:
            # the other closure may be on its way to trash/.
            while key in self._reading:
                self._turn.wait()
            if known := self._known.get(key):
                return known
            self._reading.add(key)
        size, digest = 0, None
        try:
            if not stop():
                size, digest = _read(path, key, stop)
        except OSError as error:
            return error
        finally:
            with self._turn:
                self._reading.discard(key)
                self.bytes_read += size
                # What has one name is not met again.
                if digest and status.st_nlink > 1:
                    self._known[key] = digest
                self._turn.notify_all()
        return digest


def check(
    closure: Path,
    seen: SeenHashes,
    stop: Stop = lambda: False,
    tell: Tell = lambda settled, added: None,
) -> list[Finding]:
    """Proves each path of a closure against its manifest, and finds what is there besides.

    A closure that vanishes as a whole meanwhile was collected, and gives no findings. Once `stop` says so,
    what was found until then is given. `tell` is told how many paths were settled and how many came up.
    """
    found: list[Finding] = []
    try:
        # Held to the end: another folder that takes this one's place can't get its inode number.
        descriptor = os.open(closure, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [Finding(closure.name, ".", "unreadable", _cause(error))]
    try:
        status = os.fstat(descriptor)
        _Look(closure, found, seen, stop, tell).all(status)
        if found and _vanished(closure, status):
            return []
    finally:
        os.close(descriptor)
    return sorted(found, key=lambda one: (one.path, one.kind))


class _Look:
    """One closure while it is looked at."""

    def __init__(self, closure: Path, found: list[Finding], seen: SeenHashes, stop: Stop, tell: Tell) -> None:
        self._closure = closure
        self._found = found
        self._seen = seen
        self._stop = stop
        self._tell = tell
        self._left: dict[str, Entry] = {}
        """What the manifest lists and was not met yet."""
        self._hidden: list[str] = []
        """Folders that can't be read: what is in them is not missing."""
        self._files: list[tuple[str, os.stat_result]] = []
        self._lines: list[Entry] = []
        """The manifest's lines of `_files`."""

    def all(self, status: os.stat_result) -> None:
        """Fills `found`. `status` is that of the closure's folder."""
        if not stat.S_ISDIR(status.st_mode):
            self._add(".", "type", f"{_word(status)}, not a closure's folder; nothing of ours puts it there")
            return
        self._mode(".", status, 0o755)
        try:
            entries = read_manifest(self._manifest())
        except FileNotFoundError:
            self._add(MANIFEST, "manifest", "is not there: nothing of this closure can be proven")
            return
        except OSError as error:
            self._add(MANIFEST, "unreadable", f"{_cause(error)}; nothing of this closure can be proven")
            return
        except ValueError as error:
            self._add(MANIFEST, "manifest", f"{error}; nothing of this closure can be proven")
            return
        self._left = {str(entry[1]): entry for entry in entries}
        self._tell(0, len(entries))
        self._walk()
        self._tell(len(entries) - len(self._left) - len(self._files), 0)
        self._contents()
        if not self._stop():
            self._missing()

    def _manifest(self) -> bytes:
        path = os.path.join(self._closure, MANIFEST)
        # Nothing but a file is opened, and no symlink followed: a pipe would block for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{_word(status)}, not a file")
            self._mode(MANIFEST, status, 0o444)
            return file.read()

    def _walk(self) -> None:
        waiting = [(os.fspath(self._closure), "", 0)]
        while waiting and not self._stop():
            folder, relative, depth = waiting.pop()
            if depth > DEEPEST:
                self._add(relative[:-1], "extra", f"more than {DEEPEST} folders deep; not looked into")
                continue
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        path = relative + entry.name
                        if path != MANIFEST and self._entry(entry, path):
                            waiting.append((entry.path, f"{path}/", depth + 1))
            except FileNotFoundError:
                # Removed since its parent was listed; what was in it is missing.
                continue
            except OSError as error:
                self._add(relative[:-1] or ".", "unreadable", _cause(error))
                self._hidden.append(relative)

    def _entry(self, entry: os.DirEntry[str], path: str) -> bool:
        """Compares a path with its line; says whether it is a folder to look into."""
        try:
            status = entry.stat(follow_symlinks=False)
            target = os.readlink(entry.path) if stat.S_ISLNK(status.st_mode) else None
        except FileNotFoundError:
            return False
        except OSError as error:
            self._left.pop(path, None)
            self._add(path, "unreadable", _cause(error))
            self._hidden.append(f"{path}/")
            return False
        line = self._left.pop(path, None)
        kind = _TYPES.get(stat.S_IFMT(status.st_mode))
        if line is None:
            self._add(path, "extra", f"{_word(status)}, {_RAN if _bytecode(path) else 'added after sealing'}")
        elif kind != line[0]:
            self._add(path, "type", f"{_word(status)}, sealed as a {_WORDS[str(line[0])]}")
        elif kind == "l":
            if target != line[2]:
                self._add(path, "link", f"leads to {shown(str(target))}, sealed as {shown(str(line[2]))}")
        else:
            self._mode(path, status, int(str(line[2]), 8))
            if kind == "f" and status.st_size != line[3]:
                self._add(path, "changed", f"has {status.st_size} bytes, sealed with {line[3]}")
            elif kind == "f":
                self._files.append((entry.path, status))
                self._lines.append(line)
        return kind == "d"

    def _contents(self) -> None:
        results = self._seen.of(self._files, self._stop, self._tell)
        for line, result in zip(self._lines, results, strict=True):
            path = str(line[1])
            if isinstance(result, FileNotFoundError):
                self._add(path, "missing", "was removed while it was looked at")
            elif isinstance(result, OSError):
                self._add(path, "unreadable", _cause(result))
            elif result is not None and result != line[4]:
                self._add(path, "changed", "has the size that was sealed, and other content")

    def _missing(self) -> None:
        hidden = tuple(self._hidden)
        for path, line in self._left.items():
            if not path.startswith(hidden):
                self._add(path, "missing", f"a {_WORDS[str(line[0])]} was sealed here")

    def _mode(self, path: str, status: os.stat_result, sealed: int) -> None:
        mode = stat.S_IMODE(status.st_mode)
        if mode != sealed:
            self._add(path, "mode", f"has mode {mode:04o}, sealed with {sealed:04o}")

    def _add(self, path: str, kind: Kind, detail: str) -> None:
        self._found.append(Finding(self._closure.name, path, kind, detail))


def _read(path: str, key: tuple[int, int], stop: Stop) -> tuple[int, str | None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != key:
            # Its digest would be believed of every closure that shares the file which was here before.
            raise OSError(errno.ESTALE, "was replaced while it was looked at", path)
        digest = hashlib.sha256()
        size = 0
        while chunk := os.read(descriptor, _CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if stop():
                return size, None
        return size, digest.hexdigest()
    finally:
        os.close(descriptor)


def _vanished(closure: Path, status: os.stat_result) -> bool:
    """Whether the folder with this status has left the store, or another one has its name."""
    try:
        # Opening store/ makes an NFS client ask the server: it may believe in an old name for a minute.
        os.close(os.open(closure.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        now = os.lstat(closure)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return (now.st_dev, now.st_ino) != (status.st_dev, status.st_ino)


def _bytecode(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    # With what a killed interpreter leaves: name.cpython-311.pyc.140234.
    return name == "__pycache__" or (".pyc" in name and folder.endswith("__pycache__"))


def _word(status: os.stat_result) -> str:
    kind = _TYPES.get(stat.S_IFMT(status.st_mode))
    return f"is a {_WORDS[kind]}" if kind else "is a pipe, socket or device"


def _cause(error: OSError) -> str:
    return f"can't be read: {error.strerror or error}"


def shown(path: str) -> str:
    """A path or link target as it may be printed: odd bytes and control characters as escapes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
