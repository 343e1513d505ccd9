"""Sealed closures: from a staging folder to store/<digest>, complete or absent.

A build works in staging/<build>/, under a lock file that its children inherit: uv outlives a
killed daemon and goes on writing, so a folder is emptied only when nobody holds its lock, and its
name is never used again.
"""

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envfabric.store.files import Files
from envfabric.store.manifest import Hashes, Inventory, seal_and_list, write_lines
from envfabric.store.root import Root
from envfabric.store.usage import walk_inodes


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


class Closures:
    """The store's closures on one ROOT."""

    def __init__(self, root: Root, files: Files) -> None:
        self._root = root
        self._files = files
        self._hashes = Hashes()

    def exists(self, digest: str) -> bool:
        """Whether a sealed closure has this digest, and the interpreter that it was made from is still there.

        The folder appears by one rename, whole; a hand or an upgrade may have taken something away since.
        """
        closure = self._root.closure(digest)
        return (closure / "metadata.json").is_file() and (closure / ".venv/bin/python").exists()

    def metadata(self, digest: str) -> dict[str, Any]:
        """What was written about a closure when it was sealed."""
        content: dict[str, Any] = json.loads((self._root.closure(digest) / "metadata.json").read_bytes())
        return content

    @contextlib.contextmanager
    def staging(self) -> Iterator[Staging]:
        """A new staging folder, removed at the end whatever happens."""
        self._root.require_marker()
        name = uuid.uuid4().hex
        lock = self._root.staging / f"{name}.lock"
        # The lock exists before the folder: recovery never sees a folder that nobody answers for.
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            folder = self._root.staging / name
            for path in (folder, folder / "project", folder / "closure"):
                self._files.make_folder(path)
            yield Staging(folder, descriptor)
        finally:
            with contextlib.suppress(OSError):
                self._files.remove_tree(self._root.staging / name)
                lock.unlink(missing_ok=True)
            os.close(descriptor)

    def seal(self, staging: Staging, metadata: dict[str, Any], log: str) -> Inventory:
        """Seals the environment in staging: write permission off, then build.log, manifest and metadata."""
        closure = staging.closure
        # Before the count: some file systems know a file's blocks only once it is written out.
        self._files.flush(closure)
        inventory = seal_and_list(closure, self._hashes)
        counted = {
            "link_fallbacks": inventory.copied,
            "venv_bytes": sum(inventory.inodes.values()),
            "venv_inodes": len(inventory.inodes),
        }
        text = json.dumps({**metadata, **counted}, indent=2, sort_keys=True)
        for name, data in (
            ("build.log", log.encode()),
            ("manifest", write_lines(inventory)),
            ("metadata.json", text.encode()),
        ):
            self._files.write_new(closure / name, data, mode=0o444, durable=True)
            inventory.add(closure / name)
        inventory.add(closure)
        return inventory

    def publish(self, staging: Staging, digest: str, inventory: Inventory) -> dict[int, int]:
        """Renames a sealed closure into the store; an equal one that came first stays.

        Gives the bytes by inode of the one that is there now. Raises `OSError`.
        """
        self._root.require_marker()
        self._files.sync_folder(staging.closure)
        target = self._root.closure(digest)
        if target.exists() and not self.exists(digest):
            # No closure any more: somebody removed half of it. What is left makes room, and can be looked at.
            self._files.rename(target, self._root.trash / f"{digest}.{uuid.uuid4().hex}")
        try:
            self._files.rename(staging.closure, target)
        except OSError:
            # Two builders end as one closure; and on NFS a rename that reports an error may have happened.
            if not self.exists(digest):
                raise
            return walk_inodes(target)
        return inventory.inodes

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
