"""Counts what a file server would see of a command as metadata operations, from a recording of strace.

A call counts where its path, or one of its two paths, is below the folder that stands for the server. Paths
that are relative to a descriptor or to the current folder are made whole by what `strace -y` tells of these.
Only this module knows strace's words; nothing of it runs in the daemon.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

STRACE = (
    "strace",
    "-f",
    "-qq",
    "-y",
    "-s",
    "4096",
    "--seccomp-bpf",
    "--signal=none",
    "-e",
    "trace=%file,?fstat,getdents64,fchmod,fchown,?fchdir,fsync,fdatasync,?sync_file_range,syncfs,ftruncate,"
    "flock,clone,?clone3,?vfork,?fork",
)
"""Follows children; paths of descriptors; no cut paths; only the calls that count stop a process."""
MARKER = "/envfabric-marker/"
"""`os.stat` of a path below it, which is nowhere, cuts a recording into phases."""

OPEN, CREATE, STAT, FSTAT = "open", "create", "stat", "stat of an open file"
_KINDS = {
    "creat": CREATE,
    "stat": STAT,
    "lstat": STAT,
    "access": STAT,
    "faccessat": STAT,
    "faccessat2": STAT,
    "statx": STAT,
    "newfstatat": STAT,
    "fstat": FSTAT,
    "readlink": "readlink",
    "readlinkat": "readlink",
    "getdents64": "list a folder",
    "mkdir": "mkdir",
    "mkdirat": "mkdir",
    "link": "link",
    "linkat": "link",
    "symlink": "symlink",
    "symlinkat": "symlink",
    "rename": "rename",
    "renameat": "rename",
    "renameat2": "rename",
    "unlink": "remove",
    "unlinkat": "remove",
    "rmdir": "remove",
    "chmod": "chmod",
    "fchmod": "chmod",
    "fchmodat": "chmod",
    "fchmodat2": "chmod",
    "chown": "chmod",
    "lchown": "chmod",
    "fchown": "chmod",
    "fchownat": "chmod",
    "utime": "set times",
    "utimes": "set times",
    "utimensat": "set times",
    "fsync": "flush",
    "fdatasync": "flush",
    "syncfs": "flush",
    "truncate": "truncate",
    "ftruncate": "truncate",
    "flock": "lock",
    "execve": OPEN,
    "execveat": OPEN,
    "statfs": "statfs",
    "chdir": STAT,
    "getxattr": "xattr",
    "lgetxattr": "xattr",
    "setxattr": "xattr",
    "lsetxattr": "xattr",
    "listxattr": "xattr",
    "llistxattr": "xattr",
}
_TWO_PATHS = {"link", "linkat", "rename", "renameat", "renameat2"}
_CLONES = {"clone", "clone3", "vfork", "fork"}
_LINE = re.compile(r"(?:\[pid +)?(\d+)\]? +(?:<\.\.\. )?(\w+)( resumed>|\()(.*)")
_STRING = r'"((?:[^"\\]|\\.)*)"(?:\.\.\.)?'
_PATH = re.compile(rf"(?:(AT_FDCWD|\d+)(?:<([^>]*)>)?(?:\(deleted\))?, )?{_STRING}")
_DESCRIPTOR = re.compile(r"(?:AT_FDCWD|\d+)<([^>]*)>")
_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|([0-7]{1,3})|(.))", re.DOTALL)
_LETTERS = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"v": b"\v", b"f": b"\f"}


@dataclass(frozen=True, slots=True)
class Operation:
    """One call that the file server sees."""

    kind: str
    paths: tuple[str, ...]
    phase: str
    """The last marker before it; empty before the first one."""
    program: str
    """Name of the file that its process, or the nearest marked ancestor of it, executes."""
    failed: bool


def operations(
    lines: Iterable[str], below: Path, cwd: Path, programs: Iterable[str] = ()
) -> Iterator[Operation]:
    """The operations below a folder, in their order.

    `cwd` is the folder in which the command began. Processes are told apart by `programs`, names of executed
    files; a child of one of these counts as it, whatever it executes itself.
    """
    marked = set(programs)
    phase = ""
    cwds: dict[str, str] = {}
    who: dict[str, str] = {}
    parent = ""
    for line in lines:
        found = _LINE.match(line)
        if found is None:
            continue
        process, call, resumed, rest = found.groups()
        if process not in cwds:
            # A child of vfork speaks before the call that made it has returned.
            cwds[process] = cwds.get(parent, str(cwd))
            who[process] = who.get(parent, "")
        if call in _CLONES:
            parent = process
            child = re.search(r"= (\d+)$", rest)
            if child is not None and child[1] not in cwds:
                cwds[child[1]], who[child[1]] = cwds[process], who[process]
            continue
        if resumed.startswith(" "):
            # Its paths were in the first half of the line.
            continue
        failed = " = -1 " in rest
        paths = _paths(call, rest, cwds, process)
        if call in ("chdir", "fchdir") and paths and not failed:
            cwds[process] = paths[0]
        if call.startswith("execve") and paths and not failed and who[process] not in marked:
            who[process] = os.path.basename(paths[0])
        if paths and paths[0].startswith(MARKER):
            phase = paths[0].removeprefix(MARKER)
            continue
        kind = _kind(call, rest)
        if kind is not None and any(_is_below(path, str(below)) for path in paths):
            yield Operation(kind, paths, phase, who[process], failed)


def _paths(call: str, rest: str, cwds: dict[str, str], process: str) -> tuple[str, ...]:
    """The whole paths that a call is about."""
    by_descriptor = _DESCRIPTOR.match(rest)
    if call in ("fstat", "fchdir", "getdents64") or (call not in _TWO_PATHS and _names_nothing(rest)):
        return (_unescaped(by_descriptor[1]),) if by_descriptor else ()
    found = []
    # The first string of a symlink is only what it says.
    text = rest[_first_string(rest) :] if call in ("symlink", "symlinkat") else rest
    for match in _PATH.finditer(text):
        at, folder, name = match.groups()
        if at == "AT_FDCWD" and folder:
            # A thread that changed the folder for all has told so by now.
            cwds[process] = _unescaped(folder)
        base = _unescaped(folder) if at and folder else cwds[process]
        found.append(os.path.normpath(os.path.join(base, _unescaped(name))))
        if len(found) == 1 + (call in _TWO_PATHS):
            break
    return tuple(found)


def _names_nothing(rest: str) -> bool:
    """Whether a call is about a descriptor: it has no string, or an empty one."""
    first = re.search(_STRING, rest)
    return first is None or not first[1]


def _first_string(rest: str) -> int:
    first = re.search(_STRING + ", ", rest)
    return first.end() if first else 0


def _kind(call: str, rest: str) -> str | None:
    if call in ("open", "openat", "openat2"):
        return CREATE if "O_CREAT" in rest else OPEN
    if call in ("newfstatat", "statx") and _names_nothing(rest):
        return FSTAT
    return _KINDS.get(call)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text

    def one(match: re.Match[bytes]) -> bytes:
        in_hex, in_octal, letter = match.groups()
        if in_hex:
            return bytes([int(in_hex, 16)])
        if in_octal:
            return bytes([int(in_octal, 8)])
        return _LETTERS.get(letter, letter)

    return os.fsdecode(_ESCAPE.sub(one, text.encode()))


def count(found: Iterable[Operation]) -> Counter[str]:
    """Operations by their kind, without those that were answered with what opening the file brought."""
    return Counter(one.kind for one in found if one.kind != FSTAT)


def repeats(found: Iterable[Operation]) -> Counter[str]:
    """By kind, the operations that had been asked of the same path before."""
    seen: set[tuple[str, tuple[str, ...]]] = set()
    again: Counter[str] = Counter()
    for one in found:
        key = one.kind, one.paths
        again[one.kind] += key in seen
        seen.add(key)
    return again
