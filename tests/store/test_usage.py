"""What the store takes on disk: the same figures as du, from records instead of walks."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from envfabric.store import usage as usage_module
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.root import Root
from envfabric.store.usage import Totals, Usage, walk_inodes
from store.faults import each_fault, each_kill
from store.small_venv import build

PACKAGES = {"d1": ("alpha",), "d2": ("alpha", "beta"), "d3": ("beta", "gamma"), "d4": ("gamma",)}


def du(*paths: Path) -> int:
    """Bytes on disk as du counts them: each inode once over all paths."""
    told = subprocess.run(["du", "-sc", "--block-size=1", *paths], capture_output=True, text=True, check=True)
    return int(told.stdout.splitlines()[-1].split()[0])


def inodes(*paths: Path) -> int:
    """How many distinct inodes there are, as find sees them."""
    told = subprocess.run(["find", *paths, "-printf", "%i "], capture_output=True, text=True, check=True)
    return len(set(told.stdout.split()))


def no_walk(folder: Path) -> dict[int, int]:
    raise AssertionError(f"{folder} was walked")


def loaded(root: Root) -> Usage:
    usage = Usage(root, Files())
    usage.load()
    return usage


@pytest.fixture
def filled(root: Root, closures: Closures) -> Root:
    """A store with four closures that share files; the daemon kept each one's record."""
    usage = Usage(root, Files())
    for digest, packages in PACKAGES.items():
        usage.keep(digest, build(closures, root, digest, *packages))
    return root


def test_empty_store_takes_nothing(root: Root) -> None:
    """Without closures all totals are zero."""
    assert loaded(root).totals() == Totals(0, 0, 0)


def test_totals_equal_du(filled: Root) -> None:
    """Physical bytes are what du says of all closures together, logical ones what it says of each alone."""
    usage = loaded(filled)
    paths = [filled.closure(digest) for digest in PACKAGES]
    assert usage.totals() == Totals(4, du(*paths), inodes(*paths))
    for digest, path in zip(PACKAGES, paths, strict=True):
        assert usage.logical(digest) == du(path)
        assert usage.known(digest)
    shared = sum(map(usage.logical, PACKAGES)) - usage.totals().physical_bytes
    assert shared > 0


def test_counting_while_building_equals_counting_after(root: Root, closures: Closures) -> None:
    """A daemon that counts as it seals ends with the totals of one that starts on the result."""
    usage = Usage(root, Files())
    for digest, packages in PACKAGES.items():
        usage.keep(digest, build(closures, root, digest, *packages))
        usage.add(digest)
        assert usage.totals() == loaded(root).totals()
        assert usage.totals().physical_bytes == du(*root.store.iterdir())


def test_order_does_not_matter(filled: Root) -> None:
    """Whichever closure is looked at first, a shared inode is counted once."""
    usage = Usage(filled, Files())
    for digest in reversed(PACKAGES):
        usage.add(digest)
    assert usage.totals() == loaded(filled).totals()


