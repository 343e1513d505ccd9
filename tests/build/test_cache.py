"""uv's cache: what is forgotten is fetched anew, what nothing links is evicted, and sharing is never lost."""

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from envfabric.build.cache import CacheInUse, Evicted, forget, prune
from envfabric.build.uv import Finished, Uv
from envfabric.core.errors import StoreError
from envfabric.store.files import Files
from envfabric.store.root import Root
from envfabric.store.usage import walk_inodes
from envfabric.store.writer import LostWriter
from store.faults import each_kill
from support.fabric import BASE_PYTHON
from support.simple_index import SimpleIndex
from support.waiting import wait_for

NOTHING = Evicted(0, 0, 0)
PROJECT = '[project]\nname = "{name}"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["{requirement}"]\n'

Install = Callable[..., Path]


@pytest.fixture
def install(uv: Uv, root: Root) -> Install:
    """Makes an environment under store/ by uv, and gives the folder of its packages."""

    def install(name: str, requirement: str, *options: str) -> Path:
        folder = root.store / name
        folder.mkdir(exist_ok=True)
        shutil.rmtree(folder / ".venv", ignore_errors=True)
        (folder / "pyproject.toml").write_text(PROJECT.format(name=name, requirement=requirement))
        done = uv.run(["sync", "--python", BASE_PYTHON, *options], cwd=folder, fleet=True)
        assert done.code == 0, done.stderr
        (packages,) = (folder / ".venv").glob("lib/python*/site-packages")
        return packages

    return install


def archives(root: Root) -> dict[str, Path]:
    """The cache's unpacked wheels by name and version."""
    infos = (root.uv_cache / "archive-v0").glob("*/*.dist-info")
    return {info.name.removesuffix(".dist-info"): info.parent for info in infos}


def inode(packages: Path, name: str) -> int:
    return (packages / name / "__init__.py").stat().st_ino


def downloads(index: SimpleIndex, name: str) -> int:
    return len([path for path in index.requests if path.startswith(f"/files/{name}-")])


def test_unused_wheel_goes_and_linked_one_stays_shared(
    uv: Uv, root: Root, files: Files, index: SimpleIndex, install: Install
) -> None:
    """A wheel whose last environment is gone gives its disk back; one in use is shared by the next, too."""
    first = install("first", "beta")
    install("second", "gamma==1.0")
    shutil.rmtree(root.store / "second")
    unused = archives(root)["gamma-1.0"]
    counted = walk_inodes(unused)
    assert prune(uv, root, files, 0) == Evicted(1, sum(counted.values()), len(counted))
    assert set(archives(root)) == {"alpha-1.0", "beta-1.0"}
    assert os.listdir(root.trash) == []
    before = index.requests
    third = install("third", "beta")
    assert not [path for path in index.requests[len(before) :] if path.startswith("/files/")]
    for name in ("alpha", "beta"):
        assert inode(third, name) == inode(first, name)
    assert prune(uv, root, files, 0) == NOTHING


def test_evicted_wheel_comes_back_and_is_shared(uv: Uv, root: Root, files: Files, install: Install) -> None:
    """After an eviction the next build fetches the wheel anew, and those after it share that one."""
    install("first", "gamma==1.0")
    shutil.rmtree(root.store / "first")
    assert prune(uv, root, files, 0).archives == 1
    second, third = install("second", "gamma==1.0"), install("third", "gamma==1.0")
    assert inode(second, "gamma") == inode(third, "gamma")
    assert prune(uv, root, files, 0) == NOTHING


def test_one_link_anywhere_keeps_a_wheel(uv: Uv, root: Root, files: Files, install: Install) -> None:
    """At the link limit a file has a fresh inode: any other file's second link keeps the wheel, an empty one's too."""
    install("first", "gamma==1.0")
    shutil.rmtree(root.store / "first")
    archive = archives(root)["gamma-1.0"]
    empty = archive / "gamma" / "py.typed"
    empty.touch()
    os.link(empty, root.bytecode / "link")
    assert prune(uv, root, files, 0) == NOTHING
    (root.bytecode / "link").unlink()
    os.link(archive / "gamma-1.0.dist-info" / "METADATA", root.bytecode / "link")
    assert prune(uv, root, files, 0) == NOTHING
    (root.bytecode / "link").unlink()
    assert prune(uv, root, files, 0).archives == 1


