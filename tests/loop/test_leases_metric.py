"""The metric of leases follows them, whether anything is collected or not."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator

import pytest

from envfabric.build.cache import Evicted
from envfabric.loop.collecting import LEASES_INTERVAL, Collecting, Schedule
from envfabric.store.files import Files
from envfabric.store.history import History
from envfabric.store.root import Root
from envfabric.store.usage import Usage
from envfabric.telemetry.metrics import Metrics
from store.collection import World
from support.waiting import wait_for


class Turn:
    """A turn in which no collection is due; its clock is the test's."""

    def __init__(self, root: Root) -> None:
        self.now = 0.0
        self.metrics = Metrics()
        calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        schedule = Schedule(0.0, 0.0, lambda _: Evicted(0, 0, 0))
        parts = World(root).collector(), Usage(root, Files()), self.metrics, History(root, Files())
        self.collecting = Collecting(root, *parts, schedule, calls.put, lambda: self.now)

    def shows(self, count: int) -> bool:
        self.now += LEASES_INTERVAL
        self.collecting.tick()
        return self.metrics.registry.get_sample_value("envfabric_leases") == count


@pytest.fixture
def turn(root: Root) -> Iterator[Turn]:
    made = Turn(root)
    yield made
    made.collecting.close()


def test_leases_are_counted_between_collections(root: Root, turn: Turn) -> None:
    """Taken, run out by the server's clock, and not to be read: then the last figure stays."""
    folder = root.leases / ("a" * 64)
    folder.mkdir()
    for number in range(3):
        (folder / f"node.{number}.a").write_text('{"ttl": 300}')
    wait_for(lambda: turn.shows(3), timeout=60, message="three leases are not counted")
    os.utime(folder / "node.0.a", (1, 1))
    wait_for(lambda: turn.shows(2), timeout=60, message="one that has run out is counted")
    root.leases.rename(root.path / "away")
    assert all(turn.shows(2) for _ in range(20))


def test_leases_that_do_not_answer_hold_no_end_up(root: Root, turn: Turn) -> None:
    """At most one waits for them, and a turn comes to its end meanwhile; what it finds later is no figure."""
    before = set(threading.enumerate())
    marker = root.marker.read_bytes()
    root.marker.unlink()
    # Whoever reads it waits until somebody writes.
    os.mkfifo(root.marker)
    assert turn.shows(0)
    writer: list[int] = []

    def reads() -> bool:
        # Refused until somebody has it open for reading.
        with contextlib.suppress(OSError):
            writer.append(os.open(root.marker, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writer)

    wait_for(reads, timeout=60, message="nobody counts")
    assert turn.shows(0)
    (waits,) = [one for one in set(threading.enumerate()) - before if one.name == "leases"]
    (root.leases / ("a" * 64)).mkdir()
    (root.leases / ("a" * 64) / "node.1.a").write_text("{}")
    turn.collecting.close()
    assert waits.is_alive()
    os.write(writer[0], marker)
    os.close(writer[0])
    waits.join(60)
    assert not waits.is_alive()
    assert turn.metrics.registry.get_sample_value("envfabric_leases") == 0
