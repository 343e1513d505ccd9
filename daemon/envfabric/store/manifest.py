"""A closure's manifest: what every path in it is, written at sealing and proven later.

One JSON array a line, sorted by path: ["d", path, mode], ["l", path, target] or
["f", path, mode, size, sha256].
"""

import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

_CHUNK = 1 << 20
_REMEMBERED = 200_000
"""Files whose digest is kept in memory: about 50 MB."""


@dataclass(slots=True)
class Inventory:
    """What a walk over a closure found."""

    entries: list[list[str | int]] = field(default_factory=list)
    """The manifest's lines as lists, sorted by path."""
    inodes: dict[int, int] = field(default_factory=dict)
    """Bytes on disk (st_blocks × 512) by inode number, folders and symlinks too."""
    copied: int = 0
    """Files of packages that have no other name, although a hardlink was wanted."""

    def add(self, path: Path) -> None:
        """Counts one more path that lies beside the environment."""
        status = path.lstat()
        self.inodes[status.st_ino] = status.st_blocks * 512


class Hashes:
    """SHA-256 of files, remembered by inode: a file shared by a hundred closures is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int, int], str] = {}

    def of(self, path: str, status: os.stat_result) -> str:
        """The digest of the file at `path`, whose `status` was just taken."""
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[key] = _sha256(path)
        return known


def seal_and_list(closure: Path, hashes: Hashes) -> Inventory:
    """Takes write permission from everything below `closure` and lists it for the manifest.

    Sealing is `a+rX,a-w`: bin/ruff stays executable, and a shared inode that was sealed with an
    earlier closure costs no further call. The closure's own folder keeps 0755, because an ordinary
    user can't rename a read-only folder to another parent.
    """
    found = Inventory()
    _walk(closure, "", hashes, found)
    found.entries.sort(key=lambda entry: str(entry[1]))
    return found


def write_lines(inventory: Inventory) -> bytes:
    """The manifest as it is written."""
    return "".join(f"{json.dumps(entry)}\n" for entry in inventory.entries).encode()


def _walk(folder: Path, relative: str, hashes: Hashes, found: Inventory) -> None:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            path = f"{relative}{entry.name}"
            status = entry.stat(follow_symlinks=False)
            found.inodes[status.st_ino] = status.st_blocks * 512
            if stat.S_ISLNK(status.st_mode):
                found.entries.append(["l", path, os.readlink(entry.path)])
            elif stat.S_ISDIR(status.st_mode):
                _walk(Path(entry.path), f"{path}/", hashes, found)
                mode = _seal(entry.path, status)
                found.entries.append(["d", path, oct(mode)])
            elif stat.S_ISREG(status.st_mode):
                mode = _seal(entry.path, status)
                digest = hashes.of(entry.path, status)
                found.entries.append(["f", path, oct(mode), status.st_size, digest])
                found.copied += _is_copy(path, status)
            else:
                raise OSError(0, "is neither file, folder nor symlink", entry.path)


def _seal(path: str, status: os.stat_result) -> int:
    mode = stat.S_IMODE(status.st_mode)
    sealed = (mode | 0o444) & ~0o7222
    if mode & 0o111:
        sealed |= 0o111
    if sealed != mode:
        os.chmod(path, sealed)
    return sealed


def _is_copy(path: str, status: os.stat_result) -> bool:
    # uv writes .dist-info files and scripts for each environment; a wheel's own files are links.
    return (
        status.st_nlink == 1
        and "/site-packages/" in path
        and ".dist-info/" not in path
        and not path.endswith(("/_virtualenv.py", "/_virtualenv.pth"))
    )


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
