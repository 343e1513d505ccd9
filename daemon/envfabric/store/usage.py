"""What the store takes on disk, counted when a closure is sealed and kept up from then on.

state/usage/<digest> holds a closure's inodes with their bytes as pairs of 64-bit integers, after their
number, so that a start reads counts instead of walking the store. An inode that several closures share is counted
once, whichever of them is looked at first. A ROOT that was copied has other inodes: it is counted anew.
"""

import array
import contextlib
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from envfabric.core.errors import StoreError
from envfabric.store.files import Files
from envfabric.store.root import Root


@dataclass(frozen=True, slots=True)
class Totals:
    """Bytes on disk and inodes under store/, each inode once, and how many closures there are."""

    closures: int
    physical_bytes: int
    inodes: int


class Usage:
    """The inodes of every closure in the store. Not safe for threads: the loop owns it."""

    def __init__(
        self, root: Root, files: Files, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """`progress` hears, before each closure of a full count, how many of how many are counted."""
        self._root = root
        self._files = files
        self._progress = progress
        self._links: Counter[int] = Counter()
        self._physical = 0
        self._logical: dict[str, int] = {}

    def load(self, *, keep: bool = True) -> None:
        """Counts every closure of the store from what was kept; anew where its record is missing.

        Without `keep` what was counted anew is not written down: for those who only look.
        """
        # Listed first: a NAS that is away for a moment does not turn the count to nothing.
        present = {}
        for digest in sorted(os.listdir(self._root.store)):
            # A folder that is closed to this process is somebody else's: a closure is open to all.
            with contextlib.suppress(PermissionError):
                if (inode := _inode(self._root.closure(digest) / "metadata.json")) is not None:
                    present[digest] = inode
        self._links.clear()
        self._logical.clear()
        self._physical = 0
        if keep:
            self._forget_all_but(present)
        for done, (digest, inode) in enumerate(present.items()):
            # One whose record is not believed is walked, which may take minutes: its caller is not hung all the same.
            self._progress(done, len(present))
            self.add(digest, keep=keep, holds=inode)

    def add(
        self,
        digest: str,
        inodes: dict[int, int] | None = None,
        *,
        keep: bool = True,
        holds: int | None = None,
    ) -> None:
        """Counts a closure that came into the store. Raises `OSError` where it has to be walked and can't.

        `inodes` are its bytes by inode where they are known; of a closure that was counted already they
        say that it was made anew. `holds` is an inode that a record of it has to name: else it is another copy's.
        """
        if digest in self._logical and inodes is None:
            return
        found = inodes or self._read(digest)
        if found is not None and holds is not None and holds not in found:
            found = None
        if found is None or inodes is not None:
            found = found or walk_inodes(self._root.closure(digest))
            if keep:
                with contextlib.suppress(OSError, StoreError):
                    # Only the record is lost, and made again at the next start.
                    self.keep(digest, found)
        if digest in self._logical:
            self.load()
            return
        self._logical[digest] = sum(found.values())
        for inode, size in found.items():
            if not self._links[inode]:
                self._physical += size
            self._links[inode] += 1

    def keep(self, digest: str, inodes: dict[int, int]) -> None:
        """Writes a closure's record; a crash before it costs one walk at the next start.

        Raises `StoreError` and `OSError`.
        """
        self._root.require_marker()
        self._files.make_folder(self._folder, self._root.state)
        flat = array.array("Q", [len(inodes), *(number for pair in inodes.items() for number in pair)])
        if sys.byteorder == "big":
            flat.byteswap()
        self._files.write_atomic(self._folder / digest, flat.tobytes(), via=self._root.staging)

    def remove(self, digest: str) -> None:
        """A closure left the store. Raises `OSError` where its record can't be removed."""
        found = self._read(digest)
        if digest in self._logical:
            if found is None:
                # Nobody knows any more what it had: what is left is counted anew.
                self.load()
            else:
                del self._logical[digest]
                for inode, size in found.items():
                    self._links[inode] -= 1
                    if self._links[inode] <= 0:
                        del self._links[inode]
                        self._physical -= size
        self._files.unlink(self._folder / digest)

    def logical(self, digest: str) -> int:
        """Bytes that this closure would take alone; 0 for one that is not in the store."""
        return self._logical.get(digest, 0)

    def known(self, digest: str) -> bool:
        """Whether the closure is in the store."""
        return digest in self._logical

    def totals(self) -> Totals:
        """The store's totals now."""
        return Totals(len(self._logical), self._physical, len(self._links))

    def kept(self, digest: str) -> dict[int, int]:
        """Bytes by inode as they were written down for a closure; none where they were not. Raises `OSError`."""
        return self._read(digest) or {}

    @property
    def _folder(self) -> Path:
        return self._root.state / "usage"

    def _forget_all_but(self, present: Collection[str]) -> None:
        """Removes the records of closures that left just before a crash: built again, they have other inodes."""
        with contextlib.suppress(OSError, StoreError):
            self._root.require_marker()
            for name in set(os.listdir(self._folder)).difference(present):
                self._files.unlink(self._folder / name)

    def _read(self, digest: str) -> dict[int, int] | None:
        try:
            raw = (self._folder / digest).read_bytes()
        except FileNotFoundError:
            return None
        flat = array.array("Q")
        if len(raw) % flat.itemsize:
            return None
        flat.frombytes(raw)
        if sys.byteorder == "big":
            flat.byteswap()
        # Cut off by a crash, it is not believed.
        if not flat or len(flat) != 2 * flat[0] + 1:
            return None
        return dict(zip(flat[1::2], flat[2::2], strict=True))


def _inode(path: Path) -> int | None:
    """A file's inode; None where there is none. Raises `OSError` for what is no proof of that."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino if stat.S_ISREG(status.st_mode) else None


def walk_inodes(folder: Path) -> dict[int, int]:
    """Bytes on disk by inode of `folder` itself and everything below it."""
    status = folder.lstat()
    found = {status.st_ino: status.st_blocks * 512}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            status = os.lstat(os.path.join(parent, name))
            found[status.st_ino] = status.st_blocks * 512
    return found
