"""The bytecode store: shared by content, believed by its proof alone, spread below the link limit."""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from envfabric.store.bytecode import PROOF, Bytecode, Linked, Missing, proof
from envfabric.store.files import Files
from envfabric.store.manifest import DEEPEST
from envfabric.store.root import Root
from envfabric.store.sealing import Hashes, Inventory, seal_folders, take_inventory
from envfabric.store.usage import walk_inodes
from store.faults import each_fault, each_kill

TAG = "cpython-311"
KIND = "cpython-311-a70d0d0a-30b07f0"
SITE = ".venv/lib/python3.11/site-packages"
BODY = b"compiled " * 20


class FewLinks(Files):
    """A file system on which a file can have three names."""

    code = errno.EMLINK

    def link(self, source: str | Path, target: str | Path) -> None:
        if os.path.exists(source) and os.stat(source).st_nlink >= 3:
            raise OSError(self.code, os.strerror(self.code), str(target))
        super().link(Path(source), Path(target))


def environment(folder: Path, contents: dict[str, str]) -> Path:
    """A closure's folder whose environment has these sources."""
    site = folder / SITE
    for name, text in contents.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    return folder


def bytecode(root: Root, files: Files | None = None) -> Bytecode:
    return Bytecode(root, files or Files())


def link(store: Bytecode, closure: Path, kind: str = KIND) -> tuple[Linked, Inventory]:
    """Gives an environment what there is; also what is known of its files by then."""
    inventory = take_inventory(closure, Hashes())
    return store.link(inventory, TAG, kind), inventory


def compile_missing(store: Bytecode, linked: Linked, inventory: Inventory) -> None:
    """What a build does with what is missing: one is compiled, and those alike are linked."""
    done: set[str] = set()
    for one in linked.missing:
        if one.key in done:
            assert store.link_one(inventory, one)
            continue
        done.add(one.key)
        target = Path(one.target)
        target.write_bytes(BODY + proof(BODY, one.key))
        target.chmod(0o444)
        store.adopt(inventory, one)


def fill(store: Bytecode, venv: Path) -> Linked:
    """Gives an environment all of its bytecode; what was linked before anything was compiled."""
    linked, inventory = link(store, venv)
    compile_missing(store, linked, inventory)
    listed = {path.relative_to(venv).as_posix(): path for path in venv.rglob("*") if path.is_file()}
    assert inventory.digests == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in listed.items()
    }
    seal_folders(inventory)
    inventory.add(venv)
    assert inventory.inodes == walk_inodes(venv)
    return linked


def compiled(venv: Path) -> list[Path]:
    return sorted(venv.rglob("*.pyc"))


def entries(root: Root) -> list[Path]:
    return sorted(path for path in root.bytecode.rglob("*") if path.is_file())


def test_equal_sources_share_one_file(root: Root, tmp_path: Path) -> None:
    """Whatever their names and environments, sources of one content get one inode; others get another."""
    store = bytecode(root)
    one = environment(tmp_path / "one", {"a/__init__.py": "", "b/__init__.py": "", "a/x.py": "X = 1\n"})
    two = environment(tmp_path / "two", {"c/other.py": "X = 1\n", "single.py": ""})
    assert len(fill(store, one).missing) == 3
    linked, _ = link(store, two)
    assert (linked.files, linked.missing) == (2, [])
    found = {path.relative_to(tmp_path).as_posix(): path.stat().st_ino for path in compiled(tmp_path)}
    assert {name.rpartition("/")[2] for name in found} == {
        f"{name}.{TAG}.pyc" for name in ("__init__", "x", "other", "single")
    }
    assert len(set(found.values())) == len(entries(root)) == 2
    digest = hashlib.sha256(b"X = 1\n").hexdigest()
    assert root.bytecode / digest[:2] / f"{digest}.{KIND}" in entries(root)


