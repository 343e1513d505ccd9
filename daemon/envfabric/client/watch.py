"""Looks again and again, in a thread, whether something on the NAS is well, so that others know it without a look.

A look may hang in a mount whose server is gone: what was well is so for a time, and no longer. Knows nothing of what
is looked at, and writes nothing itself.
"""

import threading
import time
from collections.abc import Callable

_AGAIN, _SOONEST = 0.5, 5.0
"""Seconds after which a look that went wrong is taken again: at first, when a server's hiccup is over, and at most."""


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
        # Somebody wants a look, or the end, before the pause is over.
        self._called = threading.Event()
        # When the last look that found all well was begun.
        self._well_at: float | None = None
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)

    def start(self, began: float) -> None:
        """Begins to look. The first look was its owner's, begun at `began` by `now`."""
        self._well_at = began
        self._thread.start()

    def end(self) -> None:
        """Looks no more; one that is under way goes on."""
        # In this order: whoever has seen the call sees the end.
        self._ended.set()
        self._called.set()

    def look_soon(self) -> None:
        """Has the next look begun now, for one who was told that not all is well. Waits for nothing."""
        self._called.set()

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
        usual = pause = self._holds / 3
        while not self._ended.is_set():
            self._called.wait(pause)
            # Before the look: who calls during it may have seen the one before.
            self._called.clear()
            if self._ended.is_set():
                return
            began, before = _clock(), pause
            try:
                well = self._look()
            except Exception:
                well = False
            self.note(began, well)
            # The NAS may be back in a moment: the next look comes sooner.
            pause = usual if well else min(_AGAIN if before == usual else 2 * before, usual / 4, _SOONEST)
