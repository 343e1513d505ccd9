"""The bytecode store: each source compiled once for each interpreter, and hardlinked into environments.

A compiled file lies at bytecode/<2 hex>/<SHA-256 of the source>.<kind>, where the kind names the interpreter. Where
a file has all the links that it may have, copies follow with .1, .2 … added; an empty file that ends in .bad says
that the source does not compile. Nothing here is believed by its name: a compiled file ends in a proof over
itself and its key, which is checked before it is given to an environment, so a flipped byte, a power cut or
a writer that died leaves nothing that is linked again. Interpreters read past the proof without a look.

Writes below bytecode/, and `__pycache__` folders in an environment that is in staging. Starts nothing: what
is missing is compiled by build/compiling.py.
"""

import contextlib
import errno
import hashlib
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from envfabric.store.files import Files
from envfabric.store.manifest import DEEPEST
from envfabric.store.root import Root

PROOF = hashlib.sha256().digest_size
"""Bytes at the end of a compiled file: the SHA-256 of those before them and of its key."""

_AT_LIMIT = {errno.EMLINK, errno.EPERM, errno.EACCES, errno.EINVAL}
"""What servers say when a file can have no more links, or is another user's: a copy can have some."""
_LONGEST_NAME = 255 - 40
_LONGEST_FOLDER = 4096 - 255 - 40
"""Bytes of a source's name and of its folder's path that leave room for those of a compiled file."""
_SLOW = 0.0003
"""Seconds for one file from which on the time is the file server's, and several are asked for at once."""
_TRIED = 64
"""Files by which that is told."""
_THREADS = 16
_REMEMBERED = 200_000
"""Compiled files and keys that are kept in memory."""


@dataclass(frozen=True, slots=True)
class Folder:
    """The sources in one folder of an environment."""

    path: str
    names: tuple[str, ...]
    cached: bool
    """Whether its `__pycache__` is there already."""


class Missing(NamedTuple):
    """A source whose bytecode is not in the store."""

    source: str
    target: str
    """Where the environment wants it."""
    key: str
    size: int
    """Bytes of the source."""

    @property
    def digest(self) -> str:
        """The SHA-256 that the source has to have."""
        return self.key.partition(".")[0]


@dataclass(slots=True)
class Linked:
    """What linking came to."""

    files: int = 0
    """Compiled files that the environment got."""
    bad: int = 0
    """Sources that are known not to compile."""
    missing: list[Missing] = field(default_factory=list)

    def add(self, other: "Linked") -> None:
        """Counts another folder's."""
        self.files += other.files
        self.bad += other.bad
        self.missing += other.missing


def sources(venv: Path) -> list[Folder]:
    """Every folder below the environment's lib/ that has Python sources. Raises `OSError`.

    Left out are those whose `__pycache__` is no folder: it could lead anywhere; and those too deep, or with too
    long a name, for one more level.
    """
    found = []
    waiting = [(os.path.join(venv, "lib"), 1)]
    while waiting:
        folder, depth = waiting.pop()
        names, cached, odd = [], False, False
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name == "__pycache__":
                        cached = True
                    else:
                        waiting.append((entry.path, depth + 1))
                elif entry.name == "__pycache__":
                    odd = True
                elif _is_source(entry):
                    names.append(entry.name)
        if names and not odd and depth + 1 < DEEPEST and len(os.fsencode(folder)) <= _LONGEST_FOLDER:
            found.append(Folder(folder, tuple(sorted(names)), cached))
    return found


def _is_source(entry: os.DirEntry[str]) -> bool:
    name = entry.name
    if not name.endswith(".py") or name == ".py" or len(os.fsencode(name)) > _LONGEST_NAME:
        return False
    return entry.is_file(follow_symlinks=False)


def proof(body: bytes, key: str) -> bytes:
    """What a compiled file with this body has to end in under this key; build/compiler.py writes it."""
    return hashlib.sha256(body + key.encode()).digest()


