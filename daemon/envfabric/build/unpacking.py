"""Who may be the first to install a wheel: one build at a time, so that it is unpacked once and shared.

Two uv processes that miss the same wheel in the cache unpack it twice, and their environments share
nothing of it. Knows only this process's builds, and touches no file.
"""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator


class Unpacking:
    """The wheels, by hash, that builds of this process have installed or are the first to install."""

    def __init__(self, patience: float = 30.0) -> None:
        """`patience` is how long, in seconds, a build waits for others: then it goes on, and shares less."""
        self._patience = patience
        self._installed: set[str] = set()
        self._taken: set[str] = set()
        self._changed = threading.Condition()
        self._stopped = False

    @contextlib.contextmanager
    def of(self, wheels: Iterable[str]) -> Iterator[bool]:
        """Holds those of `wheels` that no build has installed yet, waiting for builds that hold any of them.

        They count as installed when the block ends without an error. Gives False where the wait was given up.
        """
        wanted = set(wheels)
        deadline = time.monotonic() + self._patience
        with self._changed:
            # All at once or none: a build that waits holds nothing, so none waits for it in turn.
            while (first := wanted - self._installed) & self._taken and not self._stopped:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            shared = not first & self._taken
            mine = first - self._taken
            self._taken |= mine
        done = False
        try:
            yield shared
            done = True
        finally:
            with self._changed:
                self._taken -= mine
                if done:
                    self._installed |= mine
                self._changed.notify_all()

    def forget(self, wheels: Iterable[str]) -> None:
        """These are no longer in the cache: the next build of each is a first one again."""
        with self._changed:
            self._installed -= set(wheels)

    def forget_all(self) -> None:
        """Any of them may have left the cache."""
        with self._changed:
            self._installed.clear()

    def stop(self) -> None:
        """Lets all go on that wait."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
