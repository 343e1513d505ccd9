"""A closure's manifest: what every path in it is, written at sealing and proven later (store/verify.py).

The file `manifest` is ASCII, one JSON array a line, sorted by path, each path once:

    ["d", path, mode]                   a folder
    ["f", path, mode, size, sha256]     a file
    ["l", path, target]                 a symlink
    ["sha256", digest]                  the last line: of all bytes before it, so the manifest proves itself

Paths are relative to the closure's folder; modes are octal text like "0o444", sizes are bytes. A byte of a
name that is not UTF-8 stands as the surrogate that `os.fsdecode` makes of it. Everything in the folder is
listed, build.log and metadata.json too, except the manifest itself, which has mode 0444. The closure's own
folder is not listed either: it has mode 0755, because an ordinary user can't rename a read-only folder to
another parent.

This module changes modes below the closure that is being sealed, and nothing else on ROOT.
"""

import errno
import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

Entry = list[str | int]
"""A line of the manifest."""

MANIFEST = "manifest"
DEEPEST = 200
"""Folders that may lie one in the other below a closure: deeper ones break those who walk by recursion."""

_CHUNK = 1 << 20
_REMEMBERED = 200_000
"""Files whose digest is kept in memory: about 50 MB."""
_KINDS = {"d": (str, str, str), "l": (str, str, str), "f": (str, str, str, int, str)}
_path_of = itemgetter(1)


@dataclass(slots=True)
class Inventory:
    """What a walk over a closure found."""

    entries: list[Entry] = field(default_factory=list)
    """The manifest's lines without its last one."""
    inodes: dict[int, int] = field(default_factory=dict)
    """Bytes on disk (st_blocks × 512) by inode number, folders and symlinks too."""
    copied: int = 0
    """Files of packages that have no other name, although a hardlink was wanted."""
    linked: int = 0
    """Files of packages that share their inode with uv's cache."""

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
        self.inodes[status.st_ino] = status.st_blocks * 512
        mode = oct(stat.S_IMODE(status.st_mode))
        self.entries.append(["f", name, mode, status.st_size, _sha256(path)])


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

    Sealing is `a+rX,a-w` without setuid, setgid and sticky: bin/ruff stays executable, and a shared inode
    that was sealed with an earlier closure costs no further call. Raises `OSError`, also for what is neither
    file, folder nor symlink, and for folders nested more than `DEEPEST` deep.
    """
    found = Inventory()
    # A list instead of recursion, and no object for each entry: 16 000 files are walked on each warm build.
    waiting = [(os.fspath(closure), "", 0)]
    while waiting:
        folder, relative, depth = waiting.pop()
        if depth > DEEPEST:
            raise OSError(errno.ENAMETOOLONG, f"more than {DEEPEST} folders lie one in the other", folder)
        of_packages = "/site-packages/" in relative and ".dist-info/" not in relative
        with os.scandir(folder) as entries:
            for entry in entries:
                path = relative + entry.name
                status = entry.stat(follow_symlinks=False)
                mode = status.st_mode
                found.inodes[status.st_ino] = status.st_blocks * 512
                if stat.S_ISREG(mode):
                    sealed = _seal(entry.path, mode)
                    digest = hashes.of(entry.path, status)
                    found.entries.append(["f", path, oct(sealed), status.st_size, digest])
                    if of_packages and not _written_by_uv(entry.name):
                        if status.st_nlink > 1:
                            found.linked += 1
                        else:
                            found.copied += 1
                elif stat.S_ISDIR(mode):
                    # Before it is looked into: a wheel's folder may be unreadable to its owner.
                    found.entries.append(["d", path, oct(_seal(entry.path, mode, folder=True))])
                    waiting.append((entry.path, f"{path}/", depth + 1))
                elif stat.S_ISLNK(mode):
                    found.entries.append(["l", path, os.readlink(entry.path)])
                else:
                    raise OSError(errno.EINVAL, "is neither file, folder nor symlink", entry.path)
    found.entries.sort(key=_path_of)
    return found


def write_lines(inventory: Inventory) -> bytes:
    """The manifest as it is written."""
    ordered = sorted(inventory.entries, key=_path_of)
    # All names in one call, four times as fast as one by one: no JSON string has a line end inside.
    names = json.dumps([entry[1] for entry in ordered], separators=("\n", ":"))[1:-1].split("\n")
    lines = []
    for entry, name in zip(ordered, names if ordered else (), strict=True):
        if entry[0] == "f":
            lines.append(f'["f", {name}, "{entry[2]}", {entry[3]}, "{entry[4]}"]\n')
        else:
            lines.append(f'["{entry[0]}", {name}, {json.dumps(entry[2])}]\n')
    body = "".join(lines).encode("ascii")
    return body + _last_line(body)


def read_manifest(raw: bytes) -> list[Entry]:
    """The lines of a manifest without its last one, sorted by path.

    Raises `ValueError` for one that is not as `write_lines` made it, with what is wrong with it.
    """
    start = raw.rfind(b"\n", 0, -1) + 1
    body, last = raw[:start], raw[start:]
    if not last.startswith(b'["sha256", '):
        raise ValueError("its last line is no checksum: it is cut off, or something was added to it")
    # Compared as bytes: a changed case, space or line end is damage too.
    if last != _last_line(body):
        raise ValueError("its checksum is not that of its lines: it was changed")
    try:
        # One array: four times as fast as line by line. No line of `write_lines` has a line end inside.
        entries = json.loads(b"[" + body[:-1].replace(b"\n", b",") + b"]") if body.isascii() else None
    except ValueError:
        entries = None
    if entries is None or len(entries) != body.count(b"\n"):
        raise ValueError("its lines are not JSON in ASCII, one array each")
    before = ""
    for entry in entries:
        types = tuple(map(type, entry)) if isinstance(entry, list) else ()
        if types[:1] != (str,) or _KINDS.get(entry[0]) != types:
            raise ValueError(f"a line of it is not known: {json.dumps(entry)[:200]}")
        if entry[1] <= before:
            raise ValueError(f"its lines are not sorted by path: {json.dumps(entry)[:200]}")
        before = entry[1]
    return list(entries)


def _last_line(body: bytes) -> bytes:
    return f'["sha256", "{hashlib.sha256(body).hexdigest()}"]\n'.encode("ascii")


def _seal(path: str, mode: int, *, folder: bool = False) -> int:
    mode = stat.S_IMODE(mode)
    sealed = (mode | 0o444) & ~0o7222
    if mode & 0o111 or folder:
        sealed |= 0o111
    if sealed != mode:
        os.chmod(path, sealed)
    return sealed


def _written_by_uv(name: str) -> bool:
    # uv writes these, .dist-info files and scripts for each environment; a wheel's own files are links.
    return name in ("_virtualenv.py", "_virtualenv.pth")


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
