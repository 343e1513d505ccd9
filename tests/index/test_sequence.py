"""The sequence number never goes back, also where the index that had it is lost or spoilt."""

import json
from pathlib import Path

import pytest

from envfabric.index.publisher import Publisher
from envfabric.index.sequence import AHEAD, Sequence
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.history import History
from envfabric.store.root import Root
from envfabric.store.writer import Writer


def restarted(root: Root, writer: Writer) -> Publisher:
    """A publisher as a new process makes it."""
    publisher = Publisher(root, Files(), writer, Generations(root, Files()))
    publisher.load()
    return publisher


@pytest.mark.parametrize("raw", [None, b"", b"{", b'{"schema": 2}', b"\xff"])
def test_lost_or_spoilt_index_takes_no_number_back(root: Root, writer: Writer, raw: bytes | None) -> None:
    """However often that happens, each index that is published after it has a higher number than any before."""
    highest = 0
    for round_ in range(4):
        publisher = restarted(root, writer)
        for number in range(3):
            index = publisher.publish(f"c{round_}.{number}", {}, ())
            assert index is not None
            assert index.sequence > highest
            highest = index.sequence
        root.index.unlink()
        if raw is not None:
            root.index.write_bytes(raw)


def test_index_from_a_backup_takes_no_number_back(root: Root, writer: Writer) -> None:
    """An older index that can be read is told by the kept number, as far as that tells: no number is given twice."""
    publisher = restarted(root, writer)
    publisher.publish("c0", {}, ())
    backup = root.index.read_bytes()
    for number in range(AHEAD + 50):
        index = publisher.publish(f"c{number + 1}", {}, ())
    assert index is not None
    root.index.write_bytes(backup)
    later = restarted(root, writer).publish("c1", {}, ())
    assert later is not None
    assert later.sequence > index.sequence


def test_numbers_go_on_by_one_while_the_index_is_there(root: Root, writer: Writer) -> None:
    """Neither a restart nor the kept number skips any: the index itself says which was the last."""
    for number in range(1, AHEAD + 10):
        publisher = restarted(root, writer)
        index = publisher.publish(f"c{number}", {}, ())
        assert index is not None
        assert index.sequence == number


def test_kept_number_is_put_up_before_it_is_needed(root: Root) -> None:
    """No number is given that is above the kept one on disk, and it is written once for many."""
    written = []
    sequence = Sequence(root, Files(lambda operation, path: written.append((operation, path.name))))
    known: int | None = None
    for _ in range(2 * AHEAD):
        known = sequence.after(known)
        assert int((root.state / "sequence").read_text()) >= known
    assert written.count(("rename", "sequence")) == 2


@pytest.mark.parametrize("raw", [b"", b"x", b"-5", b"\xff"])
def test_spoilt_kept_number_stops_nothing(root: Root, writer: Writer, raw: bytes) -> None:
    """With the index in order it is made anew; the numbers go on."""
    assert restarted(root, writer).publish("c1", {}, ()) is not None
    (root.state / "sequence").write_bytes(raw)
    index = restarted(root, writer).publish("c2", {}, ())
    assert index is not None
    assert index.sequence == 2
    assert int((root.state / "sequence").read_text()) >= 2
    assert json.loads(root.index.read_bytes())["sequence"] == 2


@pytest.mark.parametrize("raw", [None, b"x"])
def test_trail_takes_the_place_of_a_lost_number(root: Root, writer: Writer, raw: bytes | None) -> None:
    """With index and kept number lost, or an older index put back, the audit trail says how far they had come."""
    for number in (7, 40):
        history = History(root, Files())
        history.note("stopped", sequence=number)
        history.flush()
    if raw is not None:
        (root.state / "sequence").write_bytes(raw)
    index = restarted(root, writer).publish("c1", {}, ())
    assert index is not None
    assert index.sequence > 40
    old = json.loads(root.index.read_bytes()) | {"sequence": 9}
    root.index.write_text(json.dumps(old))
    (root.state / "sequence").unlink()
    again = restarted(root, writer).publish("c2", {}, ())
    assert again is not None
    assert again.sequence > 40
    assert int((root.state / "sequence").read_text()) >= again.sequence


def test_number_that_cannot_be_kept_is_not_given(root: Root) -> None:
    """A disk that takes no kept number gets no index of that number either."""

    def step(operation: str, path: Path) -> None:
        if path.name == "sequence":
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        Sequence(root, Files(step)).after(None)
