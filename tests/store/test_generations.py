"""Generations: their numbers, what makes a new one, and the paths for people."""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.generations import Content, Generation, Generations
from envfabric.store.root import Root
from store.faults import CODES, each_fault, each_kill
from store.small_venv import build

ONE = Generation(
    spec="wf/a",
    number=0,
    digest="d1",
    inputs="i1",
    tree="t1",
    commit="c1",
    built_at="2025-01-01T00:00:00.000Z",
    python_version="3.11.7",
    ray_version=None,
    lock_origin="resolved",
    runtime_env={"env_vars": {"A": "ä"}, "working_dir": None, "excludes": ["*.log"]},
    closure={"schema": 1, "distributions": []},
)
CONTENT = Content(pyproject=b"[project]\n", lock=b"version = 1\n")


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_numbers_begin_at_one_and_grow(generations: Generations) -> None:
    """Each new content of a spec gets the next number; other specs have numbers of their own."""
    for number in (1, 2, 3):
        digest = f"d{number}"
        assert generations.record(replace(ONE, digest=digest), CONTENT).number == number
    assert generations.record(replace(ONE, spec="wf/b"), CONTENT).number == 1
    assert generations.record(replace(ONE, spec="other/a"), CONTENT).number == 1


def test_number_of_what_is_replaced_is_not_given_again(generations: Generations) -> None:
    """Also where a hand took every trace of it from disk while its successor was made."""
    assert generations.record(replace(ONE, number=7), CONTENT).number == 8


def test_newer_form_is_no_missing_one(root: Root, generations: Generations) -> None:
    """What a later release wrote is told as such: it is neither read as far as that goes nor taken for spoilt."""
    generations.record(ONE, CONTENT)
    path = root.generations / "wf/a/1/metadata.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2', 1))
    with pytest.raises(OSError, match="schema 2, known: 1"):
        generations.read("wf/a", 1)
    with pytest.raises(OSError, match="schema 2, known: 1"):
        generations.record(ONE, CONTENT)
    assert os.listdir(root.generations / "wf/a") == ["1"]


def test_what_was_recorded_is_read_back(root: Root, generations: Generations) -> None:
    """A later process reads the same generation, its lock, and the files that the contract names."""
    recorded = generations.record(ONE, CONTENT)
    lock_sha256 = hashlib.sha256(CONTENT.lock).hexdigest()
    assert recorded == replace(ONE, number=1, lock_sha256=lock_sha256)
    later = Generations(root, Files())
    assert later.read("wf/a", 1) == recorded
    assert later.retained("wf/a") == [recorded]
    assert later.lock(recorded) == CONTENT.lock
    folder = root.generations / "wf" / "a" / "1"
    assert names(folder) == [".venv", "metadata.json", "pyproject.toml", "uv.lock"]
    assert (folder / "pyproject.toml").read_bytes() == CONTENT.pyproject
    assert json.loads((folder / "metadata.json").read_bytes())["generation"] == 1
    assert names(root.staging) == []


@pytest.mark.parametrize(
    "edited",
    [
        {"commit": "c2", "tree": "t2"},
        {"built_at": "2026-01-01T00:00:00.000Z", "inputs": "i2"},
        {"lock_origin": "committed"},
    ],
)
def test_same_content_keeps_its_number(generations: Generations, edited: dict[str, str]) -> None:
    """Content that is retained is served again under its old number, with what was written then."""
    first = generations.record(ONE, CONTENT)
    second = generations.record(replace(ONE, digest="d2"), CONTENT)
    assert generations.record(replace(ONE, **edited), CONTENT) == first  # type: ignore[arg-type]
    assert generations.record(replace(ONE, digest="d2", **edited), CONTENT) == second  # type: ignore[arg-type]
    assert [one.number for one in generations.retained("wf/a")] == [2, 1]


@pytest.mark.parametrize(
    ("generation", "content"),
    [
        (replace(ONE, digest="d2"), CONTENT),
        (ONE, replace(CONTENT, lock=b"version = 1\n\n")),
        (ONE, replace(CONTENT, pyproject=b"[project]\n#\n")),
    ],
    ids=["digest", "lock", "pyproject"],
)
def test_other_content_is_a_new_generation(
    generations: Generations, generation: Generation, content: Content
) -> None:
    """One differing byte of pyproject.toml or uv.lock, or another digest, makes a new generation."""
    first = generations.record(ONE, CONTENT)
    second = generations.record(generation, content)
    assert (first.number, second.number) == (1, 2)
    assert generations.lock(first) == CONTENT.lock
    assert generations.lock(second) == content.lock


