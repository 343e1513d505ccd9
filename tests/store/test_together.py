"""Generations that are written at the same time share one flush, and none is there before it."""

import contextlib
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from envfabric.store import together as module
from envfabric.store.files import Files
from envfabric.store.generations import Content, Generation, Generations
from envfabric.store.root import Root
from envfabric.store.together import CROWD, Member, Together, kind_of
from support.waiting import wait_for

COUNT = 4 * CROWD
SHARING = COUNT - CROWD + 1
"""All but those who came before it was a crowd."""


def draft(number: int) -> Generation:
    return Generation(
        spec=f"wf/n{number}",
        number=0,
        digest="d1",
        inputs="",
        tree="",
        commit="",
        built_at="",
        python_version="3.11.7",
        ray_version=None,
        lock_origin="resolved",
        runtime_env={},
        closure={},
    )


class Waiting(threading.Condition):
    """A condition that knows how often somebody has begun to wait for it."""

    begun = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.begun += 1  # Whoever waits holds the lock.
        return super().wait(timeout)


@pytest.fixture
def turn(monkeypatch: pytest.MonkeyPatch) -> Waiting:
    """The condition on which the writers of the next `Together` wait for a flush."""
    waiting = Waiting()
    conditions = SimpleNamespace(Condition=lambda: waiting)
    monkeypatch.setattr(module, "threading", conditions)
    return waiting


class Watched:
    """Steps of many writers: they meet before their first write, and the flushes can fail or be counted."""

    def __init__(self, turn: Waiting | None = None) -> None:
        self.turn = turn
        self.meeting = threading.Barrier(COUNT)
        self.met = threading.local()
        self.flushes = 0
        self.fail = 0
        self.lock = threading.Lock()

    def __call__(self, operation: str, path: Path) -> None:
        if operation == "write" and not getattr(self.met, "done", False):
            # Those who come while others are there already: all but the first are no longer alone.
            self.met.done = True
            self.meeting.wait(60)
        if operation == "flush" and self.flushes == 0 and self.turn is not None:
            # The first one lasts until all the others of the crowd wait: none of them can come late.
            turn = self.turn
            wait_for(lambda: turn.begun == SHARING - 1, message="not all wait for a flush")
        with self.lock:
            if operation == "flush":
                self.flushes += 1
                if self.fail:
                    self.fail -= 1
                    raise OSError(errno.EIO, "Input/output error", str(path))


def all_at_once(root: Root, files: Files) -> list[Generation | BaseException]:
    generations = Generations(root, files)
    with ThreadPoolExecutor(COUNT) as pool:
        futures = [pool.submit(generations.record, draft(n), Content(b"p", b"l")) for n in range(COUNT)]
    return [one.exception() or one.result() for one in futures]


def test_a_crowd_shares_flushes(root: Root, turn: Waiting) -> None:
    """Those who wait while one flush is under way share the next, and each has its own generation in the end."""
    steps = Watched(turn)
    found = all_at_once(root, Files(steps))
    assert [one.number for one in found if isinstance(one, Generation)] == [1] * COUNT
    assert steps.flushes == 2
    for number in range(COUNT):
        assert Generations(root, Files()).read(f"wf/n{number}", 1) is not None
    assert os.listdir(root.staging) == []


def test_failed_flush_fails_all_whose_writes_it_may_have_lost(root: Root) -> None:
    """The system tells of a failed write once: nobody who wrote before that is published, and a retry is."""
    steps = Watched()
    steps.fail = 1
    found = all_at_once(root, Files(steps))
    failed = [one for one in found if isinstance(one, OSError)]
    assert len(failed) >= SHARING, "all but those who synced each file by themselves"
    assert {one.errno for one in failed} == {errno.EIO}
    for number, one in enumerate(found):
        assert (Generations(root, Files()).read(f"wf/n{number}", 1) is None) == isinstance(one, OSError)
    assert os.listdir(root.staging) == []
    again = all_at_once(root, Files())
    assert all(isinstance(one, Generation) for one in again)