def test_younger_wheel_stays(uv: Uv, root: Root, files: Files, install: Install) -> None:
    """What was unpacked a moment ago may be waiting to be linked; the age is judged for each wheel."""
    install("first", "gamma==1.0")
    install("first", "gamma==2.0")
    shutil.rmtree(root.store / "first")
    old = archives(root)["gamma-1.0"]
    long_ago = old.stat().st_mtime - 3600
    os.utime(old, (long_ago, long_ago))
    assert prune(uv, root, files, 7200) == NOTHING
    assert prune(uv, root, files, 1800).archives == 1
    assert set(archives(root)) == {"gamma-2.0"}


def test_age_is_the_servers_and_not_the_hosts(
    uv: Uv, root: Root, files: Files, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose clock is days ahead evicts nothing that is young."""
    install("first", "gamma==1.0")
    shutil.rmtree(root.store / "first")
    ahead = 10 * 86400.0
    monkeypatch.setattr("time.time", lambda: os.stat(root.path).st_mtime + ahead)
    assert prune(uv, root, files, 3600) == NOTHING


@pytest.mark.parametrize("kind", ["index", "url", "find-links"])
def test_killed_eviction_leaves_a_cache_that_works(
    uv: Uv, root: Root, files: Files, index: SimpleIndex, install: Install, kind: str
) -> None:
    """Killed between any two steps, the next build works, the next one shares with it, and the rest goes later."""
    requirement, options = "gamma==1.0", list[str]()
    if kind == "url":
        requirement = f"gamma @ {index.url.removesuffix('/simple')}/files/gamma-1.0-py3-none-any.whl"
    if kind == "find-links":
        options = ["--no-index", "--find-links", str(index.folder)]
    for _, run in each_kill():
        install("first", requirement, *options)
        shutil.rmtree(root.store / "first")
        run(lambda cut: void(prune(uv, root, cut, 0)))
        second = install("second", requirement, *options)
        third = install("third", requirement, *options)
        assert inode(second, "gamma") == inode(third, "gamma")
        # What the kill left is dangling: it goes, and what the two link does not.
        assert prune(uv, root, files, 0).archives == 0
        assert inode(install("fourth", requirement, *options), "gamma") == inode(second, "gamma")
        assert set(archives(root)) == {"gamma-1.0"}
        for name in ("second", "third", "fourth"):
            shutil.rmtree(root.store / name)
        prune(uv, root, files, 0)
        assert archives(root) == {}


def void(_: object) -> None:
    """An action of `each_kill` gives nothing back."""


def test_killed_eviction_is_ended_by_the_next(uv: Uv, root: Root, files: Files, install: Install) -> None:
    """An eviction that was killed at any step is ended by the next one when no build came in between."""
    for _, run in each_kill():
        install("first", "gamma==1.0")
        shutil.rmtree(root.store / "first")
        run(lambda cut: void(prune(uv, root, cut, 0)))
        prune(uv, root, files, 0)
        assert archives(root) == {}
        assert list(root.uv_cache.glob("wheels-v7/**/gamma/*.http")) == []


@contextlib.contextmanager
def held_sync(uv: Uv, root: Root, index: SimpleIndex) -> Iterator[None]:
    """A uv process that is in the middle of its work, waiting for the index."""
    folder = root.staging / "held"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT.format(name="held", requirement="delta"))
    index.add_wheel("delta", "1.0")
    release = index.hold("delta")
    arguments = ["sync", "--python", BASE_PYTHON]
    running = threading.Thread(target=lambda: uv.run(arguments, cwd=folder, fleet=True))
    running.start()
    try:
        wait_for(lambda: any("/delta" in path for path in index.requests), message="uv did not ask for delta")
        yield
    finally:
        release.set()
        running.join()


def test_running_uv_excludes_eviction(
    uv: Uv, root: Root, files: Files, index: SimpleIndex, install: Install
) -> None:
    """While any uv process works on the cache nothing is removed, and the caller hears why."""
    install("first", "gamma==1.0")
    shutil.rmtree(root.store / "first")
    with held_sync(uv, root, index), pytest.raises(CacheInUse, match="uv processes are using"):
        prune(uv, root, files, 0, wait=0.1)
    assert "gamma-1.0" in archives(root)
    assert prune(uv, root, files, 0).archives == 1


def test_build_that_begins_after_the_look_excludes_eviction(
    root: Root, files: Files, index: SimpleIndex, uv: Uv, install: Install
) -> None:
    """Eviction itself keeps clear of uv processes, not only the command of uv that comes before it."""
    install("first", "gamma==1.0")
    shutil.rmtree(root.store / "first")
    with contextlib.ExitStack() as later:

        class Late(Uv):
            def run(self, arguments: Any, **details: Any) -> Finished:
                done = super().run(arguments, **details)
                later.enter_context(held_sync(uv, root, index))
                return done

        with pytest.raises(CacheInUse):
            prune(Late(root, timeout=60, index=index.url), root, files, 0, wait=0.1)
        assert "gamma-1.0" in archives(root)
        assert list(root.uv_cache.glob("wheels-v7/**/gamma/*.http")) != []


def test_wheel_that_was_linked_meanwhile_stays(
    root: Root, files: Files, index: SimpleIndex, install: Install, monkeypatch: pytest.MonkeyPatch, uv: Uv
) -> None:
    """A build that links a wheel after it was seen unused keeps it, and the next build shares it."""
    from envfabric.build import cache

    install("first", "gamma==1.0")
    shutil.rmtree(root.store / "first")
    linked = []
    seen = cache._pointers

    def pointers(folder: Path) -> dict[str, list[Path]]:
        found = seen(folder)
        linked.append(install("second", "gamma==1.0"))
        return found

    monkeypatch.setattr(cache, "_pointers", pointers)
    assert prune(uv, root, files, 0) == NOTHING
    assert inode(install("third", "gamma==1.0"), "gamma") == inode(linked[0], "gamma")


def test_no_longer_the_writer_removes_nothing(uv: Uv, root: Root, files: Files, install: Install) -> None:
    """The check comes before uv's own pruning and before each removal; its error ends the work."""
    install("first", "gamma==1.0")
    install("first", "gamma==2.0")
    shutil.rmtree(root.store / "first")
    for allowed, left in ((0, 2), (1, 2), (2, 1)):
        asked = iter(range(10))

        def check(asked: Iterator[int] = asked, allowed: int = allowed) -> None:
            if next(asked) >= allowed:
                raise LostWriter("another writes")

        with pytest.raises(LostWriter):
            prune(uv, root, files, 0, check)
        assert len(archives(root)) == left


@pytest.mark.parametrize("bucket", ["archive-v1", "wheels-v8"])
def test_unknown_layout_is_left_alone(
    root: Root, files: Files, index: SimpleIndex, uv: Uv, install: Install, bucket: str
) -> None:
    """Where another version of uv keeps things differently nothing is evicted, and nothing fails."""
    install("first", "gamma==1.0")
    shutil.rmtree(root.store / "first")

    class Other(Uv):
        def run(self, arguments: Any, **details: Any) -> Finished:
            (root.uv_cache / bucket).mkdir(exist_ok=True)
            return Finished(0, "", "", 0.0)

    assert prune(Other(root), root, files, 0) == NOTHING
    assert set(archives(root)) == {"gamma-1.0"}
    # uv's own pruning removes buckets that are not its version's.
    assert prune(uv, root, files, 0).archives == 1


def test_what_is_no_wheel_stays(
    uv: Uv, root: Root, files: Files, index: SimpleIndex, install: Install
) -> None:
    """Files and folders that no pointer of a wheel leads to are uv's affair."""
    install("first", "gamma==1.0")
    shutil.rmtree(root.store / "first")
    other = root.uv_cache / "archive-v0" / "environment"
    other.mkdir()
    (other / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (root.uv_cache / "environments-v2").mkdir()
    (root.uv_cache / "archive-v0" / "stray").write_text("")

    class WithoutItsOwn(Uv):
        def run(self, arguments: Any, **details: Any) -> Finished:
            return Finished(0, "", "", 0.0)

    assert prune(WithoutItsOwn(root), root, files, 0).archives == 1
    assert (other / "pyvenv.cfg").exists()
    assert (root.uv_cache / "archive-v0" / "stray").exists()


def test_empty_cache_is_nothing_to_prune(uv: Uv, root: Root, files: Files) -> None:
    """A new ROOT has no cache yet, and then one of a uv that installed nothing."""
    assert prune(uv, root, files, 0) == NOTHING
    assert prune(uv, root, files, 0) == NOTHING
    forget(uv, root, ["gamma"])


def test_leftovers_of_a_killed_uv_go(uv: Uv, root: Root, files: Files, install: Install) -> None:
    """What uv was unpacking when it was killed, and wheels that no pointer leads to, go by uv's own pruning."""
    install("first", "gamma==1.0")
    (root.uv_cache / ".tmpAbCdEf" / "gamma").mkdir(parents=True)
    (root.uv_cache / "archive-v0" / "dangling").mkdir()
    assert prune(uv, root, files, 0) == NOTHING
    assert not (root.uv_cache / ".tmpAbCdEf").exists()
    assert not (root.uv_cache / "archive-v0" / "dangling").exists()


@pytest.mark.parametrize("kind", ["index", "url"])
def test_forgotten_distribution_is_fetched_anew(
    uv: Uv, root: Root, index: SimpleIndex, install: Install, kind: str
) -> None:
    """A damaged wheel is downloaded again and its files are other inodes; what was linked stays as it was."""
    wheel = f"{index.url.removesuffix('/simple')}/files/gamma-1.0-py3-none-any.whl"
    requirement = "gamma==1.0" if kind == "index" else f"gamma @ {wheel}"
    first = install("first", requirement)
    install("other", "alpha")
    (first / "gamma" / "__init__.py").write_text("damaged")
    asked, others = downloads(index, "gamma"), downloads(index, "alpha")
    second = install("second", requirement)
    assert (second / "gamma" / "__init__.py").read_text() == "damaged", "the cache shares the damage"
    assert downloads(index, "gamma") == asked
    forget(uv, root, ["Gamma"])
    third = install("third", requirement)
    assert downloads(index, "gamma") > asked
    assert (third / "gamma" / "__init__.py").read_text() == 'VERSION = "1.0"\n'
    assert inode(third, "gamma") != inode(first, "gamma") == inode(second, "gamma")
    install("more", "alpha")
    assert downloads(index, "alpha") == others


def test_forgetting_nothing_keeps_the_cache(
    uv: Uv, root: Root, runs: list[list[str]], install: Install
) -> None:
    """Without names uv would empty the whole cache, so it is not asked; nor with what is no name."""
    install("first", "gamma==1.0")
    before = len(runs)
    forget(uv, root, [])
    for name in ("", "--force", "../archive-v0", "gamma alpha"):
        with pytest.raises(StoreError, match="left as it is"):
            forget(uv, root, ["gamma", name])
    assert len(runs) == before
    assert "gamma-1.0" in archives(root)


def test_forgetting_does_not_wait_for_ever(uv: Uv, root: Root, index: SimpleIndex, install: Install) -> None:
    """New builds overtake it as long as one runs: it gives up, says so, and has removed nothing."""
    install("first", "gamma==1.0")
    with held_sync(uv, root, index), pytest.raises(CacheInUse, match="nothing was removed"):
        forget(uv, root, ["gamma"], wait=0.1)
    assert "gamma-1.0" in archives(root)


def test_nothing_is_made_below_a_lost_mount(uv: Uv, root: Root, files: Files) -> None:
    """Where the marker is gone neither command runs: uv would make a cache on the mount point."""
    root.marker.unlink()
    shutil.rmtree(root.uv_cache)
    with pytest.raises(StoreError, match="is the NAS mounted"):
        forget(uv, root, ["gamma"])
    with pytest.raises(StoreError, match="is the NAS mounted"):
        prune(uv, root, files, 0)
    assert not root.uv_cache.exists()


def test_failure_of_uv_is_the_stores(uv: Uv, root: Root, files: Files) -> None:
    """What uv says when it can't work on the cache is shown as an error of ROOT, no spec's."""
    shutil.rmtree(root.uv_cache)
    root.uv_cache.write_text("no folder")
    with pytest.raises(StoreError, match="uv cache clean"):
        forget(uv, root, ["gamma"])
    with pytest.raises(StoreError, match="uv cache prune"):
        prune(uv, root, files, 0)