def no_metadata(folder: Path) -> None:
    (folder / "metadata.json").unlink()


def write(text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "metadata.json").chmod(0o644)
        (folder / "metadata.json").write_text(text)

    return damage


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    "damage",
    [no_metadata, write(""), write("[]"), write('{"digest": "d1"}'), write("null"), emptied],
    ids=["missing", "empty", "list", "incomplete", "null", "folder"],
)
def test_damaged_generation_keeps_its_number(
    root: Root, generations: Generations, damage: Callable[[Path], None]
) -> None:
    """A generation that can't be read is not retained, and its number is given to no other."""
    generations.record(ONE, CONTENT)
    damage(root.generations / "wf" / "a" / "1")
    assert generations.read("wf/a", 1) is None
    assert generations.retained("wf/a") == []
    assert generations.record(ONE, CONTENT).number == 2
    assert [one.number for one in generations.retained("wf/a")] == [2]


@pytest.mark.parametrize("name", ["pyproject.toml", "uv.lock"])
def test_generation_without_its_files_is_no_match(root: Root, generations: Generations, name: str) -> None:
    """A generation that lost its lock or its pyproject.toml is not taken for the same content."""
    first = generations.record(ONE, CONTENT)
    (root.generations / "wf" / "a" / "1" / name).unlink()
    assert generations.record(ONE, CONTENT).number == 2
    assert (generations.content(first), generations.lock(first)) == (None, None)


def test_retained_is_newest_first(root: Root, generations: Generations) -> None:
    """Generations are ordered as numbers, not as text, and foreign names are passed over."""
    for number in range(1, 13):
        generations.record(replace(ONE, digest=f"d{number}"), CONTENT)
    (root.generations / "wf" / "a" / ".nfs000123").touch()
    (root.generations / "wf" / "a" / "notes").mkdir()
    assert [one.number for one in generations.retained("wf/a")] == list(range(12, 0, -1))
    assert generations.retained("wf/none") == []


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_fault_at_any_step_leaves_nothing_or_all(root: Root, generations: Generations, code: int) -> None:
    """A generation is there whole or not at all, and nothing of it stays in staging."""
    first = generations.record(ONE, CONTENT)
    for steps in each_fault(code):
        try:
            recorded = Generations(root, Files(steps)).record(replace(ONE, digest="d2"), CONTENT)
        except OSError as error:
            assert error.errno == code
            assert generations.retained("wf/a") == [first], steps.seen[-1]
            assert names(root.generations / "wf" / "a") == ["1"]
        else:
            assert recorded.number == 2
        assert names(root.staging) == []


def test_kill_at_any_step_leaves_nothing_or_all(root: Root, generations: Generations) -> None:
    """Killed at any step, no half generation is retained; the next start empties staging and goes on."""
    first = generations.record(ONE, CONTENT)

    def record(files: Files) -> None:
        Generations(root, files).record(replace(ONE, digest="d2"), CONTENT)

    for _, run in each_kill():
        killed = run(record)
        assert Closures(root, Files()).recover() == set()
        assert names(root.staging) == []
        assert generations.retained("wf/a")[-1] == first
        assert len(generations.retained("wf/a")) == (1 if killed else 2)


