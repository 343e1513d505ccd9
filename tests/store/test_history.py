"""The audit trail: whole lines, in order, without credentials, and never a reason to stop."""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from envfabric.store.files import Files
from envfabric.store.history import History
from envfabric.store.root import Root
from store.faults import CODES, Steps, each_kill


def lines(root: Root) -> list[dict[str, Any]]:
    """What stands in the trail."""
    return [
        json.loads(line) for path in sorted(root.history.iterdir()) for line in path.read_text().splitlines()
    ]


def test_events_are_appended_in_order(root: Root) -> None:
    """Each event is a line of its month's file, in the order of the notes, over restarts."""
    for number in range(3):
        history = History(root, Files())
        history.note("serves", spec="wf/a", generation=number)
        history.note("removed", spec="wf/ä\nb")
        history.flush()
        history.flush()
    assert [one.get("generation") for one in lines(root)] == [0, None, 1, None, 2, None]
    assert lines(root)[1]["spec"] == "wf/ä\nb"
    (file,) = root.history.iterdir()
    assert re.fullmatch(r"\d{4}-\d{2}\.jsonl", file.name)
    assert all(one["at"].startswith(file.stem) for one in lines(root))


def test_mode_whatever_the_umask(root: Root, umask: int) -> None:
    """Everybody can read the trail, and its owner alone can write to it."""
    history = History(root, Files())
    history.note("serves")
    history.flush()
    (file,) = root.history.iterdir()
    assert file.stat().st_mode & 0o777 == 0o644


def test_no_credentials(root: Root) -> None:
    """A password in a URL does not get into the trail."""
    history = History(root, Files())
    history.note("order", arguments={"url": "https://user:secret@index.example/simple"})
    history.flush()
    (line,) = lines(root)
    assert "secret" not in json.dumps(line)


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_fault_loses_nothing(root: Root, code: int) -> None:
    """What could not be written is written later, before what came after it."""
    steps = Steps(0, code)
    history = History(root, Files(steps))
    history.note("one")
    history.flush()
    assert steps.failed
    assert lines(root) == []
    history.note("two")
    history.flush()
    assert [one["event"] for one in lines(root)] == ["one", "two"]


def test_lost_mount_gets_no_trail(root: Root) -> None:
    """Below a mount point without its NAS nothing is written; the events follow when it is back."""
    history = History(root, Files())
    history.note("one")
    away = root.path.rename(root.path.with_name("away"))
    root.path.mkdir()
    history.flush()
    assert os.listdir(root.path) == []
    root.path.rmdir()
    away.rename(root.path)
    history.flush()
    assert [one["event"] for one in lines(root)] == ["one"]


def test_trail_that_is_away_for_long_is_bounded(root: Root) -> None:
    """A NAS that is away costs the oldest events, not the memory."""

    def step(operation: str, path: Path) -> None:
        if broken:
            raise OSError(errno.EIO, "Input/output error", str(path))

    broken = True
    history = History(root, Files(step))
    for number in range(10_050):
        history.note("serves", number=number)
    history.flush()
    broken = False
    history.flush()
    assert [one["number"] for one in lines(root)] == list(range(50, 10_050))


def test_kill_leaves_what_was_there(root: Root) -> None:
    """Killed at any step, earlier lines stay and the new ones are there whole or not at all."""

    def act(files: Files) -> None:
        history = History(root, files)
        history.note("new")
        history.flush()

    for _, run in each_kill():
        before = len(lines(root)) if any(root.history.iterdir()) else 0
        killed = run(act)
        assert len(lines(root)) == before + (not killed)
