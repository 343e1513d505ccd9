"""The time in which a daemon isn't the writer: it waits, in pauses that events end, and shows what another publishes.

Takes no lock and writes nothing, on ROOT or elsewhere; when to stand by, and when that is over, is the daemon's to say.
"""

import contextlib
import os
import queue
import time

from envfabric.index.document import Index, from_json
from envfabric.loop.figures import show_published, show_room
from envfabric.service.watchdog import Watchdog
from envfabric.store.root import Root
from envfabric.telemetry.metrics import Metrics

STANDBY_INTERVAL = 1.0
"""Seconds between two tries of a standby to become the writer."""


class Standby:
    """What a standby has seen of ROOT, and its pauses."""

    def __init__(self, root: Root, metrics: Metrics, watchdog: Watchdog) -> None:
        self._root = root
        self._metrics = metrics
        self._watchdog = watchdog
        # A SimpleQueue may be put to by a signal handler that interrupts its reader.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._seen_at = 0
        self.seen: Index | None = None
        """What was published when it last looked."""

    def end_pause(self) -> None:
        """Ends the present pause, or the next one; safe in a signal handler and in any thread."""
        self._wake.put(None)

    def pause(self, seconds: float = STANDBY_INTERVAL) -> None:
        """Waits so long, or until `end_pause`."""
        self._watchdog.beat()
        # In short waits: each is a beat of the loop, which has none in between.
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=min(left, STANDBY_INTERVAL))
                return
            self._watchdog.beat()

    def look(self) -> None:
        """Takes up what the writer has published since the last look; what can't be read stays as it was seen."""
        # One that waits for a NAS that hangs gains nothing by being started again.
        self._watchdog.declare(f"waiting for {self._root.path}")
        with contextlib.suppress(OSError, ValueError):
            show_room(self._metrics, self._root.path)
            # A network file system's client shows the new file once the folder was opened.
            os.close(os.open(self._root.path, os.O_RDONLY | os.O_DIRECTORY))
            stamp = self._root.index.stat().st_mtime_ns
            if stamp != self._seen_at:
                self.seen, self._seen_at = from_json(self._root.index.read_bytes()), stamp
                show_published(self._metrics, self.seen)

    def show(self, index: Index | None) -> None:
        """What this daemon's own turn published last; the next writer's takes its place at the next look."""
        self.seen, self._seen_at = index, 0