def test_generation_is_readable_and_not_writable(root: Root, generations: Generations, umask: int) -> None:
    """Workers of other users read a generation, and nobody writes to it, whatever the umask."""
    generations.record(ONE, CONTENT)
    folder = root.generations / "wf" / "a" / "1"
    assert stat.S_IMODE(folder.stat().st_mode) & 0o055 == 0o055
    for name in ("metadata.json", "pyproject.toml", "uv.lock"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o444


def test_venv_leads_to_the_closure(root: Root, generations: Generations) -> None:
    """.venv of a generation, and of the path for people, is the closure's; also where ROOT is moved."""
    build(Closures(root, Files()), root, "d1")
    generations.record(ONE, CONTENT)
    generations.serve("wf/a", 1)
    for place in (root.generations / "wf" / "a" / "1", root.envs / "wf" / "a"):
        assert os.path.realpath(place / ".venv") == str(root.closure("d1") / ".venv")
        assert os.access(place / ".venv" / "bin" / "python", os.X_OK)
    moved = Root(root.path.rename(root.path.with_name("moved")))
    assert os.path.realpath(moved.envs / "wf" / "a" / ".venv") == str(moved.closure("d1") / ".venv")


def test_serve_flips_and_withdraw_removes(root: Root, generations: Generations) -> None:
    """The path for people follows the number, is left alone where it is right, and goes with its spec."""
    link = root.envs / "wf" / "a"
    generations.serve("wf/a", 1)
    assert os.readlink(link) == "../../generations/wf/a/1"
    before = link.lstat().st_ino
    generations.serve("wf/a", 1)
    assert link.lstat().st_ino == before
    generations.serve("wf/a", 2)
    generations.serve("wf/b", 1)
    assert os.readlink(link) == "../../generations/wf/a/2"
    generations.withdraw("wf/a")
    assert names(root.envs / "wf") == ["b"]
    generations.withdraw("wf/a")
    generations.withdraw("wf/b")
    assert names(root.envs) == []
    generations.withdraw("gone/x")


def test_failed_flip_serves_the_old_generation(root: Root, generations: Generations) -> None:
    """Whichever step of a flip fails, the path for people leads where it did."""
    link = root.envs / "wf" / "a"
    generations.serve("wf/a", 1)
    for steps in each_fault():
        assert os.readlink(link).endswith("/1")
        try:
            Generations(root, Files(steps)).serve("wf/a", 2)
        except OSError as error:
            assert error.errno == errno.EIO
    assert os.readlink(link).endswith("/2")


def record(generations: Generations, *digests: str) -> None:
    for digest in digests:
        generations.record(replace(ONE, digest=digest), CONTENT)


@pytest.mark.parametrize("dropped", [[3], [3, 2], [2, 3], [1, 2, 3], [3, 2, 1]])
def test_number_of_a_dropped_generation_is_not_given_again(
    root: Root, generations: Generations, dropped: list[int]
) -> None:
    """Whichever generations are collected, in whichever order, the next one's number is new."""
    record(generations, "d1", "d2", "d3")
    for number in dropped:
        generations.drop("wf/a", number)
        assert generations.read("wf/a", number) is None
    later = Generations(root, Files())
    assert later.numbers("wf/a") == sorted({1, 2, 3} - set(dropped))
    assert later.record(replace(ONE, digest="d4"), CONTENT).number == 4
    assert len(names(root.trash)) == len(dropped)
    assert names(root.staging) == []


def test_dropped_content_comes_back_under_a_new_number(generations: Generations) -> None:
    """What was collected is no longer the same generation: equal content is published as a new one."""
    record(generations, "d1", "d2")
    generations.drop("wf/a", 1)
    assert generations.record(replace(ONE, digest="d1"), CONTENT).number == 3


def drop(root: Root, number: int, files: Files) -> None:
    Generations(root, files).drop("wf/a", number)


def test_kill_at_any_step_of_a_drop(root: Root, generations: Generations) -> None:
    """Killed at any step of a drop, the generation is whole or gone, and its number is never given again."""
    outcomes = set()
    record(generations, "first")
    for number, run in each_kill():
        made = generations.record(replace(ONE, digest=f"d{number}"), CONTENT)
        killed = run(partial(drop, root, made.number))
        left = generations.read("wf/a", made.number)
        assert left in (None, made)
        assert killed or left is None
        outcomes.add(left is None)
        assert Closures(root, Files()).recover() == set()
        later = Generations(root, Files())
        assert later.record(replace(ONE, digest=f"next{number}"), CONTENT).number == made.number + 1
        assert later.read("wf/a", 1) is not None
    assert outcomes == {True, False}


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_fault_at_any_step_of_a_drop(root: Root, generations: Generations, code: int) -> None:
    """Whichever step of a drop fails, the generation is as it was, and its number stays its own."""
    record(generations, "d1", "d2")
    for steps in each_fault(code):
        try:
            Generations(root, Files(steps)).drop("wf/a", 2)
        except OSError as error:
            assert error.errno == code
            assert [one.number for one in generations.retained("wf/a")] == [2, 1]
    assert generations.record(replace(ONE, digest="d3"), CONTENT).number == 3


def test_generation_that_was_cut_off_finds_nothing(root: Root, generations: Generations) -> None:
    """A writer that was cut off before its rename makes no generation once staging was emptied."""
    record(generations, "d1")

    def step(operation: str, path: Path) -> None:
        if operation == "rename":
            for name in os.listdir(root.staging):
                Files().remove_tree(root.staging / name)
            record(generations, "the-next-writers")

    with pytest.raises(FileNotFoundError):
        record(Generations(root, Files(step)), "late")
    assert [one.digest for one in generations.retained("wf/a")] == ["the-next-writers", "d1"]


def test_two_writers_never_share_a_number(root: Root, generations: Generations) -> None:
    """Where two writers want the same number, the second one fails, and what the first one wrote stays."""

    def step(operation: str, path: Path) -> None:
        if operation == "rename":
            record(generations, "first")

    with pytest.raises(OSError, match=r"not empty|exists"):
        record(Generations(root, Files(step)), "second")
    assert [one.digest for one in generations.retained("wf/a")] == ["first"]
    assert names(root.staging) == []


def test_content_is_what_was_published(root: Root, generations: Generations) -> None:
    """A generation gives back its own files, None where one is gone, and an error where one can't be read."""
    made = generations.record(ONE, CONTENT)
    assert generations.content(made) == CONTENT
    folder = generations.folder("wf/a", 1)
    (folder / "uv.lock").unlink()
    assert generations.content(made) is None
    (folder / "uv.lock").mkdir()
    with pytest.raises(IsADirectoryError):
        generations.content(made)


def test_unreadable_generation_is_not_gone(
    root: Root, generations: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read error is told as one: whoever took it for an absence would collect what is in use."""
    made = generations.record(ONE, CONTENT)
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == "metadata.json":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path)

    with monkeypatch.context() as context:
        context.setattr(Path, "read_bytes", read_bytes)
        with pytest.raises(OSError, match="Input/output error"):
            generations.read("wf/a", 1)
        with pytest.raises(OSError, match="Input/output error"):
            generations.retained("wf/a")
        assert generations.name_of("wf/a", 1) == "d1"
    assert generations.read("wf/a", 1) == made


def test_closures_name_is_read_off_the_link(root: Root, generations: Generations) -> None:
    """Which closure a generation uses is known also where its metadata is spoilt, and None without a link."""
    record(generations, "d1", "d2-2")
    write("{")(generations.folder("wf/a", 2))
    assert generations.read("wf/a", 2) is None
    assert [generations.name_of("wf/a", number) for number in (1, 2, 3)] == ["d1", "d2-2", None]
    (generations.folder("wf/a", 1) / ".venv").unlink()
    assert generations.name_of("wf/a", 1) is None
    (generations.folder("wf/a", 1) / ".venv").mkdir()
    assert generations.name_of("wf/a", 1) is None


def test_specs_are_found_by_their_generations(root: Root, generations: Generations) -> None:
    """Every spec that has generations is listed, and what is no id or no folder is passed over."""
    for spec_id in ("wf/b", "wf/a", "other/x"):
        generations.record(replace(ONE, spec=spec_id), CONTENT)
    (root.generations / "stray").write_text("not ours")
    (root.generations / ".nfs0001").mkdir()
    (root.generations / "wf" / "stray").write_text("not ours")
    (root.generations / "wf" / "not an id").mkdir()
    assert set(generations.specs()) - {"wf/stray"} == {"wf/a", "wf/b", "other/x"}
    assert generations.numbers("wf/stray") == generations.numbers("none/x") == []


def test_what_names_a_number_oddly_is_none(root: Root, generations: Generations) -> None:
    """Only a number as it is written here names a generation: `02`, other digits and files are somebody else's."""
    record(generations, "d1")
    for name in ("02", "\N{ARABIC-INDIC DIGIT THREE}", "-4", "5.0"):
        (root.generations / "wf" / "a" / name).mkdir()
    assert generations.numbers("wf/a") == [1]
    assert generations.record(replace(ONE, digest="d2"), CONTENT).number == 2


def test_spec_below_a_lost_mount_gets_no_folder(root: Root, generations: Generations) -> None:
    """Where generations/ or envs/ is not there nothing is made in its place."""
    root.generations.rmdir()
    root.envs.rmdir()
    with pytest.raises(FileNotFoundError):
        record(generations, "d1")
    with pytest.raises(FileNotFoundError):
        generations.serve("wf/a", 1)
    assert not root.generations.exists()
    assert not root.envs.exists()