def test_who_is_alone_waits_for_no_flush(root: Root) -> None:
    """One writer syncs its own files, whatever else has to be written to that file system."""
    flushed = []
    files = Files(lambda operation, path: flushed.append(path) if operation == "flush" else None)
    Generations(root, files).record(draft(0), Content(b"p", b"l"))
    assert flushed == []


def test_nothing_is_held_open_in_between(root: Root) -> None:
    """A held descriptor would keep the NAS from being unmounted: when the last one leaves, it is closed."""
    before = len(os.listdir("/proc/self/fd"))
    together = Together(Files(), root.staging)
    with together.member() as first, together.member():
        assert len(os.listdir("/proc/self/fd")) == before + 1
        assert first.alone
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("others", [CROWD - 1, CROWD + 3])
def test_flush_that_began_earlier_is_not_enough(root: Root, turn: Waiting, others: int) -> None:
    """Who comes while a flush is under way waits for the next one, which begins after its writes."""
    begun, go_on = threading.Event(), threading.Event()
    count = 0

    def step(operation: str, path: Path) -> None:
        nonlocal count
        count += 1
        if count == 1:
            begun.set()
            assert go_on.wait(60)

    together = Together(Files(step), root.staging)

    def write() -> None:
        with together.member() as member:
            member.alone = False
            together.flush(member)

    threads = [threading.Thread(target=write) for _ in range(others)]
    first = threading.Thread(target=write)
    first.start()
    assert begun.wait(60)
    for thread in threads:
        thread.start()
    wait_for(lambda: turn.begun == others, message="not all have come")
    go_on.set()
    for thread in (first, *threads):
        thread.join(60)
    assert count == 2


def crowd(together: Together, stack: contextlib.ExitStack) -> list[Member]:
    """Writers who have all come and not gone."""
    return [stack.enter_context(together.member()) for _ in range(CROWD + 2)]


@pytest.mark.parametrize(
    ("kind", "shared"), [("ext4", True), ("nfs4", True), ("fuse.sshfs", False), ("fuse", False)]
)
def test_flush_that_may_not_reach_the_server_is_not_shared(
    root: Root, monkeypatch: pytest.MonkeyPatch, kind: str, shared: bool
) -> None:
    """On a file system in a user's process each writer syncs its own files, however many there are."""
    monkeypatch.setattr(module, "kind_of", lambda device: kind)
    with contextlib.ExitStack() as stack:
        members = crowd(Together(Files(), root.staging), stack)
        assert [one.alone for one in members] == [True] * (CROWD - 1) + [not shared] * 3


def test_kind_of_a_file_system() -> None:
    """It is what the system's list of mounts says; of a device that has no mount nothing is said."""
    assert kind_of(os.stat("/proc").st_dev) == "proc"
    assert kind_of(os.makedev(4000, 4000)) == ""


def test_folder_that_was_mounted_anew_is_not_flushed_by_the_old_one(root: Root) -> None:
    """Those who wrote around an unmount fail, and those who come then are served while they are still there."""
    flushed = []
    files = Files(lambda operation, path: flushed.append(path) if operation == "flush" else None)
    together = Together(files, root.staging)
    with contextlib.ExitStack() as stack:
        before = crowd(together, stack)
        # As after `umount -l` and a new mount: the path leads elsewhere, and the held folder is still there.
        root.staging.rename(root.path / "old")
        root.staging.mkdir()
        for member in before[-2:]:
            with pytest.raises(OSError, match=str(root.staging)) as raised:
                together.flush(member)
            assert raised.value.errno in {errno.ESTALE, errno.EBADF}
        assert flushed == []
        after = crowd(together, stack)
        together.flush(after[-1])
        assert flushed == [root.staging]
        with pytest.raises(OSError, match=str(root.staging)):
            together.flush(before[-1])
