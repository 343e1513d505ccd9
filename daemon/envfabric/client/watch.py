"""Looks again and again, in a thread, whether something on the NAS is well, so that others know it without a look.

A look may hang in a mount whose server is gone: what was well is so for a time, and no longer. Knows nothing of what
is looked at, and writes nothing itself.
"""

import threading
import time
from collections.abc import Callable

_SOONEST = 5.0
"""Seconds after which a look that went wrong is taken again, at most."""


def _clock() -> float:
    """Seconds that go on while the machine sleeps, where the system counts those."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Watch:
    """A look that is taken every third of the time for which its outcome is believed. Safe for threads."""

    def __init__(self, look: Callable[[], bool], holds: float, name: str) -> None:
        """`look` gives whether all is well, or raises; `holds` are the seconds for which that is believed."""
        self._look = look
        self._holds = holds
        self._ended = threading.Event()
        # When the last look that found all well was begun.
        self._well_at: float | None = None
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)

    def start(self, began: float) -> None:
        """Begins to look. The first look was its owner's, begun at `began` by `now`."""
        self._well_at = began
        self._thread.start()

    def end(self) -> None:
        """Looks no more; one that is under way goes on."""
        self._ended.set()

    @property
    def ended(self) -> bool:
        """Whether it was ended."""
        return self._ended.is_set()

    @property
    def well(self) -> bool:
        """Whether the last look found all well, and was not begun too long ago."""
        at = self._well_at
        return at is not None and _clock() - at < self._holds

    def note(self, began: float, well: bool) -> None:
        """Takes the outcome of a look that was begun at `began` by `now`, and not by the thread."""
        self._well_at = began if well else None

    now = staticmethod(_clock)

    def _keep(self) -> None:
        pause = self._holds / 3
        while not self._ended.wait(pause):
            began = _clock()
            try:
                self.note(began, self._look())
                pause = self._holds / 3
            except Exception:
                self.note(began, False)
                # The NAS may be back in a moment: the next look comes sooner.
                pause = min(self._holds / 12, _SOONEST)
