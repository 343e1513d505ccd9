"""Sealing: one walk over a finished environment takes its write permission and lists all that is in it.

The walk is in two parts, so that nothing is looked at twice: `take_inventory` seals and lists every file, and
leaves the folders open for the bytecode that comes then (store/bytecode.py adds what it links); `seal_folders`
closes them at the end. Changes modes below the closure that is being sealed, and nothing else on ROOT.
"""

import errno
import hashlib
import itertools
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from envfabric.store.manifest import DEEPEST, Lines

_CHUNK = 1 << 20
_REMEMBERED = 80_000
"""Files whose digest is kept in memory: about 32 MB."""
_LIBRARY = ".venv/lib/"
"""Below this an environment's sources lie."""


def sealed_mode(mode: int) -> int:
    """The permissions that a file or folder of this mode has once it is sealed."""
    sealed = (stat.S_IMODE(mode) | 0o444) & ~0o7222
    return sealed | 0o111 if mode & 0o111 or stat.S_ISDIR(mode) else sealed


class _Modes(dict[int, tuple[int, str]]):
    """Permissions when sealed, and how the manifest writes them, by mode: there are few different ones."""

    def __missing__(self, mode: int) -> tuple[int, str]:
        sealed = sealed_mode(mode)
        self[mode] = sealed, oct(sealed)
        return self[mode]


_MODES = _Modes()


class TooDeep(OSError):
    """Folders that lie one in the other deeper than every walk over them can follow."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.ENAMETOOLONG, f"more than {DEEPEST} folders lie one in the other", path)


@dataclass(frozen=True, slots=True)
class Sources:
    """The Python sources in one folder of an environment."""

    path: str
    """The folder, as it is opened."""
    listed: str
    """The folder as the manifest lists it."""
    names: list[str]
    cached: bool
    """Whether its `__pycache__` is there already."""


class Known(NamedTuple):
    """A sealed file of which all is known that its line and the accounting need."""

    inode: int
    bytes: int
    """On disk: st_blocks × 512."""
    size: int
    digest: str
    """SHA-256 of its content."""


@dataclass(slots=True)
class Inventory:
    """What a walk over a closure found."""

    lines: Lines = field(default_factory=Lines)
    """The manifest's lines."""
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file, by its path in the closure."""
    inodes: dict[int, int] = field(default_factory=dict)
    """Bytes on disk (st_blocks × 512) by inode number, folders and symlinks too."""
    copied: int = 0
    """Files of packages that have no other name, although a hardlink was wanted."""
    linked: int = 0
    """Files of packages that share their inode with uv's cache."""
    sources: list[Sources] = field(default_factory=list)
    """What may get bytecode: not where `__pycache__` is no folder (it could lead anywhere), or one would be too
    deep."""
    folders: dict[str, int] = field(default_factory=dict)
    """The folders that are still open, with the permissions that they have."""

    def add(self, path: Path) -> None:
        """Counts one more path that lies beside the environment. Raises `OSError`."""
        status = path.lstat()
        self.inodes[status.st_ino] = status.st_blocks * 512

    def list_file(self, closure: Path, name: str) -> None:
        """Counts and lists the finished file `name` that lies in `closure` beside the environment.

        Raises `OSError`, also where it is no file.
        """
        path = os.path.join(closure, name)
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no file, and can't be listed as one", path)
        sealed, text = _MODES[status.st_mode]
        if sealed != status.st_mode & 0o7777:
            os.chmod(path, sealed)
        known = Known(status.st_ino, status.st_blocks * 512, status.st_size, _sha256(path))
        self.list_known(name, known, text)

    def list_known(self, listed: str, known: Known, mode: str = "0o444") -> None:
        """Counts and lists a sealed file that was not there when the walk came by."""
        self.inodes[known.inode] = known.bytes
        self.digests[listed] = known.digest
        self.lines.add_file(listed, mode, known.size, known.digest)

    def drop(self, path: str, listed: str) -> None:
        """Takes a file of a package, which is about to be removed, off the list again. Raises `OSError`."""
        status = os.lstat(path)
        counted = _of_package(listed)
        if status.st_nlink > 1:
            self.linked -= counted
        else:
            self.copied -= counted
        # Each file of a package has an inode of its own within an environment.
        self.inodes.pop(status.st_ino, None)
        del self.digests[listed], self.lines[listed]

    def add_folder(self, path: str, listed: str) -> None:
        """Lists a folder that was not there when the walk came by; it is counted when it is sealed."""
        self.lines.add_folder(listed, _MODES[stat.S_IFDIR][1])
        # Other permissions than it can have: it is sealed whatever the umask left of them.
        self.folders[path] = 0


