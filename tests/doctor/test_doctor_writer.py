"""`envfabric doctor`: who writes to ROOT, without ever taking the lock that it asks about."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from doctor.conftest import Nas
from envfabric.client.doctor_writer import last_claim, of_writer
from envfabric.client.findings import Finding
from envfabric.store.files import Files
from envfabric.store.prepare import init_root
from envfabric.store.root import Root
from envfabric.store.writer import Writer

HOST = os.uname().nodename


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return init_root(tmp_path / "root", Files())


@pytest.fixture
def other_process(root: Root) -> Iterator[int]:
    """A process that holds the lock and has claimed nothing."""
    root.locks.joinpath("writer.lock").touch()
    script = (
        "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDWR); fcntl.flock(fd, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, root.locks / "writer.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"held\n"
        yield child.pid
        child.communicate()


def one(root: Root) -> Finding:
    (found,) = of_writer(root.path)
    assert found.check == "writer"
    assert (found.do is None) == (found.level == "ok")
    return found


def test_writer_that_holds_it(nas: Nas) -> None:
    """With its epoch, process, host and since when; asked as often as one likes, it is in nobody's way."""
    found = one(nas.root)
    assert (found.level, f"epoch 1, pid {os.getpid()} on {HOST} since 20" in found.found) == ("ok", True)
    claim = last_claim(nas.path)
    assert claim is not None
    assert (claim.epoch, claim.host, claim.pid) == (1, HOST, os.getpid())


def test_nobody_wrote_yet(root: Root) -> None:
    """Says how to begin."""
    found = one(root)
    assert (found.level, "nobody ever wrote" in found.found) == ("warning", True)


def test_writer_that_ended(root: Root) -> None:
    """Its lock went with it, and the claim that it left says who it was."""
    with Writer(root, Files()).acquire():
        pass
    found = one(root)
    assert (found.level, "still runs, without the lock" in found.found) == ("warning", True)
    dead = subprocess.Popen(["true"])
    dead.wait()
    (root.locks / "epoch-1").write_text(f"{HOST} {dead.pid}\n")
    assert "has ended" in one(root).found


def test_writer_elsewhere(root: Root) -> None:
    """This host does not see its lock: it says so, and where to look."""
    with Writer(root, Files()).acquire():
        pass
    (root.locks / "epoch-7").write_text("node-b 12\n")
    found = one(root)
    assert (found.level, "epoch 7, pid 12 on node-b" in found.found) == ("info", True)
    assert "node-b" in str(found.do)


def test_lock_whose_holder_is_another_than_the_last_claim(root: Root, other_process: int) -> None:
    """A stale writer, or one that was overtaken: both are named."""
    (root.locks / "epoch-3").write_text(f"{HOST} 1\n")
    found = one(root)
    assert (found.level, found.found.startswith(f"pid {other_process} holds")) == ("warning", True)
    assert "epoch 3" in found.found


def test_lock_file_that_is_gone(root: Root) -> None:
    """Two could write then: a problem."""
    (root.locks / "epoch-3").write_text(f"{HOST} 1\n")
    found = one(root)
    assert (found.level, "writer.lock is not there" in found.found) == ("problem", True)


def test_claim_on_a_full_disk_is_empty(root: Root) -> None:
    """It has no host and no process, and is told all the same."""
    root.locks.joinpath("writer.lock").touch()
    (root.locks / "epoch-9").touch()
    assert "epoch 9" in one(root).found


def test_lock_that_is_a_byte_range(root: Root) -> None:
    """As NFS has it, where /proc/locks shows only this host's: the holder is seen, and the lock stays whole."""
    path = root.locks / "writer.lock"
    path.touch()
    (root.locks / "epoch-2").write_text("node-b 12\n")
    script = (
        "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDWR); fcntl.lockf(fd, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"held\n"
        assert f"pid {child.pid} holds the lock here" in one(root).found
        with path.open("rb+") as file, pytest.raises(BlockingIOError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.communicate()
    assert one(root).level == "info"
