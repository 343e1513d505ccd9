"""The loop: one thread that looks at the repository, hands out work and publishes what came of it.

Everything that happens (refs moved, a step ended, a time came) reaches the loop through one queue.
"""

import contextlib
import functools
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable

from envfabric.core.errors import StoreError
from envfabric.index.document import Index
from envfabric.index.publisher import Publisher
from envfabric.loop.board import Board
from envfabric.loop.collecting import Collecting
from envfabric.loop.orders import Orders
from envfabric.loop.plan import Found, make_plan
from envfabric.loop.repair import Repair
from envfabric.loop.work import Work
from envfabric.specs.repository import Repository, SourceError
from envfabric.specs.revisions import Revision, read_revision
from envfabric.specs.tree import Wanted
from envfabric.store.closures import Closures
from envfabric.store.history import History
from envfabric.store.left import Left
from envfabric.store.pins import Pins
from envfabric.store.requests import Answer, Request
from envfabric.store.usage import Usage
from envfabric.store.writer import LostWriter, Writer
from envfabric.telemetry import logs
from envfabric.telemetry.metrics import STATES, Metrics

ROUND = 1.0
"""The longest time in seconds between two rounds: the loop's heartbeat."""


class Reconciler:
    """Makes the index follow the repository. `run` belongs to one thread; `stop` and `look_soon` to any."""

    def __init__(
        self,
        repository: Repository,
        writer: Writer,
        closures: Closures,
        usage: Usage,
        pins: Pins,
        left: Left,
        board: Board,
        work: Work,
        publisher: Publisher,
        orders: Orders,
        collecting: Collecting,
        repair: Repair,
        history: History,
        metrics: Metrics,
        inbox: queue.SimpleQueue[Callable[[], None]],
        *,
        interval: float,
        once: bool,
    ) -> None:
        """`inbox` brings calls for the loop's thread; `left` knows the closures that were out of use;
        `interval` is the time in seconds between two looks; with `once`, `run` ends when all is true."""
        self._repository = repository
        self._writer = writer
        self._closures = closures
        self._usage = usage
        self._pins = pins
        self._left = left
        self._publisher = publisher
        self._orders = orders
        self._collecting = collecting
        self._repair = repair
        self._history = history
        self._metrics = metrics
        self._interval = interval
        self._once = once
        self._inbox = inbox
        self._stopping = threading.Event()
        self._log = logs.get()
        self._held: set[str] = set()
        self._next_look = 0.0
        self._revision: Revision | None = None
        self.board = board
        self.work = work
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
                if (
                    self._once
                    and self.work.idle
                    and not self._orders.open
                    and self._publication_wait() is None
                ):
                    break
                self._wait()
        finally:
            self._close()
        return self._publisher.published

    def carry_out(self, request: Request, on_round: Callable[[], None] = lambda: None) -> Answer:
        """Carries out one order on what is published, without looking for newer commits.

        Raises `LostWriter`, `SourceError`, `StoreError` and `OSError`.
        """
        try:
            self._begin()
            published = self._publisher.published
            if published is None or published.revision is None:
                return Answer(
                    False, "nothing is published yet; start the daemon, or `envfabric run --once`, first"
                )
            wanted = read_revision(self._repository, published.revision).wanted
            self.board.stand(published, wanted)
            # No look comes due: the loop would not wait at all.
            self._next_look = math.inf
            poll = self._orders.begin(request)
            while not self._stopping.is_set():
                self._steps()
                answer = poll()
                if answer is not None:
                    return answer
                on_round()
                self._wait()
            return Answer(False, "interrupted")
        finally:
            self._close()

    def _close(self) -> None:
        # uv first: a collection and a repair wait for theirs.
        self.work.stop()
        self._collecting.close()
        self._repair.close()
        self.work.close()
        with contextlib.suppress(StoreError, OSError):
            # The trail is the next writer's by now where this one was deposed.
            self._writer.check()
            self._history.flush()

    def _begin(self) -> None:
        self._held = self._closures.recover()
        self._collecting.bring_back()
        self._usage.load()
        published = self._publisher.load()
        self._publisher.adopt_links()
        self.board.load_retries()
        if published:
            self.board.entries = dict(published.entries)
            self.board.problems = published.problems
        self._show()

    def _round(self) -> None:
        if time.monotonic() >= self._next_look:
            self._look()
        self._orders.take()
        for spec_id in self.board.wake_retries():
            self.work.add(spec_id)
        self._steps()
        self._orders.settle()
        self._history.flush()

    def _steps(self) -> None:
        if self.work.start():
            self._publisher.want(outcome=False)
        if self._publication_wait() == 0.0:
            self._publish()
        if self._collecting.take_account_changed():
            self._show()

    def _wait(self) -> None:
        clock = time.monotonic()
        waits = [ROUND, self._next_look - clock]
        waits += [one for one in (self.board.next_retry(), self._publication_wait()) if one is not None]
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
        began = time.monotonic()
        self._next_look = began + self._interval
        try:
            # One that lost its lock while it had nothing to publish finds out here, too.
            self._writer.check()
            if self._held:
                self._held = self._closures.recover(self._held)
            # Before git is asked, which may be away: what is published and the room for it do not hang on it.
            self._publisher.look()
            if not self._once:
                self._collecting.tick()
            commit = self._repository.head()
            if commit is None:
                raise SourceError("the branch has no commit any more; what was published stays")
            if commit != self.board.revision:
                with self._metrics.reconcile_duration.time():
                    self._adopt(commit)
                self._metrics.reconciles.inc()
        except LostWriter:
            raise
        except (SourceError, StoreError, OSError) as error:
            self._metrics.reconciles.inc()
            self._metrics.reconcile_failures.inc()
            self._log.error("look failed", error=str(error))
            if self._once:
                raise
            return
        self._metrics.reconcile_last_success.set_to_current_time()
        self._log.debug("looked", commit=commit, seconds=round(time.monotonic() - began, 4))

    def _adopt(self, commit: str) -> None:
        """Makes `commit` the revision: compares it with what is served and queues the difference."""
        began = time.monotonic()
        revision = read_revision(self._repository, commit, self._revision)
        wanted, found = revision.wanted, self._found()
        plan = make_plan(commit, wanted, self.board.refs, self.board.entries, found)
        # Before the revision counts as seen: what fails here is done again with the next look.
        for spec_id in (*plan.removed, *self._ended_pins(wanted, found)):
            self._pins.remove(spec_id)
        self.board.adopt(commit, wanted, plan)
        # Only what was adopted is a base for the next: entries and specs belong together.
        self._revision = revision
        for spec_id in plan.removed + plan.refused:
            self.work.forget(spec_id)
        # One that is refused gets nothing new, but what it serves is healed like any other's.
        # Those that wait for it since an order to repair were forgotten just now, too.
        for spec_id in (*plan.changed, *(self.board.heal.keys() & set(plan.refused))):
            self.work.add(spec_id)
        self._log.info(
            "revision",
            commit=commit,
            specs=len(wanted.specs),
            changed=len(plan.changed),
            removed=len(plan.removed),
            problems=len(wanted.problems),
            lost=len(plan.lost),
            seconds=round(time.monotonic() - began, 4),
        )
        # With changes under way the outcome is published, and not a moment before it that nobody needs.
        self._publisher.want(outcome=not plan.changed or bool(plan.lost))

    def _ended_pins(self, wanted: Wanted, found: Found | None) -> list[str]:
        """The specs whose pin ends with this revision, because their content is another than it was set for."""
        pinned = {one: entry.tree for one, entry in self.board.entries.items() if entry.pinned}
        if found:
            pinned |= {one: pin.tree for one, pin in found.pins.items()}
        trees = {one: ref.tree for one, ref in wanted.specs.items() if one in pinned}
        return [one for one, tree in pinned.items() if trees.get(one) != tree]

    def _found(self) -> Found | None:
        """What a start finds on ROOT; nothing is looked for later."""
        if self.board.revision is not None:
            return None
        waiting = () if self._once else set(self.board.retries)
        # Thousands of specs share a few closures: each is looked at once.
        present = functools.cache(self._closures.present)
        return Found(present, self._closures.damaged(), waiting, self._pins.all())

    def _publish(self) -> None:
        board, began = self.board, time.monotonic()
        before = self._publisher.published
        try:
            # Before anything is written: a lower epoch changes nothing any more.
            self._writer.check()
            if left := set(self._left.known()):
                for name in left.intersection(one.serving for one in board.entries.values()):
                    # Before it is named again: its grace period begins anew when it leaves the next time.
                    self._left.forget(name)
            board.keep_retries()
            self._publisher.publish(board.revision, board.entries, board.problems)
        except LostWriter:
            raise
        except (OSError, StoreError) as error:
            if self._once:
                raise
            self._metrics.reconciles.inc()
            self._metrics.reconcile_failures.inc()
            there = self._publisher.published is not before
            self._log.error(
                "envs/ not brought up to date" if there else "index not published", error=str(error)
            )
            self._publisher.postpone()
        finally:
            # What is there is told, whatever failed behind it: nothing else would tell it later.
            if (index := self._publisher.published) is not None and index is not before:
                self._tell(before, index, began)
        self._show()

    def _tell(self, before: Index | None, index: Index, began: float) -> None:
        """What follows from an index that has just replaced another."""
        self._metrics.index_last_publish.set_to_current_time()
        self._note(before, index)
        for seconds in self.board.published():
            self._metrics.commit_to_publish.observe(seconds)
        self._log.info(
            "published",
            sequence=index.sequence,
            commit=index.revision,
            complete=index.complete,
            seconds=round(time.monotonic() - began, 4),
        )

    def _note(self, before: Index | None, index: Index) -> None:
        """What of a publication goes into the audit trail: who serves another generation than before."""
        old = before.entries if before else {}
        for spec_id, entry in index.entries.items():
            was = old.get(spec_id)
            if entry is not was and entry.generation != (was.generation if was else None):
                details = {"generation": entry.generation, "closure": entry.serving, "pinned": entry.pinned}
                self._history.note(
                    "serves", spec=spec_id, commit=entry.commit, sequence=index.sequence, **details
                )
        for spec_id in old.keys() - index.entries.keys():
            self._history.note("removed", spec=spec_id, sequence=index.sequence)

    def _show(self) -> None:
        totals = self._usage.totals()
        # Thousands of specs share a few closures.
        served = Counter(one.serving for one in self.board.entries.values() if one.serving)
        logical = sum(times * self._usage.logical(digest) for digest, times in served.items())
        self._metrics.store_closures.set(totals.closures)
        self._metrics.store_inodes.set(totals.inodes)
        self._metrics.store_physical_bytes.set(totals.physical_bytes)
        self._metrics.store_logical_bytes.set(logical)
        self._metrics.disk_saved_bytes.set(logical - totals.physical_bytes)
        counts = self.board.counts()
        for state in STATES:
            self._metrics.specs.labels(state).set(counts[state])
