"""How the index is replaced, by whom, and what readers see of it meanwhile."""

import errno
import json
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from envfabric.client.index import read_index
from envfabric.core.errors import Reason, StoreError
from envfabric.index.document import Entry, Index, to_json
from envfabric.index.publisher import Publisher
from envfabric.specs.tree import Problem
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.root import Root
from envfabric.store.writer import LostWriter, Writer
from store.faults import each_fault
from support.waiting import wait_for

READY = Entry("ready", "t1", "c1", serving="d1", generation=1)
FAILED = Entry("failed", "t1", "c1")
PROBLEM = Problem("x/pyproject.toml", Reason.INVALID_SPEC, "misplaced")


def restarted(root: Root, writer: Writer, files: Files | None = None) -> Publisher:
    """A publisher as a new process makes it."""
    files = files or Files()
    publisher = Publisher(root, files, writer, Generations(root, files))
    publisher.load()
    publisher.adopt_links()
    return publisher


def paths(root: Root) -> list[str]:
    """The paths for people."""
    return sorted(str(path.relative_to(root.envs)) for path in root.envs.glob("*/*"))


def test_nothing_new_is_not_written(root: Root, publisher: Publisher, writer: Writer) -> None:
    """The same revision, entries and problems leave the file alone, also after a restart."""
    publisher.publish("c1", {"wf/a": READY}, (PROBLEM,))
    before = root.index.stat()
    for one in (publisher, restarted(root, writer)):
        one.want(outcome=True)
        assert one.publish("c1", {"wf/a": replace(READY)}, (PROBLEM,)) is None
        assert one.wait(quiet=True) is None
        assert one.published is not None
        assert one.published.sequence == 1
        assert (root.index.stat().st_ino, root.index.stat().st_mtime_ns) == (
            before.st_ino,
            before.st_mtime_ns,
        )


@pytest.mark.parametrize(
    ("revision", "entries", "problems"),
    [
        ("c2", {"wf/a": READY}, ()),
        ("c1", {"wf/a": replace(READY, tree="t2")}, ()),
        ("c1", {"wf/a": READY, "wf/b": FAILED}, ()),
        ("c1", {}, ()),
        ("c1", {"wf/a": READY}, (PROBLEM,)),
    ],
    ids=["revision", "entry", "new", "gone", "problem"],
)
def test_any_difference_is_written(
    root: Root, publisher: Publisher, revision: str, entries: dict[str, Entry], problems: tuple[Problem, ...]
) -> None:
    """Whatever differs in revision, entries or problems is a new index with the next sequence number."""
    publisher.publish("c1", {"wf/a": READY}, ())
    index = publisher.publish(revision, entries, problems)
    assert index is not None
    assert (index.sequence, index.revision, index.problems) == (2, revision, problems)
    assert root.index.read_bytes() == to_json(index, root)
    assert publisher.published == index


def test_later_edits_of_the_caller_are_not_published(publisher: Publisher) -> None:
    """What was published is kept as it was: a caller that goes on editing is seen as something new."""
    entries = {"wf/a": READY}
    publisher.publish("c1", entries, ())
    entries["wf/b"] = FAILED
    index = publisher.publish("c1", entries, ())
    assert index is not None
    assert sorted(index.entries) == ["wf/a", "wf/b"]


def test_sequence_goes_on(root: Root, publisher: Publisher, writer: Writer) -> None:
    """Over restarts, over another writer's higher number and over a lost file, it never goes back."""
    publisher.publish("c1", {}, ())
    second = restarted(root, writer)
    second.publish("c2", {}, ())
    assert json.loads(root.index.read_bytes())["sequence"] == 2
    root.index.write_bytes(to_json(Index("c9", 90, "2025-01-01T00:00:00.000Z", {}), root))
    index = second.publish("c3", {}, ())
    assert index is not None
    assert index.sequence == 91
    root.index.unlink()
    index = second.publish("c4", {}, ())
    assert index is not None
    assert index.sequence == 92


@pytest.mark.parametrize("raw", [None, b"", b"{", b'{"schema": 2}'])
def test_unreadable_index_is_replaced(root: Root, writer: Writer, raw: bytes | None) -> None:
    """A start without an index, or with one that can't be read, publishes a new one."""
    if raw is not None:
        root.index.write_bytes(raw)
    publisher = restarted(root, writer)
    assert publisher.published is None
    assert publisher.publish("c1", {}, ()) is not None
    assert json.loads(root.index.read_bytes())["revision"] == "c1"


def test_lost_writer_publishes_nothing(root: Root, publisher: Publisher, writer: Writer) -> None:
    """Once a higher epoch is claimed, neither index.json nor envs/ is touched any more."""
    publisher.publish("c1", {"wf/a": READY}, ())
    before = root.index.stat()
    (root.locks / f"epoch-{writer.epoch + 1}").touch()
    with pytest.raises(LostWriter):
        publisher.publish("c2", {"wf/b": READY}, ())
    assert root.index.stat().st_ino == before.st_ino
    assert paths(root) == ["wf/a"]
    assert publisher.published is not None
    assert publisher.published.revision == "c1"


