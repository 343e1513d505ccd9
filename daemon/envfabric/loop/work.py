"""The steps that are waiting and running: recall, bring, resolve, build.

Each kind has slots of its own, so that a spec whose content is known waits behind no uv process; a
question that several specs ask, and a closure that several want, is answered once. What nobody wants any
more, because a newer commit or an order came, is ended, waiting or running. Belongs to the loop's thread; the
steps themselves run in worker threads and come back through the loop's queue.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import chain
from typing import Any, TypeVar

from envfabric.build.scope import current
from envfabric.core.errors import Reason, SpecError
from envfabric.loop.board import Board
from envfabric.loop.counting import Counting
from envfabric.loop.finishing import Finishing
from envfabric.loop.lane import Lane, Places, Waiter
from envfabric.loop.reading import Reading
from envfabric.loop.realise import Realiser
from envfabric.loop.runs import BACKLOG, BRINGERS, FINISHERS, QUEUED, RECALLERS, Runs, trials_at_a_time
from envfabric.loop.steps import Located, Made, Recalled, Request, Served, Suspended, Unchosen, Unresolved
from envfabric.loop.turns import Turns
from envfabric.specs.repository import Repository, SourceError
from envfabric.specs.tree import SpecRef
from envfabric.telemetry import logs
from envfabric.telemetry.metrics import Metrics

W = TypeVar("W", Unchosen, Unresolved, Located)
Q = TypeVar("Q", Unchosen, Unresolved)

_ASKERS_OWN = {Reason.INVALID_SPEC, Reason.VALIDATION}
"""Refusals that hang on the one who asked (its name, its need of Ray), not on the question."""


class Work:
    """The steps of one loop."""

    def __init__(
        self,
        board: Board,
        repository: Repository,
        realiser: Realiser,
        counting: Counting,
        metrics: Metrics,
        builders: int,
        limit: float,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        """`builders` closures are built at a time; `limit` is the time of a resolution or build in seconds, all its
        processes together; `post` hands a call to the loop's thread."""
        self._board = board
        self._reading = Reading(repository)
        self._realiser = realiser
        self._metrics = metrics
        self._counting = counting
        self._log = logs.get()
        self._turns = Turns()
        self._recalling: set[str] = set()
        # Whether a spec has turned to something else since it was last looked for what nobody wants.
        self._may_be_void = False
        # What a mirror keeps waiting is in the way of nobody who needs none.
        self._bringing: Lane[Waiter[Unchosen]] = Lane(BRINGERS)
        self._listing: Lane[Waiter[Unchosen]] = Lane(1)
        self._resolving: Lane[Waiter[Unresolved]] = Lane(2 * builders)
        self._building: Lane[Waiter[Located]] = Lane(builders)
        # By digest and trial: what hangs is in the way of no other spec with that closure.
        self._validating: Lane[Waiter[Located]] = Lane(trials := trials_at_a_time(builders))
        self._makers = (self._building, self._validating)
        self._lanes: tuple[Lane[Any], ...] = (self._listing, self._bringing, self._resolving, *self._makers)
        self._listable = Places(self._listing, QUEUED, RECALLERS)
        self._bringable = Places(self._bringing, QUEUED, RECALLERS)
        self._resolvable = Places(self._resolving, QUEUED, RECALLERS)
        self._buildable = Places(self._building, QUEUED, RECALLERS)
        self._validatable = Places(self._validating, QUEUED, RECALLERS)
        asked = (self._listable, self._bringable, self._resolvable)
        self._places = (*asked, self._buildable, self._validatable)
        threads = RECALLERS + 1 + BRINGERS + 3 * builders + trials + FINISHERS
        self._runs = Runs(board, threads, limit, post)
        self._finishing = Finishing(board, realiser, counting, self._turns, self._runs)
        self.phases: dict[str, str] = {}
        """What is being done now, phase by spec id, for a progress display."""

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not (
            self._turns
            or self._recalling
            or any(map(len, self._places))
            or any(lane.waiting or lane.running for lane in self._lanes)
            or not self._finishing.idle
        )

    def add(self, spec_id: str) -> None:
        """Has a spec's content looked into; what was to be done for earlier content is void."""
        self.forget(spec_id)
        self._turns.add(spec_id, tried=self._board.failed_before(spec_id))

    def forget(self, spec_id: str) -> None:
        """The spec is gone; a step that is running for nobody else is ended with the next `start`."""
        self._may_be_void = True
        self._turns.discard(spec_id)
        for places in self._places:
            places.leave(spec_id)
        self._counting.forget(spec_id)

    def has(self, spec_id: str) -> bool:
        """Whether anything is yet to be done for a spec, or is done now."""
        return (
            spec_id in self._turns
            or spec_id in self._recalling
            or any(spec_id in places for places in self._places)
            or self._finishing.knows(spec_id)
            or any(self._waits(one, spec_id) for lane in self._lanes for one in lane.waiters())
        )

    def start(self) -> bool:
        """Ends what nobody wants, and starts as many steps as there are free slots; whether a build was among them."""
        self._end_void()
        for bringing in (self._listing, self._bringing):
            for key, unchosen in bringing.start():
                self._ask(bringing, key, unchosen)
        for key, unresolved in self._resolving.start():
            self._ask(self._resolving, key, unresolved)
        before = sum(lane.waiting for lane in self._makers)
        for lane in self._makers:
            for key, located in lane.start():
                self._make(lane, key, located)
        self._finishing.start()
        waiting = sum(lane.waiting for lane in self._makers)
        # Only now: what has begun has made room.
        self._start_recalls()
        specs = len(self._turns) + sum(map(len, self._places))
        self._metrics.builds_in_progress.set(self._building.running)
        asking = self._listing.waiting + self._bringing.waiting + self._resolving.waiting
        self._metrics.build_queue_length.set(specs + asking + waiting)
        return waiting < before

    def _end_void(self) -> None:
        """What nobody asks for any more leaves the queue, or is ended; its slot is free once its thread has heard.

        Ended is, too, what failed before and is in the way of fresh work: it begins anew behind that.
        """
        for lane in self._makers:
            for key, others in lane.in_the_way():
                if self._runs.end(key):
                    self._log.info("put back", spec=others[0].ref.id, key=key)
        if not self._may_be_void:
            return
        self._may_be_void = False
        for each in self._lanes:
            each.drop(lambda waiters: not self._asking(waiters))
            for key, waiters in each.runs():
                if not self._asking(waiters) and self._runs.end(key):
                    self._log.info("superseded", spec=waiters[0].ref.id, key=key)

    def _start_recalls(self) -> None:
        for places in self._places:
            places.call()
        while len(self._recalling) < RECALLERS and self._finishing.waiting < BACKLOG:
            # One thread a spec: newer content waits for the step that is running for the older.
            spec_id = next((one for one in self._in_order() if one not in self._recalling), None)
            if spec_id is None:
                break
            self._turns.discard(spec_id)
            self._recall(spec_id)
        if not (self._turns or any(map(len, self._places))):
            self._reading.forget()

    def _in_order(self) -> Iterator[str]:
        """The specs that are to be looked into. Those who are called to a place come first: they are few."""
        return chain(*(places.called() for places in self._places), self._turns)

    def stop(self) -> None:
        """Ends what runs."""
        self._realiser.stop()

    def close(self) -> None:
        """Ends what runs and waits for it."""
        self.stop()
        self._runs.close()

    # Recall: read the spec, and find what is known of its content.

    def _recall(self, spec_id: str) -> None:
        ref = self._board.refs[spec_id]
        entry = self._board.entries[spec_id]
        try:
            heal = self._board.heal.get(spec_id)
            files = self._reading.files(ref, self._upcoming())
            request = Request(ref, entry.commit, files, entry.generation, heal)
        except (SpecError, SourceError) as error:
            self._answered(spec_id)
            self._board.fail(spec_id, error)
            return
        self._recalling.add(spec_id)
        self._runs.submit(partial(self._realiser.recall, request), partial(self._recalled, request), [ref])

    def _upcoming(self) -> Iterator[SpecRef]:
        """The specs whose turn comes next."""
        refs = self._board.refs
        return (refs[one] for one in self._in_order() if one in refs)

    def _answered(self, spec_id: str) -> None:
        for places in self._places:
            places.answered(spec_id)

    def _recalled(self, request: Request, future: Future[Recalled]) -> None:
        self._recalling.discard(request.ref.id)
        try:
            self._take_up(request, future)
        finally:
            self._answered(request.ref.id)

    def _take_up(self, request: Request, future: Future[Recalled]) -> None:
        ref = request.ref
        if not self._board.wants(ref) or ref.id in self._turns:
            # An order came since: it is looked into anew.
            return
        result = future.result()
        if not (isinstance(result, Located) and result.purpose == "healed"):
            # What had to be healed is whole by now, or can't be made again from its own files.
            self._board.heal.pop(ref.id, None)
            if not self._board.wants(ref):
                return
        if isinstance(result, Suspended):
            self._board.suspend(ref.id)
        elif isinstance(result, Served):
            self._counting.request(ref, hit=True)
            self._finishing.serve(ref.id, result.generation, pinned=result.pinned)
        elif isinstance(result, Unchosen | Unresolved):
            self._board.hold(ref.id, pinned=False)
            places = self._resolvable
            if isinstance(result, Unchosen):
                places = self._bringable if result.what else self._listable
            places.join(result.key, Waiter(ref, result), tried=self._board.failed_before(ref.id))
        else:
            if result.purpose != "healed":
                self._board.hold(ref.id, pinned=result.purpose == "pinned")
            self._located(result)

    def _located(self, located: Located) -> None:
        ref = located.request.ref
        self._counting.request(ref, hit=located.built)
        if located.built and located.due is None:
            self._finishing.add(located)
            return
        places, key = self._buildable, located.digest
        if located.built and located.due is not None:
            places, key = self._validatable, f"{key}-{located.due.key}"
        waiter = Waiter(ref, located, located.fate, located.purpose)
        places.join(key, waiter, tried=self._board.failed_before(ref.id))

    # Bring a Python, or resolve: ask uv, once for all who ask the same.

    def _ask(self, lane: Lane[Waiter[Q]], key: str, waiters: list[Waiter[Q]]) -> None:
        work = self._first(lane, key, waiters)
        if work is None:
            return
        done = partial(self._asked, lane, key, work)
        if isinstance(work, Unchosen):
            self.phases[work.spec.id] = "python"
            # What is said of it is told to others, too: it names no spec.
            doing = f"installing {work.what}" if work.what else "listing the Pythons that can be had"
            bring = partial(self._realiser.bring, work)
            self._runs.submit_bounded(key, doing, bring, done, [work.request.ref])
        else:
            self.phases[work.spec.id] = "resolve"
            resolve, doing = partial(self._realiser.resolve, work), f"resolving {work.spec.id}"
            self._runs.submit_bounded(key, doing, resolve, done, [work.request.ref])

    def _asked(
        self, lane: Lane[Waiter[Q]], key: str, work: Q, future: Future[tuple[Located, float] | None]
    ) -> None:
        self.phases.pop(work.spec.id, None)
        error = future.exception()
        waiters = lane.end(key)
        if not self._runs.take(key, future):
            self._ask_again(waiters)
            return
        for other in waiters[1:]:
            self._answer(other.ref, work.spec.id, error)
        if not self._board.asks(work.request.ref, "wanted"):
            return
        found = future.result()
        if found is None:
            # The Python is here now.
            self._turns.add_again(work.spec.id)
            return
        located, seconds = found
        self._metrics.build_duration.labels("resolve").observe(seconds)
        self._located(located)

    def _answer(self, ref: SpecRef, asker: str, error: BaseException | None) -> None:
        """What the asker's answer means for another spec with the same question."""
        if not self._board.asks(ref, "wanted"):
            return
        if error is None or (isinstance(error, SpecError) and error.reason in _ASKERS_OWN):
            self._turns.add_again(ref.id)
        elif isinstance(error, SpecError):
            told = SpecError(error.reason, error.message.replace(asker, ref.id), error.output)
            self._board.fail(ref.id, told)
        else:
            self._board.fail(ref.id, error)

    # Build: once for all who want the closure. Validate: once for all who want the same of it.

    def _make(self, lane: Lane[Waiter[Located]], key: str, waiters: list[Waiter[Located]]) -> None:
        work = self._first(lane, key, waiters)
        if work is None:
            return
        for one in waiters:
            if one.purpose != "healed":
                self._board.building(one.ref.id)
        step, doing = self._realiser.validate, "validating"
        if lane is self._building:
            step, doing = self._realiser.build, "building"
            self._metrics.builds.inc()
            self._log.info("build", spec=work.id, commit=work.request.commit, digest=key)

        def tell(phase: str) -> None:
            # A phase may take long without any process that would be ended.
            current().check()
            self.phases[work.id] = phase

        done = partial(self._made, lane, key, work)
        self._runs.submit_bounded(
            key, f"{doing} {work.id}", partial(step, work, tell), done, [work.request.ref]
        )

    def _made(self, lane: Lane[Waiter[Located]], key: str, work: Located, future: Future[Made]) -> None:
        self.phases.pop(work.id, None)
        first, *others = waiters = lane.end(key)
        error, digest = future.exception(), work.digest
        if not self._runs.take(key, future):
            self._ask_again(waiters)
            return
        if error is None:
            self._counting.build(work, future.result())
        for other in others:
            if not self._board.asks(other.ref, other.purpose):
                continue
            # A trial's key has all that it hangs on.
            if error is not None and (other.fate == first.fate or lane is self._validating):
                self._fail(other, error, digest)
            else:
                # It is there now; or its own lock may name other places for the same wheels.
                self._turns.add_again(other.ref.id)
        if not self._board.asks(first.ref, first.purpose):
            return
        if error is not None:
            self._fail(first, error, digest)
        elif lane is self._building and work.due is not None and future.result() != "kept":
            # It is validated in a turn of its own.
            self._turns.add_again(first.ref.id)
        else:
            self._finishing.add(work)

    def _fail(self, waiter: Waiter[Located], error: BaseException, digest: str) -> None:
        """A build failed for one who waited for it."""
        spec_id = waiter.ref.id
        if waiter.purpose == "healed" and self._board.entries[spec_id].state == "pending":
            # What was served can't be made again now; the committed content may well be.
            self._board.heal.pop(spec_id, None)
            self._turns.add_again(spec_id)
        else:
            self._board.fail(spec_id, error, digest)

    def _first(self, lane: Lane[Waiter[W]], key: str, waiters: list[Waiter[W]]) -> W | None:
        """What the key's first waiter brought; without one that is still wanted the key does not run."""
        waiters[:] = self._asking(waiters)
        if waiters and waiters[0].work is not None:
            return waiters[0].work
        for one in lane.end(key):
            self._turns.add_again(one.ref.id)
        return None

    def _ask_again(self, waiters: Iterable[Waiter[Any]]) -> None:
        """Their run was ended, for nobody asked or it was in the way: whoever asks when it is over begins anew."""
        for one in self._asking(waiters):
            self._turns.add_again(one.ref.id)

    def _asking(self, waiters: Iterable[Waiter[Any]]) -> list[Waiter[Any]]:
        return [one for one in waiters if self._board.asks(one.ref, one.purpose)]

    def _waits(self, waiter: Waiter[W], spec_id: str) -> bool:
        return waiter.ref.id == spec_id and self._board.asks(waiter.ref, waiter.purpose)
