"""Closures: from staging to store/, sealed and complete or not there at all."""

import contextlib
import errno
import fcntl
import json
import os
import stat
import subprocess
import uuid
from functools import partial
from pathlib import Path

import pytest

from envfabric.core.errors import StoreError
from envfabric.store import sealing
from envfabric.store.closures import Closures, digest_of
from envfabric.store.files import Files
from envfabric.store.root import Root
from envfabric.store.usage import walk_inodes
from store.faults import CODES, each_fault, each_kill, exit_code, in_process, start
from store.small_venv import METADATA, ODD_NAMES, PACKAGES, assert_whole, build, fill, manifest, publish
from support.waiting import wait_for


def test_built_environment_gets_into_the_store(root: Root, closures: Closures) -> None:
    """What was staged is in the store under its digest, described, with nothing left in staging."""
    assert not closures.present("d1")
    inodes = build(closures, root, "d1", "alpha", "beta")
    assert closures.present("d1")
    assert os.listdir(root.store) == ["d1"]
    assert os.listdir(root.staging) == []
    assert_whole(root.closure("d1"))
    assert inodes == walk_inodes(root.closure("d1"))
    metadata = closures.metadata("d1")
    assert metadata["digest"] == "d1"
    assert metadata["link_fallbacks"] == 0
    assert (root.closure("d1") / "build.log").read_text() == "built d1\n"
    linked = root.closure("d1") / PACKAGES / "alpha" / "__init__.py"
    assert linked.stat().st_ino == (root.uv_cache / "alpha" / "__init__.py").stat().st_ino
    assert os.access(root.python("d1"), os.X_OK)


def test_metadata_tell_the_environments_size(root: Root, closures: Closures) -> None:
    """venv_bytes and venv_inodes count each inode of the environment once."""
    build(closures, root, "d1", "alpha")
    counted = walk_inodes(root.closure("d1") / ".venv")
    metadata = closures.metadata("d1")
    assert (metadata["venv_bytes"], metadata["venv_inodes"]) == (sum(counted.values()), len(counted))


def test_sealed_modes_whatever_the_umask(root: Root, closures: Closures, umask: int) -> None:
    """Nothing below a closure can be written, all of it can be read by all, programs stay programs."""
    build(closures, root, "d1")
    top = root.closure("d1")
    assert stat.S_IMODE(top.stat().st_mode) == 0o755
    wanted = {"tool": 0o555, "native.so": 0o555, "__init__.py": 0o444, "manifest": 0o444, "build.log": 0o444}
    seen = set()
    for path in top.rglob("*"):
        if path.is_symlink():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode == 0o555, path
        else:
            assert mode == wanted.get(path.name, 0o444), path
            seen.add(path.name)
    assert seen >= wanted.keys()


def test_manifest_is_true_of_every_path(root: Root, closures: Closures) -> None:
    """Each file with its mode, size and hash, each folder and link: odd names too, and nothing else."""
    build(closures, root, "d1")
    assert_whole(root.closure("d1"))
    lines = manifest(root.closure("d1"))
    listed = {os.fsencode(str(line[1])) for line in lines}
    assert {f"{PACKAGES}/alpha/".encode() + name for name in ODD_NAMES} <= listed
    assert ["l", ".venv/bin/python", os.readlink(root.python("d1"))] in lines
    assert ["d", ".venv", "0o555"] in lines
    raw = (root.closure("d1") / "manifest").read_bytes()
    assert raw.count(b"\n") == len(lines) + 1, "an odd name makes no line of its own"


