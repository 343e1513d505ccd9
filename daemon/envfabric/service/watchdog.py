"""The watchdog's answer and the status line, from a thread of their own.

WATCHDOG=1 is sent only while the loop goes round: its last beat is younger than half of the time that systemd
allows, or what it has declared (opening ROOT, probing it, waiting for the lock) is within the bound declared for
it. The thread reads what is in memory and never touches the NAS, so that it can still say that the NAS hangs.
A loop that hangs for longer is ended by systemd and started again.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from envfabric.index.document import Index
from envfabric.service.notify import Notifier, status
from envfabric.telemetry.metrics import STATES

NAS_WAIT = 900.0
"""Seconds that a turn's opening may take: the probe, what a killed writer left, the first look at all specs."""

_TICK = 2.0
"""The longest time in seconds between two looks at the loop, and the shortest between two status lines."""
_EXTENSION = 60.0
"""Seconds that systemd is asked for, again and again, while a start waits."""


class Wait(NamedTuple):
    """What the loop has declared to be away for; times are monotonic seconds."""

    what: str
    began: float
    until: float


class Watchdog:
    """Knows when the loop last went round and what it waits for; with `watching`, systemd hears of it."""

    def __init__(self, notifier: Notifier, describe: Callable[[], str]) -> None:
        """`describe` gives the status line of a loop that goes round; it must not touch the NAS."""
        self._notifier = notifier
        self._describe = describe
        self._beat = time.monotonic()
        self._wait: Wait | None = None
        self._ended = threading.Event()
        self._told = ""

    def beat(self) -> None:
        """The loop went round, and what it declared is over."""
        self._beat = time.monotonic()
        self._wait = None

    def declare(self, what: str, seconds: float = NAS_WAIT) -> None:
        """The loop does `what` now, which may take as long as this; until the next beat."""
        now = time.monotonic()
        self._wait = Wait(what, now, now + seconds)

    def advance(self, what: str, seconds: float = NAS_WAIT) -> None:
        """As `declare`, by a loop that gets on with what it declared: it waits since then, and may go on for longer."""
        now, wait = time.monotonic(), self._wait
        self._wait = Wait(what, now if wait is None else wait.began, now + seconds)

    @property
    def wait(self) -> Wait | None:
        """What the loop waits for, in time or not; None while it goes round."""
        return self._wait

    @property
    def heartbeat(self) -> float:
        """When the loop last was where it should be, in monotonic seconds: now, while a declared wait is in time."""
        wait = self._wait
        if wait is not None:
            return min(time.monotonic(), wait.until)
        return self._beat

    @property
    def alive(self) -> bool:
        """Whether WATCHDOG=1 is due: the loop is within half of the time that systemd allows."""
        return time.monotonic() - self.heartbeat < self._notifier.watchdog / 2

    def start(self) -> None:
        """Begins to tell systemd; nothing runs where nobody listens."""
        if self._notifier.heard:
            threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """Ends it; a stop has the time of TimeoutStopSec, not the watchdog's."""
        self._ended.set()

    def _run(self) -> None:
        interval = self._notifier.watchdog
        tick = min(_TICK, interval / 4) if interval else _TICK
        while True:
            self.tell()
            if self._ended.wait(tick):
                return

    def tell(self) -> None:
        """What is due now, as one datagram."""
        lines = []
        if self._notifier.watchdog and self.alive:
            lines.append("WATCHDOG=1")
        wait = self._wait
        if not self._notifier.ready and wait is not None and time.monotonic() < wait.until:
            # TimeoutStartSec is for a start that does nothing; this one says what it waits for.
            lines.append(f"EXTEND_TIMEOUT_USEC={int(_EXTENSION * 1e6)}")
        line = self._line(wait)
        if line != self._told:
            self._told = line
            lines.append(line)
        if lines:
            self._notifier.tell(*lines)

    def _line(self, wait: Wait | None) -> str:
        now = time.monotonic()
        if wait is not None and now - wait.began >= _TICK:
            # In steps, so that a long wait does not make a line in each tick.
            return status(f"{wait.what}, for {(now - wait.began) // 10 * 10:.0f} s")
        late = now - self.heartbeat
        if late >= 10 * _TICK:
            return status(f"the loop has not gone round for {late // 10 * 10:.0f} s; {self._describe()}")
        return status(self._describe())


def summary(state: str, index: Index | None, *, started: bool = True) -> str:
    """The status line's text: what the daemon does, and what is published. From memory."""
    if index is None or index.revision is None:
        return f"{state}; nothing is published yet" if started else state
    counts = Counter(str(entry.state) for entry in index.entries.values())
    told = ", ".join(f"{counts[one]} {one}" for one in STATES if counts[one]) or "no specs"
    problems = f", problems: {len(index.problems)}" if index.problems else ""
    return f"{state}; revision {index.revision[:12]}: {told}{problems}"
