"""Since when things are unused: never earlier than it was seen, whatever ends the note."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from envfabric.core.errors import StoreError
from envfabric.store.files import Files
from envfabric.store.left import Left
from envfabric.store.root import Root
from store.faults import CODES, each_fault, each_kill


def age(root: Root, name: str, kind: str, seconds: float) -> float:
    """Makes a note older; gives its time."""
    path = root.state / "left" / kind / name.replace("/", "%")
    at = path.stat().st_mtime - seconds
    os.utime(path, (at, at))
    return at


@pytest.mark.parametrize(("kind", "name"), [("closures", "d1-2"), ("specs", "wf.1/a_b-c")])
def test_first_sight_counts(root: Root, kind: str, name: str) -> None:
    """A thing is out of use since it was first seen so, however often it is seen, also by another writer."""
    left = Left(root, Files(), kind)
    assert left.since(name) is None
    assert left.note(name) == left.since(name)
    at = age(root, name, kind, 1000)
    assert left.note(name) == at
    later = Left(root, Files(), kind)
    assert later.known() == {name}
    assert later.note(name) == later.since(name) == at


def test_used_again_begins_anew(root: Root) -> None:
    """A thing that was in use in between is out of use since later; forgetting the unknown does nothing."""
    left = Left(root, Files(), "closures")
    left.note("d1")
    old = age(root, "d1", "closures", 1000)
    left.forget("d1")
    assert (left.since("d1"), left.known()) == (None, set())
    left.forget("d1")
    assert left.note("d1") > old
    assert Left(root, Files(), "closures").known() == {"d1"}


def test_kinds_do_not_mix(root: Root) -> None:
    """A spec and a closure of the same name are noted apart."""
    Left(root, Files(), "specs").note("wf/a")
    assert Left(root, Files(), "closures").known() == set()


def test_kill_at_any_step_of_a_note(root: Root) -> None:
    """Killed at any step, a thing is noted with a time that is no earlier than this, or not at all."""
    outcomes = set()
    for number, run in each_kill():
        name = f"d{number}"
        before = Files().server_time(root.state)
        run(lambda files, name=name: Left(root, files, "closures").note(name))  # type: ignore[misc]
        later = Left(root, Files(), "closures")
        since = later.since(name)
        assert since is None or since >= before
        outcomes.add(since is None)
        assert later.note(name) >= before
    assert outcomes == {True, False}


def test_kill_at_any_step_of_forgetting(root: Root) -> None:
    """Killed at any step, the old time stands or is gone: the next note is never older than either."""
    for number, run in each_kill():
        name = f"d{number}"
        Left(root, Files(), "closures").note(name)
        old = age(root, name, "closures", 1000)
        run(lambda files, name=name: Left(root, files, "closures").forget(name))  # type: ignore[misc]
        assert Left(root, Files(), "closures").since(name) in (old, None)


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_fault_at_any_step(root: Root, code: int) -> None:
    """Whichever step fails, what this process believes is what the next one reads."""
    for steps in each_fault(code):
        left = Left(root, Files(steps), "closures")
        with contextlib.suppress(OSError):
            left.note("d1")
        assert left.known() >= Left(root, Files(), "closures").known() - {"d1"}
        assert Left(root, Files(), "closures").note("d1")
        Left(root, Files(), "closures").forget("d1")
    for steps in each_fault(code):
        Left(root, Files(), "closures").note("d1")
        left = Left(root, Files(steps), "closures")
        with contextlib.suppress(OSError):
            left.forget("d1")
        assert left.known() == Left(root, Files(), "closures").known()


def test_unreadable_memory_is_no_empty_one(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what is noted can't be read that is told: nothing begins anew, and nothing counts as old."""
    Left(root, Files(), "closures").note("d1")
    later = Left(root, Files(), "closures")
    with monkeypatch.context() as context:
        for name in ("listdir", "scandir"):
            real = getattr(os, name)

            def listed(path: str | Path, real: Callable[[str | Path], object] = real) -> object:
                if Path(path).name == "closures":
                    raise OSError(errno.EIO, "Input/output error", str(path))
                return real(path)

            context.setattr(os, name, listed)
        with pytest.raises(OSError, match="Input/output error"):
            later.since("d1")
    assert later.since("d1") is not None


def test_note_that_was_removed_by_hand(root: Root) -> None:
    """A note that somebody removed is none: the thing is out of use since it is seen so again."""
    left = Left(root, Files(), "closures")
    left.note("d1")
    age(root, "d1", "closures", 1000)
    (root.state / "left" / "closures" / "d1").unlink()
    assert left.since("d1") is None
    assert left.note("d1") >= Files().server_time(root.state) - 30


def test_lost_mount_takes_no_note(root: Root) -> None:
    """Below a mount point without its NAS nothing is made."""
    left = Left(root, Files(), "closures")
    assert left.known() == set()
    root.path.rename(root.path.with_name("away"))
    root.path.mkdir()
    with pytest.raises(StoreError, match="is the NAS mounted"):
        left.note("d1")
    assert os.listdir(root.path) == []
