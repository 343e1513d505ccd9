"""The seam of file operations: old or new, never torn, never missing, and nothing left behind."""

import contextlib
import ctypes
import errno
import os
import resource
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from envfabric.store import files as files_module
from envfabric.store.files import Files, stamp
from store.faults import CODES, each_fault, each_kill

Operation = Callable[[Files, Path], object]


def content(folder: Path) -> dict[str, tuple[int, bytes | str | None]]:
    """All that can be seen below a folder: names, modes, contents, targets."""
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        what: bytes | str | None = None
        if stat.S_ISLNK(mode):
            what = os.readlink(path)
        elif stat.S_ISREG(mode):
            what = path.read_bytes()
        found[str(path.relative_to(folder))] = (stat.S_IMODE(mode), what)
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a file, a symlink and a folder with something in it."""
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("old")
    (tmp_path / "folder").mkdir()
    # Whatever the umask: a mode that no removal sets.
    (tmp_path / "folder").chmod(0o755)
    (tmp_path / "folder" / "inner").write_bytes(b"inner")
    return tmp_path


def flush(files: Files, at: Path) -> None:
    descriptor = os.open(at, os.O_RDONLY)
    try:
        files.flush(descriptor, at)
    finally:
        os.close(descriptor)


OPERATIONS: dict[str, Operation] = {
    "make_folder": lambda files, at: files.make_folder(at / "new"),
    "write_atomic": lambda files, at: files.write_atomic(at / "file", b"new"),
    "write_new": lambda files, at: files.write_new(at / "new", b"new"),
    "link": lambda files, at: files.link(at / "file", at / "new"),
    "rename": lambda files, at: files.rename(at / "folder", at / "new"),
    "symlink": lambda files, at: files.symlink(at / "new", "target"),
    "unlink": lambda files, at: files.unlink(at / "file"),
    "flush": flush,
    "remove_tree": lambda files, at: files.remove_tree(at / "folder"),
}


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_failed_operation_changes_nothing(place: Path, operation: Operation, code: int) -> None:
    """A fault at any step of an operation reaches the caller as it is, and all is as it was."""
    before = content(place)
    for steps in each_fault(code):
        try:
            operation(Files(steps), place)
        except OSError as error:
            assert error.errno == code
            assert content(place) == before, steps.seen
        else:
            assert not steps.failed
    if operation is not OPERATIONS["flush"]:
        assert content(place) != before


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_failed_flip_keeps_the_old_target(place: Path, code: int) -> None:
    """Whichever step of a flip fails, the symlink points where it did."""
    for steps in each_fault(code):
        assert os.readlink(place / "link") == "old"
        try:
            Files(steps).flip_symlink(place / "link", "new")
        except OSError as error:
            assert error.errno == code
    assert os.readlink(place / "link") == "new"


def test_remove_tree_does_not_follow_a_link(place: Path) -> None:
    """A symlink to a folder, given or met on the way, is removed itself; the folder keeps all that it has."""
    (place / "top").mkdir()
    for link in (place / "given", place / "top" / "met"):
        link.symlink_to(place / "folder")
    (place / "nowhere").symlink_to(place / "missing")
    for path in (place / "given", place / "top", place / "nowhere", place / "file"):
        Files().remove_tree(path)
    assert sorted(os.listdir(place)) == ["folder", "link"]
    assert (place / "folder" / "inner").read_bytes() == b"inner"
    assert stat.S_IMODE((place / "folder").stat().st_mode) != stat.S_IRWXU


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_failed_flip_leaves_nothing_behind(place: Path, code: int) -> None:
    """A flip that fails, at the seam or in the rename itself, leaves no temporary link beside the old one."""
    before = content(place)
    for steps in each_fault(code):
        with contextlib.suppress(OSError):
            Files(steps).flip_symlink(place / "link", "new")
        if steps.failed:
            assert content(place) == before
    with pytest.raises(IsADirectoryError):
        Files().flip_symlink(place / "folder", "new")
    assert sorted(os.listdir(place)) == ["file", "folder", "link"]


def test_missing_parents_are_readable_by_others(tmp_path: Path, umask: int) -> None:
    """make_folder makes every folder that is missing on the way 0755, and leaves those that are there alone."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o700)
    Files().make_folder(tmp_path / "there" / "a" / "b" / "c", tmp_path / "there")
    for path in ("there/a", "there/a/b", "there/a/b/c"):
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "there").stat().st_mode) == 0o700