class Hashes:
    """SHA-256 of files, remembered by inode: a file shared by a hundred closures is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int, int], str] = {}

    def of(self, path: str, status: os.stat_result) -> str:
        """The digest of the file at `path`, whose `status` was just taken."""
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._known.get(key)
        if known is None:
            make_room(self._known, _REMEMBERED)
            known = self._known[key] = _sha256(path)
        return known

    def forget(self) -> None:
        """Reads everything anew: something may have changed files without changing their times."""
        self._known.clear()


def make_room(known: dict[Any, Any], most: int) -> None:
    """Drops the older half of what is remembered once it is `most`; safe for threads."""
    if len(known) >= most:
        for key in list(itertools.islice(known, most // 2)):
            known.pop(key, None)


def take_inventory(closure: Path, hashes: Hashes) -> Inventory:
    """Takes write permission from every file below `closure`, and lists all for the manifest.

    Sealing is `a+rX,a-w` without setuid, setgid and sticky: bin/ruff stays executable, and a shared inode
    that was sealed with an earlier closure costs no further call. Raises `OSError`, also for what is neither
    file, folder nor symlink, and `TooDeep`.
    """
    found = Inventory()
    lines, digests, inodes = found.lines, found.digests, found.inodes
    # A list instead of recursion, and no call or object for each entry that can be spared: 16 000 files are
    # walked in each warm build.
    waiting = [(os.fspath(closure), "", 0)]
    while waiting:
        folder, relative, depth = waiting.pop()
        if depth > DEEPEST:
            raise TooDeep(folder)
        of_package = _of_package(relative)
        of_library = relative.startswith(_LIBRARY)
        sources: list[str] = []
        cached = odd = False
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                status = entry.stat(follow_symlinks=False)
                mode = status.st_mode
                if stat.S_ISREG(mode):
                    sealed, text = _MODES[mode]
                    if sealed != mode & 0o7777:
                        os.chmod(entry.path, sealed)
                    inodes[status.st_ino] = status.st_blocks * 512
                    path = relative + name
                    digests[path] = digest = hashes.of(entry.path, status)
                    lines[path] = f'f "{text}", {status.st_size}, "{digest}"'
                    if of_package and not _written_by_uv(name):
                        if status.st_nlink > 1:
                            found.linked += 1
                        else:
                            found.copied += 1
                    if of_library and name.endswith(".py"):
                        sources.append(name)
                elif stat.S_ISDIR(mode):
                    if name == "__pycache__":
                        cached = True
                    if mode & stat.S_IRWXU != stat.S_IRWXU:
                        # Before it is looked into: a wheel's folder may be unreadable to its owner.
                        mode |= stat.S_IRWXU
                        os.chmod(entry.path, mode & 0o7777)
                    lines.add_folder(relative + name, _MODES[mode][1])
                    found.folders[entry.path] = mode & 0o7777
                    waiting.append((entry.path, f"{relative}{name}/", depth + 1))
                    continue
                elif stat.S_ISLNK(mode):
                    inodes[status.st_ino] = status.st_blocks * 512
                    lines.add_link(relative + name, os.readlink(entry.path))
                else:
                    raise OSError(errno.EINVAL, "is neither file, folder nor symlink", entry.path)
                if name == "__pycache__":
                    odd = True
        if sources and not odd and depth + 1 < DEEPEST:
            sources.sort()
            found.sources.append(Sources(folder, relative[:-1], sources, cached))
    return found


def seal_folders(inventory: Inventory) -> None:
    """Takes write permission from the folders of an inventory, and counts them. Raises `OSError`."""
    sealed = _MODES[stat.S_IFDIR][0]
    for path, mode in inventory.folders.items():
        if mode != sealed:
            os.chmod(path, sealed)
        # Only now: a folder may have grown by what was put into it since.
        status = os.lstat(path)
        inventory.inodes[status.st_ino] = status.st_blocks * 512
    inventory.folders.clear()


def _of_package(listed: str) -> bool:
    return "/site-packages/" in listed and ".dist-info/" not in listed


def _written_by_uv(name: str) -> bool:
    # uv writes these, .dist-info files and scripts for each environment; a wheel's own files are links.
    return name in ("_virtualenv.py", "_virtualenv.pth")


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
