"""Which closures are under validation, written down before it begins: what a daemon that is killed leaves unseen.

A validation runs code of packages, which may change what is sealed, and afterwards the closure is looked at. Killed
between the two, nobody would look again: the change would be served, and pass the next validation. Writes
state/trying/, one empty file for each validation under way, and reads closures.
"""

import contextlib
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from envfabric.store.files import Files
from envfabric.store.proof import SeenHashes, check
from envfabric.store.root import Root


class Unseen:
    """The closures of one ROOT at which nobody has looked since a validation of theirs was begun. Safe for threads."""

    def __init__(self, root: Root, files: Files) -> None:
        """Reads what earlier daemons have left. Raises `OSError`."""
        self._root = root
        self._files = files
        self._folder = root.state / "trying"
        self._lock = threading.Lock()
        self._left: dict[str, list[Path]] = {}
        with contextlib.suppress(FileNotFoundError):
            for mark in os.listdir(self._folder):
                # A name that begins with a dot is no closure's.
                if (name := mark.rpartition(".")[0]) and not name.startswith("."):
                    self._left.setdefault(name, []).append(self._folder / mark)

    @property
    def names(self) -> list[str]:
        """Their names in the store; some may have been collected since."""
        with self._lock:
            return sorted(self._left)

    @contextlib.contextmanager
    def marked(self, name: str) -> Iterator[None]:
        """Around a validation of a closure and the look at it afterwards, with what is recorded of that.

        Raises `StoreError` and `OSError` where it can't be written down: then nothing is run.
        """
        self._root.require_marker()
        self._files.make_folder(self._folder, self._root.state)
        # Of its own each time: the proof of what was left removes no mark of a validation that goes on.
        mark = self._folder / f"{name}.{uuid.uuid4().hex}"
        self._files.write_atomic(mark, b"", via=self._root.staging)
        try:
            yield
        except BaseException:
            # The look was not taken to its end.
            with self._lock:
                self._left.setdefault(name, []).append(mark)
            raise
        # One that stays has a closure proved in vain.
        with contextlib.suppress(OSError):
            self._files.unlink(mark)

    def prove(self, name: str, stop: Callable[[], bool]) -> list[str]:
        """What is found of a closure that was left, read and compared with its manifest; nothing of any other.

        It counts as left until `proven`. Raises `OSError`.
        """
        with self._lock:
            if name not in self._left:
                return []
        found = check(self._root.closure(name), SeenHashes(), stop)
        return [f"{one.path}: {one.detail}" for one in found]

    def proven(self, names: Iterable[str]) -> None:
        """Forgets closures of which it is known, and recorded, whether they are whole."""
        with self._lock:
            marks = [mark for name in names for mark in self._left.pop(name, ())]
        for mark in marks:
            with contextlib.suppress(OSError):
                self._files.unlink(mark)