def test_interpreters_share_nothing(root: Root, tmp_path: Path) -> None:
    """What one interpreter compiled is missing for another."""
    store = bytecode(root)
    fill(store, environment(tmp_path / "one", {"x.py": "X = 1\n"}))
    linked, _ = link(
        store, environment(tmp_path / "two", {"x.py": "X = 1\n"}), "cpython-311-a70d0d0a-30b08f0"
    )
    assert len(linked.missing) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(BODY + proof(BODY, f"{'0' * 64}.{KIND}")),
        lambda path: path.write_bytes(proof(b"", path.name)),
    ],
    ids=["flipped", "cut", "empty", "of another source", "nothing but a proof"],
)
def test_damaged_file_is_never_linked_again(
    root: Root, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    """A file that is not what its key says is dropped and missing, and the next one that is compiled holds."""
    fill(bytecode(root), environment(tmp_path / "one", {"x.py": "X = 1\n"}))
    (entry,) = entries(root)
    entry.chmod(0o644)
    damage(entry)
    two = environment(tmp_path / "two", {"x.py": "X = 1\n"})
    store = bytecode(root)
    linked, inventory = link(store, two)
    assert len(linked.missing) == 1
    assert compiled(two) == entries(root) == []
    compile_missing(store, linked, inventory)
    (made,) = compiled(two)
    assert made.samefile(entry) and made.read_bytes()[:-PROOF] == BODY


def test_damage_is_seen_by_the_process_that_proved_it_before(root: Root, tmp_path: Path) -> None:
    """A write into a file that this process knows is seen by its time; one that keeps it, after a repair."""
    store = bytecode(root)
    fill(store, environment(tmp_path / "one", {"x.py": "X = 1\n"}))
    (entry,) = entries(root)
    status = entry.stat()
    entry.chmod(0o644)
    entry.write_bytes(b"x" * status.st_size)
    os.utime(entry, ns=(status.st_atime_ns, status.st_mtime_ns))
    two = environment(tmp_path / "two", {"x.py": "X = 1\n"})
    store.distrust()
    assert len(fill(store, two).missing) == 1
    (entry,) = entries(root)
    entry.chmod(0o644)
    entry.write_bytes(b"y" * status.st_size)
    os.utime(entry, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    three = environment(tmp_path / "three", {"x.py": "X = 1\n"})
    assert len(fill(store, three).missing) == 1
    assert compiled(three)[0].read_bytes()[:-PROOF] == BODY


def test_changed_mode_is_put_right(root: Root, tmp_path: Path) -> None:
    """A shared file that somebody made writable is sealed again before the next environment lists it."""
    store = bytecode(root)
    fill(store, environment(tmp_path / "one", {"x.py": "X = 1\n"}))
    (entry,) = entries(root)
    entry.chmod(0o666)
    two = environment(tmp_path / "two", {"x.py": "X = 1\n"})
    assert fill(store, two).files == 1
    assert compiled(two)[0].stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("code", [errno.EMLINK, errno.EPERM])
def test_one_key_spreads_over_inodes_at_the_link_limit(root: Root, tmp_path: Path, code: int) -> None:
    """Where a file can have three names, ten equal sources all get bytecode, as few copies as possible."""
    files = FewLinks()
    files.code = code
    contents = {f"p{number}/__init__.py": "" for number in range(10)}
    one = environment(tmp_path / "one", contents)
    fill(bytecode(root, files), one)
    assert len(compiled(one)) == 10
    # Each has one name in the store and two in the environment.
    assert len(entries(root)) == len({path.stat().st_ino for path in compiled(one)}) == 5
    # A restart goes on with the copies that there are.
    linked, _ = link(bytecode(root, files), environment(tmp_path / "two", contents))
    assert (linked.files, linked.missing, len(entries(root))) == (10, [], 10)
    assert all(path.read_bytes()[:-PROOF] == BODY for path in entries(root))


def test_collected_copies_are_no_error(root: Root, tmp_path: Path) -> None:
    """Copies that the collector removed are made again; the process that knew them goes on."""
    store = bytecode(root, FewLinks())
    contents = {f"p{number}/__init__.py": "" for number in range(6)}
    fill(store, environment(tmp_path / "one", contents))
    for gone in entries(root)[1:]:
        gone.unlink()
    two = environment(tmp_path / "two", contents)
    assert fill(store, two).missing == []
    for gone in entries(root):
        gone.unlink()
    three = environment(tmp_path / "three", contents)
    fill(store, three)
    assert len(compiled(two)) == len(compiled(three)) == 6


def brought(flags: int, mtime: int, size: int, magic: str = "a70d0d0a") -> bytes:
    """A compiled file as a wheel may have it."""
    return (
        bytes.fromhex(magic) + b"".join(one.to_bytes(4, "little") for one in (flags, mtime, size)) + b"code"
    )


def test_what_a_wheel_brought_stays(root: Root, tmp_path: Path) -> None:
    """A compiled file that is taken without a look at its source is neither replaced nor taken into the store."""
    store = bytecode(root)
    fill(store, environment(tmp_path / "one", {"x.py": "X = 1\n"}))
    two = environment(tmp_path / "two", {"x.py": "X = 1\n", f"__pycache__/x.{TAG}.pyc": ""})
    compiled(two)[0].write_bytes(brought(1, 0, 0))
    assert fill(store, two) == Linked()
    assert compiled(two)[0].read_bytes() == brought(1, 0, 0)


def test_what_a_wheel_brought_and_still_holds_stays(root: Root, tmp_path: Path) -> None:
    """One that goes by its source's time is left where that is the time."""
    two = environment(tmp_path / "two", {"x.py": "X = 1\n", f"__pycache__/x.{TAG}.pyc": ""})
    status = (two / SITE / "x.py").stat()
    compiled(two)[0].write_bytes(brought(0, int(status.st_mtime), status.st_size))
    assert fill(bytecode(root), two) == Linked()
    assert compiled(two)[0].read_bytes().endswith(b"code")


@pytest.mark.parametrize(
    "content",
    [b"", b"its own", brought(0, 12345, 6), brought(1, 0, 0, "a80d0d0a"), brought(3, 0, 0)],
    ids=["empty", "cut", "another time", "another magic number", "checked at each import"],
)
def test_what_no_interpreter_would_take_is_replaced(root: Root, tmp_path: Path, content: bytes) -> None:
    """A wheel's compiled file that an import would pass over, and root's import replace, makes room for ours."""
    for name in ("one", "two"):
        closure = environment(tmp_path / name, {"x.py": "X = 1\n", f"__pycache__/x.{TAG}.pyc": ""})
        kept = tmp_path / f"{name}.cached"
        os.link(compiled(closure)[0], kept)
        kept.write_bytes(content)
        fill(bytecode(root), closure)
        assert compiled(closure)[0].read_bytes()[:-PROOF] == BODY
        assert kept.read_bytes() == content


def test_nothing_is_written_by_way_of_a_wheels_symlinks(root: Root, tmp_path: Path) -> None:
    """A `__pycache__` that is a link or a file gets nothing, links to sources neither; no walk leaves lib/."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "y.py").write_text("Y = 1\n")
    venv = environment(tmp_path / "one", {"a/x.py": "", "b/x.py": "", "b/__pycache__": "", "c/x.txt": ""})
    site = venv / SITE
    (site / "a/__pycache__").symlink_to(outside)
    (site / "c/y.py").symlink_to(outside / "y.py")
    (site / "d").symlink_to(outside)
    assert link(bytecode(root), venv)[0].missing == []
    assert os.listdir(outside) == ["y.py"]


def test_names_and_depths_that_have_no_room_are_left_out(root: Root, tmp_path: Path) -> None:
    """Where a `__pycache__` could not be sealed, or its files not be named, there is none."""
    venv = environment(tmp_path / "one", {"ok.py": "", ".py": "", f"{'n' * 252}.py": "", "no.pyc": ""})
    deep = Path(".venv/lib", *["d"] * (DEEPEST - 3))
    (venv / deep).mkdir(parents=True)
    (venv / deep / "too_deep.py").touch()
    (venv / deep.parent / "deep.py").touch()
    missing = link(bytecode(root), venv)[0].missing
    assert sorted(Path(one.source).name for one in missing) == ["deep.py", "ok.py"]


def test_source_that_does_not_compile_is_remembered(root: Root, tmp_path: Path) -> None:
    """It is known to this process and the next, and neither missing nor linked."""
    store = bytecode(root)
    one = environment(tmp_path / "one", {"x.py": "print 1\n"})
    (missing,) = link(store, one)[0].missing
    assert not store.is_bad(missing)
    store.mark_bad(missing)
    store.mark_bad(missing)
    for known in (store, bytecode(root)):
        linked, _ = link(known, environment(tmp_path / str(id(known)), {"x.py": "print 1\n"}))
        assert (linked.files, linked.bad, linked.missing) == (0, 1, [])


def test_second_of_two_builders_takes_the_firsts(root: Root, tmp_path: Path) -> None:
    """Two that compiled the same source end with one file in the store, which both environments share."""
    venvs = [environment(tmp_path / name, {"x.py": "X = 1\n"}) for name in "ab"]
    stores = [bytecode(root), bytecode(root)]
    linked = [link(store, venv) for store, venv in zip(stores, venvs, strict=True)]
    for store, one in zip(stores, linked, strict=True):
        compile_missing(store, *one)
    (entry,) = entries(root)
    assert all(compiled(venv)[0].samefile(entry) for venv in venvs)


def test_slow_server_is_asked_for_several_at_once(root: Root, tmp_path: Path) -> None:
    """Where each link takes its time, several threads make them, with the same outcome."""
    contents = {f"p{folder}/m{number}.py": f"N = {number}\n" for folder in range(40) for number in range(5)}
    fill(bytecode(root), environment(tmp_path / "one", contents))
    threads: set[str] = set()
    several = threading.Event()

    def step(operation: str, _: Path) -> None:
        if operation == "link" and threading.current_thread() is threading.main_thread():
            # The first ones are tried alone.
            time.sleep(0.001)
        elif operation == "link":
            threads.add(threading.current_thread().name)
            if len(threads) > 1:
                several.set()
            # They take their time until there are others: alone one would wait for ever.
            assert several.wait(60)

    linked, _ = link(bytecode(root, Files(step)), environment(tmp_path / "two", contents))
    assert (linked.files, linked.missing) == (200, [])
    assert len(threads) > 1


def test_every_fault_is_an_error_and_leaves_nothing_wrong(root: Root, tmp_path: Path) -> None:
    """A step that fails raises `OSError`; what the store holds then is whole, and the next build ends well."""
    contents = {"a/x.py": "X = 1\n", "b/x.py": "X = 1\n", "c/x.py": "X = 1\n", "a/y.py": "Y = 1\n"}
    for number, steps in enumerate(each_fault(errno.EIO)):
        venv = environment(tmp_path / f"faulty{number}", contents)
        store = bytecode(root, FewLinks(steps))
        try:
            fill(store, venv)
        except OSError as error:
            assert error.errno == errno.EIO
        assert all(proof(BODY, _key(entry)) == entry.read_bytes()[-PROOF:] for entry in entries(root))
        again = environment(tmp_path / f"whole{number}", contents)
        fill(bytecode(root, FewLinks()), again)
        assert len(compiled(again)) == 4
        for entry in entries(root):
            entry.unlink()


def test_every_kill_leaves_nothing_wrong(root: Root, tmp_path: Path) -> None:
    """Whatever step a process ends at, the store holds whole files only, and the next build ends well."""
    contents = {"a/x.py": "X = 1\n", "b/x.py": "X = 1\n", "a/y.py": "Y = 1\n"}
    for number, run in each_kill():
        venv = environment(tmp_path / f"killed{number}", contents)
        run(lambda files, venv=venv: fill(bytecode(root, files), venv))  # type: ignore[misc]
        again = environment(tmp_path / f"whole{number}", contents)
        fill(bytecode(root), again)
        assert len(compiled(again)) == 3
        assert all(proof(BODY, _key(entry)) == entry.read_bytes()[-PROOF:] for entry in entries(root))
        for entry in entries(root):
            entry.unlink()


def test_full_key_is_the_sources_own_content(root: Root, tmp_path: Path) -> None:
    """The key comes from the bytes of the source, whatever a RECORD beside it says."""
    lie = "x.py,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0\n"
    venv = environment(tmp_path / "one", {"x.py": "X = 1\n", "x-1.0.dist-info/RECORD": lie})
    (missing,) = link(bytecode(root), venv)[0].missing
    assert isinstance(missing, Missing)
    assert missing.key == hashlib.sha256(b"X = 1\n").hexdigest() + "." + KIND


def _key(entry: Path) -> str:
    digest = entry.name.split(".")[0]
    return f"{digest}.{KIND}"
