"""Work that several specs may wait for: one run for each key, a bounded number of runs at a time."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

W = TypeVar("W")


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
