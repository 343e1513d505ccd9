"""verify: whatever happens to a sealed closure is found, and nothing else is."""

import errno
import os
import random
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from envfabric.core.errors import ConfigError, StoreError
from envfabric.store import proof
from envfabric.store.closures import Closures
from envfabric.store.manifest import DEEPEST
from envfabric.store.root import Root
from envfabric.store.verify import Finding, Report, SeenHashes, check, shown, verify
from store.small_venv import ODD_NAMES, PACKAGES, build, listing
from support.waiting import wait_for

ALPHA = f"{PACKAGES}/alpha"


@pytest.fixture
def closure(root: Root, closures: Closures) -> Path:
    build(closures, root, "d1")
    return root.closure("d1")


@contextmanager
def writable(path: Path) -> Iterator[Path]:
    """A sealed path that its owner may change, root or not; its mode and its folder's are as before at the end."""
    before = [(one, stat.S_IMODE(one.stat().st_mode)) for one in (path.parent, path) if one.exists()]
    for one, mode in before:
        one.chmod(mode | stat.S_IRWXU)
    yield path
    for one, mode in before:
        if one.exists() and not one.is_symlink():
            one.chmod(mode)


def found(closure: Path) -> list[tuple[str, str]]:
    """What a check of one closure finds, as kind and path."""
    return [(one.kind, one.path) for one in check(closure, SeenHashes())]


