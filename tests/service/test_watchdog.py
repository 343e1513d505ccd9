"""The watchdog's thread: what systemd hears of a loop that goes round, waits, or hangs."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from envfabric.index.document import Entry, Index
from envfabric.service.daemon import Daemon
from envfabric.service.notify import Notifier, status
from envfabric.service.watchdog import Watchdog, summary
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.root import Root
from faults_of_disk.inside import daemon, surroundings
from store.small_venv import build
from support.fabric import Fabric


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[socket.socket]:
    """systemd's end, with a watchdog of ten minutes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", "/proc/self/cwd/notify")
    monkeypatch.setenv("WATCHDOG_USEC", "600000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind("notify")
        found.settimeout(60)
        yield found


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("envfabric.service.watchdog.time.monotonic", lambda: self.now)


def told(channel: socket.socket, watch: Watchdog) -> list[str]:
    """What one look of the thread tells."""
    watch.tell()
    channel.setblocking(False)
    try:
        return channel.recv(4096).decode().splitlines()
    except BlockingIOError:
        return []


def test_a_loop_that_goes_round_feeds_it_and_one_that_hangs_does_not(
    channel: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of systemd's time after the last beat nothing is sent any more, and the status says why."""
    clock = Clock(monkeypatch)
    notifier = Notifier()
    watch = Watchdog(notifier, lambda: "writing, epoch 3")
    assert told(channel, watch) == ["WATCHDOG=1", "STATUS=writing, epoch 3"]
    assert told(channel, watch) == ["WATCHDOG=1"]
    clock.now += 299
    assert "WATCHDOG=1" in told(channel, watch)
    clock.now += 2
    assert told(channel, watch) == ["STATUS=the loop has not gone round for 300 s; writing, epoch 3"]
    watch.beat()
    assert told(channel, watch) == ["WATCHDOG=1", "STATUS=writing, epoch 3"]


def test_a_declared_wait_counts_up_to_its_bound(
    channel: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While ROOT is opened the loop may be away for longer, and not for ever; the status says what it waits for."""
    clock = Clock(monkeypatch)
    notifier = Notifier()
    watch = Watchdog(notifier, lambda: "writing")
    notifier.tell("READY=1")
    channel.recv(4096)
    watch.declare("opening /mnt/nas", 1000)
    clock.now += 999
    assert told(channel, watch) == ["WATCHDOG=1", "STATUS=opening /mnt/nas, for 990 s"]
    assert watch.heartbeat == clock.now
    clock.now += 300
    assert "WATCHDOG=1" in told(channel, watch)
    clock.now += 2
    assert "WATCHDOG=1" not in told(channel, watch)


def test_a_wait_that_gets_on_is_prolonged(channel: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is long and gets on is told as one wait since its beginning; each step may take a wait's time anew."""
    clock = Clock(monkeypatch)
    watch = Watchdog(Notifier(), lambda: "writing")
    watch.declare("opening /mnt/nas", 1000)
    for percent in (10, 20, 30):
        clock.now += 900
        watch.advance(f"counting: {percent} %", 1000)
    clock.now += 900
    assert "WATCHDOG=1" in (lines := told(channel, watch))
    assert "STATUS=counting: 30 %, for 3600 s" in lines
    assert watch.wait == ("counting: 30 %", 1000.0, clock.now + 100)
    clock.now += 100 + 301
    assert "WATCHDOG=1" not in told(channel, watch)
    watch.beat()
    watch.advance("counting: 0 %", 1000)
    assert watch.wait == ("counting: 0 %", clock.now, clock.now + 1000)


def test_a_start_that_waits_asks_for_more_time(
    channel: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before READY a declared wait extends the start, up to its bound; after READY nothing is asked for."""
    clock = Clock(monkeypatch)
    notifier = Notifier()
    watch = Watchdog(notifier, lambda: "starting")
    watch.declare("starting: opening /mnt/nas", 100)
    assert "EXTEND_TIMEOUT_USEC=60000000" in told(channel, watch)
    clock.now += 101
    assert not [line for line in told(channel, watch) if line.startswith("EXTEND")]
    watch.declare("waiting", 100)
    notifier.tell("READY=1")
    channel.recv(4096)
    assert not [line for line in told(channel, watch) if line.startswith("EXTEND")]


def test_a_start_that_counts_the_store_gets_on(fabric: Fabric) -> None:
    """A ROOT whose closures have to be counted, as a copy's have: the daemon tells with each how far it is."""
    fabric.init()
    root = Root(fabric.root)
    for digest in ("d1", "d2", "d3"):
        build(Closures(root, Files()), root, digest)
    fabric.repo.spec("wf/a", table='[tool.envfabric]\nvalidate = "no such word"')
    fabric.repo.commit()
    told: list[str] = []

    def step(operation: str, path: Path) -> None:
        wait = begun[0]._watchdog.wait if begun else None
        if wait is not None and path.parent == root.state / "usage":
            told.append(wait.what)

    begun: list[Daemon] = []
    with surroundings(fabric):
        begun.append(daemon(fabric, step))
        begun[0].run_once()
    assert list(dict.fromkeys(told)) == [f"counting what the store takes: {one} %" for one in (0, 33, 66)]


def test_its_thread_tells_until_it_is_closed(channel: socket.socket) -> None:
    """Started, it tells by itself, while the thread of the loop is busy with something else."""
    watch = Watchdog(Notifier(), lambda: "writing")
    watch.start()
    try:
        assert channel.recv(4096).decode().splitlines()[0] == "WATCHDOG=1"
        assert channel.recv(4096) == b"WATCHDOG=1"
    finally:
        watch.close()


def test_without_systemd_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started by hand there is no watchdog, and the heartbeat is known all the same."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    before = set(threading.enumerate())
    watch = Watchdog(Notifier(), lambda: "writing")
    watch.start()
    # Threads of other tests may end meanwhile.
    assert {one.name for one in set(threading.enumerate()) - before} == set()
    watch.beat()
    assert time.monotonic() - watch.heartbeat < 60


def test_the_status_line_counts_what_is_published() -> None:
    """One line says what the daemon does, of which commit, and how many environments are in which state."""
    entries = {f"wf/{number}": Entry("ready", "t", "c") for number in range(3)} | {
        "wf/x": Entry("failed", "t", "c")
    }
    index = Index("0123456789abcdef", 1, "2026-01-01T00:00:00Z", entries)
    assert summary("writing, epoch 3", index) == "writing, epoch 3; revision 0123456789ab: 3 ready, 1 failed"
    assert summary("standby", None) == "standby; nothing is published yet"
    assert status("two\nlines") == "STATUS=two lines"
    assert len(status("x" * 5000)) < 600
