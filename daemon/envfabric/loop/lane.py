"""Work that several specs may wait for: one run for each key, a bounded number of runs at a time.

Only so many keys wait with what their steps need; whoever comes after them waits by its id alone. Starts nothing
itself.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from envfabric.loop.realise import Purpose
from envfabric.specs.tree import SpecRef

W = TypeVar("W")
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Waiter(Generic[C]):
    """A spec's content that waits in a lane. Only the first of a key carries what the step needs."""

    ref: SpecRef
    work: C | None
    lock: str = ""
    """The neutral digest of the lock that it would be built from."""
    purpose: Purpose = "wanted"


class Lane(Generic[W]):
    """Keys that wait and keys that run, each with those who want it. Belongs to the loop's thread."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._queue: OrderedDict[str, list[W]] = OrderedDict()
        self._running: dict[str, list[W]] = {}

    @property
    def waiting(self) -> int:
        """How many keys wait for a slot."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """How many keys run."""
        return len(self._running)

    def knows(self, key: str) -> bool:
        """Whether `key` waits or runs already."""
        return key in self._running or key in self._queue

    def waiters(self) -> Iterator[W]:
        """All who wait for a key, running or not."""
        for waiters in (*self._queue.values(), *self._running.values()):
            yield from waiters

    def add(self, key: str, waiter: W) -> None:
        """Has `key` run for `waiter`, or lets it join the run that there is."""
        if key in self._running:
            self._running[key].append(waiter)
        else:
            self._queue.setdefault(key, []).append(waiter)

    def start(self) -> Iterator[tuple[str, list[W]]]:
        """The keys whose turn has come; each runs from here on until `end`."""
        while self._queue and len(self._running) < self._slots:
            key, waiters = self._queue.popitem(last=False)
            self._running[key] = waiters
            yield key, waiters

    def end(self, key: str) -> list[W]:
        """The run is over; gives all who waited for it, the first of them first."""
        return self._running.pop(key)


class Places:
    """A bounded number of places in a lane's queue, and the specs that wait for one, by id only, in order.

    Belongs to the loop's thread, as the lane does. A spec that is called is looked into once more, and takes its
    place with whatever its step needs: what waits here, thousands it may be, holds nothing of it meanwhile.
    """

    def __init__(self, lane: Lane[Any], most: int, at_a_time: int) -> None:
        """`most` keys wait in the lane before a place has to be waited for; `at_a_time` specs are called."""
        self._lane = lane
        self._most = most
        self._at_a_time = at_a_time
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._called: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._called)

    def __contains__(self, spec_id: str) -> bool:
        return spec_id in self._waiting or spec_id in self._called

    def take(self, spec_id: str, key: str) -> bool:
        """Whether a spec may join the lane for `key` now; if not, it waits here and is called when it may."""
        # One that was called has waited already, however long the queue is by now: sent to the end of it again, it
        # might never come in. One that joins a key which is there carries nothing.
        if spec_id in self._called or self._lane.knows(key):
            return True
        if not self._waiting and self._lane.waiting < self._most:
            return True
        # Behind those who came sooner, also where there is a place by now.
        self._waiting[spec_id] = None
        return False

    def call(self) -> None:
        """Calls the next, where there are places."""
        while self._waiting and self._lane.waiting < self._most and len(self._called) < self._at_a_time:
            spec_id, _ = self._waiting.popitem(last=False)
            self._called[spec_id] = None

    def called(self) -> Iterator[str]:
        """The specs that are called, and not yet done with."""
        return iter(self._called)

    def answered(self, spec_id: str) -> None:
        """The spec that was called was looked into, whatever came of it."""
        self._called.pop(spec_id, None)

    def leave(self, spec_id: str) -> None:
        """The spec wants no place any more, or is looked into anew by itself."""
        self._waiting.pop(spec_id, None)
        self._called.pop(spec_id, None)
