"""The loop: one thread that looks at the repository, hands out work and publishes what came of it.

Everything that happens (refs moved, a step ended, a time came) reaches the loop through one queue.
"""

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable

from envfabric.core.errors import StoreError
from envfabric.index.document import Index
from envfabric.index.publisher import Publisher
from envfabric.loop.board import Board
from envfabric.loop.plan import make_plan
from envfabric.loop.realise import Realiser
from envfabric.loop.work import Work
from envfabric.specs.repository import Repository, SourceError
from envfabric.specs.tree import find_specs
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.root import Root
from envfabric.store.usage import Usage
from envfabric.store.writer import LostWriter
from envfabric.telemetry import logs
from envfabric.telemetry.metrics import STATES, Metrics

ROUND = 1.0
"""The longest time in seconds between two rounds: the loop's heartbeat."""


class Reconciler:
    """Makes the index follow the repository. `run` belongs to one thread; `stop` and `look_soon` to any."""

    def __init__(
        self,
        repository: Repository,
        root: Root,
        files: Files,
        closures: Closures,
        usage: Usage,
        realiser: Realiser,
        publisher: Publisher,
        metrics: Metrics,
        *,
        builders: int,
        interval: float,
        once: bool,
    ) -> None:
        """`interval` is the time in seconds between two looks; with `once`, `run` ends when all is true."""
        self._repository = repository
        self._closures = closures
        self._usage = usage
        self._publisher = publisher
        self._metrics = metrics
        self._interval = interval
        self._once = once
        # A SimpleQueue may be put to by a signal handler that interrupts its reader.
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._log = logs.get()
        self._held: set[str] = set()
        self._next_look = 0.0
        self.board = Board(root, files, metrics, lambda: publisher.want(outcome=True))
        self.work = Work(self.board, repository, realiser, usage, metrics, builders, self._inbox.put)
        self.heartbeat = time.monotonic()
        """When the loop last went round, in monotonic seconds."""

    @property
    def published(self) -> Index | None:
        """What is published now."""
        return self._publisher.published

    def stop(self) -> None:
        """Ends `run` soon; safe in a signal handler."""
        self._stopping.set()
        self._inbox.put(lambda: None)

    def look_soon(self) -> None:
        """Asks for a look at the repository now."""
        self._inbox.put(self._look_now)

    def run(self, on_round: Callable[[], None] = lambda: None) -> Index | None:
        """Reconciles until `stop`, or with `once` until the revision that is there now is true.

        Gives what is published. Raises `LostWriter`, and with `once` also `SourceError`, `StoreError` and
        `OSError`.
        """
        try:
            self._begin()
            while not self._stopping.is_set():
                self.heartbeat = time.monotonic()
                self._round()
                on_round()
                if self._once and self.work.idle and self._publication_wait() is None:
                    break
                self._wait()
        finally:
            self.work.close()
        return self._publisher.published

    def _begin(self) -> None:
        self._held = self._closures.recover()
        self._usage.load()
        published = self._publisher.load()
        self._publisher.adopt_links()
        if published:
            self.board.entries = dict(published.entries)
            self.board.problems = published.problems
        self._show()

    def _round(self) -> None:
        if time.monotonic() >= self._next_look:
            self._look()
        for spec_id in self.board.wake_retries():
            self.work.add(spec_id)
        if self.work.start():
            self._publisher.want(outcome=False)
        if self._publication_wait() == 0.0:
            self._publish()

    def _wait(self) -> None:
        clock = time.monotonic()
        waits = [ROUND, self._next_look - clock]
        waits += [retry.due - clock for retry in self.board.retries.values() if retry.due > clock]
        due = self._publication_wait()
        if due is not None:
            waits.append(due)
        with contextlib.suppress(queue.Empty):
            event = self._inbox.get(timeout=max(0.0, min(waits)))
            while True:
                event()
                event = self._inbox.get_nowait()

    def _publication_wait(self) -> float | None:
        return self._publisher.wait(quiet=self.work.idle)

    def _look_now(self) -> None:
        self._next_look = 0.0

    def _look(self) -> None:
        self._next_look = time.monotonic() + self._interval
        try:
            if self._held:
                self._held = self._closures.recover(self._held)
            commit = self._repository.head()
            if commit is None:
                raise SourceError("the branch has no commit any more; what was published stays")
            if commit != self.board.revision:
                with self._metrics.reconcile_duration.time():
                    self._adopt(commit)
                self._metrics.reconciles.inc()
            self._publisher.look()
        except (SourceError, OSError) as error:
            self._metrics.reconciles.inc()
            self._metrics.reconcile_failures.inc()
            self._log.error("look failed", error=str(error))
            if self._once:
                raise
            return
        self._metrics.reconcile_last_success.set_to_current_time()

    def _adopt(self, commit: str) -> None:
        """Makes `commit` the revision: compares it with what is served and queues the difference."""
        wanted = find_specs(self._repository.tree(commit))
        first = self.board.revision is None
        # Thousands of specs share a few closures: each is looked at once.
        exists = functools.cache(self._closures.exists) if first else None
        plan = make_plan(commit, wanted, self.board.refs, self.board.entries, exists)
        self.board.adopt(commit, wanted, plan)
        for spec_id in plan.removed + plan.refused:
            self.work.forget(spec_id)
        for spec_id in plan.changed:
            self.work.add(spec_id)
        self._log.info(
            "revision",
            commit=commit,
            specs=len(wanted.specs),
            changed=len(plan.changed),
            removed=len(plan.removed),
            problems=len(wanted.problems),
            lost=len(plan.lost),
        )
        # With changes under way the outcome is published, and not a moment before it that nobody needs.
        self._publisher.want(outcome=not plan.changed or bool(plan.lost))

    def _publish(self) -> None:
        board = self.board
        try:
            index = self._publisher.publish(board.revision, board.entries, board.problems)
        except LostWriter:
            raise
        except (OSError, StoreError) as error:
            if self._once:
                raise
            self._log.error("index not published", error=str(error))
            self._publisher.postpone()
            return
        self._show()
        if index is None:
            return
        self._metrics.index_last_publish.set_to_current_time()
        for seconds in board.published():
            self._metrics.commit_to_publish.observe(seconds)
        self._log.info("published", sequence=index.sequence, commit=index.revision, complete=index.complete)

    def _show(self) -> None:
        totals = self._usage.totals()
        served = [one.serving for one in self.board.entries.values() if one.serving]
        logical = sum(self._usage.logical(digest) for digest in served)
        self._metrics.store_closures.set(totals.closures)
        self._metrics.store_inodes.set(totals.inodes)
        self._metrics.store_physical_bytes.set(totals.physical_bytes)
        self._metrics.store_logical_bytes.set(logical)
        self._metrics.disk_saved_bytes.set(logical - totals.physical_bytes)
        counts = self.board.counts()
        for state in STATES:
            self._metrics.specs.labels(state).set(counts[state])
