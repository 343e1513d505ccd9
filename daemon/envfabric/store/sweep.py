"""Files that go once nobody has needed them for a time: compiled ones that no environment links any more,
and resolutions that nobody asked for.

A walk of them all for each collection would cost what exists. Whoever is too young today says when it will be
old enough, and what is left alone later is younger still: until then nothing can be due, and nothing is read.
Removes files of the folder that it was given, and no others.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from envfabric.store.files import Files, Freed

TOUCHED = 86400.0
"""Seconds after which the use of a file is noted again, by its time: that may be so much older than the last use."""
_CALM = 0.1
"""The share of the age for which a folder is left alone after a walk: else one file in each hour is a walk in each."""


def unlinked(status: os.stat_result) -> float | None:
    """Since when a file has no other link, by the server's clock; None where it has one."""
    return status.st_ctime if status.st_nlink == 1 else None


def unasked(status: os.stat_result) -> float | None:
    """Since when nobody wrote or touched a file, by the server's clock."""
    return status.st_mtime


class Sweep:
    """One folder's files, over the collections of one process."""

    def __init__(
        self,
        files: Files,
        folder: Path,
        age: float,
        since: Callable[[os.stat_result], float | None],
        check: Callable[[], None],
        hurried: float | None = None,
    ) -> None:
        """`since` says from when on a file is needed by nobody, `age` how many seconds it stays after that;
        `hurried` is its age in a hurry, where that is another one.

        `check` raises where this process may not remove anything any more.
        """
        self._files = files
        self._folder = folder
        self._age = age
        self._hurried = hurried
        self._since = since
        self._check = check
        # In seconds of the server's clock: before these nothing is old enough; and not worth a walk.
        self._due = self._calm = float("-inf")
        self.walked: tuple[int, int] | None = None
        """Files that the last whole walk left, and their bytes on disk; None before the first."""

    def run(self, now: float, freed: Freed, *, hurry: bool = False) -> int:
        """Removes what is old enough by the server time `now`; gives how many, and adds what came back.

        Without a `hurry` it may go a tenth of its age late. Raises `OSError`, and what `check` raises.
        """
        age = self._age if not hurry or self._hurried is None else min(self._age, self._hurried)
        if now < self._due - (self._age - age) or (now < self._calm and not hurry):
            return 0
        removed, due = 0, now + self._age
        left = taken = 0
        failed: list[OSError] = []
        for folder, _, names in os.walk(self._folder, onerror=failed.append):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    status = path.lstat()
                    since = self._since(status)
                    if since is None or now - since < age:
                        if since is not None:
                            due = min(due, since + self._age)
                        left, taken = left + 1, taken + status.st_blocks * 512
                        continue
                    self._check()
                    self._files.unlink(path)
                    freed.add(status)
                    removed += 1
        # A mount that is away looks like an empty folder.
        self._check()
        # What could not be listed may have held anything: the next collection looks again.
        if not any(not isinstance(one, FileNotFoundError) for one in failed):
            self._due, self._calm = due, now + _CALM * self._age
            self.walked = left, taken
        return removed
