"""Retry times: a restart or another writer goes on waiting where this one stopped."""

import contextlib
import errno
import os
import time
from pathlib import Path

import pytest

from envfabric.core.errors import StoreError
from envfabric.store.files import Files
from envfabric.store.retries import FIRST, MOST, Retry, delay, read_retries, write_retries
from envfabric.store.root import Root
from store.faults import CODES, each_fault, each_kill

OLD = {"wf/a": Retry("t1", 1000.5, 0)}
NEW = {"wf/a": Retry("t1", 1020.25, 1), "wf/b": Retry("t2", 5.0, 7)}


def test_retries_are_kept(root: Root) -> None:
    """What was kept is read back, all of it, and an empty set of retries is one."""
    assert read_retries(root) == {}
    for retries in (OLD, NEW, {}):
        write_retries(root, Files(), retries)
        assert read_retries(root) == retries
    assert os.listdir(root.staging) == []


def test_kill_at_any_step(root: Root) -> None:
    """Killed at any step, the old times are read or the new ones."""
    seen = set()
    for _, run in each_kill():
        write_retries(root, Files(), OLD)
        run(lambda files: write_retries(root, files, NEW))
        found = read_retries(root)
        assert found in (OLD, NEW)
        seen.add(len(found))
    assert seen == {1, 2}


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_fault_at_any_step(root: Root, code: int) -> None:
    """Whichever step fails, the old times stay."""
    for steps in each_fault(code):
        write_retries(root, Files(), OLD)
        with contextlib.suppress(OSError):
            write_retries(root, Files(steps), NEW)
        assert read_retries(root) == (OLD if steps.failed else NEW)


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "{",
        "[]",
        "null",
        '{"retries": []}',
        '{"retries": {"wf/a": 1}}',
        '{"retries": {"wf/a": [1]}}',
        '{"retries": {"wf/a": ["t", 1, Infinity]}}',
    ],
)
def test_spoilt_times_are_none(root: Root, raw: str) -> None:
    """What is not understood keeps no daemon from starting: all is tried at once."""
    (root.state / "retries.json").write_text(raw)
    assert read_retries(root) == {}


@pytest.mark.parametrize("due", ["1e18", "Infinity", "-Infinity", "NaN"])
def test_no_time_is_far_away(root: Root, due: str) -> None:
    """Whatever clock a time was read off, it is no later than any that is set here."""
    (root.state / "retries.json").write_text(f'{{"retries": {{"wf/a": ["t1", {due}, 3]}}}}')
    before = time.time()
    found = read_retries(root)["wf/a"]
    assert before < found.due <= time.time() + delay(10**9, 1.0)
    assert (found.tree, found.attempts) == ("t1", 3)


def test_times_that_can_not_be_read_are_not_gone(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read error is told as one."""
    write_retries(root, Files(), OLD)

    def read_bytes(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(OSError, match="Input/output error"):
        read_retries(root)


def test_lost_mount_takes_no_times(root: Root) -> None:
    """Below a mount point without its NAS nothing is made."""
    root.path.rename(root.path.with_name("away"))
    root.path.mkdir()
    with pytest.raises(StoreError, match="is the NAS mounted"):
        write_retries(root, Files(), OLD)
    assert os.listdir(root.path) == []


def test_delay_doubles_up_to_the_most_and_is_spread_by_a_fifth() -> None:
    """Each failure doubles the wait, up to ten minutes, and chance makes it up to a fifth longer or shorter."""
    middle = [delay(attempts, 0.5) for attempts in range(9)]
    assert middle == [FIRST, 20, 40, 80, 160, 320, MOST, MOST, MOST]
    for attempts, expected in enumerate(middle):
        assert delay(attempts, 0.0) == pytest.approx(0.8 * expected)
        assert delay(attempts, 1.0) == pytest.approx(1.2 * expected)
        spread = [delay(attempts, number / 100) for number in range(101)]
        assert spread == sorted(set(spread)), "each draw has its own time"
    assert delay(10**9, 0.5) == MOST