def test_unmounted_root_is_not_written(root: Root, publisher: Publisher) -> None:
    """Where the NAS is not mounted, the empty mount point stays empty."""
    root.path.rename(root.path.with_name("away"))
    root.path.mkdir()
    with pytest.raises(StoreError, match="is the NAS mounted"):
        publisher.publish("c1", {}, ())
    assert os.listdir(root.path) == []


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_index_is_a_file_of_its_own(root: Root, publisher: Publisher, umask: int) -> None:
    """index.json has one link, is readable by all, and nothing else stays beside it."""
    before = sorted(os.listdir(root.path))
    old = os.umask(umask)
    try:
        for revision in ("c1", "c2"):
            publisher.publish(revision, {"wf/a": READY}, ())
            status = root.index.stat()
            assert status.st_nlink == 1
            assert stat.S_IMODE(status.st_mode) == 0o644
    finally:
        os.umask(old)
    assert sorted(os.listdir(root.path)) == sorted([*before, "index.json"])


def test_paths_for_people_follow(root: Root, publisher: Publisher) -> None:
    """envs/ has what is served, at its generation; what fails without a generation or is gone is not."""
    publisher.publish("c1", {"wf/a": READY, "wf/b": READY, "wf/c": FAILED}, ())
    assert paths(root) == ["wf/a", "wf/b"]
    publisher.publish("c2", {"wf/a": replace(READY, generation=2), "wf/b": FAILED}, ())
    assert paths(root) == ["wf/a"]
    assert os.readlink(root.envs / "wf" / "a") == "../../generations/wf/a/2"
    publisher.publish("c3", {}, ())
    assert os.listdir(root.envs) == []


def test_doubted_path_of_a_spec_that_goes_is_removed(root: Root, publisher: Publisher) -> None:
    """A path that was to be flipped back when its spec was removed goes with it, whether it is there or not."""
    publisher.publish("c1", {"wf/a": READY, "wf/b": READY, "wf/c": READY}, ())
    (root.envs / "wf/b").unlink()
    publisher.doubt_links(["wf/a", "wf/b"])
    assert (publisher.linked("wf/a"), publisher.linked("wf/c")) == (None, READY.generation)
    publisher.publish("c2", {"wf/c": READY}, ())
    assert paths(root) == ["wf/c"]


def test_paths_of_specs_long_gone_are_removed(root: Root, publisher: Publisher, writer: Writer) -> None:
    """A restart learns which paths there are, and its next publication removes what nobody serves."""
    publisher.publish("c1", {"wf/a": READY, "wf/b": READY}, ())
    (root.envs / "old").mkdir()
    (root.envs / "old" / "x").symlink_to("../../generations/old/x/1")
    restarted(root, writer).publish("c2", {"wf/a": READY}, ())
    assert paths(root) == ["wf/a"]
    assert os.listdir(root.envs) == ["wf"]


def test_root_that_moved_is_published_anew(root: Root, publisher: Publisher, writer: Writer) -> None:
    """An index that was copied or moved with its ROOT is replaced by one with the paths that are true now."""
    publisher.publish("c1", {"wf/a": READY}, (PROBLEM,))
    elsewhere = Root(root.path.with_name("elsewhere"))
    assert publisher.published is not None
    root.index.write_bytes(
        to_json(replace(publisher.published, sequence=7, root=str(elsewhere.path)), elsewhere)
    )
    one = restarted(root, writer)
    index = one.publish("c1", {"wf/a": READY}, (PROBLEM,))
    assert index is not None
    written = json.loads(root.index.read_bytes())
    assert (written["root"], written["sequence"]) == (str(root.path), 8)
    assert written["python"] == {"wf/a": root.python("d1")}
    assert one.publish("c1", {"wf/a": READY}, (PROBLEM,)) is None


def test_failed_flip_is_tried_again(root: Root, publisher: Publisher, writer: Writer) -> None:
    """A path for people that can't be flipped hinders nobody, and follows at a look although nothing is new."""
    publisher.publish("c1", {"wf/a": READY}, ())
    failing = True

    def step(operation: str, path: Path) -> None:
        if failing and path.is_relative_to(root.envs):
            raise OSError(errno.EIO, "Input/output error")

    one = restarted(root, writer, Files(step))
    one.want(outcome=True)
    new = {"wf/a": replace(READY, generation=2)}
    assert one.publish("c2", new, ()) is not None
    assert one.wait(quiet=True) is None
    assert os.readlink(root.envs / "wf" / "a").endswith("/1")
    failing = False
    one.look()
    assert one.wait(quiet=True) is not None
    assert one.publish("c2", new, ()) is None
    assert os.readlink(root.envs / "wf" / "a").endswith("/2")
    assert one.wait(quiet=True) is None