def test_nothing_is_made_below_what_is_not_there(tmp_path: Path) -> None:
    """Below a folder that has to be there, and is not, no folder is made: a mount point may have lost its NAS."""
    nas = tmp_path / "nas"
    with pytest.raises(FileNotFoundError):
        Files().make_folder(nas / "envs")
    with pytest.raises(FileNotFoundError):
        Files().make_folder(nas / "state" / "pins" / "wf", nas / "state")
    with pytest.raises(ValueError, match="is not below"):
        Files().make_folder(tmp_path / "other" / "wf", nas)
    assert os.listdir(tmp_path) == []


def test_file_is_not_written_below_a_mount_point_without_its_mount(place: Path) -> None:
    """What is written by way of another folder needs that folder: without it the old file stays, and nothing new."""
    before = content(place)
    for operation in (
        lambda: Files().write_atomic(place / "file", b"new", via=place / "staging"),
        lambda: Files().flip_symlink(place / "link", "new", via=place / "staging"),
    ):
        with pytest.raises(FileNotFoundError):
            operation()
        assert content(place) == before


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_file_that_is_written_elsewhere_first(place: Path, code: int) -> None:
    """By way of another folder too a file is old or new, whole, and nothing of a failed one stays in either."""
    (place / "staging").mkdir()
    before = content(place)
    for steps in each_fault(code):
        with contextlib.suppress(OSError):
            Files(steps).write_atomic(place / "file", b"new", via=place / "staging")
        if steps.failed:
            assert content(place) == before
    assert (place / "file").read_bytes() == b"new"
    assert os.listdir(place / "staging") == []


def test_late_rename_finds_its_file_gone(place: Path) -> None:
    """A writer that was cut off between writing and renaming replaces nothing once staging was emptied."""
    staging = place / "staging"
    staging.mkdir()

    def step(operation: str, path: Path) -> None:
        if operation == "rename":
            # Here the next writer empties staging and writes its own.
            Files().remove_tree(staging)
            staging.mkdir()
            Files().write_atomic(path, b"the next writer's", via=staging)

    with pytest.raises(FileNotFoundError):
        Files(step).write_atomic(place / "file", b"late", via=staging)
    assert (place / "file").read_bytes() == b"the next writer's"


def test_stamp_is_of_what_was_written(place: Path) -> None:
    """write_atomic's stamp is that of its own file, also where another replaces it at that very moment."""
    path = place / "file"
    written = Files().write_atomic(path, b"one")
    assert written == stamp(path.stat())
    real = Files.sync_folder

    class Overtaken(Files):
        def sync_folder(self, path: Path) -> None:
            real(self, path)
            Files().write_atomic(path / "other", b"two")
            (path / "other").replace(path / "file")

    written = Overtaken().write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert written != stamp(path.stat())


def test_failed_file_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file that could not be written to its end is not there: the next try makes it, whole."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            Files().write_new(tmp_path / "new", b"data", durable=True)
    Files().write_new(tmp_path / "new", b"data", durable=True)
    with pytest.raises(FileExistsError):
        Files().write_new(tmp_path / "new", b"other")
    assert (tmp_path / "new").read_bytes() == b"data"


def test_link_finds_its_own_work(place: Path) -> None:
    """Where the answer to a link was lost and the second try finds it done, it is done; another's file is not ours."""
    files = Files()
    files.link(place / "file", place / "again")
    # What NFS says to the second try of the same call.
    files.link(place / "file", place / "again")
    (place / "same").write_bytes((place / "file").read_bytes())
    (place / "leads-here").symlink_to("file")
    for name in ("same", "leads-here", "link"):
        with pytest.raises(FileExistsError):
            files.link(place / "file", place / name)


