"""The bytecode store: each source compiled once for each interpreter, and hardlinked into environments.

A compiled file lies at bytecode/<2 hex>/<SHA-256 of the source>.<kind>, where the kind names the interpreter. Where
a file has all the links that it may have, copies follow with .1, .2 … added; an empty file that ends in .bad says
that the source does not compile. No compiled file is believed by its name: it ends in a proof over
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
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from envfabric.store.files import Files, Stamp, stamp
from envfabric.store.root import Root
from envfabric.store.sealing import Inventory, Known, Sources, make_room

PROOF = hashlib.sha256().digest_size
"""Bytes at the end of a compiled file: the SHA-256 of those before them and of its key."""

_AT_LIMIT = {errno.EMLINK, errno.EPERM, errno.EACCES, errno.EINVAL}
"""What servers say when a file can have no more links, or is another user's: a copy can have some."""
_LONGEST_NAME = 255 - 40
_LONGEST_FOLDER = 4096 - 255 - 40
"""Bytes of a source's name and of its folder's path that leave room for those of a compiled file."""
_SURELY_SHORT = _LONGEST_NAME // 4
"""Characters that are no more than so many bytes, whatever they are."""
_SEALED = stat.S_IFREG | 0o444
_UNKNOWN: tuple[Known | None, Stamp] = None, (0, 0, 0)
_HEAD = 16
"""Bytes at the beginning of a compiled file: magic number, flags, and the source's time and size, or its hash."""
_FLAGS = slice(4, 8)
_BY_TIME, _UNCHECKED = bytes(4), b"\1\0\0\0"
_SLOW = 0.0003
"""Seconds for one file from which on the time is the file server's, and several are asked for at once."""
_TRIED = 64
"""Files by which that is told."""
_THREADS = 16
_REMEMBERED = 50_000
"""Compiled files and keys that are kept in memory: about 36 MB."""


class Missing(NamedTuple):
    """A source whose bytecode is not in the store."""

    source: str
    target: str
    """Where the environment wants it."""
    listed: str
    """That place as the manifest lists it."""
    key: str


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


def proof(body: bytes, key: str) -> bytes:
    """What a compiled file with this body has to end in under this key; build/compiler.py writes it."""
    return hashlib.sha256(body + key.encode()).digest()