def flip(path: Path, place: int) -> None:
    """Turns around a bit of a sealed file; size and mtime stay."""
    times = path.stat()
    with writable(path), path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are read from now on."""
    read: list[str] = []
    real = proof._read

    def count(path: str, key: tuple[int, int], stop: Callable[[], bool]) -> tuple[int, str | None]:
        read.append(path)
        return real(path, key, stop)

    monkeypatch.setattr(proof, "_read", count)
    return read


def test_whole_closure_has_no_findings(closure: Path) -> None:
    """What was sealed and left alone is clean, odd names and an empty file too."""
    before = listing(closure)
    assert found(closure) == []
    assert listing(closure) == before


def test_flipped_byte_in_any_file_is_found(closure: Path) -> None:
    """One bit in any file of the closure, anywhere, with size and mtime as before: found, and only that."""
    draw = random.Random(7)
    files = [path for path in closure.rglob("*") if path.is_file() and not path.is_symlink()]
    files = [path for path in files if path.stat().st_size]
    assert len(files) >= len(ODD_NAMES) + 9
    assert {"manifest", "metadata.json", "build.log"} <= {path.name for path in files}
    for path in files:
        size = path.stat().st_size
        for place in {0, size - 1, draw.randrange(size)}:
            flip(path, place)
            kind = "manifest" if path.name == "manifest" else "changed"
            assert found(closure) == [(kind, str(path.relative_to(closure)))], (path, place)
            flip(path, place)
    assert found(closure) == []


def lengthen(path: Path) -> None:
    with writable(path), path.open("ab") as file:
        file.write(b"x")


def empty(path: Path) -> None:
    with writable(path):
        os.truncate(path, 0)


def cut(path: Path) -> None:
    with writable(path):
        os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("damage", [lengthen, empty, cut])
@pytest.mark.parametrize("name", [f"{ALPHA}/native.so", "build.log", "metadata.json", "manifest"])
def test_other_size_is_found(closure: Path, name: str, damage: Callable[[Path], None]) -> None:
    """A byte more, a byte less, nothing left: found in each kind of file."""
    damage(closure / name)
    assert found(closure) == [("manifest" if name == "manifest" else "changed", name)]


def replace_by_equal(closure: Path) -> None:
    path = closure / ALPHA / "__init__.py"
    content = path.read_bytes()
    with writable(path):
        path.unlink()
        path.write_bytes(content)
        path.chmod(0o444)


def test_equal_file_in_its_place_is_no_damage(closure: Path) -> None:
    """The content counts, not the inode: a copy of a file is as good as the link."""
    replace_by_equal(closure)
    assert found(closure) == []


def remove(closure: Path) -> None:
    with writable(closure / ALPHA / "native.so") as path:
        path.unlink()


def rename(closure: Path) -> None:
    with writable(closure / ALPHA / "native.so") as path:
        path.rename(path.with_name("other.so"))
        path.with_name("other.so").chmod(0o555)


def add(closure: Path) -> None:
    with writable(closure / ALPHA / "added.py") as path:
        path.touch()


def add_beside(closure: Path) -> None:
    (closure / ".hidden").touch()


def add_folder(closure: Path) -> None:
    with writable(closure / ALPHA / "new") as path:
        path.mkdir()
        (path / "module.py").touch()


def add_link(closure: Path) -> None:
    with writable(closure / ALPHA / "loop") as path:
        path.symlink_to(".")


def add_pipe(closure: Path) -> None:
    with writable(closure / ALPHA / "pipe") as path:
        os.mkfifo(path)


def remove_folder(closure: Path) -> None:
    info = closure / f"{ALPHA}-1.0.dist-info"
    with writable(info / "RECORD"):
        (info / "RECORD").unlink()
    with writable(info):
        info.rmdir()


def retarget(closure: Path) -> None:
    with writable(closure / ".venv/bin/tool"):
        (closure / ".venv/bin/python").unlink()
        (closure / ".venv/bin/python").symlink_to("/bin/sh")


def link_to_equal(closure: Path) -> None:
    path = closure / ".venv/bin/tool"
    (closure.parent.parent / "tool").write_bytes(path.read_bytes())
    with writable(path):
        path.unlink()
        path.symlink_to(closure.parent.parent / "tool")


def file_instead_of_link(closure: Path) -> None:
    with writable(closure / ".venv/bin/tool"):
        path = closure / ".venv/bin/python"
        path.unlink()
        path.write_text("#!/bin/sh\n")


def folder_instead_of_file(closure: Path) -> None:
    path = closure / ".venv/pyvenv.cfg"
    with writable(path):
        path.unlink()
        path.mkdir()


def link_instead_of_folder(closure: Path) -> None:
    site = closure / PACKAGES
    with writable(site / "alpha"):
        shutil.move(site / "alpha", closure.parent.parent / "moved")
        (site / "alpha").symlink_to(closure.parent.parent / "moved")


def pipe_instead_of_manifest(closure: Path) -> None:
    (closure / "manifest").unlink()
    os.mkfifo(closure / "manifest")


def link_instead_of_manifest(closure: Path) -> None:
    (closure / "manifest").rename(closure.parent.parent / "manifest")
    (closure / "manifest").symlink_to(closure.parent.parent / "manifest")


ALPHAS = sorted(
    ("missing", f"{ALPHA}/{name}")
    for name in ("__init__.py", "native.so", "empty.py", *(os.fsdecode(odd) for odd in ODD_NAMES))
)


@pytest.mark.parametrize(
    ("damage", "findings"),
    [
        (remove, [("missing", f"{ALPHA}/native.so")]),
        (rename, [("missing", f"{ALPHA}/native.so"), ("extra", f"{ALPHA}/other.so")]),
        (add, [("extra", f"{ALPHA}/added.py")]),
        (add_beside, [("extra", ".hidden")]),
        (add_folder, [("extra", f"{ALPHA}/new"), ("extra", f"{ALPHA}/new/module.py")]),
        (add_link, [("extra", f"{ALPHA}/loop")]),
        (add_pipe, [("extra", f"{ALPHA}/pipe")]),
        (
            remove_folder,
            [("missing", f"{ALPHA}-1.0.dist-info"), ("missing", f"{ALPHA}-1.0.dist-info/RECORD")],
        ),
        (retarget, [("link", ".venv/bin/python")]),
        (link_to_equal, [("type", ".venv/bin/tool")]),
        (file_instead_of_link, [("type", ".venv/bin/python")]),
        (folder_instead_of_file, [("type", ".venv/pyvenv.cfg")]),
        (link_instead_of_folder, [("type", ALPHA), *ALPHAS]),
        (pipe_instead_of_manifest, [("manifest", "manifest")]),
        (link_instead_of_manifest, [("unreadable", "manifest")]),
        (lambda closure: (closure / "manifest").unlink(), [("manifest", "manifest")]),
        (lambda closure: (closure / "metadata.json").unlink(), [("missing", "metadata.json")]),
        (lambda closure: (closure / "build.log").chmod(0o644), [("mode", "build.log")]),
        (lambda closure: (closure / "manifest").chmod(0o644), [("mode", "manifest")]),
        (lambda closure: (closure / ".venv/bin/tool").chmod(0o444), [("mode", ".venv/bin/tool")]),
        (lambda closure: (closure / ".venv/bin/tool").chmod(0o4555), [("mode", ".venv/bin/tool")]),
        (lambda closure: (closure / ALPHA).chmod(0o755), [("mode", ALPHA)]),
        (lambda closure: closure.chmod(0o700), [("mode", ".")]),
    ],
)
def test_each_kind_of_damage_is_told(
    closure: Path, damage: Callable[[Path], None], findings: list[tuple[str, str]]
) -> None:
    """Removed, renamed, added, retargeted, replaced, other rights: each is told as what it is, and alone."""
    damage(closure)
    assert found(closure) == findings


def test_bytecode_after_sealing_is_explained(closure: Path) -> None:
    """A .pyc that root's interpreter left is extra, and the reader learns where it came from."""
    with writable(closure / ALPHA / "__pycache__") as folder:
        folder.mkdir()
        for name in ("a.cpython-311.pyc", "a.cpython-311.pyc.14023", "other.txt"):
            (folder / name).touch()
    findings = check(closure, SeenHashes())
    assert [one.kind for one in findings] == ["extra"] * 4
    explained = [os.path.basename(one.path) for one in findings if "(root) ran from this" in one.detail]
    assert explained == ["__pycache__", "a.cpython-311.pyc", "a.cpython-311.pyc.14023"]