def test_removal_tells_what_came_back(tmp_path: Path) -> None:
    """Bytes and inodes of a removal are what du counts less: a file that has another name gives nothing back."""
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "own").write_bytes(b"x" * 50_000)
    (tree / "a" / "twice").write_bytes(b"x" * 20_000)
    os.link(tree / "a" / "twice", tree / "again")
    (tree / "link").symlink_to("nowhere")
    (tmp_path / "kept").write_bytes(b"x" * 90_000)
    os.link(tmp_path / "kept", tree / "shared")

    def blocks() -> tuple[int, int]:
        found = {path.lstat().st_ino: path.lstat().st_blocks * 512 for path in tmp_path.rglob("*")}
        return sum(found.values()), len(found)

    before = blocks()
    freed = Files().remove_tree(tree)
    after = blocks()
    assert (freed.bytes, freed.inodes) == (before[0] - after[0], before[1] - after[1])
    assert (tmp_path / "kept").stat().st_nlink == 1


def test_removal_of_what_is_nested_deeply(tmp_path: Path) -> None:
    """Folders nested deeper than Python recurses, as a wheel may bring them, are removed like others."""
    here = tmp_path / "top"
    here.mkdir()
    descriptor = os.open(here, os.O_RDONLY)
    try:
        # By descriptors: the whole path is far longer than a path may be.
        for _ in range(1200):
            os.mkdir("d", dir_fd=descriptor)
            inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
    finally:
        os.close(descriptor)
    assert Files().remove_tree(here).inodes == 1201
    assert os.listdir(tmp_path) == []


def test_flush_tells_of_errors_since_its_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the file system is an `OSError` that names what was flushed."""

    class Broken:
        def syncfs(self, _: int) -> int:
            ctypes.set_errno(errno.EIO)
            return -1

    monkeypatch.setattr(files_module, "_LIBC", Broken())
    with pytest.raises(OSError, match="Input/output error") as caught:
        flush(Files(), tmp_path)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(tmp_path))


def test_server_time_is_the_file_systems(tmp_path: Path) -> None:
    """The server's clock is read off a file that is new, and nothing of it stays; also where a step fails."""
    before = time.time()
    told = Files().server_time(tmp_path)
    assert before - 5 < told < time.time() + 5
    for steps in each_fault(errno.EIO):
        with contextlib.suppress(OSError):
            Files(steps).server_time(tmp_path)
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (OPERATIONS["write_atomic"], "file"),
        (lambda files, at: files.flip_symlink(at / "link", "new"), "link"),
        (OPERATIONS["rename"], "folder"),
    ],
    ids=["write_atomic", "flip_symlink", "rename"],
)
def test_killed_operation_keeps_the_old_content(place: Path, operation: Operation, name: str) -> None:
    """A process that is killed at any step leaves what readers meet as it was."""
    before = content(place)[name]
    for _, run in each_kill():
        assert content(place)[name] == before
        if run(lambda files: operation(files, place)):
            assert content(place)[name] == before
    assert content(place).get(name) != before


@pytest.mark.parametrize("mode", [0o644, 0o444, 0o600])
def test_written_files_have_the_wanted_mode(tmp_path: Path, umask: int, mode: int) -> None:
    """Modes are what was asked for, whatever the umask, for new files and for replaced ones."""
    files = Files()
    for data in (b"first", b"second"):
        files.write_atomic(tmp_path / "atomic", data, mode)
        assert (tmp_path / "atomic").read_bytes() == data
        assert stat.S_IMODE((tmp_path / "atomic").stat().st_mode) == mode
    files.write_new(tmp_path / "new", b"data", mode)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode
    files.make_folder(tmp_path / "folder")
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755
    assert sorted(os.listdir(tmp_path)) == ["atomic", "folder", "new"]


