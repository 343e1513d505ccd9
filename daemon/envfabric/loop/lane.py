"""Work that several specs may wait for: one run for each key, a bounded number of runs at a time.

What failed before goes behind what did not. Only so many keys wait with what their steps need; whoever comes after
them waits by its id alone. Starts nothing itself.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Generic, TypeVar

from envfabric.loop.steps import Purpose
from envfabric.specs.tree import SpecRef

W = TypeVar("W")
C = TypeVar("C")

PASSED_OVER = 32
"""Keys that go before one that failed before and could run; then that one has its turn, if its like leaves a slot."""


@dataclass(frozen=True, slots=True)
class Waiter(Generic[C]):
    """A spec's content that waits in a lane. Only the first of a key carries what the step needs."""

    ref: SpecRef
    work: C | None
    fate: str = ""
    """Equal for those for whom one run fails in the same way, see `Located`."""
    purpose: Purpose = "wanted"


class Lane(Generic[W]):
    """Keys that wait and keys that run, each with those who want it. Belongs to the loop's thread.

    Work that failed before lets all other work go first and has at most half of the slots: what always fails or
    hangs takes none from a new commit. It is not passed over for ever: see `PASSED_OVER`. Where half of the slots
    is the only one there is, see `in_the_way`.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._share = max(1, slots // 2)
        self._fresh: OrderedDict[str, list[W]] = OrderedDict()
        self._tried: OrderedDict[str, list[W]] = OrderedDict()
        self._running: dict[str, list[W]] = {}
        # With whether it was passed over before, so that its turn is its own.
        self._trying: dict[str, bool] = {}
        self._passed_over = 0

    @property
    def waiting(self) -> int:
        """How many keys wait for a slot."""
        return len(self._fresh) + len(self._tried)

    @property
    def running(self) -> int:
        """How many keys run."""
        return len(self._running)

    def queued(self, *, tried: bool) -> int:
        """How many keys wait that failed before, or that did not."""
        return len(self._tried if tried else self._fresh)

    def knows(self, key: str) -> bool:
        """Whether `key` waits or runs already."""
        return key in self._running or key in self._fresh or key in self._tried

    def waiters(self) -> Iterator[W]:
        """All who wait for a key, running or not."""
        for waiters in (*self._fresh.values(), *self._tried.values(), *self._running.values()):
            yield from waiters

    def runs(self) -> Iterator[tuple[str, list[W]]]:
        """The keys that run, each with all who wait for it."""
        return iter(self._running.items())

    def add(self, key: str, waiter: W, *, tried: bool = False) -> None:
        """Has `key` run for `waiter`, or lets it join the run that there is; `tried`: it failed before."""
        if key in self._running:
            self._running[key].append(waiter)
        elif key in self._fresh:
            self._fresh[key].append(waiter)
        elif tried:
            self._tried.setdefault(key, []).append(waiter)
        else:
            # Who comes with it for the first time does not wait for the sake of those it failed for.
            self._fresh[key] = [*self._tried.pop(key, ()), waiter]

    def drop(self, void: Callable[[list[W]], bool]) -> None:
        """Lets go of the waiting keys whose waiters are `void`."""
        for queue in (self._fresh, self._tried):
            for key in [key for key, waiters in queue.items() if void(waiters)]:
                del queue[key]

    def start(self) -> Iterator[tuple[str, list[W]]]:
        """The keys whose turn has come; each runs from here on until `end`."""
        while len(self._running) < self._slots and (queue := self._turn()):
            key, waiters = queue.popitem(last=False)
            self._running[key] = waiters
            if queue is self._tried:
                self._trying[key] = bool(self._fresh)
            yield key, waiters

    def end(self, key: str) -> list[W]:
        """The run is over; gives all who waited for it, the first of them first."""
        self._trying.pop(key, None)
        return self._running.pop(key)

    def in_the_way(self) -> list[tuple[str, list[W]]]:
        """The runs to be ended, and asked for again later: they failed before, began when nothing else waited, and
        leave no slot to the fresh work that waits by now."""
        if not self._fresh or len(self._trying) < self._slots:
            return []
        return [(key, self._running[key]) for key, earned in self._trying.items() if not earned]

    def _turn(self) -> OrderedDict[str, list[W]] | None:
        """The queue whose first key is next, if any may start."""
        may_try = self._tried and len(self._trying) < self._share
        if may_try and (not self._fresh or self._passed_over >= PASSED_OVER):
            self._passed_over = 0
            return self._tried
        if self._fresh:
            self._passed_over += bool(may_try)
            return self._fresh
        return None


class Places:
    """A bounded number of places in a lane's two queues, and the specs that wait for one, by id only, in order.

    Belongs to the loop's thread, as the lane does. A spec that is called is looked into once more, and takes its
    place with whatever its step needs: what waits here, thousands it may be, holds nothing of it meanwhile. Those
    that failed before have places of their own: however many they are, they are in nobody's way.
    """

    def __init__(self, lane: Lane[Any], most: int, at_a_time: int) -> None:
        """`most` keys wait in a queue before a place has to be waited for; `at_a_time` specs are called."""
        self._lane = lane
        self._most = most
        self._at_a_time = at_a_time
        # By whether they failed before.
        self._waiting: dict[bool, OrderedDict[str, None]] = {False: OrderedDict(), True: OrderedDict()}
        self._called: dict[bool, OrderedDict[str, None]] = {False: OrderedDict(), True: OrderedDict()}

    def __len__(self) -> int:
        return sum(map(len, (*self._waiting.values(), *self._called.values())))

    def __contains__(self, spec_id: str) -> bool:
        return any(spec_id in ids for ids in (*self._waiting.values(), *self._called.values()))

    def take(self, spec_id: str, key: str, *, tried: bool = False) -> bool:
        """Whether a spec may join the lane for `key` now; if not, it waits here and is called when it may."""
        # One that was called has waited already, however long the queue is by now: sent to the end of it again, it
        # might never come in. One that joins a key which is there carries nothing.
        if spec_id in self.called() or self._lane.knows(key):
            return True
        waiting = self._waiting[tried]
        if not waiting and self._lane.queued(tried=tried) < self._most:
            return True
        # Behind those who came sooner, also where there is a place by now.
        waiting[spec_id] = None
        return False

    def join(self, key: str, waiter: Waiter[Any], *, tried: bool = False) -> None:
        """Has a waiter join the lane if it may now; one that comes to a key that is there carries nothing."""
        known = self._lane.knows(key)
        if self.take(waiter.ref.id, key, tried=tried):
            self._lane.add(key, replace(waiter, work=None) if known else waiter, tried=tried)

    def call(self) -> None:
        """Calls the next, where there are places."""
        for tried, waiting in self._waiting.items():
            called = self._called[tried]
            while waiting and self._lane.queued(tried=tried) < self._most and len(called) < self._at_a_time:
                spec_id, _ = waiting.popitem(last=False)
                called[spec_id] = None

    def called(self) -> Iterator[str]:
        """The specs that are called, and not yet done with."""
        return chain(*self._called.values())

    def answered(self, spec_id: str) -> None:
        """The spec that was called was looked into, whatever came of it."""
        for called in self._called.values():
            called.pop(spec_id, None)

    def leave(self, spec_id: str) -> None:
        """The spec wants no place any more, or is looked into anew by itself."""
        for ids in (*self._waiting.values(), *self._called.values()):
            ids.pop(spec_id, None)
