"""Who may be the first to install a wheel: one build at a time, so that it is unpacked once and shared.

Two uv processes that miss the same wheel in the cache unpack it twice, and their environments share
nothing of it. But a build that hangs holds up nobody for longer than the patience, however many wait for it
one after the other. Knows only this process's builds, and touches no file.
"""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator

from envfabric.build.scope import current


class Unpacking:
    """The wheels, by hash, that builds of this process have installed or are the first to install."""

    def __init__(self, patience: float = 30.0) -> None:
        """`patience` is how long, in seconds, a wheel is waited for from when a build took it on: then the others go
        on, and share less."""
        self._patience = patience
        self._installed: set[str] = set()
        self._taken: dict[str, float] = {}
        self._changed = threading.Condition()
        self._stopped = False

    @contextlib.contextmanager
    def of(self, wheels: Iterable[str]) -> Iterator[bool]:
        """Holds those of `wheels` that no build has installed yet, waiting for builds that hold any of them.

        They count as installed when the block ends without an error. Gives False where the wait was given up.
        Raises what the step's scope does when its time is over or it is ended.
        """
        wanted = set(wheels)
        deadline = time.monotonic() + self._patience
        scope = current()
        # Entered before the lock is held: ending the scope takes it.
        with scope.ended_by(self._wake), self._changed:
            # All at once or none: a build that waits holds nothing, so none waits for it in turn.
            while (held := self._held(wanted)) and not self._stopped:
                scope.check()
                # From when they were taken on; but one may be taken again and again by builds that fail.
                taken = max(self._taken[one] for one in held)
                left = min(deadline, taken + self._patience) - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(max(0.0, min(left, scope.deadline - time.monotonic())))
            scope.check()
            first = wanted - self._installed
            mine = first - self._taken.keys()
            shared = mine == first
            self._taken |= dict.fromkeys(mine, time.monotonic())
        done = False
        try:
            yield shared
            done = True
        finally:
            with self._changed:
                for one in mine:
                    del self._taken[one]
                if done:
                    # Also what was held by one that may hang for long: it is in the cache by now, and nobody needs to
                    # be waited for any more.
                    self._installed |= first
                self._changed.notify_all()

    def _held(self, wanted: set[str]) -> set[str]:
        """Those of `wanted` that another build is the first to install."""
        return (wanted - self._installed) & self._taken.keys()

    def _wake(self) -> None:
        with self._changed:
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
