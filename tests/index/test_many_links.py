"""The paths for people of thousands of specs follow the index, as those of a few do."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from envfabric.index import publisher as module
from envfabric.index.document import Entry, to_json
from envfabric.index.publisher import MANY_LINKS, Publisher
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.root import Root
from envfabric.store.writer import LostWriter, Writer

READY = Entry("ready", "t1", "c1", serving="d1", generation=1)
IDS = [f"wf{number % 3}/n{number}" for number in range(3 * MANY_LINKS)]


def links(root: Root) -> dict[str, str]:
    """Where each path for people leads."""
    return {str(path.relative_to(root.envs)): os.readlink(path) for path in root.envs.glob("*/*")}


def all_at(number: int) -> dict[str, str]:
    return {one: f"../../generations/{one}/{number}" for one in IDS}


def test_many_links_come_follow_and_go(root: Root, publisher: Publisher) -> None:
    """Each leads to its own generation, and those of a workflow that is gone go with its folder."""
    publisher.publish("c1", dict.fromkeys(IDS, READY), ())
    assert links(root) == all_at(1)
    publisher.publish("c2", dict.fromkeys(IDS, replace(READY, generation=2)), ())
    assert links(root) == all_at(2)
    kept = {one: replace(READY, generation=3) for one in IDS if not one.startswith("wf1/")}
    publisher.publish("c3", kept, ())
    assert links(root) == {one: where for one, where in all_at(3).items() if one in kept}
    assert sorted(os.listdir(root.envs)) == ["wf0", "wf2"]


def test_one_that_fails_keeps_no_other(root: Root, writer: Writer) -> None:
    """A link that can't be flipped among many is tried again at a look, alone."""
    failing = {IDS[5], IDS[50]}
    tried = []

    def step(operation: str, path: Path) -> None:
        if operation == "rename" and path.is_relative_to(root.envs):
            spec_id = str(path.relative_to(root.envs))
            tried.append(spec_id)
            if spec_id in failing:
                raise OSError(errno.EIO, "Input/output error")

    files = Files(step)
    publisher = Publisher(root, files, writer, Generations(root, files))
    entries = dict.fromkeys(IDS, READY)
    publisher.publish("c1", entries, ())
    assert links(root).keys() == set(IDS) - failing
    failing.clear()
    tried.clear()
    publisher.look()
    assert publisher.wait(quiet=True) is not None
    assert publisher.publish("c1", entries, ()) is None
    assert links(root) == all_at(1)
    assert sorted(tried) == sorted([IDS[5], IDS[50]])


def test_deposed_among_many_stops_soon(root: Root, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that is deposed while it flips thousands leaves the rest of them to the next one."""
    monkeypatch.setattr(module, "AT_ONCE", MANY_LINKS)
    flipped = []

    def step(operation: str, path: Path) -> None:
        if operation == "rename" and path.is_relative_to(root.envs):
            flipped.append(path)
            (root.locks / f"epoch-{writer.epoch + 1}").touch()

    files = Files(step)
    publisher = Publisher(root, files, writer, Generations(root, files))
    with pytest.raises(LostWriter):
        publisher.publish("c1", dict.fromkeys(IDS, READY), ())
    assert 0 < len(flipped) <= MANY_LINKS


def test_links_of_another_writer_are_put_right(root: Root, publisher: Publisher) -> None:
    """Who wrote another index may have flipped links as well: a look that finds the one finds the others."""
    entries = dict.fromkeys(IDS, READY)
    first = publisher.publish("c1", entries, ())
    assert first is not None
    links_of = Generations(root, Files())
    links_of.serve(IDS[3], 7)
    links_of.serve("gone/x", 1)
    links_of.withdraw(IDS[4])
    Files().write_atomic(root.index, to_json(replace(first, sequence=9), root))
    publisher.look()
    assert publisher.wait(quiet=True) is not None
    assert publisher.publish("c1", entries, ()) is not None
    assert links(root) == all_at(1)


def test_start_changes_no_link_that_is_right(root: Root, publisher: Publisher, writer: Writer) -> None:
    """A start learns where thousands of links lead, and touches only those that lead elsewhere."""
    entries = dict.fromkeys(IDS, READY)
    publisher.publish("c1", entries, ())
    wrong = root.envs / IDS[7]
    wrong.unlink()
    wrong.symlink_to("../../generations/wf0/other/1")
    touched = []
    files = Files(lambda _, path: touched.append(path))
    later = Publisher(root, files, writer, Generations(root, files))
    later.load()
    later.adopt_links()
    assert later.publish("c1", entries, ()) is None
    assert set(touched) == {wrong}
    assert links(root) == all_at(1)
