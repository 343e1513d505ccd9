"""One writer: the lock decides who should write, the epoch decides whose writing counts."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from envfabric.core.errors import StoreError
from envfabric.store.files import Files
from envfabric.store.root import Root
from envfabric.store.writer import Busy, LostWriter, Writer
from store.faults import CODES, each_fault, each_kill, exit_code, in_process, start

PROCESSES = 6


@pytest.fixture
def writer(root: Root) -> Iterator[Writer]:
    with Writer(root, Files()).acquire() as writer:
        yield writer


def epochs(root: Root) -> list[int]:
    """The epochs that were claimed: epoch-0 is nobody's, and there for a claim on a full disk."""
    found = sorted(int(path.name.removeprefix("epoch-")) for path in root.locks.glob("epoch-*"))
    return [epoch for epoch in found if epoch]


@contextlib.contextmanager
def holder(root: Root, then: Callable[[], object] = lambda: None) -> Iterator[int]:
    """A process that holds the lock, does something more, and waits to be killed."""
    reading, writing = os.pipe()

    def hold() -> None:
        Writer(root, Files()).acquire()
        then()
        os.write(writing, b"x")
        signal.pause()

    child = start(hold)
    try:
        os.close(writing)
        assert os.read(reading, 1) == b"x", "the holder did not get the lock"
        yield child
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        assert exit_code(child) == -signal.SIGKILL


def test_second_writer_of_this_process_is_refused(root: Root, writer: Writer) -> None:
    """Also within one process there is one writer; the refused one claims no epoch and breaks nothing."""
    with pytest.raises(Busy, match="another daemon or command is writing"):
        Writer(root, Files()).acquire()
    assert epochs(root) == [writer.epoch]
    writer.check()


def test_second_writer_of_another_process_is_refused(root: Root, writer: Writer) -> None:
    """A second process gets Busy at once, and the first one stays the writer."""

    def try_it() -> None:
        with pytest.raises(Busy):
            Writer(root, Files()).acquire()

    for _ in range(2):
        assert in_process(try_it) == 0
    assert epochs(root) == [writer.epoch]
    writer.check()


def test_kill_of_the_holder_frees_the_lock(root: Root) -> None:
    """After kill -9 of the writer the next one gets the lock without waiting, with a higher epoch."""
    with holder(root):
        with pytest.raises(Busy):
            Writer(root, Files()).acquire()
        (before,) = epochs(root)
    with Writer(root, Files()).acquire() as writer:
        assert writer.epoch > before
        writer.check()


def test_children_do_not_hold_the_lock(root: Root) -> None:
    """A child that outlives a killed writer, as uv does, keeps nobody from becoming the next one."""
    reading, writing = os.pipe()
    with holder(root, then=lambda: subprocess.Popen(["cat"], stdin=reading, close_fds=False)):
        pass
    with Writer(root, Files()).acquire() as writer:
        writer.check()
    os.close(writing)
    os.close(reading)


def test_released_writer_can_be_followed(root: Root) -> None:
    """The lock is free after release, also after an exception, and each turn has a higher epoch."""
    seen = []
    for _ in range(3):
        with contextlib.suppress(RuntimeError), Writer(root, Files()).acquire() as writer:
            seen.append(writer.epoch)
            raise RuntimeError
    again = Writer(root, Files())
    for _ in range(2):
        seen.append(again.acquire().epoch)
        again.release()
    assert seen == [1, 2, 3, 4, 5]


def claimed_at_once(root: Root, processes: int) -> list[int]:
    """The epochs that so many processes claim when all of them are let go at the same time."""
    (ready, tell_ready), (wait, go), (answers, answer) = os.pipe(), os.pipe(), os.pipe()

    def claim() -> None:
        os.close(go)
        os.write(tell_ready, b"x")
        os.read(wait, 1)
        os.write(answer, f"{Writer(root, Files()).acquire().epoch} ".encode())

    children = [start(claim) for _ in range(processes)]
    got = b""
    while len(got) < processes:
        got += os.read(ready, processes)
    os.close(go)
    assert [exit_code(child) for child in children] == [0] * processes
    for descriptor in (ready, tell_ready, wait, answer):
        os.close(descriptor)
    with open(answers, "rb") as file:
        return sorted(int(one) for one in file.read().split())


