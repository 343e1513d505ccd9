"""When the collector runs, and what the loop makes of what it did: on a schedule, at low space, on request.

One collection at a time, in a thread of its own; the loop's thread begins it and takes its outcome.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from envfabric.build.cache import Evicted
from envfabric.core.errors import StoreError
from envfabric.loop.figures import show_leases, show_room
from envfabric.store.collect import Collected, Collector
from envfabric.store.history import History
from envfabric.store.root import Root
from envfabric.store.usage import Usage
from envfabric.telemetry import logs
from envfabric.telemetry.metrics import Metrics

HURRY_INTERVAL = 300.0
"""Seconds between two collections at low space; doubled while they bring nothing back, up to the schedule's."""
LEASES_INTERVAL = 60.0
"""Seconds between two counts of the leases for the metric: each is one read of every lease."""
_LONGEST = 3600.0
"""The most seconds between two of those where the schedule has none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a collection came to."""

    collected: Collected
    evicted: Evicted

    @property
    def freed_bytes(self) -> int:
        """Bytes that came back on disk."""
        return self.collected.freed.bytes + self.evicted.bytes

    @property
    def freed_inodes(self) -> int:
        """Inodes that came back on disk."""
        return self.collected.freed.inodes + self.evicted.inodes


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a collection begins by itself."""

    interval: float
    """Seconds between two; 0 for never."""
    min_free: float
    """Free space or inodes, in percent, below which one begins at once."""
    prune: Callable[[bool], Evicted] = field(repr=False)
    """Evicts from uv's cache what no closure links; told whether space is low."""