def test_shared_file_is_read_once(root: Root, closures: Closures, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that many closures share is hashed for the first of them only."""
    read: list[str] = []
    real = sealing._sha256

    def count(path: str) -> str:
        read.append(os.path.basename(path))
        return real(path)

    monkeypatch.setattr(sealing, "_sha256", count)
    for digest in ("d1", "d2", "d3"):
        build(closures, root, digest)
    assert read.count("native.so") == 1
    assert read.count("RECORD") == 3
    assert_whole(root.closure("d3"))


@pytest.mark.parametrize(
    ("place", "copies"),
    [
        (f"{PACKAGES}/alpha/module.py", 1),
        (f"{PACKAGES}/module.py", 1),
        (f"{PACKAGES}/alpha-1.0.dist-info/METADATA", 0),
        (f"{PACKAGES}/_virtualenv.pth", 0),
        (".venv/bin/script", 0),
    ],
)
def test_copies_are_counted(root: Root, closures: Closures, place: str, copies: int) -> None:
    """A package's file without another name is reported as a copy; what uv writes itself is not."""
    with closures.staging() as staging:
        fill(root, staging.venv)
        (staging.closure / place).write_text("not linked")
        inventory = closures.take_inventory(staging)
        assert inventory.copied == copies
        closures.describe(staging, inventory, METADATA, "")
        assert json.loads((staging.closure / "metadata.json").read_bytes())["link_fallbacks"] == copies


def test_special_file_is_not_sealed(root: Root, closures: Closures) -> None:
    """A pipe or socket in an environment can't be described: nothing is published."""
    with pytest.raises(OSError, match="neither file, folder nor symlink"), closures.staging() as staging:
        fill(root, staging.venv)
        os.mkfifo(staging.venv / "pipe")
        publish(closures, staging, "d1")
    assert os.listdir(root.store) == os.listdir(root.staging) == []


def test_first_of_two_equal_closures_stays(root: Root, closures: Closures) -> None:
    """Two builders of one digest end as one closure, the first; the second is told its inodes."""
    first = build(closures, root, "d1")
    inode = root.closure("d1").stat().st_ino
    second = build(closures, root, "d1", "alpha", "beta")
    assert root.closure("d1").stat().st_ino == inode
    assert second == first
    assert not (root.closure("d1") / PACKAGES / "beta").exists()
    assert_whole(root.closure("d1"))
    assert os.listdir(root.staging) == []


class LyingFiles(Files):
    """A file system whose rename happens and reports an error, as NFS may."""

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        raise OSError(errno.EIO, "Input/output error", str(target))


def test_rename_that_happened_counts(root: Root) -> None:
    """Where the store has the closure after an error, it was published."""
    inodes = build(Closures(root, LyingFiles()), root, "d1")
    assert inodes == walk_inodes(root.closure("d1"))
    assert_whole(root.closure("d1"))


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_fault_at_any_step_leaves_nothing_or_all(root: Root, code: int) -> None:
    """Whichever step fails, store/ has the whole closure or nothing, and staging is empty."""
    for steps in each_fault(code):
        closures = Closures(root, Files(steps))
        try:
            build(closures, root, "d1")
        except OSError as error:
            assert error.errno == code
            assert os.listdir(root.store) == [], steps.seen[-1]
        else:
            assert_whole(root.closure("d1"))
            last = steps.failed and steps.seen[steps.fail_at or 0][0]
            assert last in (False, "remove", "unlink"), "only cleaning up may fail without a word"
            Files().remove_tree(root.closure("d1"))
            if last:
                assert Closures(root, Files()).recover() == set()
        assert os.listdir(root.staging) == []


def build_with(root: Root, digest: str, files: Files) -> None:
    build(Closures(root, files), root, digest)


def test_kill_at_any_step_leaves_nothing_or_all(root: Root, closures: Closures) -> None:
    """Killed at any step, store/ has the whole closure or nothing; the next start empties staging."""
    outcomes = set()
    for number, run in each_kill():
        digest = f"d{number}"
        run(partial(build_with, root, digest))
        outcomes.add(closures.present(digest))
        assert root.closure(digest).exists() == closures.present(digest)
        if closures.present(digest):
            assert_whole(root.closure(digest))
        assert closures.recover() == set()
        assert os.listdir(root.staging) == []
    assert outcomes == {True, False}


def test_failed_build_leaves_nothing(root: Root, closures: Closures) -> None:
    """An exception in a build, also of one that is sealed already, removes its staging folder."""
    with pytest.raises(RuntimeError, match="uv failed"), closures.staging() as staging:
        fill(root, staging.venv)
        closures.take_inventory(staging)
        raise RuntimeError("uv failed")
    assert os.listdir(root.staging) == os.listdir(root.store) == []


def test_lost_mount_stops_a_build(root: Root, closures: Closures) -> None:
    """Without the marker nothing is staged, and what is staged is not published."""
    marker = root.marker.read_bytes()
    with pytest.raises(StoreError, match="is the NAS mounted"), closures.staging() as staging:
        fill(root, staging.venv)
        inventory = closures.take_inventory(staging)
        root.marker.unlink()
        closures.publish(staging, "d1", inventory)
    with pytest.raises(StoreError, match="is the NAS mounted"), closures.staging():
        pytest.fail("staged without a marker")
    root.marker.write_bytes(marker)
    assert os.listdir(root.staging) == os.listdir(root.store) == []


def test_held_staging_waits_for_its_holder(root: Root, closures: Closures) -> None:
    """What a dead daemon's child still writes to is left and reported, and removed once it ended."""
    reading, writing = os.pipe()

    def daemon() -> None:
        with Closures(root, Files()).staging() as staging:
            fill(root, staging.venv)
            subprocess.Popen(["cat"], stdin=reading, pass_fds=[staging.descriptor])
            os._exit(0)

    assert in_process(daemon) == 0
    os.close(reading)
    (name,) = (one for one in os.listdir(root.staging) if not one.endswith(".lock"))
    (root.staging / "generation-leftover").mkdir()
    assert closures.recover() == {name}
    assert (root.staging / name / "closure" / ".venv" / "bin" / "tool").is_file()
    assert sorted(os.listdir(root.staging)) == [name, f"{name}.lock"]
    assert closures.recover({name}) == {name}
    os.close(writing)
    wait_for(lambda: not closures.recover({name}), message="the folder is held although its holder ended")
    assert os.listdir(root.staging) == []


def test_recover_of_some_leaves_the_others(root: Root, closures: Closures) -> None:
    """A later look empties what was held before, and never a build of its own process."""
    with closures.staging() as staging:
        (root.staging / "dead").mkdir()
        (root.staging / "dead.lock").touch()
        assert closures.recover({"dead", "gone"}) == set()
        assert staging.project.is_dir()
        assert sorted(os.listdir(root.staging)) == [staging.folder.name, f"{staging.folder.name}.lock"]


@pytest.mark.parametrize("leftover", ["x", "x.lock", "generation-x"])
def test_recover_empties_each_kind_of_leftover(root: Root, closures: Closures, leftover: str) -> None:
    """A folder without a lock, a lock without a folder, half a generation: all go."""
    path = root.staging / leftover
    if leftover.endswith(".lock"):
        path.touch()
    else:
        (path / "sealed").mkdir(parents=True)
        (path / "sealed").chmod(0o555)
    assert closures.recover() == set()
    assert os.listdir(root.staging) == []


def test_staging_names_are_never_shared(
    root: Root, closures: Closures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each build has a name of its own; one that is taken is refused, and its owner notices nothing."""
    names = set()
    for _ in range(50):
        with closures.staging() as staging:
            names.add(staging.folder.name)
    assert len(names) == 50
    same = uuid.uuid4()
    monkeypatch.setattr(uuid, "uuid4", lambda: same)
    with closures.staging() as staging:
        with pytest.raises(FileExistsError), closures.staging():
            pytest.fail("two builds in one folder")
        assert staging.project.is_dir()
        assert staging.closure.is_dir()


def test_builds_lock_is_held_until_its_folder_is_gone(root: Root, closures: Closures) -> None:
    """As long as a build's folder exists, its lock can't be had by anybody else."""
    with closures.staging() as staging:
        lock = staging.folder.with_name(f"{staging.folder.name}.lock")
        with lock.open("r+b") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not os.get_inheritable(staging.descriptor), "only children that are told hold it"
        assert closures.recover() == {staging.folder.name}


@pytest.mark.parametrize("operation", ["remove", "unlink"])
def test_recovery_goes_on_past_what_can_not_be_removed(root: Root, operation: str) -> None:
    """A folder that can't be removed yet is reported as held, all others go, and the next look tries it again."""
    for name in ("a", "b", "c"):
        (root.staging / name / "closure").mkdir(parents=True)
        (root.staging / f"{name}.lock").touch()

    def step(done: str, path: Path) -> None:
        if done == operation and path.name.removesuffix(".lock") == "b":
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))

    assert Closures(root, Files(step)).recover() == {"b"}
    assert {name.removesuffix(".lock") for name in os.listdir(root.staging)} == {"b"}
    assert Closures(root, Files()).recover({"b"}) == set()
    assert os.listdir(root.staging) == []