def test_epochs_claimed_at_once_are_all_different(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a NAS does not exclude by its lock, link(2) still gives every writer an epoch of its own."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    before = 0
    for _ in range(5):
        claimed = claimed_at_once(root, PROCESSES)
        assert len(set(claimed)) == PROCESSES
        assert min(claimed) > before
        before = max(claimed)
    assert [name for name in os.listdir(root.locks) if name.startswith(".")] == []


def test_lower_epoch_has_lost(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that was cut off and comes back finds the epoch of its follower and stops for good."""
    with monkeypatch.context() as context:
        context.setattr(fcntl, "flock", lambda *_: None)
        old = Writer(root, Files()).acquire()
        new = Writer(root, Files()).acquire()
    assert (old.epoch, new.epoch) == (1, 2)
    new.check()
    for _ in range(2):
        with pytest.raises(LostWriter, match="epoch 2 was claimed over this writer's epoch 1"):
            old.check()
    new.release()
    with pytest.raises(LostWriter):
        old.check()
    old.release()


def test_higher_epoch_counts_as_a_number(root: Root, writer: Writer) -> None:
    """Epochs are compared as numbers, and names that are no epochs are passed over."""
    for name in ("epoch-x", "epoch-", "epoch-99.tmp", ".epoch-99", "epoch-0"):
        (root.locks / name).touch()
    writer.check()
    (root.locks / "epoch-10").touch()
    with pytest.raises(LostWriter, match="epoch 10"):
        writer.check()


@pytest.mark.parametrize("replaced", [True, False])
def test_other_lock_file_has_lost(root: Root, writer: Writer, replaced: bool) -> None:
    """A held lock counts only while its path still names the same file: after a remount it may not."""
    path = root.locks / "writer.lock"
    path.rename(path.with_name("held"))
    if replaced:
        path.touch()
    with pytest.raises(LostWriter, match="another file than the one locked" if replaced else "No such file"):
        writer.check()


@pytest.mark.parametrize("unmounted", [True, False])
def test_lost_mount_is_not_a_lost_lock(root: Root, writer: Writer, unmounted: bool) -> None:
    """Where the marker is gone the NAS is: that passes, so it is not the error that ends the daemon."""
    if unmounted:
        root.path.rename(root.path.with_name("away"))
        root.path.mkdir()
    else:
        root.marker.unlink()
    with pytest.raises(StoreError, match="is the NAS mounted") as caught:
        writer.check()
    assert not isinstance(caught.value, LostWriter)
    with pytest.raises(StoreError, match="is the NAS mounted"):
        Writer(root, Files()).acquire()
    assert not unmounted or os.listdir(root.path) == []


def test_check_needs_the_lock(root: Root) -> None:
    """Before it has acquired, and after it has released, nobody is the writer."""
    writer = Writer(root, Files())
    with pytest.raises(LostWriter, match="is not held"):
        writer.check()
    with writer.acquire():
        writer.check()
    with pytest.raises(LostWriter, match="is not held"):
        writer.check()


def test_old_epochs_are_trimmed(root: Root) -> None:
    """A hundred restarts leave a handful of epoch files, the highest among them, and no claim's file."""
    for number in range(1, 41):
        with Writer(root, Files()).acquire() as writer:
            assert writer.epoch == number
            writer.check()
    assert epochs(root)[-1] == 40
    assert len(epochs(root)) < 10
    left = {name for name in os.listdir(root.locks) if not name.startswith("epoch-")}
    assert left == {"writer.lock"}


def test_fault_while_claiming_gives_the_lock_back(root: Root) -> None:
    """A writer that can't claim its epoch holds nothing afterwards; the next one is not hindered."""
    for steps in each_fault(errno.ENOSPC):
        writer = Writer(root, Files(steps))
        try:
            writer.acquire()
        except OSError as error:
            assert error.errno == errno.ENOSPC
            with pytest.raises(LostWriter):
                writer.check()
            with Writer(root, Files()).acquire() as other:
                other.check()
        else:
            writer.release()
        assert [name for name in os.listdir(root.locks) if name.startswith(".")] == []


def test_number_that_was_trimmed_meanwhile_is_no_claim(root: Root) -> None:
    """A claim that was so slow that its number was claimed and trimmed by others takes a higher one."""
    late = True

    def step(operation: str, path: Path) -> None:
        nonlocal late
        if operation == "link" and late:
            late = False
            # What nine other writers leave, whose claims come between this one's look and its link.
            for epoch in range(2, 10):
                (root.locks / f"epoch-{epoch}").touch()

    with Writer(root, Files(step)).acquire() as writer:
        assert not late
        assert writer.epoch == 10
        writer.check()
    assert 1 not in epochs(root)


def test_tokens_of_killed_claims_are_removed(root: Root) -> None:
    """What a claim that was killed has left goes after an hour, by the file server's clock; a young one stays."""
    now = (root.locks / "writer.lock").parent.stat().st_mtime
    for name, age in (
        (".claim.old", 3700),
        (".claim.young", 3300),
        (".claim.ahead", -7200),
        (".other", 9000),
    ):
        (root.locks / name).touch()
        os.utime(root.locks / name, (now - age, now - age))
    with Writer(root, Files()).acquire() as writer:
        writer.check()
    left = sorted(name for name in os.listdir(root.locks) if name.startswith("."))
    assert left == [".claim.ahead", ".claim.young", ".other"]


def test_full_disk_keeps_nobody_from_becoming_the_writer(root: Root) -> None:
    """Where no file can be made any more a claim takes the file of an epoch that is over: recovery needs a writer."""
    with Writer(root, Files()).acquire():
        pass
    inodes = {path.stat().st_ino for path in root.locks.glob("epoch-*")}

    def step(operation: str, path: Path) -> None:
        if operation == "write":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    for epoch in (2, 3, 4):
        with Writer(root, Files(step)).acquire() as writer:
            assert writer.epoch == epoch
            writer.check()
            assert (root.locks / f"epoch-{epoch}").stat().st_ino in inodes
    assert [name for name in os.listdir(root.locks) if name.startswith(".")] == []


def test_first_claim_on_a_disk_without_room_for_data(root: Root) -> None:
    """Where a file can be made and not be filled, an empty one is claim enough."""

    class Full(Files):
        def write_new(self, path: Path, data: bytes, mode: int = 0o644, *, durable: bool = False) -> None:
            if data:
                raise OSError(errno.EDQUOT, "Disk quota exceeded", str(path))
            super().write_new(path, data, mode, durable=durable)

    with Writer(root, Full()).acquire() as writer:
        assert writer.epoch == 1
        writer.check()


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_fault_at_any_step_of_a_later_claim(root: Root, code: int) -> None:
    """Whichever step of a claim fails, epochs go on growing and the lock can be had again."""
    highest = 0
    for steps in each_fault(code):
        writer = Writer(root, Files(steps))
        with contextlib.suppress(OSError):
            writer.acquire()
            writer.check()
            writer.release()
        with Writer(root, Files()).acquire() as other:
            assert other.epoch > highest
            highest = other.epoch
        assert [name for name in os.listdir(root.locks) if name.startswith(".")] == []


def test_kill_at_any_step_of_a_claim(root: Root) -> None:
    """Killed at any step of a claim, the lock is free and the next epoch is higher than all before."""
    highest = 0
    for _, run in each_kill():
        run(lambda files: Writer(root, files).acquire())
        with Writer(root, Files()).acquire() as other:
            assert other.epoch > highest
            highest = other.epoch
            other.check()


def test_only_one_holds_a_lock_that_was_replaced(root: Root, writer: Writer) -> None:
    """Who takes a lock file that was put in the old one's place is the writer; the holder of the old one is not."""
    path = root.locks / "writer.lock"
    path.unlink()
    with Writer(root, Files()).acquire() as new:
        new.check()
        with pytest.raises(LostWriter):
            writer.check()