def test_write_that_fails_in_the_middle_leaves_nothing(place: Path) -> None:
    """A file system that takes only a part of the data keeps the old file, and no half of a new one."""
    before = content(place)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            Files().write_atomic(place / "file", b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert caught.value.errno == errno.EFBIG
    assert content(place) == before


def test_failed_fsync_keeps_the_old_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that can't be made durable never gets the name that readers open."""
    before = content(place)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        Files().write_atomic(place / "file", b"new")
    assert content(place) == before


def test_data_is_durable_before_its_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write_atomic makes the content durable before the rename and the name after it."""
    real = os.fsync
    order = []

    def fsync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        order.append(("folder" if folder else "file", (place / "file").read_bytes()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    Files().write_atomic(place / "file", b"new")
    assert order == [("file", b"old"), ("folder", b"new")]


class Reader:
    """Asks the same question in a thread, over and over, until it is left."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self._stop = threading.Event()
        self.started = threading.Event()
        self.answers: list[object] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                answer = self._ask()
            except OSError as error:
                answer = error
            if not self.answers or self.answers[-1] != answer:
                self.answers.append(answer)
            self.started.set()

    def __enter__(self) -> "Reader":
        self._thread.start()
        assert self.started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_readers_never_see_a_torn_file(tmp_path: Path) -> None:
    """Whoever reads while a file is replaced gets the old content or the new one, whole."""
    path, files = tmp_path / "file", Files()
    wanted = [bytes([65 + number % 26]) * (1000 + 50_000 * (number % 3)) for number in range(60)]
    files.write_atomic(path, wanted[0])
    with Reader(path.read_bytes) as reader:
        for data in wanted:
            files.write_atomic(path, data)
    assert len(reader.answers) > 1
    assert [one for one in reader.answers if one not in wanted] == []
    assert os.listdir(tmp_path) == ["file"]


def test_flipped_symlink_is_never_missing(tmp_path: Path) -> None:
    """Whoever follows a symlink while it is flipped gets one target or the other."""
    link, files = tmp_path / "link", Files()
    files.flip_symlink(link, "0")
    with Reader(lambda: os.readlink(link)) as reader:
        for number in range(3000):
            files.flip_symlink(link, str(number))
    assert len(reader.answers) > 1
    assert [one for one in reader.answers if not isinstance(one, str)] == []
    assert os.listdir(tmp_path) == ["link"]


def test_names_are_not_taken_over(place: Path) -> None:
    """write_new, link and symlink refuse a name that is there; so does rename for a filled folder."""
    files, before = Files(), content(place)
    operations: list[Callable[[], None]] = [
        lambda: files.write_new(place / "file", b"new"),
        lambda: files.link(place / "file", place / "link"),
        lambda: files.symlink(place / "file", "target"),
    ]
    for operation in operations:
        with pytest.raises(FileExistsError):
            operation()
    (place / "other").mkdir()
    (place / "other" / "mine").touch()
    with pytest.raises(OSError, match="not empty"):
        files.rename(place / "folder", place / "other")
    assert content(place)["file"] == before["file"]
    assert content(place)["folder/inner"] == before["folder/inner"]


def test_remove_tree_removes_sealed_folders(tmp_path: Path) -> None:
    """What was sealed can be removed by the user who sealed it."""
    deep = tmp_path / "closure" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_text("sealed")
    (deep / "file").chmod(0o444)
    for folder in (deep, deep.parent, deep.parent.parent):
        folder.chmod(0o555)
    Files().remove_tree(tmp_path / "closure")
    assert os.listdir(tmp_path) == []


def test_remove_tree_follows_no_symlink(tmp_path: Path) -> None:
    """Symlinks below a folder are removed; what they point at keeps its content and its mode."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    (outside / "shared").write_text("linked")
    (outside / "shared").chmod(0o444)
    outside.chmod(0o555)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "folder").symlink_to(outside)
    (tree / "file").symlink_to(outside / "file")
    (tree / "dangling").symlink_to("nowhere")
    os.link(outside / "shared", tree / "shared")
    before = content(outside)
    Files().remove_tree(tree)
    assert os.listdir(tmp_path) == ["outside"]
    assert content(outside) == before
    assert stat.S_IMODE(outside.stat().st_mode) == 0o555
    outside.chmod(0o755)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_remove_tree_and_unlink_end_with_nothing_there(place: Path, name: str) -> None:
    """Removing what is gone already is no error, and a file in place of a folder goes, too."""
    Files().remove_tree(place / name)
    Files().unlink(place / name)
    assert not (place / name).exists()
