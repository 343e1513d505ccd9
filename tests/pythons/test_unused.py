"""Interpreters that a daemon brought go once nothing has needed them for the grace period, and never before."""

import errno
import json
import os
import queue
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envfabric.build.cache import Evicted
from envfabric.core.errors import StoreError
from envfabric.loop.collecting import Collecting, Schedule
from envfabric.store.bases import MARK, Bases
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.generations import Content, Generation, Generations
from envfabric.store.history import History, all_events
from envfabric.store.root import Root
from envfabric.store.usage import Usage
from envfabric.telemetry.metrics import Metrics
from store.collection import DAY, World, ago, everything, lease
from store.faults import each_kill
from store.small_venv import fill, publish
from support.another_user import NOBODY, as_another_user, let_others_in

A, B = "a" * 40, "b" * 40
OLD, NEW, HAND = (f"cpython-3.11.{patch}-linux-x86_64-gnu" for patch in (1, 2, 3))
MINOR = "cpython-3.11-linux-x86_64-gnu"
"""The link that uv makes for a minor version."""


def bring(root: Root, name: str, *, mark: bool = True) -> Path:
    """Puts an interpreter into ROOT/pythons, sealed as a daemon seals one; gives the path that closures have of it."""
    program = root.pythons / name / "bin/python3.11"
    program.parent.mkdir(parents=True)
    shutil.copy(shutil.which("sleep") or "", program)
    (program.parent / "python3").symlink_to(program.name)
    if mark:
        (root.pythons / name / MARK).write_text("{}")
    program.parent.chmod(0o555)
    return Path(os.path.realpath(program))


def closure(root: Root, digest: str, python: Path) -> None:
    """Puts a closure into the store that was made from an interpreter."""
    closures = Closures(root, Files())
    with closures.staging() as staging:
        fill(root, staging.venv)
        (staging.venv / "bin/python").unlink()
        (staging.venv / "bin/python").symlink_to(python)
        publish(closures, staging, digest)


def pass_by(root: Root, name: str, seconds: float = DAY) -> None:
    """Makes it longer ago that an interpreter was first seen out of use."""
    ago(root.state / "left/pythons" / name, seconds)


def noted(root: Root, name: str) -> bool:
    """Whether an interpreter is known as out of use."""
    return (root.state / "left/pythons" / name).exists()


def names(root: Root) -> set[str]:
    return {path.name for path in root.pythons.iterdir()}


@pytest.fixture
def world(root: Root) -> World:
    """A closure that is served, and one that was, each with an interpreter of its own; and one put there by hand."""
    world = World(root)
    closure(root, A, bring(root, OLD))
    closure(root, B, bring(root, NEW))
    bring(root, HAND, mark=False)
    world.serve("wf/b", B, world.generation("wf/b", B))
    return world


def test_it_goes_after_its_last_closure(world: World) -> None:
    """Not with it: an hour later at the earliest, whatever the grace period; what nobody marked stays for ever."""
    root = world.root
    first = world.collect(trash_age=DAY)
    assert (first.removed, first.pythons, names(root)) == ([A], [], {OLD, NEW, HAND})
    assert not noted(root, OLD), "its closure may come back from trash/"
    assert world.collect().pythons == [] and names(root) == {OLD, NEW, HAND}
    assert world.collect().pythons == []
    pass_by(root, OLD)
    assert world.collect(grace=3 * DAY).pythons == []
    plan = world.plan(dry=True)
    before = everything(root)
    found = Bases(world.retention().holdings, world.claims, lambda: None).look(plan, dry=True)
    assert (found.remove, found.kept) == ([OLD], {NEW: f"closure {B}"})
    assert everything(root) == before
    done = world.collect()
    assert done.pythons == [OLD] and names(root) == {NEW, HAND}
    assert list(root.trash.iterdir()) == [] and list((root.state / "left/pythons").iterdir()) == []
    assert done.freed.inodes >= 4


def test_used_again_its_time_begins_anew(world: World) -> None:
    """One that a new closure was made from is not judged by when it was out of use before."""
    root = world.root
    world.collect()
    world.collect()
    pass_by(root, OLD)
    closure(root, A, root.pythons.resolve() / OLD / "bin/python3.11")
    assert world.collect().removed == [A]
    assert world.collect().pythons == [] and OLD in names(root)