def test_start_reads_records_only(filled: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every closure has its record, a start does not walk the store."""
    before = loaded(filled).totals()
    monkeypatch.setattr(usage_module, "walk_inodes", no_walk)
    assert loaded(filled).totals() == before


@pytest.mark.parametrize("cut", [None, 1, 8, 15], ids=["missing", "1 byte", "8 bytes", "15 bytes"])
def test_lost_record_is_made_again(filled: Root, monkeypatch: pytest.MonkeyPatch, cut: int | None) -> None:
    """A record that is missing or was cut off is counted anew, once."""
    before = loaded(filled).totals()
    record = filled.state / "usage" / "d2"
    whole = record.read_bytes()
    record.unlink()
    if cut is not None:
        record.write_bytes(whole[:-cut])
    assert loaded(filled).totals() == before
    monkeypatch.setattr(usage_module, "walk_inodes", no_walk)
    assert loaded(filled).totals() == before


def test_record_cut_at_any_length_is_counted_anew(filled: Root) -> None:
    """However much of a record a crash has left, all of it or nothing is believed."""
    before = loaded(filled).totals()
    record = filled.state / "usage" / "d2"
    whole = record.read_bytes()
    # Every seventh: so each remainder of eight bytes comes by.
    for length in range(0, len(whole), 7):
        record.write_bytes(whole[:length])
        assert loaded(filled).totals() == before, f"{length} of {len(whole)} bytes"
        assert len(record.read_bytes()) == len(whole)


def test_copied_root_is_counted_anew(filled: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy's files have other inodes: its records are not believed, and made again, once."""
    before = loaded(filled).totals()
    copy = Root(filled.path.with_name("copy"))
    subprocess.run(["cp", "-a", filled.path, copy.path], check=True)
    records = {path.name: path.read_bytes() for path in (copy.state / "usage").iterdir()}
    loaded(copy)
    assert all((copy.state / "usage" / name).read_bytes() != record for name, record in records.items())
    monkeypatch.setattr(usage_module, "walk_inodes", no_walk)
    assert loaded(copy).totals() == before


def test_a_count_says_how_far_it_is(filled: Root) -> None:
    """Before each closure of a full count, also where it has to be walked: whoever waits for it is not hung."""
    told: list[tuple[int, int]] = []
    (filled.state / "usage" / "d2").unlink()
    Usage(filled, Files(), lambda done, total: told.append((done, total))).load()
    assert told == [(number, 4) for number in range(4)]


def test_somebody_elses_folder_is_passed_over(filled: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in store/ that is closed to the daemon is no closure, and ends no start."""
    before = loaded(filled).totals()
    (filled.store / "d5").mkdir()
    look = usage_module._inode

    def refused(path: Path) -> int | None:
        if path.parent.name == "d5":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return look(path)

    monkeypatch.setattr(usage_module, "_inode", refused)
    assert loaded(filled).totals() == before


def test_closure_counts_once(filled: Root) -> None:
    """Adding a closure again, or loading again, changes nothing."""
    usage = loaded(filled)
    before = usage.totals()
    usage.add("d1")
    usage.load()
    assert usage.totals() == before


def test_unknown_closure_is_nothing(filled: Root) -> None:
    """A digest that is not in the store is not known and takes nothing."""
    usage = loaded(filled)
    assert not usage.known("d9")
    assert usage.logical("d9") == 0


def test_hidden_names_are_no_closures(filled: Root) -> None:
    """What a probe or an NFS client leaves in store/ is not counted."""
    before = loaded(filled).totals()
    (filled.store / ".nfs0001").write_bytes(b"x" * 9000)
    (filled.store / ".probe").mkdir()
    assert loaded(filled).totals() == before


def test_walk_counts_links_and_folders(root: Root) -> None:
    """A walk sees folders and symlinks as inodes of their own, and does not follow the latter."""
    closure = root.store / "d1"
    (closure / "folder").mkdir(parents=True)
    (closure / "folder" / "file").write_bytes(b"x" * 5000)
    os.link(closure / "folder" / "file", closure / "again")
    (closure / "link").symlink_to("/usr")
    found = walk_inodes(closure)
    assert len(found) == 4
    assert sum(found.values()) == du(closure)


def test_removed_closure_leaves_the_account(filled: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each removal leaves the totals that du gives for what is left, without a walk, and no record."""
    usage = loaded(filled)
    monkeypatch.setattr(usage_module, "walk_inodes", no_walk)
    left = dict(PACKAGES)
    for digest in ("d2", "d1", "d4", "d3"):
        Files().remove_tree(filled.closure(digest))
        usage.remove(digest)
        del left[digest]
        paths = [filled.closure(one) for one in left]
        assert usage.totals() == (Totals(len(left), du(*paths), inodes(*paths)) if paths else Totals(0, 0, 0))
        assert (usage.known(digest), usage.logical(digest)) == (False, 0)
        assert sorted(os.listdir(filled.state / "usage")) == sorted(left)
    usage.remove("d1")
    assert usage.totals() == Totals(0, 0, 0)


@pytest.mark.parametrize("cut", [None, 1], ids=["missing", "cut off"])
def test_removal_without_a_record(filled: Root, cut: int | None) -> None:
    """Where nobody knows any more what a removed closure had, what is left is counted anew."""
    usage = loaded(filled)
    record = filled.state / "usage" / "d2"
    whole = record.read_bytes()
    record.unlink()
    if cut is not None:
        record.write_bytes(whole[:-cut])
    Files().remove_tree(filled.closure("d2"))
    usage.remove("d2")
    paths = [filled.closure(digest) for digest in ("d1", "d3", "d4")]
    assert usage.totals() == Totals(3, du(*paths), inodes(*paths))


def test_closure_that_was_made_anew(root: Root, closures: Closures) -> None:
    """A closure that comes again with other inodes replaces what was counted, here and in its record."""
    usage = Usage(root, Files())
    usage.add("d1", build(closures, root, "d1", "alpha"))
    usage.add("d2", build(closures, root, "d2", "alpha", "beta"))
    Files().remove_tree(root.closure("d1"))
    usage.add("d1", build(closures, root, "d1", "alpha", "gamma"))
    paths = [root.closure(digest) for digest in ("d1", "d2")]
    assert usage.totals() == loaded(root).totals() == Totals(2, du(*paths), inodes(*paths))


def test_who_only_looks_writes_nothing(filled: Root) -> None:
    """Without `keep` a record that is missing is counted and not written."""
    before = loaded(filled).totals()
    for name in ("d1", "d2"):
        (filled.state / "usage" / name).unlink()
    usage = Usage(filled, Files())
    usage.load(keep=False)
    assert usage.totals() == before
    assert sorted(os.listdir(filled.state / "usage")) == ["d3", "d4"]


def test_record_that_can_not_be_kept(filled: Root) -> None:
    """A full disk costs a closure's record and not its count; the next start counts it again."""
    before = loaded(filled).totals()
    (filled.state / "usage" / "d2").unlink()
    for steps in each_fault(errno.ENOSPC):
        usage = Usage(filled, Files(steps))
        usage.load()
        assert usage.totals() == before


def test_kill_at_any_step_of_keeping(filled: Root) -> None:
    """Killed at any step of a record, the next start has the same totals."""
    before = loaded(filled).totals()
    found = walk_inodes(filled.closure("d2"))
    for _, run in each_kill():
        (filled.state / "usage" / "d2").unlink(missing_ok=True)
        run(lambda files: Usage(filled, files).keep("d2", found))
        assert loaded(filled).totals() == before


def test_record_of_a_closure_that_left_is_not_believed(root: Root, closures: Closures) -> None:
    """Killed between a removal and its record's, a closure that is built again is counted as it is now."""
    usage = loaded(root)
    usage.add("d1", build(closures, root, "d1", "alpha", "beta"))
    Files().remove_tree(root.closure("d1"))
    # Killed here: the record stays. The next writer starts, builds it again, and is killed before it counts.
    loaded(root)
    build(closures, root, "d1", "gamma")
    assert loaded(root).totals().physical_bytes == du(root.closure("d1"))


def test_store_that_can_not_be_listed_keeps_the_count(filled: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NAS that is away for a moment does not turn the totals to nothing."""
    usage = loaded(filled)
    before = usage.totals()

    def listdir(path: Path) -> list[str]:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    with monkeypatch.context() as context:
        context.setattr(os, "listdir", listdir)
        with pytest.raises(OSError, match="Stale"):
            usage.load()
    assert usage.totals() == before
