"""Sealed closures: from a staging folder to store/<digest>, complete or absent.

A build works in staging/<build>/, under a lock file that its children inherit: uv outlives a
killed daemon and goes on writing, so a folder is emptied only when nobody holds its lock, and its
name is never used again. Where another host builds in it, both hold the lock, shared. A closure that
was found damaged is never mended: its digest is built again beside it, as <digest>-2, and the damaged
name is never given again.
"""

import contextlib
import fcntl
import itertools
import json
import os
import queue
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envfabric.core.errors import StoreError
from envfabric.store.files import Files
from envfabric.store.manifest import write_manifest
from envfabric.store.root import Root, now
from envfabric.store.sealing import Hashes, Inventory, seal_folders, take_inventory
from envfabric.store.usage import walk_inodes

_ENDING = 2.0
"""Seconds for which another host's hold on a staging folder is waited for before the folder is left to it."""


@dataclass(frozen=True, slots=True)
class Staging:
    """A build's own place on the NAS, and the descriptor that its children inherit."""

    folder: Path
    descriptor: int

    @property
    def project(self) -> Path:
        """Where uv finds the spec's files."""
        return self.folder / "project"

    @property
    def closure(self) -> Path:
        """What is renamed to store/<digest> at the end."""
        return self.folder / "closure"

    @property
    def venv(self) -> Path:
        """The environment that is being built."""
        return self.folder / "closure" / ".venv"


def digest_of(name: str) -> str:
    """The digest that a closure's name in the store stands for: `<digest>-2` is `<digest>` built again."""
    return name.partition("-")[0]