def test_shared_damage_is_found_in_each_and_read_once(
    root: Root, closures: Closures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that closures share is read once for all, and its damage told of each with whom it serves."""
    names = [f"d{number}" for number in range(5)]
    for name in names:
        build(closures, root, name)
    flip(root.closure("d3") / ALPHA / "native.so", 17)
    read = counted_reads(monkeypatch)
    served = {name: [f"wf/{name}"] for name in names}
    report = verify(root, None, workers=4, served=served)
    detail = "has the size that was sealed, and other content"
    path = f"{ALPHA}/native.so"
    assert report.findings == {
        name: [Finding(name, path, "changed", detail, (f"wf/{name}",))] for name in names
    }
    assert sum(path.endswith("/native.so") for path in read) == 1
    assert sum(path.endswith("/RECORD") for path in read) == 5
    assert report.bytes_read == sum(os.stat(path).st_size for path in read)
    assert not report.clean


def test_clean_store_is_counted(root: Root, closures: Closures) -> None:
    """A report says how much was looked at; leftovers of probes in store/ are none of a closure's."""
    for name in ("d1", "d2"):
        build(closures, root, name)
    (root.store / ".probe.1").touch()
    (root.store / ".probe.2").mkdir()
    report = verify(root, None, workers=2, served={"d1": ["a/b"], "d2": []})
    files = sum(line[0] == "f" for name in ("d1", "d2") for line in listing(root.closure(name)))
    assert (report.closures, report.files) == (2, files)
    assert report.clean
    assert not report.stopped
    assert report.seconds > 0


def test_named_closures_only(root: Root, closures: Closures) -> None:
    """Only what was asked for is looked at; a name that is not there is told."""
    for name in ("d1", "d2"):
        build(closures, root, name)
        add_beside(root.closure(name))
    report = verify(root, ["d1", "gone"], workers=1, served={"d3": ["a/b"]})
    assert list(report.findings) == ["d1"]
    assert report.missing == {"gone": ()}
    for name in ("../d1", ".", "..", "", ".probe.1", "/"):
        with pytest.raises(ConfigError, match="no closure's name"):
            verify(root, [name], workers=1)


def test_served_and_gone_is_missing(root: Root, closure: Path) -> None:
    """A closure that is served and not in the store is told with whom it serves."""
    report = verify(root, None, workers=2, served={"d1": ["a/b"], "d9": ["c/d", "c/e"]})
    assert report.missing == {"d9": ("c/d", "c/e")}
    assert report.findings == {}
    assert not report.clean


def test_stray_file_in_the_store_is_told(root: Root, closure: Path) -> None:
    """What lies in store/ and is no folder is no closure; a symlink to one is not followed."""
    (root.store / "notes.txt").touch()
    (root.store / "d2").symlink_to("d1")
    report = verify(root, None, workers=2)
    assert {name: [one.kind for one in found] for name, found in report.findings.items()} == {
        "d2": ["type"],
        "notes.txt": ["type"],
    }


def collect(root: Root, closure: Path) -> None:
    """As the collector does: out of the store by a rename, deleted later."""
    closure.rename(root.trash / closure.name)
    for folder, _, _ in os.walk(root.trash):
        os.chmod(folder, 0o755)
    shutil.rmtree(root.trash / closure.name)


@pytest.mark.parametrize("moment", range(12))
def test_vanishing_closure_gives_no_findings(
    root: Root, closures: Closures, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Collected at any moment while it is looked at, a closure is not damaged, nor is who shares its files."""
    for name in ("d1", "d2"):
        build(closures, root, name)
    calls = 0
    real = proof._read

    def read(path: str, key: tuple[int, int], stop: Callable[[], bool]) -> tuple[int, str | None]:
        nonlocal calls
        calls += 1
        if calls == moment + 1 and root.closure("d1").exists():
            collect(root, root.closure("d1"))
        return real(path, key, stop)

    monkeypatch.setattr(proof, "_read", read)
    seen = SeenHashes()
    assert check(root.closure("d1"), seen) == []
    assert not root.closure("d1").exists()
    assert check(root.closure("d2"), seen) == []
    assert check(root.closure("d1"), seen) == []


def test_closure_that_vanishes_in_the_walk(
    root: Root, closure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collected while its folders are listed, a closure has no findings; another one under its name neither."""
    real = os.scandir

    def scan(path: str) -> object:
        if path.endswith("/alpha"):
            monkeypatch.setattr(os, "scandir", real)
            collect(root, closure)
            closure.mkdir()
            closure.chmod(0o755)
        return real(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert check(closure, SeenHashes()) == []
    assert [one.kind for one in check(closure, SeenHashes())] == ["manifest"]


def test_unmounted_nas_is_not_clean(root: Root, closure: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ROOT that is gone, before the run or in the middle of it, is an error and no report."""
    real = proof._read

    def read(path: str, key: tuple[int, int], stop: Callable[[], bool]) -> tuple[int, str | None]:
        root.path.rename(root.path.with_name("unmounted"))
        monkeypatch.setattr(proof, "_read", real)
        return real(path, key, stop)

    monkeypatch.setattr(proof, "_read", read)
    for _ in range(2):
        with pytest.raises(StoreError, match="is the NAS mounted"):
            verify(root, None, workers=1)


class Faulty:
    """os.open that fails on one path with one error."""

    def __init__(self, end: str, code: int) -> None:
        self._end = end
        self._code = code
        self._real = os.open

    def __call__(self, path: str, *args: int, **more: int) -> int:
        if str(path).endswith(self._end):
            raise OSError(self._code, os.strerror(self._code), path)
        return self._real(path, *args, **more)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", [f"{ALPHA}/native.so", "build.log", "manifest"])
def test_unreadable_file_is_a_finding(
    closure: Path, monkeypatch: pytest.MonkeyPatch, code: int, name: str
) -> None:
    """What the NAS does not give is told with its cause, and all other files are still proven."""
    add_beside(closure)
    monkeypatch.setattr(os, "open", Faulty(name, code))
    findings = check(closure, SeenHashes())
    more = [] if name == "manifest" else [("extra", ".hidden")]
    assert sorted((one.kind, one.path) for one in findings) == sorted([*more, ("unreadable", name)])
    assert [os.strerror(code) in one.detail for one in findings if one.kind == "unreadable"] == [True]


def test_unreadable_folder_is_one_finding(closure: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that can't be listed is told itself; what is in it is not called missing."""
    real = os.scandir

    def scan(path: str) -> object:
        if path.endswith("/alpha"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert found(closure) == [("unreadable", ALPHA)]


def test_taken_rights_are_told(closure: Path) -> None:
    """A file and a folder without rights: their mode is told of everybody, and what it hides of an ordinary user."""
    (closure / ALPHA / "native.so").chmod(0)
    (closure / f"{ALPHA}-1.0.dist-info").chmod(0)
    wanted = {("mode", f"{ALPHA}/native.so"), ("mode", f"{ALPHA}-1.0.dist-info")}
    hidden = {("unreadable", path) for _, path in wanted}
    assert set(found(closure)) == (wanted if os.geteuid() == 0 else wanted | hidden)


def test_replaced_while_it_is_read_is_not_believed(closure: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file that takes a shared file's place between look and read does not lend it its digest."""
    real = os.open
    path = closure / ALPHA / "native.so"

    def swap(name: str, *args: int, **more: int) -> int:
        if name == str(path):
            monkeypatch.setattr(os, "open", real)
            with writable(path):
                path.unlink()
                path.write_bytes(b"other")
        return real(name, *args, **more)

    monkeypatch.setattr(os, "open", swap)
    findings = check(closure, SeenHashes())
    assert [(one.kind, one.path) for one in findings] == [("unreadable", f"{ALPHA}/native.so")]
    assert "was replaced" in findings[0].detail


def test_endless_folders_do_not_break_it(closure: Path) -> None:
    """Three hundred folders, one in the other, are found as extra and do not end the run."""
    with writable(closure / ALPHA / "d") as path:
        path.mkdir()
        home = os.open(".", os.O_RDONLY)
        try:
            os.chdir(path)
            for _ in range(300):
                os.mkdir("d")
                os.chdir("d")
        finally:
            os.fchdir(home)
            os.close(home)
    findings = check(closure, SeenHashes())
    assert {one.kind for one in findings} == {"extra"}
    assert sum("not looked into" in one.detail for one in findings) == 1
    assert max(one.path.count("/") for one in findings) == DEEPEST


def test_progress_ends_at_the_whole(root: Root, closures: Closures) -> None:
    """Progress is told in the caller's thread, never goes back, and ends with everything done."""
    for number in range(4):
        build(closures, root, f"d{number}", "alpha", "beta")
    (root.closure("d0") / "manifest").unlink()
    told: list[tuple[int, int]] = []
    threads = set()

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        threads.add(threading.get_ident())

    report = verify(root, None, workers=3, progress=progress)
    assert list(report.findings) == ["d0"]
    assert threads == {threading.get_ident()}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    paths = sum(len(listing(root.closure(f"d{number}"))) for number in range(1, 4))
    assert told[-1] == (paths, paths)


def test_stopped_run_says_so(root: Root, closures: Closures, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was told to end does, soon, and does not pass for a clean one; nothing is called missing."""
    for number in range(4):
        build(closures, root, f"d{number}")
    read = counted_reads(monkeypatch)
    report: Report = verify(root, None, workers=2, stop=lambda: len(read) >= 3)
    assert report.stopped
    assert not report.clean
    assert report.findings == {}
    assert len(read) < 10


def test_stop_at_any_moment_calls_nothing_missing(closure: Path) -> None:
    """Whenever a check is told to end, what it had not come to is no finding."""
    for moment in range(200):
        calls = 0

        def stop(moment: int = moment) -> bool:
            nonlocal calls
            calls += 1
            return calls > moment

        assert check(closure, SeenHashes(), stop) == []
        if calls <= moment:
            return
    pytest.fail("a small closure asks 200 times")


def test_stop_ends_a_long_read(closure: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of many gigabytes is left in the middle."""
    monkeypatch.setattr(proof, "_CHUNK", 16)
    status = (closure / ALPHA / "native.so").lstat()
    key = (status.st_dev, status.st_ino)
    calls = iter((False, False, True))
    read = proof._read(str(closure / ALPHA / "native.so"), key, lambda: next(calls))
    assert read == (48, None)


def test_interrupted_run_ends_its_threads(
    root: Root, closures: Closures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the caller is interrupted, the threads end what they read and begin nothing new."""
    for number in range(4):
        build(closures, root, f"d{number}")
    read: list[str] = []

    def blocked(path: str, key: tuple[int, int], stop: Callable[[], bool]) -> tuple[int, str | None]:
        read.append(path)
        wait_for(stop, message="the readers were not told")
        return 0, None

    def progress(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(proof, "_read", blocked)
    with pytest.raises(KeyboardInterrupt):
        verify(root, None, workers=2, progress=progress)
    assert len(read) <= 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("verify-")]


@pytest.mark.parametrize(("fails", "reads"), [(False, 1), (True, 2)], ids=["read", "failed"])
def test_readers_of_one_file_wait_for_each_other(
    closure: Path, monkeypatch: pytest.MonkeyPatch, fails: bool, reads: int
) -> None:
    """Two threads that want the same shared file at once read it once; where the first fails, the second reads."""
    path = closure / ALPHA / "native.so"
    entered, go_on = threading.Event(), threading.Event()
    read: list[str] = []
    real = proof._read

    def slow(name: str, key: tuple[int, int], stop: Callable[[], bool]) -> tuple[int, str | None]:
        read.append(name)
        if len(read) == 1:
            entered.set()
            assert go_on.wait(60)
            if fails:
                raise OSError(errno.EIO, "Input/output error", name)
        return real(name, key, stop)

    monkeypatch.setattr(proof, "_read", slow)
    seen = SeenHashes()
    results: list[object] = []

    def ask() -> None:
        results.extend(seen.of([(str(path), path.lstat())], lambda: False, lambda settled, added: None))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    threads[0].start()
    assert entered.wait(60)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert len(read) == reads
    assert sum(isinstance(one, str) for one in results) == 3 - reads


def test_findings_can_be_printed(closure: Path) -> None:
    """Whatever a path holds, a finding is one line of text that any terminal takes."""
    for name in ODD_NAMES:
        path = Path(os.fsdecode(os.fsencode(closure / ALPHA) + b"/" + name))
        with writable(path):
            path.unlink()
    lines = [str(one) for one in check(closure, SeenHashes())]
    assert len(lines) == len(ODD_NAMES)
    for line in lines:
        line.encode()
        assert line.isprintable()
    assert any(r"not-utf-8-\xff\xfe.txt: missing" in line for line in lines)
    assert any("naïve-名.txt" in line for line in lines)
    assert shown("new\nline\x1b[31m") == r"new\nline\x1b[31m"
