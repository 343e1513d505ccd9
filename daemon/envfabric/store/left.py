"""Since when things are unused: the collector's memory, one empty file each below state/left/.

A file's mtime, as the file server gives it, is when the collector first saw that nothing uses the thing.
Whoever publishes it again removes the file first: killed in between, the grace period begins anew, never
too early.
"""

import contextlib
import os
from pathlib import Path

from envfabric.store.files import Files
from envfabric.store.root import Root


class Left:
    """When things went out of use, on one ROOT. `kind` is 'closures', 'specs' or 'pythons'."""

    def __init__(self, root: Root, files: Files, kind: str) -> None:
        self._root = root
        self._files = files
        self._folder = root.state / "left" / kind
        self._known: set[str] | None = None

    def known(self) -> set[str]:
        """The names of all that is recorded as out of use. Raises `OSError`."""
        if self._known is None:
            names = []
            with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
                # A folder that somebody left there could not be forgotten.
                names = [one.name for one in entries if one.is_file(follow_symlinks=False)]
            # A mount that is away looks like a folder that was never made: that is not remembered.
            self._root.require_marker()
            self._known = {name.replace("%", "/") for name in names if not name.startswith(".")}
        return self._known

    def since(self, name: str) -> float | None:
        """When a thing was first seen out of use, in seconds of the server's clock; None where it was not."""
        if name not in self.known():
            return None
        try:
            return self._path(name).stat().st_mtime
        except FileNotFoundError:
            return None

    def note(self, name: str) -> float:
        """When a thing was first seen out of use: now, where it was not seen so before. Raises `OSError`."""
        found = self.since(name)
        if found is None:
            self._root.require_marker()
            self._files.make_folder(self._folder, self._root.state)
            with contextlib.suppress(FileExistsError):
                self._files.write_new(self._path(name), b"", durable=True)
            self.known().add(name)
            found = self._path(name).stat().st_mtime
        return found

    def forget(self, name: str) -> None:
        """The thing is in use again, or gone. Raises `OSError`."""
        if name in self.known():
            self._files.unlink(self._path(name))
            self.known().discard(name)

    def _path(self, name: str) -> Path:
        # Ids hold a slash and never a percent sign.
        return self._folder / name.replace("/", "%")