class Bytecode:
    """The bytecode store of one ROOT. Safe for threads."""

    def __init__(self, root: Root, files: Files) -> None:
        self._files = files
        self._base = f"{root.bytecode}/"
        self._proven: dict[str, tuple[Known, Stamp]] = {}
        """By entry, with the stamp that it had: a shared file is read once for all environments."""
        self._bad: set[str] = set()
        self._last: dict[str, int] = {}
        """The number of the copy that still takes links, for keys that have several."""

    def link(self, inventory: Inventory, tag: str, kind: str) -> Linked:
        """Links what the store has of the bytecode of an inventory's sources into their environment, and lists it.

        `tag` is the one in the names of the interpreter's compiled files, `kind` the interpreter's part of
        the key. Raises `OSError`.
        """
        total = Linked()
        tried, fastest, waiting = 0, math.inf, iter(inventory.sources)
        for sources in waiting:
            began = time.monotonic()
            total.add(self._link_folder(inventory, sources, tag, kind))
            # The fastest one tells: a busy machine is slow now and then, a file server each time.
            fastest = min(fastest, (time.monotonic() - began) / len(sources.names))
            tried += len(sources.names)
            if tried >= _TRIED and fastest > _SLOW:
                break
        # Where nothing is left, no thread is started.
        with ThreadPoolExecutor(_THREADS, "bytecode") as pool:
            for found in pool.map(lambda one: self._link_folder(inventory, one, tag, kind), waiting):
                total.add(found)
        return total

    def link_one(self, inventory: Inventory, wanted: Missing) -> bool:
        """Whether the store has it by now; it is linked and listed then. Raises `OSError`."""
        key, target = wanted.key, wanted.target
        number = self._last.get(key, 0) if self._last else 0
        while True:
            entry = self._path(key, number)
            try:
                self._files.link(entry, target)
            except FileNotFoundError:
                self._proven.pop(entry, None)
                if not number:
                    return False
                # Collected since: its environments are gone.
                self._last.pop(key, None)
                number = 0
                continue
            except OSError as error:
                if error.errno not in _AT_LIMIT:
                    raise
                last = self._last_copy(key)
                if last <= number:
                    return self._copy(inventory, entry, wanted, last + 1)
                self._note_last(key, last)
                number = last
                continue
            # Looked at each time: a write into a file that is shared by the whole fleet changes its time at least.
            status = os.lstat(target)
            known, proven = self._proven.get(entry, _UNKNOWN)
            if known is None or proven != stamp(status) or status.st_mode != _SEALED:
                known = self._prove(entry, wanted)
            if known:
                inventory.list_known(wanted.listed, known)
                return True
            # Both names go: what is damaged is compiled anew, and no environment gets it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samefile(entry, target):
                    self._files.unlink(Path(entry))
            self._files.unlink(Path(target))

    def adopt(self, inventory: Inventory, compiled: Missing) -> None:
        """Takes the file that was just compiled at its target into the store, and lists it.

        Where another build was first, the environment gets that one's. Raises `OSError`.
        """
        target = compiled.target
        if self._keep(target, compiled.key, 0):
            # Read once more: what the compiler wrote is proven before it is listed, like all else.
            known = self._prove(self._path(compiled.key), compiled)
            if known is None:
                raise OSError(errno.EIO, "is not what was compiled a moment before", target)
            inventory.list_known(compiled.listed, known)
            return
        self._files.unlink(Path(target))
        if not self.link_one(inventory, compiled):
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

    def _link_folder(self, inventory: Inventory, sources: Sources, tag: str, kind: str) -> Linked:
        done = Linked()
        if len(os.fsencode(sources.path)) > _LONGEST_FOLDER:
            return done
        cache, listed = f"{sources.path}/__pycache__/", f"{sources.listed}/__pycache__/"
        if not sources.cached:
            self._files.make_new_folder(cache[:-1])
            inventory.add_folder(cache[:-1], listed[:-1])
        for name in sources.names:
            source = f"{sources.listed}/{name}"
            key = f"{inventory.digests[source]}.{kind}"
            if key in self._bad:
                done.bad += 1
                continue
            compiled = f"{name[:-3]}.{tag}.pyc"
            if name == ".py" or (len(name) > _SURELY_SHORT and len(os.fsencode(name)) > _LONGEST_NAME):
                continue
            wanted = Missing(f"{sources.path}/{name}", cache + compiled, listed + compiled, key)
            if sources.cached and wanted.listed in inventory.lines:
                # What a wheel brought along: as root each import would replace it, and nobody else's could.
                if wanted.listed not in inventory.digests or not _outdated(wanted):
                    continue
                inventory.drop(wanted.target, wanted.listed)
                self._files.unlink(Path(wanted.target))
            linked = self.link_one(inventory, wanted)
            if linked:
                done.files += 1
            elif self.is_bad(wanted):
                done.bad += 1
            else:
                done.missing.append(wanted)
        return done

    def _prove(self, entry: str, wanted: Missing) -> Known | None:
        """What there is to know of the compiled file that is an entry of the store and at a target; None where it
        is not whole, or not that of its key. Raises `OSError`."""
        with open(wanted.target, "rb", buffering=0) as file:
            data = file.read()
            status = os.fstat(file.fileno())
        if len(data) <= PROOF or proof(data[:-PROOF], wanted.key) != data[-PROOF:]:
            return None
        if status.st_mode != _SEALED:
            os.chmod(wanted.target, stat.S_IMODE(_SEALED))
        make_room(self._proven, _REMEMBERED)
        known = Known(status.st_ino, status.st_blocks * 512, status.st_size, hashlib.sha256(data).hexdigest())
        self._proven[entry] = known, stamp(status)
        return known

    def _note_bad(self, key: str) -> None:
        if len(self._bad) >= _REMEMBERED:
            self._bad = set()
        self._bad.add(key)

    def _note_last(self, key: str, number: int) -> None:
        make_room(self._last, _REMEMBERED)
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

    def _copy(self, inventory: Inventory, entry: str, wanted: Missing, number: int) -> bool:
        """Gives the environment a copy of an entry at its link limit, and the store the copy as the next one."""
        try:
            with open(entry, "rb", buffering=0) as file:
                data = file.read()
        except FileNotFoundError:
            return False
        if len(data) <= PROOF or proof(data[:-PROOF], wanted.key) != data[-PROOF:]:
            self._files.unlink(Path(entry))
            return False
        # Durable, so that its blocks are known when they are counted.
        self._files.write_new(Path(wanted.target), data, mode=0o444, durable=True)
        self._note_last(wanted.key, number)
        if self._keep(wanted.target, wanted.key, number):
            known = self._prove(self._path(wanted.key, number), wanted)
            if known:
                inventory.list_known(wanted.listed, known)
            return known is not None
        # Another thread or build was first with this number.
        self._files.unlink(Path(wanted.target))
        return self.link_one(inventory, wanted)

    def _last_copy(self, key: str) -> int:
        """The highest number that a copy of this key has in the store."""
        folder, _, name = self._path(key).rpartition("/")
        numbers = [one.removeprefix(f"{name}.") for one in os.listdir(folder) if one.startswith(f"{name}.")]
        return max((int(one) for one in numbers if one.isdecimal()), default=0)

    def _path(self, key: str, number: int = 0) -> str:
        path = f"{self._base}{key[:2]}/{key}"
        return f"{path}.{number}" if number else path


def _outdated(wanted: Missing) -> bool:
    """Whether an interpreter would pass over the compiled file at a target: by its magic number, or because it
    goes by the time and size of a source that has others. Raises `OSError`.

    Also one that each import would hold against its source. uv keeps no times, so what goes by them hardly ever
    holds.
    """
    try:
        with open(wanted.target, "rb", buffering=0) as file:
            head = file.read(_HEAD)
    except PermissionError:
        return True
    if len(head) < _HEAD or head[:4].hex() != wanted.key.rsplit("-", 2)[1]:
        return True
    if head[_FLAGS] != _BY_TIME:
        return head[_FLAGS] != _UNCHECKED
    status = os.lstat(wanted.source)
    stamp = (int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
    return head[8:_HEAD] != b"".join(one.to_bytes(4, "little") for one in stamp)