def needed_by_a_generation(world: World) -> Callable[[], object]:
    """What lost its closure is built again from its own files, with the interpreter that it had."""
    kept = Generations(world.root, Files())
    path = str(world.root.pythons.resolve() / OLD / "bin/python3.11")
    told: dict[str, Any] = {"spec": "wf/a", "number": 0, "digest": A, "inputs": A, "tree": "t" * 40}
    told |= {"commit": "c" * 40, "built_at": "2026-01-01T00:00:00.000Z", "python_version": "3.11.1"}
    told |= {"ray_version": None, "lock_origin": "resolved", "runtime_env": {}}
    generation = kept.record(
        Generation(**told, closure={"interpreter": {"path": path}}), Content(b"text", b"text")
    )
    world.serve("wf/a", A, generation.number)

    def end() -> None:
        del (world.served or {})["wf/a"]

    return end


def claimed_by_a_step(world: World) -> Callable[[], object]:
    """A resolution or a build that goes on."""
    claims = [world.claims.claim("wf/a", os.path.realpath(world.root.pythons / OLD / "bin/python3"))]
    return claims.clear


def run_by_a_process(world: World) -> Callable[[], object]:
    """Anybody's, on this host."""
    process = subprocess.Popen(["sleep", "600"], executable=world.root.pythons / OLD / "bin/python3")

    def end() -> None:
        process.kill()
        process.wait()

    return end


def named_by_a_process(world: World) -> Callable[[], object]:
    """All that can be seen of another user's is its command line; here it has uv's link for the minor version."""
    link = world.root.pythons / MINOR
    link.symlink_to(OLD)
    process = subprocess.Popen(["sh", "-c", "read line", "sh", link / "bin/python3"], stdin=subprocess.PIPE)

    def end() -> None:
        process.communicate()
        link.unlink()

    return end


def of_a_closure_in_trash(world: World) -> Callable[[], object]:
    """A collector was killed after it had renamed one that is leased: it comes back."""
    closure(world.root, A, world.root.pythons.resolve() / OLD / "bin/python3.11")
    world.root.closure(A).rename(world.root.trash / f"{A}.1")
    held = lease(world.root.leases, A)

    def end() -> None:
        assert A in world.stored()
        held.unlink()
        # Its folder says when the last one was given back.
        ago(held.parent, DAY)
        world.collect()
        world.collect()

    return end


@pytest.mark.parametrize(
    "use",
    [needed_by_a_generation, claimed_by_a_step, run_by_a_process, named_by_a_process, of_a_closure_in_trash],
)
def test_it_stays_while_it_is_used(world: World, use: Callable[[World], Callable[[], object]]) -> None:
    """Whatever uses it, and however long no closure in the store was made from it."""
    world.collect(scan=True)
    world.collect(scan=True)
    pass_by(world.root, OLD)
    end = use(world)
    try:
        assert world.collect(scan=True).pythons == [] and OLD in names(world.root)
    finally:
        end()
    world.collect(scan=True)
    pass_by(world.root, OLD)
    assert world.collect(scan=True).pythons == [OLD]


def test_a_build_that_ends_in_the_middle_of_a_collection(world: World) -> None:
    """Its claim is gone, and its closure was not seen: the interpreter stays."""
    root = world.root
    world.collect()
    world.collect()
    pass_by(root, OLD)
    collector = world.collector()
    look = collector._bases.look

    def looked(*given: Any, **details: Any) -> Any:
        found = look(*given, **details)
        closure(root, A, root.pythons.resolve() / OLD / "bin/python3.11")
        return found

    collector._bases.look = looked  # type: ignore[method-assign]
    assert collector.collect().pythons == [] and OLD in names(root)


def test_a_kill_at_any_step_leaves_it_or_takes_it_whole(world: World) -> None:
    """The next collection ends what was begun; one that is used is there all the time."""
    root = world.root
    world.collect()
    world.collect()
    kills = 0
    for _, run in each_kill():
        if OLD not in names(root):
            bring(root, OLD)
            world.collect()
        pass_by(root, OLD)
        kills += run(world.collect)
        assert names(root) in ({NEW, HAND}, {OLD, NEW, HAND})
        # Brought again before the next collection, it is a new one.
        assert OLD in names(root) or not noted(root, OLD)
        if OLD in names(root):
            assert (root.pythons / OLD / "bin/python3").exists() and (root.pythons / OLD / MARK).exists()
        if OLD in names(root) and not noted(root, OLD):
            # Killed right before it was moved: its time begins anew here as well.
            world.collect()
            pass_by(root, OLD)
        world.collect()
        assert names(root) == {NEW, HAND} and list(root.trash.iterdir()) == []
    assert kills >= 4


def rewrite(world: World, **changed: object) -> None:
    """Has a generation say something else, as a hand or a newer release would."""
    path = world.root.generations / "wf/b/1/metadata.json"
    known = json.loads(path.read_bytes())
    path.parent.chmod(0o755)
    path.unlink()
    path.write_text(json.dumps(known | changed))