class Bytecode:
    """The bytecode store of one ROOT. Safe for threads."""

    def __init__(self, root: Root, files: Files, digest: Callable[[str, os.stat_result], str]) -> None:
        """`digest` gives the SHA-256 of the file at a path whose status was just taken: the sealing's memory."""
        self._root = root
        self._files = files
        self._digest = digest
        self._base = f"{root.bytecode}/"
        # By inode: a shared file is read once for all environments, as at sealing.
        self._proven: set[tuple[int, int, int]] = set()
        self._bad: set[str] = set()
        self._last: dict[str, int] = {}
        """The number of the copy that still takes links, for keys that have several."""

    def link(self, folders: list[Folder], tag: str, kind: str) -> Linked:
        """Links what the store has of these sources' bytecode into the environment that they lie in.

        `tag` is the one in the names of the interpreter's compiled files, `kind` the interpreter's part of
        the key. A compiled file that a wheel brought along stays as it is. Raises `OSError`.
        """
        total = Linked()
        tried, fastest, waiting = 0, math.inf, iter(folders)
        for folder in waiting:
            began = time.monotonic()
            total.add(self._link_folder(folder, tag, kind))
            # The fastest one tells: a busy machine is slow now and then, a file server each time.
            fastest = min(fastest, (time.monotonic() - began) / len(folder.names))
            tried += len(folder.names)
            if tried >= _TRIED and fastest > _SLOW:
                break
        # Where nothing is left, no thread is started.
        with ThreadPoolExecutor(_THREADS, "bytecode") as pool:
            for found in pool.map(lambda one: self._link_folder(one, tag, kind), waiting):
                total.add(found)
        return total

    def link_one(self, wanted: Missing) -> bool:
        """Whether the store has it by now; it is linked then. Raises `OSError`."""
        number = self._last.get(wanted.key, 0)
        while True:
            entry = self._path(wanted.key, number)
            try:
                self._files.link(entry, wanted.target)
            except FileNotFoundError:
                if not number:
                    return False
                # Collected since: its environments are gone.
                self._last.pop(wanted.key, None)
                number = 0
                continue
            except OSError as error:
                if error.errno not in _AT_LIMIT:
                    raise
                last = self._last_copy(wanted.key)
                if last <= number:
                    return self._copy(entry, wanted, last + 1)
                self._note_last(wanted.key, last)
                number = last
                continue
            if self._proves(wanted.target, wanted.key):
                return True
            # Both names go: what is damaged is compiled anew, and no environment gets it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samefile(entry, wanted.target):
                    self._files.unlink(Path(entry))
            self._files.unlink(Path(wanted.target))

    def adopt(self, compiled: Missing) -> None:
        """Takes the file that was just compiled at its target into the store.

        Where another build was first, the environment gets that one's. Raises `OSError`.
        """
        if self._keep(compiled.target, compiled.key, 0):
            status = os.lstat(compiled.target)
            self._remember(status)
            return
        self._files.unlink(Path(compiled.target))
        if not self.link_one(compiled):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), self._path(compiled.key, 0))

    def is_bad(self, wanted: Missing) -> bool:
        """Whether the source is known not to compile."""
        if wanted.key not in self._bad and os.path.lexists(self._path(wanted.key) + ".bad"):
            self._note_bad(wanted.key)
        return wanted.key in self._bad

    def mark_bad(self, wanted: Missing) -> None:
        """Remembers that the source does not compile. Raises `OSError`."""
        marker = Path(self._path(wanted.key) + ".bad")
        self._files.make_folder(marker.parent)
        with contextlib.suppress(FileExistsError):
            self._files.write_new(marker, b"", mode=0o444)
        self._note_bad(wanted.key)

    def distrust(self) -> None:
        """Forgets what was proven: each compiled file is read once more before it is linked again.

        For repair: something may have changed files without changing their times.
        """
        self._proven.clear()

    def _link_folder(self, folder: Folder, tag: str, kind: str) -> Linked:
        done = Linked()
        cache = f"{folder.path}/__pycache__"
        if not folder.cached:
            # Sealing makes it readable for all, whatever the umask.
            self._files.make_new_folder(cache)
        for name in folder.names:
            source = f"{folder.path}/{name}"
            status = os.lstat(source)
            key = f"{self._digest(source, status)}.{kind}"
            if key in self._bad:
                done.bad += 1
                continue
            wanted = Missing(source, f"{cache}/{name[:-3]}.{tag}.pyc", key, status.st_size)
            try:
                linked = self.link_one(wanted)
            except FileExistsError:
                continue
            if linked:
                done.files += 1
            elif self.is_bad(wanted):
                done.bad += 1
            else:
                done.missing.append(wanted)
        return done

    def _proves(self, path: str, key: str) -> bool:
        """Whether the compiled file at `path` is whole, and that of this key."""
        status = os.lstat(path)
        if (status.st_ino, status.st_size, status.st_mtime_ns) in self._proven:
            return True
        with open(path, "rb", buffering=0) as file:
            data = file.read()
        if len(data) <= PROOF or proof(data[:-PROOF], key) != data[-PROOF:]:
            return False
        self._remember(status)
        return True

    def _remember(self, status: os.stat_result) -> None:
        if len(self._proven) >= _REMEMBERED:
            self._proven.clear()
        self._proven.add((status.st_ino, status.st_size, status.st_mtime_ns))

    def _note_bad(self, key: str) -> None:
        if len(self._bad) >= _REMEMBERED:
            self._bad.clear()
        self._bad.add(key)

    def _note_last(self, key: str, number: int) -> None:
        if len(self._last) >= _REMEMBERED:
            self._last.clear()
        self._last[key] = number

    def _keep(self, path: str, key: str, number: int) -> bool:
        """Gives a file in staging its name in the store; False where that name is taken."""
        entry = Path(self._path(key, number))
        try:
            try:
                self._files.link(Path(path), entry)
            except FileNotFoundError:
                self._files.make_folder(entry.parent)
                self._files.link(Path(path), entry)
        except FileExistsError:
            return False
        return True

    def _copy(self, entry: str, wanted: Missing, number: int) -> bool:
        """Gives the environment a copy of an entry at its link limit, and the store the copy as the next one."""
        try:
            with open(entry, "rb", buffering=0) as file:
                data = file.read()
        except FileNotFoundError:
            return False
        if len(data) <= PROOF or proof(data[:-PROOF], wanted.key) != data[-PROOF:]:
            self._files.unlink(Path(entry))
            return False
        self._files.write_new(Path(wanted.target), data, mode=0o444)
        self._note_last(wanted.key, number)
        if self._keep(wanted.target, wanted.key, number):
            return True
        # Another thread or build was first with this number.
        self._files.unlink(Path(wanted.target))
        return self.link_one(wanted)

    def _last_copy(self, key: str) -> int:
        """The highest number that a copy of this key has in the store."""
        folder, _, name = self._path(key).rpartition("/")
        numbers = [one.removeprefix(f"{name}.") for one in os.listdir(folder) if one.startswith(f"{name}.")]
        return max((int(one) for one in numbers if one.isdecimal()), default=0)

    def _path(self, key: str, number: int = 0) -> str:
        path = f"{self._base}{key[:2]}/{key}"
        return f"{path}.{number}" if number else path
