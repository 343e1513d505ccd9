"""Low space while collections run and while it comes and goes: each hurry is one, and they are not too many."""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from envfabric.build.cache import Evicted
from envfabric.loop.collecting import HURRY_INTERVAL, Collecting, Schedule
from envfabric.store.files import Files
from envfabric.store.history import History
from envfabric.store.root import Root
from envfabric.store.usage import Usage
from envfabric.telemetry.metrics import Metrics
from store.collection import World


class Turn:
    """Collections whose end, disk and clock are the test's."""

    def __init__(self, root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.free = 0.0, 1
        self.hurries: list[bool] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

        def prune(hurry: bool) -> Evicted:
            self.hurries.append(hurry)
            assert self.go_on.wait(60)
            return Evicted(0, 0, 0)

        def statvfs(path: object) -> Any:
            return SimpleNamespace(f_bavail=self.free, f_blocks=100, f_frsize=1, f_favail=0, f_files=0)

        monkeypatch.setattr(os, "statvfs", statvfs)
        schedule = Schedule(10_000.0, 5.0, prune)
        parts = World(root).collector(), Usage(root, Files()), Metrics(), History(root, Files())
        self.collecting = Collecting(root, *parts, schedule, self.calls.put, lambda: self.now)

    def end(self) -> None:
        """Waits for the collection that runs, and takes its outcome."""
        self.go_on.set()
        self.calls.get(timeout=60)()


@pytest.fixture
def turn(root: Root, monkeypatch: pytest.MonkeyPatch) -> Iterator[Turn]:
    made = Turn(root, monkeypatch)
    yield made
    made.go_on.set()
    made.collecting.close()


def test_ordinary_collection_takes_no_hurrys_turn(turn: Turn) -> None:
    """Space that gets low while a collection runs is looked after once that has ended, not much later."""
    turn.go_on.clear()
    turn.collecting.begin(lambda _: None)
    turn.collecting.tick()
    turn.end()
    turn.now += 10
    turn.collecting.tick()
    turn.end()
    assert turn.hurries == [False, True]


def test_space_that_flaps_begins_no_row_of_collections(turn: Turn) -> None:
    """Free space around the threshold is not collected for with each look: the shortest wait lies between."""
    for number in range(61):
        turn.free = 1 if number % 2 == 0 else 50
        turn.now = 10.0 * number
        before = len(turn.hurries)
        turn.collecting.tick()
        if turn.collecting._running:
            turn.end()
            assert len(turn.hurries) == before + 1
    assert turn.hurries == [True] * (1 + int(600 // HURRY_INTERVAL))
