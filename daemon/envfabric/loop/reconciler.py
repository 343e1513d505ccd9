"""The loop: one thread that looks at the repository, hands out work and publishes what came of it.

Everything that happens (refs moved, a step ended, a time came) reaches the loop through one queue.
"""

import contextlib
import functools
import math
import queue
import threading
import time
from collections.abc import Callable

from envfabric.core.errors import HeldBack, StoreError
from envfabric.index.document import Index
from envfabric.index.publisher import Publisher
from envfabric.loop.board import Board
from envfabric.loop.collecting import Collecting
from envfabric.loop.drift import Drift
from envfabric.loop.figures import show_figures, show_published
from envfabric.loop.gate import Gate
from envfabric.loop.orders import Orders
from envfabric.loop.plan import Found, ended_pins, make_plan
from envfabric.loop.repair import Repair
from envfabric.loop.trail import Trail
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
from envfabric.telemetry.metrics import Metrics

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
        gate: Gate,
        drift: Drift,
        history: History,
        trail: Trail,
        metrics: Metrics,
        inbox: queue.SimpleQueue[Callable[[], None]],
        *,
        interval: float,
        once: bool,
        behind: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`inbox` brings calls for the loop's thread; `left` knows the closures that were out of use;
        `interval` is the time in seconds between two looks; with `once`, `run` ends when all is true;
        `behind` says why the repository may not be what its remote is, see loop/fetching."""
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
        self._gate = gate
        self._drift = drift
        self._history = history
        self._trail = trail
        self._metrics = metrics
        self._interval = interval
        self._once = once
        self._behind = behind
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
                idle = self.work.idle and not (self._orders.open or self._repair.busy)
                if self._once and idle and self._publication_wait() is None:
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
            revision = read_revision(self._repository, published.revision)
            self.board.stand(published, revision.wanted)
            refused = self._gate.check_order(request.command, revision, self.board.entries)
            if refused is not None:
                return Answer(False, refused)
            # No look comes due: the loop would not wait at all.
            self._next_look = math.inf
            poll = self._orders.begin(request)
            while not self._stopping.is_set():
                if self._gate.take_confirmed():
                    self._look()
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
        self._drift.close()
        self._collecting.close()
        self._repair.close()
        self.work.close()
        with contextlib.suppress(StoreError, OSError):
            # The trail is the next writer's by now where this one was deposed.
            self._writer.check()
            self._trail.close(self._publisher.published)
            self._history.flush()

    def _begin(self) -> None:
        self._held = self._closures.recover()
        self._collecting.bring_back()
        self._usage.load()
        published = self._publisher.load()
        self._publisher.adopt_links()
        self._trail.begin(published)
        self.board.load_retries()
        if published:
            self.board.entries = dict(published.entries)
            self.board.problems = published.problems
            show_published(self._metrics, published)
        self._show()

    def _round(self) -> None:
        if time.monotonic() >= self._next_look:
            self._look()
        self._orders.take()
        if self._gate.take_confirmed():
            self._look()
        for spec_id in self.board.wake_retries():
            self.work.add(spec_id)
        self._steps()
        self._orders.settle()
        self._trail.flush()

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
            # Kept first: a look that fails must not forget them.
            self._held |= self._closures.take_left()
            if self._held:
                self._held = self._closures.recover(self._held)
            # Before git is asked, which may be away: what is published and the room for it do not hang on it.
            self._publisher.look()
            if not self._once:
                self._collecting.tick()
                self._drift.tick()
            commit = self._repository.head()
            if commit is None:
                raise SourceError("the branch has no commit any more; what was published stays")
            # What is in force can be what is held back, where the settings have changed since it was published.
            if commit != self.board.revision or self._gate.holds(commit):
                self._follow(commit)
                self._metrics.reconciles.inc()
            if self._gate.clear():
                self._publisher.want(outcome=True)
        except LostWriter:
            raise
        except HeldBack:
            # Told by the gate. What is in force goes on, and so do its retries, orders and repairs.
            return
        except (SourceError, StoreError, OSError) as error:
            self._metrics.reconciles.inc()
            self._metrics.reconcile_failures.inc()
            self._log.error("look failed", error=str(error))
            if self._once:
                raise
            if isinstance(error, SourceError) and self._gate.doubt(str(error)) and self.board.revision:
                self._publisher.want(outcome=True)
            return
        if (why := self._behind()) is not None:
            # What is there was made true, but whether it is the newest is not known.
            self._metrics.reconciles.inc()
            self._metrics.reconcile_failures.inc()
            self._log.debug("looked behind", why=why)
            return
        self._metrics.reconcile_last_success.set_to_current_time()
        self._log.debug("looked", commit=commit, seconds=round(time.monotonic() - began, 4))

    def _follow(self, commit: str) -> None:
        """Makes `commit` the revision. Raises `HeldBack` where something speaks against that."""
        began = time.monotonic()
        try:
            revision = self._gate.read(commit, self._revision, self.board.entries, self.board.revision)
        except HeldBack as error:
            changed = self._gate.hold(commit, error)
            if self.board.revision is None:
                self._stand()
            if changed:
                self._publisher.want(outcome=True)
            raise
        self._adopt(revision)
        self._gate.passed()
        self._metrics.reconcile_duration.observe(time.monotonic() - began)

    def _stand(self) -> None:
        """Takes the revision that is published for the one in force, where a start finds the newest held back."""
        published = self._publisher.published
        if published is None or published.revision is None:
            return
        try:
            self._gate.check_signature(published.revision)
            revision = read_revision(self._repository, published.revision)
        except (SourceError, HeldBack) as error:
            # Nothing is built from a commit that is gone, or that the settings do not allow any more.
            self._log.warning("what is published stays as it is", commit=published.revision, why=str(error))
            self.board.stand(published, Wanted())
            self.board.problems = self._gate.without_held(published.problems)
            return
        self._adopt(revision)

    def _adopt(self, revision: Revision) -> None:
        """Compares a revision with what is served and queues the difference."""
        began, commit = time.monotonic(), revision.commit
        wanted, found = revision.wanted, self._found()
        plan = make_plan(commit, wanted, self.board.refs, self.board.entries, found)
        # Before the revision counts as seen: what fails here is done again with the next look.
        for spec_id in (*plan.removed, *ended_pins(wanted.specs, self.board.entries, found)):
            self._pins.remove(spec_id)
        self.board.adopt(commit, wanted, plan)
        before = self._revision.commit if self._revision else None
        self._trail.adopted(before, commit, (wanted.specs[one] for one in plan.changed))
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

    def _found(self) -> Found | None:
        """What a start finds on ROOT; nothing is looked for later."""
        if self._revision is not None:
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
            self._publisher.publish(board.revision, board.entries, self._gate.problems(board.problems))
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
        self._trail.published(before, index)
        for seconds in self.board.published():
            self._metrics.commit_to_publish.observe(seconds)
        self._log.info(
            "published",
            sequence=index.sequence,
            commit=index.revision,
            complete=index.complete,
            seconds=round(time.monotonic() - began, 4),
        )

    def _show(self) -> None:
        show_figures(self._metrics, self._usage, self.board.entries)
