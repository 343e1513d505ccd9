"""Files that nobody needs any more: gone when they are old enough, and not looked for before one can be."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envfabric.store.files import Files, Freed
from envfabric.store.sweep import Sweep, unasked, unlinked
from store.collection import ago

AGE = 1000.0


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each walk of a folder from its top."""
    seen: list[str] = []
    real = os.walk

    def walk(top: Path, **named: Any) -> Any:
        seen.append(str(top))
        return real(top, **named)

    monkeypatch.setattr(os, "walk", walk)
    return seen


def file(folder: Path, name: str, age: float = 0) -> Path:
    path = folder / name[:1] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    ago(path, age)
    return path


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def sweep(folder: Path, since: Callable[[os.stat_result], float | None] = unasked) -> Sweep:
    return Sweep(Files(), folder, AGE, since, lambda: None)


def now(folder: Path) -> float:
    return Files().server_time(folder)


def test_what_is_old_goes_and_what_is_young_stays(tmp_path: Path) -> None:
    """What came back is counted; the young one goes when it is old, by the same process."""
    old, _ = file(tmp_path, "old", AGE + 10), file(tmp_path, "young", AGE / 2)
    blocks, freed = old.stat().st_blocks, Freed()
    one = sweep(tmp_path)
    assert one.run(now(tmp_path), freed) == 1
    assert (freed.bytes, freed.inodes) == (blocks * 512, 1)
    assert left(tmp_path) == {"young"}
    assert one.run(now(tmp_path) + AGE, freed) == 1
    assert left(tmp_path) == set()


def test_nothing_is_walked_before_something_can_be_old(tmp_path: Path, walks: list[str]) -> None:
    """Until the youngest that was seen is old enough; a file that comes later is younger than that."""
    file(tmp_path, "a", AGE / 2)
    one, began = sweep(tmp_path), now(tmp_path)
    for later in (0.0, 1.0, AGE / 4, AGE / 2 - 5):
        file(tmp_path, f"new-{later}")
        assert one.run(began + later, Freed(), hurry=True) == 0
    assert len(walks) == 1
    assert one.run(began + AGE / 2 + 5, Freed(), hurry=True) == 1
    assert len(walks) == 2


def test_one_after_the_other_is_not_a_walk_for_each(tmp_path: Path, walks: list[str]) -> None:
    """Without a hurry they may go a tenth of their age late."""
    for number in range(10):
        file(tmp_path, f"{number}", AGE - number)
    one, began = sweep(tmp_path), now(tmp_path)
    for seconds in range(20):
        one.run(began + seconds, Freed())
    assert len(walks) == 1
    assert len(left(tmp_path)) >= 9
    one.run(began + 20, Freed(), hurry=True)
    assert left(tmp_path) == set()


def test_a_file_with_another_link_stays(tmp_path: Path) -> None:
    """Its age counts from the moment when it lost the other one."""
    path = file(tmp_path / "in", "linked", 2 * AGE)
    file(tmp_path / "in", "alone", 2 * AGE)
    os.link(path, tmp_path / "other")
    one = sweep(tmp_path / "in", unlinked)
    # A ctime can't be set: the clock is moved instead.
    assert one.run(now(tmp_path) + 2 * AGE, Freed()) == 1
    assert left(tmp_path / "in") == {"linked"}
    (tmp_path / "other").unlink()
    one = sweep(tmp_path / "in", unlinked)
    assert one.run(now(tmp_path), Freed()) == 0
    assert one.run(now(tmp_path) + 2 * AGE, Freed()) == 1


def test_a_folder_that_could_not_be_listed_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the next run, and not only once something of the rest is old enough; one that is not there is empty."""
    file(tmp_path, "broken", 2 * AGE)
    file(tmp_path, "whole", 2 * AGE)
    one, real = sweep(tmp_path), os.scandir

    def scandir(path: str | Path) -> object:
        if Path(path).name == "b":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", scandir)
        assert one.run(now(tmp_path), Freed()) == 1
    assert one.run(now(tmp_path), Freed()) == 1
    assert sweep(tmp_path / "none").run(now(tmp_path), Freed()) == 0


def test_nothing_is_removed_by_who_may_not(tmp_path: Path) -> None:
    """A writer that was deposed leaves the file where it is."""
    file(tmp_path, "old", 2 * AGE)

    def check() -> None:
        raise RuntimeError("deposed")

    with pytest.raises(RuntimeError, match="deposed"):
        Sweep(Files(), tmp_path, AGE, unasked, check).run(now(tmp_path), Freed())
    assert left(tmp_path) == {"old"}
