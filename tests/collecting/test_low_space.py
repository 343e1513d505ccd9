"""Low space: collected at once, and less and less often while that brings nothing back."""

import itertools
import os
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from envfabric.build.cache import Evicted
from envfabric.loop.collecting import HURRY_INTERVAL, Collecting, Schedule
from envfabric.store.files import Files
from envfabric.store.history import History
from envfabric.store.prepare import init_root
from envfabric.store.usage import Usage
from envfabric.telemetry.metrics import Metrics
from store.collection import World
from support.waiting import wait_for

INTERVAL = 2000.0
A = "a" * 40


class Begun(Collecting):
    """Knows how many collections it began."""

    begun = 0

    def begin(self, *arguments: Any, **named: Any) -> None:
        self.begun += 1
        super().begin(*arguments, **named)


class Turn:
    """Collections on one ROOT, whose disk is as full, and whose clock as late, as a test says."""

    def __init__(self, world: World, interval: float = INTERVAL) -> None:
        self.world = world
        self.now = 0.0
        self.began: list[float] = []
        calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._calls = calls

        def prune(hurry: bool) -> Evicted:
            if hurry:
                self.began.append(self.now)
            return Evicted(0, 0, 0)

        root = world.root
        self.collecting = Begun(
            root,
            world.collector(),
            Usage(root, Files()),
            Metrics(),
            History(root, Files()),
            Schedule(interval, 5.0, prune),
            calls.put,
            lambda: self.now,
        )

    def go_on(self, seconds: float) -> list[str]:
        """What is logged while the daemon looks every ten seconds for so long."""
        with structlog.testing.capture_logs() as logs:
            end = self.now + seconds
            while self.now < end:
                before = self.collecting.begun
                self.collecting.tick()
                if self.collecting.begun > before:
                    wait_for(lambda: not self._calls.empty() or None, message="no collection ended")
                    self._calls.get()()
                self.now += 10
        return [one["event"] for one in logs if one["event"] not in {"collected", "closure removed"}]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(init_root(tmp_path / "nas", Files()))


@pytest.fixture
def disk(world: World, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What ROOT's file system says is free, in percent."""
    told = SimpleNamespace(free=1)

    def statvfs(path: Path) -> Any:
        assert path == world.root.path
        return SimpleNamespace(f_bavail=told.free, f_blocks=100, f_frsize=1, f_favail=0, f_files=0)

    monkeypatch.setattr(os, "statvfs", statvfs)
    return told


@pytest.fixture
def turn(world: World, disk: SimpleNamespace) -> Iterator[Turn]:
    made = Turn(world)
    yield made
    made.collecting.close()


def waits(times: list[float]) -> list[float]:
    return [later - sooner for sooner, later in itertools.pairwise(times)]


LOW, NOTHING, ENOUGH = (
    "space is low: collecting",
    "space is low, and nothing on ROOT",
    "space is enough again",
)


def assert_told(events: list[str], *wanted: str) -> None:
    assert len(events) == len(wanted), events
    assert all(event.startswith(start) for event, start in zip(events, wanted, strict=True))


def test_collections_that_bring_nothing_back_grow_rare(turn: Turn) -> None:
    """Twice as long each time, up to the schedule's interval; that space is low is told once."""
    assert_told(turn.go_on(20 * INTERVAL), LOW, NOTHING)
    assert turn.began[0] == 0
    assert waits(turn.began)[:3] == [2 * HURRY_INTERVAL, 4 * HURRY_INTERVAL, INTERVAL]
    assert set(waits(turn.began)[3:]) == {INTERVAL}


def test_without_a_schedule_there_is_an_end_of_growing(world: World, disk: SimpleNamespace) -> None:
    """An hour, where collections never begin by themselves otherwise."""
    turn = Turn(world, interval=0)
    turn.go_on(20 * 3600)
    assert max(waits(turn.began)) == 3600
    turn.collecting.close()


def test_one_that_brings_something_back_makes_them_frequent_again(turn: Turn) -> None:
    """Whoever frees a little may free more."""
    assert_told(turn.go_on(10 * INTERVAL), LOW, NOTHING)
    turn.world.closure(A)
    seen = len(turn.began)
    assert_told(turn.go_on(5 * INTERVAL), NOTHING)
    assert turn.world.stored() == set()
    # The first of them removed it, and the one after 300 s found nothing more.
    assert waits(turn.began[seen:])[:2] == [HURRY_INTERVAL, 2 * HURRY_INTERVAL]


def test_space_that_is_low_again_is_collected_at_once(turn: Turn, disk: SimpleNamespace) -> None:
    """However rare collections had become before there was room; each change is told."""
    turn.go_on(10 * INTERVAL)
    disk.free = 50
    before = list(turn.began)
    assert_told(turn.go_on(100), ENOUGH)
    assert turn.began == before
    disk.free = 1
    start = turn.now
    assert_told(turn.go_on(100), LOW, NOTHING)
    assert turn.began[len(before) :] == [start]
