"""Keeps the mirror of a remote repository up to date, in a thread of its own for as long as the process lives.

The loop's thread never waits for the network: it reads the mirror, and asks `behind` whether that is where the remote
is. A standby fetches, too, so that it can take over with what is newest. Knows neither ROOT nor what is published.
"""

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable

from envfabric.specs.mirror import Mirror
from envfabric.specs.repository import SourceError
from envfabric.store.retries import delay
from envfabric.telemetry import logs
from envfabric.telemetry.metrics import Metrics

FIRST_RETRY, LAST_RETRY = 2.0, 60.0
"""Seconds after a first failed fetch, and the most after many; where the interval is longer, that is the most."""
GAP = 1.0
"""Seconds between the beginnings of two fetches, however often they are asked for."""
_JITTER = 0.1
"""The share by which the interval differs, so that many daemons do not ask at once."""


class Fetching:
    """The fetches of one mirror, from `start` until `close`. `soon`, `doubt` and `behind` are for any thread."""

    def __init__(self, mirror: Mirror, metrics: Metrics, interval: float, moved: Callable[[], None]) -> None:
        """`interval` in seconds; `moved` hears, in the thread of the fetches, when a look at the mirror is worth it."""
        self._mirror = mirror
        self._metrics = metrics
        self._interval = interval
        self._moved = moved
        # A SimpleQueue may be put to by a signal handler that interrupts its reader.
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._log = logs.get()
        self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)
        self._commit: str | None = None
        self._failures = 0
        self._error: str | None = None
        self._begun = self._good = time.monotonic()
        self._doubts_heeded = float("-inf")
        self._doubted = False

    @property
    def behind(self) -> str | None:
        """Why the mirror may not be where the remote is; None where the last fetch was good and not long ago."""
        if self._error is not None:
            return self._error
        age = time.monotonic() - self._good
        if age > 2 * self._interval + GAP:
            return f"{self._mirror.remote.url} has not answered for {age:.0f} s; the fetch is still under way"
        return None

    def start(self) -> None:
        """Begins with a fetch at once."""
        self._thread.start()

    def soon(self) -> None:
        """Asks for a fetch now, also while waiting after a failure. Safe in a signal handler."""
        self._asked.put(None)

    def doubt(self) -> None:
        """Something of the mirror could not be read: it is looked into at once, but not again and again."""
        self._mirror.doubt()
        self._doubted = True
        now = time.monotonic()
        # A reader that fails at each look is no reason to fetch at each look, nor to forget the waits of a retry.
        if self._error is None and now - self._doubts_heeded > LAST_RETRY:
            self._doubts_heeded = now
            self.soon()

    def close(self) -> None:
        """Ends a fetch that is under way, and the thread."""
        self._stopping.set()
        self._mirror.stop()
        self.soon()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._drain()
            self._fetch()
            self._wait()

    def _drain(self) -> None:
        # Whoever asked until now is answered by the fetch that begins now.
        with contextlib.suppress(queue.Empty):
            while True:
                self._asked.get_nowait()

    def _wait(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._asked.get(timeout=self._pause())
            self._stopping.wait(self._begun + GAP - time.monotonic())

    def _pause(self) -> float:
        if not self._failures:
            return self._interval * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
        most = max(LAST_RETRY, self._interval)
        return delay(self._failures - 1, random.random(), FIRST_RETRY, most)  # noqa: S311

    def _fetch(self) -> None:
        self._begun = began = time.monotonic()
        self._metrics.fetches.inc()
        doubted, self._doubted = self._doubted, False
        try:
            commit = self._mirror.fetch()
        except SourceError as error:
            if not self._stopping.is_set():
                self._failed(str(error))
            return
        except Exception as error:
            # A fault of ours: the thread goes on, and the metrics say that it does not get anywhere.
            self._log.exception("fetch failed")
            self._failed(f"{type(error).__name__}: {error}")
            return
        self._good = time.monotonic()
        was, self._error, self._failures = self._error, None, 0
        if was is not None:
            self._log.info("fetch works again", url=self._mirror.remote.url, commit=commit)
        if was is not None or doubted or commit != self._commit:
            self._log.debug("fetched", commit=commit, seconds=round(self._good - began, 3))
            self._commit = commit
            self._moved()

    def _failed(self, reason: str) -> None:
        self._failures += 1
        self._metrics.fetch_failures.inc()
        if reason != self._error:
            # Once, not with each try.
            self._log.error("fetch failed", error=reason)
        self._error = reason
        # Each failure counts as a look that failed, when it happens.
        self._moved()
