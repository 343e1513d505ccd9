"""What the tests of hostile commits look at before and after: everything beside ROOT."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from support.fabric import Fabric


@pytest.fixture(scope="session")
def outside() -> Callable[[Fabric], dict[str, str]]:
    """Gives every path beside ROOT with its content."""
    return _outside


def _outside(fabric: Fabric) -> dict[str, str]:
    """HOME, TMPDIR, the working folder, the repository, and the names in the folder above."""
    found = {f"../{path.name}": "" for path in fabric.folder.parent.iterdir()}
    for path in _walk(fabric.folder, {fabric.root}):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else ""
        found[str(path.relative_to(fabric.folder))] = f"{stat.S_IMODE(status.st_mode):o} {content}"
    return found


def _walk(folder: Path, without: set[Path]) -> Iterable[Path]:
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(at, name) not in without]
        yield from (Path(at, name) for name in (*folders, *files))