def test_manifest_is_sorted_by_path(root: Root, closures: Closures) -> None:
    """The lines of a manifest come in the order of their paths, whatever kind each one is of."""
    build(closures, root, "d1", "alpha", "beta")
    lines = manifest(root.closure("d1"))
    paths = [str(line[1]) for line in lines]
    assert paths == sorted(paths)
    assert {line[0] for line in lines} == {"d", "f", "l"}


def test_name_tells_of_damage_where_the_marks_are_lost(root: Root, closures: Closures) -> None:
    """What was built again beside says that all before it were found damaged; the newest one is served."""
    build(closures, root, "d1", "alpha")
    for number in (1, 2):
        closures.mark_damaged("d1" if number == 1 else f"d1-{number}", ["a file is gone"])
        build(closures, root, "d1", "alpha")
    build(closures, root, "d2", "beta")
    assert closures.locate("d1") == "d1-3"
    for mark in (root.state / "damaged").iterdir():
        mark.unlink()
    later = Closures(root, Files())
    assert later.damaged() == {"d1", "d1-2"}
    assert later.locate("d1") == "d1-3"
    assert later.locate("d2") == "d2"


def test_damaged_closure_is_built_beside(root: Root, closures: Closures) -> None:
    """After a mark the digest is built as <digest>-2, after two marks as <digest>-3; no damaged name comes back."""
    build(closures, root, "d1")
    assert (closures.locate("d1"), closures.usable("d1")) == ("d1", True)
    closures.mark_damaged("d1", ["bin/tool: other content"])
    assert (closures.locate("d1"), closures.usable("d1"), closures.present("d1")) == (None, False, True)
    build(closures, root, "d1")
    assert closures.locate("d1") == "d1-2"
    assert_whole(root.closure("d1-2"))
    closures.mark_damaged("d1-2", [])
    Files().remove_tree(root.closure("d1"))
    later = Closures(root, Files())
    assert later.damaged() == {"d1", "d1-2"}
    assert later.locate("d1") is None
    build(later, root, "d1")
    assert later.locate("d1") == "d1-3"
    assert sorted(os.listdir(root.store)) == ["d1-2", "d1-3"]
    assert digest_of("d1-3") == digest_of("d1") == "d1"
    marked = json.loads((root.state / "damaged" / "d1.json").read_bytes())
    assert marked["findings"] == ["bin/tool: other content"]


