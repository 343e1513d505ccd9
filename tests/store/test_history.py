"""The audit trail: whole lines, in order, without credentials, and never a reason to stop."""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from envfabric.core import errors
from envfabric.core.errors import StoreError
from envfabric.store import history as store_history
from envfabric.store.files import Files
from envfabric.store.history import WAITING, History, LastTold, events_of
from envfabric.store.root import Root
from envfabric.store.writer import LostWriter
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


def test_secrets_of_any_spelling(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of digits spoils no number, and one that JSON spells otherwise is found all the same."""
    monkeypatch.setattr(errors, "_hidden", {})
    for secret in ("2345", 'pass"word\\ä'):
        errors.hide(secret)
    history = History(root, Files())
    history.note(
        "order", sequence=123456, arguments={"words": ['is pass"word\\ä here'], "code": "12345 1-2345"}
    )
    history.flush()
    (line,) = lines(root)
    assert line["sequence"] == 123456
    assert line["arguments"] == {"words": ["is *** here"], "code": "12345 1-***"}


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


def test_writer_no_more(root: Root) -> None:
    """Who was deposed appends nothing, and hears of it; a NAS that is away is no reason to end."""
    error: StoreError = LostWriter("epoch 2 was claimed over this writer's epoch 1")

    def check() -> None:
        raise error

    history = History(root, Files(), check)
    history.note("serves")
    with pytest.raises(LostWriter):
        history.flush()
    error = StoreError("is the NAS mounted?")
    history.flush()
    assert lines(root) == []


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
    for number in range(WAITING + 50):
        history.note("serves", number=number)
    history.flush()
    broken = False
    history.flush()
    assert [one["number"] for one in lines(root)] == list(range(50, WAITING + 50))


def test_failures_that_say_the_same_again_go_first(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a NAS is away for long and every try fails again, orders and what was served are kept, and each spec's
    first failure; of the repeated ones the newest go."""
    monkeypatch.setattr(store_history, "WAITING", 12)
    broken = True

    def step(operation: str, path: Path) -> None:
        if broken:
            raise OSError(errno.EIO, "Input/output error", str(path))

    history = History(root, Files(step))
    history.note("order", command="rollback")
    for attempt in range(50):
        for spec in ("wf/a", "wf/b", "wf/c"):
            history.note("failed", spec=spec, commit="c1", reason="store", attempt=attempt)
        history.flush()
        history.note("serves", spec="wf/d", generation=attempt) if attempt < 3 else None
    history.note("failed", spec="wf/a", commit="c2", reason="store", attempt=0)
    history.flush()
    broken = False
    history.flush()
    told = [(one["event"], one.get("spec"), one.get("commit"), one.get("attempt")) for one in lines(root)]
    assert len(told) == 12
    assert told[0][0] == "order"
    assert [one for one in told if one[0] == "serves"] == [("serves", "wf/d", None, None)] * 3
    first = [("failed", spec, "c1", 0) for spec in ("wf/a", "wf/b", "wf/c")]
    assert [one for one in told if one[0] == "failed"] == [
        *first,
        *(("failed", spec, "c1", 1) for spec in ("wf/a", "wf/b", "wf/c")),
        ("failed", "wf/a", "c1", 2),
        ("failed", "wf/a", "c2", 0),
    ]


def test_line_that_was_cut_takes_no_other_with_it(root: Root) -> None:
    """What a crash or a full disk has cut off is read over; what is appended after it stands in lines of its own."""
    history = History(root, Files())
    history.note("serves", spec="wf/a", generation=1)
    history.flush()
    (file,) = root.history.iterdir()
    whole = file.read_bytes()
    for cut in (whole[:-1], whole[: len(whole) // 2], b'{"at"', b"\x00\xff", b'[1]\n"wf/a"'):
        file.write_bytes(whole + cut)
        later = History(root, Files())
        for number in (2, 3):
            later.note("serves", spec="wf/a", generation=number)
            later.flush()
        told = [event["generation"] for event in events_of(root, "wf/a")]
        assert told[0] == 1
        assert told[-2:] == [2, 3]


def test_line_that_a_full_disk_has_cut(root: Root) -> None:
    """A write that ended in the middle and failed is made anew on a line of its own."""

    class Cutting(Files):
        def append(self, path: Path, data: bytes) -> None:
            if broken:
                super().append(path, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            super().append(path, data)

    history = History(root, Cutting())
    broken = False
    history.note("serves", spec="wf/a", generation=1)
    history.flush()
    broken = True
    history.note("serves", spec="wf/a", generation=2)
    history.flush()
    broken = False
    history.flush()
    assert [event["generation"] for event in events_of(root, "wf/a")] == [1, 2]


def test_events_of_one_spec(root: Root) -> None:
    """Its own, the orders for it, and what became of the closures that it used; over months, in their order; none of
    another spec, whatever that says of it."""
    (root.history / "2020-12.jsonl").write_text('{"at": "2020", "event": "removed", "spec": "wf/a"}\n')
    (root.history / "2020-02.jsonl").write_text(
        '{"at": "2020", "event": "collected", "closure": "d1"}\n{"at": "2020", "event": "collected", "closure": "d2"}\n'
    )
    history = History(root, Files())
    history.note("serves", spec="wf/a", generation=1, closure="d1")
    history.note("serves", spec="wf/aa", generation=2, closure="d2")
    history.note("serves", spec="wf/b", generation=3, commit="wf/a")
    history.note("order", command="rollback", arguments={"id": "wf/a"}, by="joe@host")
    history.note("order", command="gc", arguments={}, by="wf/a")
    history.note("damaged", closure="d1", findings=1)
    history.flush()
    found = [(event["event"], event.get("closure")) for event in events_of(root, "wf/a")]
    assert found == [
        ("collected", "d1"),
        ("removed", None),
        ("serves", "d1"),
        ("order", None),
        ("damaged", "d1"),
    ]


def test_what_was_told_last(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last word on each spec, and the highest sequence; of a long trail its end, and it is said to be no more."""
    assert History(root, Files()).last_sequence() == 0
    assert History(root, Files()).last_told() == LastTold()
    (root.history / "2020-12.jsonl").write_text(
        '{"at": "2020", "event": "serves", "spec": "wf/old", "generation": 7, "sequence": 2}\n'
        '{"at": "2020", "event": "serves", "spec": "wf/a", "generation": 8, "sequence": 2}\n'
    )
    history = History(root, Files())
    assert history.last_sequence() == 2
    history.note("order", arguments={})
    history.flush()
    assert history.last_sequence() == 2
    history.note("generation", spec="wf/a", generation=9)
    history.note("serves", spec="wf/a", generation=9, sequence=3)
    history.note("removed", spec="wf/b", sequence=4)
    history.flush()
    assert history.last_sequence() == 4
    expected = LastTold({"wf/a": 9, "wf/b": None, "wf/old": 7}, {("wf/a", 9)})
    assert history.last_told() == expected
    monkeypatch.setattr(store_history, "LOOK_BACK", 100)
    assert history.last_told() == LastTold({"wf/b": None}, set(), whole=False)


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
