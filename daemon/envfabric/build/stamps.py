"""What the files of a closure look like from outside, so that a change of them is seen without reading them.

Sizes, times, modes and inodes. Whoever means to hide a change can: store/proof.py reads. Changes nothing.
"""

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

Stamps = dict[str, tuple[int, ...]]
"""By path, relative to the closure."""


def stamps(closure: Path) -> Stamps:
    """What each path of a closure looks like, without reading it: the time of the last status change is left out,
    because other builds link the same files. Raises `OSError`."""
    found: Stamps = {}
    waiting = ["."]
    while waiting:
        folder = waiting.pop()
        with os.scandir(closure / folder) as entries:
            for entry in entries:
                path = entry.name if folder == "." else f"{folder}/{entry.name}"
                status = entry.stat(follow_symlinks=False)
                found[path] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(path)
    return found


def differing(before: Stamps, after: Stamps) -> list[str]:
    """The paths that differ; a folder only where nothing in it does."""
    paths = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    above = {os.path.dirname(path) for path in paths}
    return sorted(paths - {path for path in above if path in before and path in after})


def linked(closure: Path, paths: Sequence[str]) -> bool:
    """Whether others have some of these files, too: uv's cache, and by it other closures."""
    for path in paths:
        with contextlib.suppress(OSError):
            status = os.lstat(closure / path)
            if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                return True
    return False