def test_a_generation_that_cannot_be_read_keeps_all(world: World) -> None:
    """What a newer release has written may need any of them."""
    world.collect()
    world.collect()
    pass_by(world.root, OLD)
    rewrite(world, schema=99)
    assert world.collect().pythons == [] and OLD in names(world.root)


@pytest.mark.parametrize(
    "spoilt", [None, [], {"interpreter": {"path": "/a\0b"}}], ids=["null", "list", "nul"]
)
def test_a_generation_that_a_hand_has_spoilt_holds_up_nobody(world: World, spoilt: object) -> None:
    """Nothing can be built again from it; a collection goes on, and through."""
    world.collect()
    world.collect()
    pass_by(world.root, OLD)
    rewrite(world, closure=spoilt)
    assert world.collect().pythons == [OLD]


def test_a_closure_by_the_link_for_a_minor_version(world: World) -> None:
    """Earlier releases made some so: what they run on is what the link leads to, now."""
    root = world.root
    collector = world.collector()
    collector.collect()
    link = root.pythons / MINOR
    link.symlink_to(root.pythons / OLD)
    closure(root, A, link / "bin/python3.11")
    lease(root.leases, A)
    collector.collect()
    collector.collect()
    assert not noted(root, OLD)
    link.unlink()
    link.symlink_to(root.pythons / NEW)
    collector.collect()
    assert noted(root, OLD) and (root.closure(A) / ".venv/bin/python").exists()


def test_a_mount_that_is_away_for_a_moment(world: World) -> None:
    """What was not to be found in one collection is looked for again in the next."""
    root = world.root
    lease(root.leases, A)
    collector = world.collector()
    venv = root.closure(A) / ".venv"
    venv.parent.chmod(0o755)
    venv.chmod(0o755)
    venv.rename(root.path / "away")
    collector.collect()
    assert noted(root, OLD)
    (root.path / "away").rename(venv)
    collector.collect()
    assert not noted(root, OLD)


@pytest.mark.parametrize("place", ["pythons", "store"])
def test_a_closed_folder_of_somebody(world: World, place: str) -> None:
    """In pythons/ it is no daemon's; in store/ it may be a closure of any. trash/ is emptied all the same."""
    root = world.root
    world.collect()
    world.collect()
    pass_by(root, OLD)
    (root.trash / "x").mkdir()
    closed = root.path / place / "_somebodys"
    if os.geteuid() == 0:
        for path in (root.path, *root.path.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    closed.mkdir(mode=0o000)
    let_others_in(root.path)

    def work() -> list[list[str]]:
        return [world.collect().pythons, os.listdir(root.trash)]

    try:
        assert as_another_user(work) == [[OLD] if place == "pythons" else [], []]
    finally:
        closed.chmod(0o700)


def test_one_that_cannot_be_moved_holds_up_nothing_else(world: World) -> None:
    """trash/ is emptied all the same; the next collection after its time tries again."""
    root = world.root
    world.collect()
    world.collect()
    pass_by(root, OLD)
    (root.trash / "x").mkdir()

    def step(operation: str, path: Path) -> None:
        if operation == "rename" and path.name.startswith(OLD):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    assert world.collect(Files(step)).pythons == [] and OLD in names(root)
    assert list(root.trash.iterdir()) == []
    world.collect()
    pass_by(root, OLD)
    assert world.collect().pythons == [OLD]


def test_a_daemon_that_stops_reads_no_more_generations(world: World) -> None:
    """Each is a file of its own."""
    world.collect()
    world.collect()
    pass_by(world.root, OLD)

    def stopping() -> None:
        raise StoreError("it stops")

    bases = Bases(world.retention().holdings, world.claims, stopping)
    with pytest.raises(StoreError, match="it stops"):
        bases.look(world.plan())


def test_what_went_is_in_the_trail(world: World) -> None:
    """As a closure that went."""
    root = world.root
    history = History(root, Files())
    calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    schedule = Schedule(0, 0, lambda _: Evicted(0, 0, 0))
    parts = world.collector(), Usage(root, Files()), Metrics(), history, schedule, calls.put
    collecting = Collecting(root, *parts)
    for _ in range(3):
        collecting.begin(lambda _: None)
        calls.get(timeout=60)()
        if noted(root, OLD):
            pass_by(root, OLD)
    collecting.close()
    history.flush()
    told = [
        (one.get("closure"), one.get("python")) for one in all_events(root) if one["event"] == "collected"
    ]
    assert told == [(A, None), (None, OLD)]