def test_kill_at_any_step_of_marking(root: Root, closures: Closures) -> None:
    """Killed at any step, a closure is marked or is not; a mark that was there stays, and nothing else is one."""
    outcomes = set()
    closures.mark_damaged("d0", [])
    for number, run in each_kill():
        name = f"d1-{number + 2}"

        def mark(files: Files, name: str = name) -> None:
            Closures(root, files).mark_damaged(name, ["found"])

        killed = run(mark)
        marked = Closures(root, Files()).damaged()
        assert marked - {name} >= {"d0"}
        assert {one for one in marked if one.startswith(".")} == set()
        assert killed or name in marked
        outcomes.add(name in marked)
    assert outcomes == {True, False}


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_mark_that_failed_is_none(root: Root, code: int) -> None:
    """Whichever step of a mark fails, this process believes what is on the NAS, and the next try marks it."""
    for steps in each_fault(code):
        closures = Closures(root, Files(steps))
        with contextlib.suppress(OSError):
            closures.mark_damaged("d1", [])
        assert closures.damaged() == Closures(root, Files()).damaged()
        Closures(root, Files()).mark_damaged("d1", [])
        assert Closures(root, Files()).damaged() == {"d1"}
        (root.state / "damaged" / "d1.json").unlink()


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_marks_that_can_not_be_read_are_not_gone(
    root: Root, closures: Closures, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Where the marks can't be read nothing is published as undamaged, and the next try reads them."""
    build(closures, root, "d1")
    closures.mark_damaged("d1", [])
    later = Closures(root, Files())
    real = os.listdir

    def listdir(path: Path) -> list[str]:
        if Path(path).name == "damaged":
            raise OSError(code, os.strerror(code), str(path))
        return real(path)

    with monkeypatch.context() as context:
        context.setattr(os, "listdir", listdir)
        for ask in (later.usable, later.locate):
            with pytest.raises(OSError, match=os.strerror(code)):
                ask("d1")
    assert later.locate("d1") is None


def test_lost_mount_takes_no_mark(root: Root, closures: Closures) -> None:
    """Below a mount point without its NAS nothing is made."""
    root.path.rename(root.path.with_name("away"))
    root.path.mkdir()
    with pytest.raises(StoreError, match="is the NAS mounted"):
        closures.mark_damaged("d1", [])
    assert os.listdir(root.path) == []


@pytest.mark.parametrize("gone", ["metadata.json", ".venv/bin/python", "interpreter"])
def test_closure_without_what_it_needs_is_not_there(root: Root, closures: Closures, gone: str) -> None:
    """A closure that lost its metadata, its python or the interpreter behind it is not present: it is built anew."""
    base = root.path / "pythons" / "python3"
    base.write_text("#!/bin/sh\n")
    build(closures, root, "d1")
    python = root.closure("d1") / ".venv" / "bin" / "python"
    (root.closure("d1") / ".venv" / "bin").chmod(0o755)
    python.unlink()
    python.symlink_to(base)
    assert closures.present("d1")
    (base if gone == "interpreter" else root.closure("d1") / gone).unlink()
    assert not closures.present("d1")
    assert closures.locate("d1") is None
    left = sorted(root.closure("d1").rglob("*"))
    build(closures, root, "d1")
    # Whoever leases what is left of it goes on: it is not touched, and its name not given again.
    assert sorted(root.closure("d1").rglob("*")) == left
    assert os.listdir(root.trash) == []
    assert closures.damaged() == {"d1"}
    assert closures.locate("d1") == "d1-2"
    assert_whole(root.closure("d1-2"))


def test_two_processes_that_build_one_digest(root: Root) -> None:
    """Two builders in two processes that publish one digest at the same time end as one whole closure."""
    for number in range(6):
        digest = f"d{number}"
        (ready, tell_ready), (wait, go) = os.pipe(), os.pipe()

        def race(digest: str = digest, pipes: tuple[int, ...] = (tell_ready, wait, go)) -> None:
            os.close(pipes[2])
            closures = Closures(root, Files())
            with closures.staging() as staging:
                fill(root, staging.venv, f"alpha{os.getpid()}")
                inventory = closures.take_inventory(staging)
                closures.describe(staging, inventory, METADATA | {"digest": digest}, f"built {digest}\n")
                os.write(pipes[0], b"x")
                os.read(pipes[1], 1)
                name, inodes = closures.publish(staging, digest, inventory)
            assert name == digest
            assert inodes == walk_inodes(root.closure(digest))

        children = [start(race) for _ in range(2)]
        got = b""
        while len(got) < len(children):
            got += os.read(ready, 2)
        for descriptor in (go, wait, ready, tell_ready):
            os.close(descriptor)
        assert [exit_code(child) for child in children] == [0, 0]
        assert_whole(root.closure(digest))
        assert len(list((root.closure(digest) / PACKAGES).glob("alpha*[0-9]"))) == 1
        assert os.listdir(root.staging) == os.listdir(root.trash) == []


def test_publication_that_was_cut_off_finds_nothing(root: Root) -> None:
    """A builder that is held before its rename while another writer begins brings nothing into the store."""
    late = False

    def step(operation: str, path: Path) -> None:
        nonlocal late
        if operation == "rename" and path == root.closure("d1") and not late:
            late = True
            # The NAS freed this builder's lock meanwhile, and the next writer emptied staging.
            for name in os.listdir(root.staging):
                Files().remove_tree(root.staging / name)
            build(Closures(root, Files()), root, "d1", "alpha", "beta")

    name_and_inodes = build(Closures(root, Files(step)), root, "d1", "alpha")
    assert late
    assert_whole(root.closure("d1"))
    assert (root.closure("d1") / PACKAGES / "beta").is_dir(), "the later builder's closure stays"
    assert name_and_inodes == walk_inodes(root.closure("d1"))


def test_publication_that_was_cut_off_and_has_no_follower(root: Root) -> None:
    """Where nobody else built it, a builder whose staging was emptied fails, and the store stays empty."""

    def step(operation: str, path: Path) -> None:
        if operation == "rename" and path == root.closure("d1"):
            for name in os.listdir(root.staging):
                Files().remove_tree(root.staging / name)

    with pytest.raises(FileNotFoundError):
        build(Closures(root, Files(step)), root, "d1")
    assert os.listdir(root.store) == os.listdir(root.staging) == []