class Collecting:
    """The collections of one turn as the writer. Belongs to the loop's thread."""

    def __init__(
        self,
        root: Root,
        collector: Collector,
        usage: Usage,
        metrics: Metrics,
        history: History,
        schedule: Schedule,
        post: Callable[[Callable[[], None]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._root = root
        self._collector = collector
        self._usage = usage
        self._metrics = metrics
        self._history = history
        self._schedule = schedule
        self._post = post
        self._log = logs.get()
        self._pool = ThreadPoolExecutor(1, "collect")
        self._stopping = threading.Event()
        self._waiting: list[Callable[[Future[Outcome]], None]] = []
        self._running = False
        # The first one waits for a whole interval: at a start there is more urgent work.
        self._next = clock() + schedule.interval
        self._next_count = clock() + LEASES_INTERVAL
        self._counting: threading.Thread | None = None
        self._low = False
        self._hurried = -math.inf
        self._hurry_wait = HURRY_INTERVAL
        self._account_changed = False

    def tick(self) -> None:
        """Begins a collection where its time has come, or space is low."""
        clock = self._clock()
        low = self._space_is_low()
        if low != self._low:
            self._low = low
            # By the time that it is low again there may be something to collect. The last collection counts all
            # the same: free space that goes up and down around the threshold begins no row of them.
            self._hurry_wait = HURRY_INTERVAL
            if low:
                self._log.warning("space is low: collecting", min_free_percent=self._schedule.min_free)
            else:
                self._log.info("space is enough again", min_free_percent=self._schedule.min_free)
        # One that runs already is in no hurry: its turn comes when that has ended.
        hurry = low and not self._running and clock >= self._hurried + self._hurry_wait
        if hurry:
            self._hurried = clock
        if hurry or (self._schedule.interval > 0 and clock >= self._next):
            self.begin(lambda _: None, hurry=hurry)
        elif not self._running and clock >= self._next_count:
            # A collection counts them by itself.
            self._next_count = clock + LEASES_INTERVAL
            if self._counting is None or not self._counting.is_alive():
                # A thread of its own, which nobody joins: a mount that hangs holds up this figure, and neither
                # a collection that is asked for nor the daemon's end.
                self._counting = threading.Thread(target=self._count_leases, name="leases", daemon=True)
                self._counting.start()

    def begin(self, done: Callable[[Future[Outcome]], None], *, hurry: bool = False) -> None:
        """Begins a collection, or joins the one that runs; `done` hears its outcome in the loop's thread."""
        self._waiting.append(done)
        if self._running:
            return
        self._running = True
        self._next = self._clock() + self._schedule.interval
        done_so_far = Collected()
        future = self._pool.submit(self._collect, hurry, done_so_far)
        future.add_done_callback(lambda ended: self._post(partial(self._ended, ended, done_so_far, hurry)))

    def take_account_changed(self) -> bool:
        """Whether closures came or went since this was last asked: the gauges have to follow."""
        changed, self._account_changed = self._account_changed, False
        return changed

    def bring_back(self) -> None:
        """At a start: what is leased and lies in trash/, because a collector was killed half-way, comes back."""
        try:
            self._collector.bring_back(Collected())
        except (StoreError, OSError) as error:
            # Leases that can't be read stop collections, not the daemon.
            self._log.warning("trash not looked at", error=str(error))

    def still_writing(self) -> None:
        """For the collector, between its steps: raises `StoreError` where this daemon is stopping."""
        if self._stopping.is_set():
            raise StoreError("the daemon is stopping; the collection goes on at the next one's turn.")

    def close(self) -> None:
        """Ends what runs at its next step, and waits for it; not for a count of the leases, which only reads."""
        self._stopping.set()
        self._pool.shutdown(cancel_futures=True)

    def _count_leases(self) -> None:
        of = self._collector.retention.holdings
        # What can't be read now is told by the next collection.
        with contextlib.suppress(StoreError, OSError):
            self.still_writing()
            found = of.leases.survey(of.files.server_time(self._root.staging), self.still_writing)
            # It may have hung until long after this turn: the figure is the next one's then.
            self.still_writing()
            serving = (of.serving() or {}).values()
            served = {one.name for several in serving for one in several if one.name}
            show_leases(self._metrics, found, served, self._built)

    def _built(self, name: str) -> float | None:
        """When a closure was built, by the server's clock; None where it is not in the store. Raises `OSError`."""
        try:
            return (self._root.closure(name) / "metadata.json").stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            # An empty mount point looks the same.
            self._root.require_marker()
            return None

    def _collect(self, hurry: bool, collected: Collected) -> Outcome:
        self._collector.collect(hurry=hurry, done=collected)
        self.still_writing()
        return Outcome(collected, self._schedule.prune(hurry))

    def _ended(self, future: Future[Outcome], collected: Collected, hurry: bool) -> None:
        self._running = False
        waiting, self._waiting = self._waiting, []
        error = future.exception()
        # What a collection did before it failed is done, and leaves the account all the same.
        outcome = Outcome(collected, Evicted(0, 0, 0)) if error else future.result()
        self._count(outcome)
        if hurry:
            self._settle_hurry(bool(outcome.freed_bytes or outcome.freed_inodes), failed=error is not None)
        if error is None:
            self._metrics.gc_runs.inc()
            self._metrics.gc_last_success.set_to_current_time()
            self._metrics.leases.set(collected.leases)
            # Whose they are is counted with the next look.
            self._next_count = min(self._next_count, self._clock())
        elif not self._stopping.is_set():
            self._metrics.gc_runs.inc()
            self._metrics.gc_failures.inc()
            self._log.error("collection failed", error=str(error))
        for done in waiting:
            done(future)

    def _settle_hurry(self, brought: bool, *, failed: bool) -> None:
        """When space that is still low is looked after again, by what the last collection brought back."""
        most = max(self._schedule.interval or _LONGEST, HURRY_INTERVAL)
        if brought:
            self._hurry_wait = HURRY_INTERVAL
        elif self._low:
            if self._hurry_wait == HURRY_INTERVAL and not failed:
                self._log.warning(
                    "space is low, and nothing on ROOT can be removed: all is in use, or in its grace period. Make "
                    "room beside it, or see `envfabric gc --dry-run`"
                )
            self._hurry_wait = min(2 * self._hurry_wait, most)
        self._hurried = self._clock()

    def _count(self, outcome: Outcome) -> None:
        collected = outcome.collected
        for facts in collected.dropped:
            self._history.note("dropped", **facts)
        for name in collected.returned:
            with contextlib.suppress(OSError):
                self._usage.add(name)
        for name in collected.removed:
            try:
                self._usage.remove(name)
                if (self._root.closure(name) / "metadata.json").is_file():
                    # Built again since, and counted then.
                    self._usage.add(name)
            except OSError as error:
                self._log.warning("closure not taken off the account", digest=name, error=str(error))
            self._history.note("collected", closure=name)
        for name in collected.pythons:
            self._history.note("collected", python=name)
        self._account_changed = self._account_changed or bool(collected.removed or collected.returned)
        self._metrics.gc_removed.inc(len(collected.removed))
        self._metrics.gc_reclaimed.inc(outcome.freed_bytes)
        if collected.bytecode is not None:
            self._metrics.bytecode_inodes.set(collected.bytecode[0])
            self._metrics.bytecode_bytes.set(collected.bytecode[1])
        self._log.info(
            "collected",
            closures=len(collected.removed),
            pythons=len(collected.pythons),
            generations=collected.generations,
            resolutions=collected.resolutions,
            bytes=outcome.freed_bytes,
            inodes=outcome.freed_inodes,
            kept=len(collected.kept),
        )

    def _space_is_low(self) -> bool:
        try:
            return show_room(self._metrics, self._root.path) < self._schedule.min_free
        except OSError:
            return False