def test_next_start_flips_what_was_left(root: Root, publisher: Publisher, writer: Writer) -> None:
    """After a kill between index.json and envs/, a start with nothing new makes the paths true."""
    entries = {"wf/a": READY, "wf/b": READY}
    publisher.publish("c1", entries, ())
    (root.envs / "wf" / "a").unlink()
    (root.envs / "wf" / "c").symlink_to("../../generations/wf/c/1")
    assert restarted(root, writer).publish("c1", entries, ()) is None
    assert paths(root) == ["wf/a", "wf/b"]


def test_fault_at_any_step_leaves_an_index(root: Root, publisher: Publisher, writer: Writer) -> None:
    """Whichever step of a publication fails, the old index or the new one is there, whole."""
    publisher.publish("c1", {"wf/a": READY}, ())
    old = root.index.read_bytes()
    seen = set()
    for steps in each_fault():
        root.index.write_bytes(old)
        files = Files(steps)
        one = restarted(root, writer, files)
        try:
            one.publish("c2", {"wf/a": replace(READY, generation=2)}, ())
        except (OSError, StoreError) as error:
            assert "Input/output error" in str(error)
        revision = json.loads(root.index.read_bytes())["revision"]
        assert one.published is not None
        assert one.published.revision == revision, "what the publisher believes is what is there"
        seen.add(revision)
        assert [name for name in os.listdir(root.path) if name.startswith(".index")] == []
    assert seen == {"c1", "c2"}


def test_readers_always_find_a_whole_index(root: Root, publisher: Publisher) -> None:
    """Whoever reads while the index is replaced finds one each time, whole, and never an older one."""
    publisher.publish("c0", {}, ())
    stop = threading.Event()
    seen: list[int] = []
    wrong: list[object] = []

    def read() -> None:
        while not stop.is_set():
            try:
                index = read_index(root.path)
            except Exception as error:
                wrong.append(error)
                continue
            if len(index["environments"]) != int(index["revision"][1:]) % 7:
                wrong.append(index)
            seen.append(index["sequence"])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(1, 80):
            entries = {f"wf/{one}": READY for one in range(number % 7)}
            publisher.publish(f"c{number}", entries, ())
            if number % 20 == 0:
                # However seldom it gets its turn: it reads what is there now, and not only before and afterwards.
                so_far = len(seen)
                wait_for(lambda: len(seen) > so_far + 1 or wrong, message="nobody reads")  # noqa: B023 - called here
    finally:
        stop.set()
        reader.join()
    assert wrong == []
    assert seen == sorted(seen)
    assert len(set(seen)) > 2


def test_late_publication_is_noticed_and_undone(root: Root, publisher: Publisher, writer: Writer) -> None:
    """A look sees that index.json is another's, also one that replaced ours the moment it was written."""
    publisher.publish("c1", {"wf/a": READY}, ())
    late = root.index.read_bytes()
    publisher.publish("c2", {"wf/a": READY, "wf/b": READY}, ())
    publisher.look()
    assert publisher.wait(quiet=True) is None

    def come_late() -> None:
        (root.path / "late").write_bytes(late)
        (root.path / "late").replace(root.index)

    class Overtaken(Files):
        def sync_folder(self, path: Path) -> None:
            super().sync_folder(path)
            if path == root.path:
                come_late()

    for files, when in ((Files(), "later"), (Overtaken(), "at once")):
        one = restarted(root, writer, files)
        one.publish(f"c3 {when}", {"wf/b": READY}, ())
        if when == "later":
            come_late()
        one.look()
        assert one.wait(quiet=True) is not None, when
        before = one.published
        assert before is not None
        one._files = Files()
        index = one.publish(before.revision, before.entries, before.problems)
        assert index is not None
        assert index.sequence > before.sequence
        assert json.loads(root.index.read_bytes())["sequence"] == index.sequence


def test_index_of_a_cut_off_writer_is_not_renamed(root: Root, writer: Writer) -> None:
    """A publication that is held at its rename finds its file gone once the next writer has emptied staging."""

    def step(operation: str, path: Path) -> None:
        if (operation, path) == ("rename", root.index):
            assert Closures(root, Files()).recover() == set()
            root.index.write_bytes(b"the next writer's")

    one = restarted(root, writer, Files(step))
    with pytest.raises(FileNotFoundError):
        one.publish("c1", {"wf/a": READY}, ())
    assert root.index.read_bytes() == b"the next writer's"
    assert one.published is None


def test_nothing_is_made_where_the_nas_is_lost_at_the_last_moment(
    root: Root, publisher: Publisher, writer: Writer
) -> None:
    """A NAS that goes away between the check and the writing leaves its mount point empty."""
    publisher.publish("c1", {}, ())

    def step(operation: str, path: Path) -> None:
        if (operation, path) == ("write", root.index):
            root.path.rename(root.path.with_name("away"))
            root.path.mkdir()

    with pytest.raises(FileNotFoundError):
        restarted(root, writer, Files(step)).publish("c2", {"wf/a": READY}, ())
    assert os.listdir(root.path) == []
