"""The sequence number of the next index: higher than any that somebody may have seen.

It is in the index itself. For the case that the index is lost or spoilt, a number that no published one is above is
kept in state/sequence, and put up well ahead of need, so that a publication hardly ever costs a second write. That
number tells an index from a backup, too, where more than those ahead were given since. Where that number is lost, the
audit trail says how far they had come.
"""

from pathlib import Path

from envfabric.store.files import Files
from envfabric.store.history import History
from envfabric.store.root import Root

AHEAD = 100
"""How far ahead of the published number the kept one is put."""


class Sequence:
    """The numbers of one ROOT's indexes. Belongs to the publisher."""

    def __init__(self, root: Root, files: Files) -> None:
        self._root = root
        self._files = files
        self._kept: int | None = None

    def after(self, known: int | None) -> int:
        """The number after `known`, or after all that may have been given where none is known.

        Raises `OSError` where it can't be kept: then nothing of that number may be published.
        """
        if self._kept is None:
            kept = self._read()
            if kept is None:
                known = self._told(known)
            elif known is not None and known < kept - AHEAD:
                # The kept one was put up for a number above this: the index is an older one that somebody put
                # back, and how far they had come by then nobody knows.
                known = None
            self._kept = kept or 0
        number = (self._kept if known is None else known) + 1
        if number > self._kept:
            # Before that number is published: a crash in between costs some numbers, and gives none twice.
            text = f"{number + AHEAD}\n".encode()
            self._files.write_atomic(self._path, text, via=self._root.staging)
            self._kept = number + AHEAD
        return number

    def _told(self, known: int | None) -> int | None:
        """`known`, or a number above all that were given where the audit trail tells of a later one."""
        told = History(self._root, self._files).last_sequence()
        # Not every publication is told there.
        return told + AHEAD if told > (known or 0) else known

    def _read(self) -> int | None:
        try:
            return max(0, int(self._path.read_bytes()))
        except (FileNotFoundError, ValueError):
            return None

    @property
    def _path(self) -> Path:
        return self._root.state / "sequence"
