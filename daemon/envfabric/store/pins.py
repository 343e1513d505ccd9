"""Pins: a person's word that a spec serves an earlier generation until its content next changes.

Kept under state/pins/<workflow>/<node>.json, so that neither a restart nor another writer forgets.
"""

import contextlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from envfabric.core.ids import is_id
from envfabric.store.files import Files
from envfabric.store.root import Root, now


@dataclass(frozen=True, slots=True)
class Pin:
    """Which generation is served instead of the newest, as long as the wanted content is this tree."""

    generation: int
    tree: str


class Pins:
    """The pins on one ROOT. Safe for threads."""

    def __init__(self, root: Root, files: Files) -> None:
        self._root = root
        self._files = files
        self._lock = threading.RLock()

    def read(self, spec_id: str) -> Pin | None:
        """A spec's pin; None where it has none. Raises `OSError`: a pin that can't be read is not gone."""
        try:
            raw = json.loads(self._path(spec_id).read_bytes())
            return Pin(int(raw["generation"]), str(raw["tree"]))
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None

    def all(self) -> dict[str, Pin]:
        """Every pin by spec id. Raises `OSError`."""
        found = {}
        # Not by glob, which takes a folder that can't be read for an empty one.
        for flow in _names(self._top):
            for name in _names(self._top / flow):
                spec_id = f"{flow}/{name.removesuffix('.json')}"
                if name.endswith(".json") and is_id(spec_id) and (pin := self.read(spec_id)):
                    found[spec_id] = pin
        return found

    def set(self, spec_id: str, pin: Pin) -> None:
        """Pins a spec. Raises `OSError`."""
        self._root.require_marker()
        path = self._path(spec_id)
        content = {"schema": 1, "generation": pin.generation, "tree": pin.tree, "at": now()}
        with self._lock:
            self._files.make_folder(path.parent, self._root.state)
            self._files.write_atomic(path, json.dumps(content).encode(), via=self._root.staging)

    def replace(self, spec_id: str, old: Pin, new: Pin | None) -> None:
        """Has `new` in place of `old`, or nothing. A pin that an order has set since stays. Raises `OSError`."""
        with self._lock:
            if self.read(spec_id) != old:
                return
            if new is None:
                self.remove(spec_id)
            else:
                self.set(spec_id, new)

    def remove(self, spec_id: str) -> None:
        """Takes a spec's pin away, or does nothing where it has none. Raises `OSError`."""
        path = self._path(spec_id)
        with self._lock:
            if not os.path.lexists(path):
                return
            self._files.unlink(path)
            self._files.sync_folder(path.parent)
            with contextlib.suppress(OSError):
                path.parent.rmdir()

    @property
    def _top(self) -> Path:
        return self._root.state / "pins"

    def _path(self, spec_id: str) -> Path:
        return self._top / f"{spec_id}.json"


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