class Closures:
    """The store's closures on one ROOT, as its one writer sees them. Safe for threads."""

    def __init__(self, root: Root, files: Files) -> None:
        self._root = root
        self._files = files
        self._hashes = Hashes()
        self._damaged: set[str] | None = None
        self._left: queue.SimpleQueue[str] = queue.SimpleQueue()

    def present(self, name: str) -> bool:
        """Whether a closure of this name is there, and the interpreter that it was made from, too.

        The folder appears by one rename, whole; a hand or an upgrade may have taken something away since.
        """
        closure = self._root.closure(name)
        return _there(closure / "metadata.json") and _there(closure / ".venv/bin/python")

    def usable(self, name: str) -> bool:
        """Whether a closure of this name can be published: present, and not found damaged."""
        return name not in self.damaged() and self.present(name)

    def locate(self, digest: str) -> str | None:
        """The name of the usable closure with this digest; None where it has to be built."""
        name = self._name_for(digest)
        return name if self.present(name) else None

    def damaged(self) -> set[str]:
        """The names of closures that were found damaged, also of those that are gone by now."""
        if self._damaged is None:
            found = {mark.removesuffix(".json") for mark in _listed(self._marks)}
            # Where the marks are lost: <digest>-3 was made because <digest> and <digest>-2 had been found damaged.
            for name in _listed(self._root.store):
                digest, _, number = name.partition("-")
                # A few digits: a stray folder's name must not ask for millions of others.
                if number.isdecimal() and len(number) <= 4:
                    found |= {digest, *(f"{digest}-{n}" for n in range(2, int(number)))}
            # A mount that is away looks like a folder that was never made: that is not remembered.
            self._root.require_marker()
            self._damaged = found
        return self._damaged

    def mark_damaged(self, name: str, findings: list[str]) -> None:
        """Records for good that a closure is damaged: nothing is published from it any more."""
        self._root.require_marker()
        self._files.make_folder(self._marks, self._root.state)
        content = {"schema": 1, "at": now(), "findings": findings[:100]}
        data = json.dumps(content, indent=2).encode()
        self._files.write_atomic(self._marks / f"{name}.json", data, via=self._root.staging)
        self.damaged().add(name)

    def metadata(self, name: str) -> dict[str, Any]:
        """What was written about a closure when it was sealed."""
        content: dict[str, Any] = json.loads((self._root.closure(name) / "metadata.json").read_bytes())
        return content

    def distrust(self) -> None:
        """Has every file read once more before its digest is believed: for repair, where no time told of damage."""
        self._hashes.forget()

    @contextlib.contextmanager
    def staging(self, *, elsewhere: bool = False) -> Iterator[Staging]:
        """A new staging folder, removed at the end whatever happens.

        `elsewhere`: another host writes into it, by `join`. Where that goes on at the end, the folder stays until
        `recover` finds it free, see `take_left`.
        """
        self._root.require_marker()
        name = uuid.uuid4().hex
        lock = self._root.staging / f"{name}.lock"
        # The lock exists before the folder: recovery never sees a folder that nobody answers for.
        descriptor = self._files.create(lock)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH if elsewhere else fcntl.LOCK_EX)
            folder = self._root.staging / name
            for path in (folder, folder / "project", folder / "closure"):
                self._files.make_folder(path)
            yield Staging(folder, descriptor)
        finally:
            if elsewhere and _held(descriptor):
                # A host that was lost may go on writing: in a folder that is gone its uv would make everything anew.
                self._left.put(name)
            else:
                with contextlib.suppress(OSError):
                    self._files.remove_tree(self._root.staging / name)
                    self._files.unlink(lock)
            os.close(descriptor)

    @contextlib.contextmanager
    def join(self, folder: Path) -> Iterator[Staging]:
        """A staging folder that another host made, for `elsewhere`, held by this process, too.

        Raises `StoreError` where it is gone, or about to be: whoever made it wants nothing any more.
        """
        lock = folder.with_name(f"{folder.name}.lock")
        gone = StoreError(f"{folder} is gone, or is not to be seen from {os.uname().nodename}")
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise gone from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                # Recovery may have had it a moment before, and have removed it since.
                if not os.path.samestat(os.fstat(descriptor), lock.stat()):
                    raise gone
            except (BlockingIOError, FileNotFoundError):
                raise gone from None
            yield Staging(folder, descriptor)
        finally:
            os.close(descriptor)

    def take_left(self) -> set[str]:
        """The names of staging folders that were left to hosts which write into them still; each is given once."""
        left = set()
        with contextlib.suppress(queue.Empty):
            while True:
                left.add(self._left.get_nowait())
        return left

    def take_inventory(self, staging: Staging) -> Inventory:
        """Lists and hashes every path of the environment in staging, and takes write permission from its files.

        Its folders stay open until `describe`. Raises `OSError`, and `TooDeep`.
        """
        # Before the count: some file systems know a file's blocks only once it is written out.
        self._files.flush(staging.descriptor, staging.closure)
        return take_inventory(staging.closure, self._hashes)

    def describe(self, staging: Staging, inventory: Inventory, metadata: dict[str, Any], log: str) -> None:
        """Seals the folders, writes build.log, metadata.json and the manifest beside them, and flushes all."""
        closure = staging.closure
        seal_folders(inventory)
        counted = {
            "linked": inventory.linked,
            "link_fallbacks": inventory.copied,
            "venv_bytes": sum(inventory.inodes.values()),
            "venv_inodes": len(inventory.inodes),
        }
        text = json.dumps({**metadata, **counted}, indent=2, sort_keys=True)
        for name, data in (("build.log", log.encode()), ("metadata.json", text.encode())):
            self._files.write_new(closure / name, data, mode=0o444)
            inventory.list_file(closure, name)
        self._files.write_new(closure / "manifest", write_manifest(inventory.lines), mode=0o444)
        # The staging lock's descriptor is older than every write of this build: none that failed is missed.
        self._files.flush(staging.descriptor, closure)
        for name in ("build.log", "metadata.json", "manifest"):
            inventory.add(closure / name)
        inventory.add(closure)

    def publish(self, staging: Staging, digest: str, inventory: Inventory) -> tuple[str, dict[int, int]]:
        """Renames a sealed closure into the store; an equal one that came first stays.

        Gives its name, and the bytes by inode of the one that is there now. Raises `OSError`.
        """
        self._root.require_marker()
        name = self._name_for(digest)
        while self._root.closure(name).exists() and not self.present(name):
            # Somebody removed a part of it. Leased or run from it may be all the same: it stays where it is,
            # and goes by the collector's rules once nothing uses it.
            self.mark_damaged(name, ["metadata.json or .venv/bin/python is gone; it was built again beside"])
            name = self._name_for(digest)
        target = self._root.closure(name)
        try:
            self._files.rename(staging.closure, target)
        except OSError:
            # Two builders end as one closure; and on NFS a rename that reports an error may have happened.
            if not self.present(name):
                raise
            return name, walk_inodes(target)
        return name, inventory.inodes

    def recover(self, names: set[str] | None = None) -> set[str]:
        """Empties what dead builds left in staging/, or only `names` of it.

        Gives the names whose children still write, or that can't be removed yet: they wait for the next
        look. Without `names` it may only be called before this process builds anything.
        """
        found = {name.removesuffix(".lock") for name in os.listdir(self._root.staging)}
        held = set()
        for name in sorted(found if names is None else found & names):
            lock = self._root.staging / f"{name}.lock"
            with contextlib.ExitStack() as stack:
                with contextlib.suppress(FileNotFoundError):
                    descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
                    stack.callback(os.close, descriptor)
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        held.add(name)
                        continue
                try:
                    self._files.remove_tree(self._root.staging / name)
                    self._files.unlink(lock)
                except OSError:
                    # Something of it is in use (NFS keeps .nfs… names): the next look tries again.
                    held.add(name)
        return held

    @property
    def _marks(self) -> Path:
        return self._root.state / "damaged"

    def _name_for(self, digest: str) -> str:
        """The first name of a digest that was not found damaged: where its closure is, or will be."""
        damaged = self.damaged()
        if digest not in damaged:
            return digest
        return next(name for n in itertools.count(2) if (name := f"{digest}-{n}") not in damaged)


def _held(descriptor: int) -> bool:
    """Whether another process has a lock on this file, and keeps it: one that was told to end has a moment."""
    deadline = time.monotonic() + _ENDING
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return True
            time.sleep(0.02)
        except OSError:
            # Without an answer nothing is removed.
            return True


def _there(path: Path) -> bool:
    """Whether a path leads to something. Raises `OSError` for what is no proof of the opposite (EIO, ESTALE)."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _listed(folder: Path) -> list[str]:
    """The names in a folder, none where it is not there; any other error is one."""
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except FileNotFoundError:
        return []
