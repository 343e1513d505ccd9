"""The collector: what goes is renamed first and deleted later, and nothing that came into use meanwhile goes.

Grace is 0 and the process scan is off. Moments are met by stopping the world at a step of the file seam.
"""

import errno
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from envfabric.core.errors import StoreError
from envfabric.store.closures import Closures
from envfabric.store.collect import Collected
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.retention import Serving
from envfabric.store.root import Root
from envfabric.store.writer import LostWriter, Writer
from store.collection import DAY, World, ago, everything, lease
from store.faults import KILLED, Steps, each_fault, each_kill, in_process
from store.small_venv import assert_whole, build

A, B, C = "a" * 40, "b" * 40, "c" * 40


@pytest.fixture
def world(root: Root) -> World:
    """Three closures that share files: A and B, which nothing uses, and C, which is served."""
    world = World(root)
    world.closure(A, "alpha", "beta")
    world.closure(B, "beta")
    world.closure(C, "beta", "gamma")
    world.generation("wf/c", C)
    world.serve("wf/c", C, 1)
    return world


def at(operation: str, target: Callable[[Path], bool], action: Callable[[], None]) -> Files:
    """Files that do something once, right before a step."""
    done = False

    def step(what: str, path: Path) -> None:
        nonlocal done
        if not done and what == operation and target(path):
            done = True
            action()

    return Files(step)


def into_trash(root: Root, name: str) -> Callable[[Path], bool]:
    return lambda path: path.parent == root.trash and path.name.startswith(f"{name}.")


def names_in_trash(root: Root) -> set[str]:
    return {path.name.partition(".")[0] for path in root.trash.iterdir()}


def test_what_goes_is_renamed_first_and_deleted_when_trash_is_old(world: World) -> None:
    """For as long as the settings say it can be looked at, and brought back by hand."""
    done = world.collect(trash_age=3600)
    assert (done.removed, done.in_trash, done.freed.bytes) == ([A, B], 2, 0)
    assert world.stored() == {C}
    assert names_in_trash(world.root) == {A, B}
    (a,) = world.root.trash.glob(f"{A}.*")
    assert_whole(a)
    done = world.collect(trash_age=3600)
    assert (done.removed, done.in_trash) == ([], 2)
    done = world.collect(trash_age=0)
    assert done.in_trash == 0
    assert list(world.root.trash.iterdir()) == []
    assert_whole(world.root.closure(C))


def test_what_may_not_be_moved_keeps_nothing_else(world: World) -> None:
    """A folder of another user in store/ stays, with the reason, and the rest goes."""

    def refuse() -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(world.root.closure(A)))

    done = world.collect(at("rename", into_trash(world.root, A), refuse), trash_age=0)
    assert done.removed == [B] and world.stored() == {A, C}
    assert done.kept[A] == ("Permission denied: it belongs to another user",)


def test_without_an_age_trash_is_emptied_by_the_same_run(world: World) -> None:
    """No clock tick between the plan and the renames keeps it."""
    done = world.collect(trash_age=0)
    assert (done.removed, done.in_trash) == ([A, B], 0)
    assert list(world.root.trash.iterdir()) == []


def test_a_hurry_empties_trash_whatever_its_age(world: World) -> None:
    """At low space the room is needed now, that of this run's closures too; the control waits."""
    world.collect(trash_age=DAY)
    assert len(list(world.root.trash.iterdir())) == 2
    world.closure(A)
    steps = Steps()
    done = world.collect(Files(steps), trash_age=DAY, hurry=True)
    assert (done.removed, done.in_trash) == ([A], 0)
    # What was there goes first: the rest may need the room.
    first = next(number for number, (what, _) in enumerate(steps.seen) if what == "remove")
    assert first < next(
        number for number, (_, path) in enumerate(steps.seen) if into_trash(world.root, A)(path)
    )
    assert list(world.root.trash.iterdir()) == []
    assert done.freed.inodes > 0


def test_what_came_back_is_what_has_no_other_link(world: World) -> None:
    """The sum of what vanished from the file system, counted by inode."""
    before = {one[0]: size for path, one in everything(world.root).items() if (size := blocks(path)) >= 0}
    done = world.collect()
    after = {one[0] for one in everything(world.root).values()}
    gone = [size for inode, size in before.items() if inode not in after]
    # What is in uv_cache keeps the packages: only folders and unshared files came back.
    assert (done.freed.bytes, done.freed.inodes) == (sum(gone), len(gone))


def blocks(path: str) -> int:
    return os.lstat(path).st_blocks * 512


@pytest.mark.parametrize("when", ["before the rename", "after the rename"])
def test_a_lease_that_comes_at_the_last_moment_keeps(world: World, when: str) -> None:
    """Its holder sees the closure, or the collector sees the lease and puts it back; B goes by the same run."""
    taken: list[Path] = []

    def take() -> None:
        if not taken:
            taken.append(lease(world.root.leases, A))

    files = Files()
    if when == "before the rename":
        # The plan has looked at the leases by then.
        files = at("rename", into_trash(world.root, A), take)
    else:

        class Late(Files):
            def rename(self, source: Path, target: Path) -> None:
                super().rename(source, target)
                if source == world.root.closure(A):
                    take()

        files = Late()
    done = world.collect(files)
    assert taken
    assert done.removed == [B]
    assert done.kept[A] == ("it came into use a moment ago",)
    assert_whole(world.root.closure(A))
    taken[0].unlink()
    assert world.collect().removed == [A]


def test_a_lease_that_comes_after_the_plan_keeps_without_a_rename(world: World) -> None:
    """Its holder does not even see the closure go away for a moment."""
    steps = Steps()
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        # The first look is before the plan, the next one before A's rename.
        if calls == 2:
            lease(world.root.leases, A)

    world.check = check
    assert world.collect(Files(steps)).removed == [B]
    assert not any(into_trash(world.root, A)(path) for _, path in steps.seen)


@pytest.mark.parametrize("when", ["before the rename", "after the rename"])
def test_a_lease_that_came_and_ended_meanwhile_begins_the_grace_period(world: World, when: str) -> None:
    """Its holder may come back, as anybody may within the grace period; B goes by the same run."""
    world.plan(grace=DAY)
    for name in (A, B):
        ago(world.root.state / "left/closures" / name, DAY + 60)

    def come_and_go() -> None:
        lease(world.root.leases, A).unlink()

    class Late(Files):
        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            if source == world.root.closure(A):
                come_and_go()

    files = Late() if when == "after the rename" else at("rename", into_trash(world.root, A), come_and_go)
    done = world.collect(files, grace=DAY)
    assert (done.removed, done.kept[A]) == ([B], ("it came into use a moment ago",))
    assert_whole(world.root.closure(A))
    ago(world.root.leases / A, DAY + 60)
    assert world.collect(grace=DAY).removed == [A]


def test_a_closure_that_lost_a_part_is_leased_like_any_other(world: World) -> None:
    """Built again it gets another name; what is left of it goes once its lease has ended, and not before."""
    held = lease(world.root.leases, A)
    (world.root.closure(A) / "metadata.json").unlink()
    build(Closures(world.root, Files()), world.root, A)
    assert_whole(world.root.closure(f"{A}-2"))
    world.serve("wf/a", f"{A}-2", None)
    done = world.collect(trash_age=DAY)
    assert (done.removed, done.kept[A]) == ([B], ("leased by node.1.a on node",))
    assert (world.root.closure(A) / ".venv/bin/python").exists()
    held.unlink()
    assert world.collect().removed == [A]
    assert world.stored() == {f"{A}-2", C}


def test_an_error_in_the_last_look_puts_the_closure_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases that can't be read after the rename are no proof that there are none."""
    real = os.open

    def broken(path: object, *arguments: int, **named: int) -> int:
        if str(path) == str(world.root.leases / A) and not world.root.closure(A).exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, *arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", broken)
        with pytest.raises(StoreError, match="can't be read"):
            world.collect()
    assert_whole(world.root.closure(A))
    assert world.collect().removed == [A, B]


def test_what_is_served_at_the_last_moment_stays(world: World) -> None:
    """A plan is made of what was served when it began; before each rename it is looked at again."""

    def publish() -> None:
        assert world.served is not None
        world.served["wf/b"] = [Serving(B, 1)]

    done = world.collect(at("rename", into_trash(world.root, A), publish))
    assert done.removed == [A]
    assert done.kept[B] == ("it came into use a moment ago",)
    del world.served["wf/b"]  # type: ignore[union-attr]
    assert world.collect().removed == [B]


def test_a_generation_recorded_meanwhile_keeps_its_closure(world: World) -> None:
    """A step may record a generation after the plan's look, and end before anything of it is published."""
    kept: list[Generations] = []

    def record() -> None:
        world.generation("wf/c", B, kept=kept[0])

    collector = world.collector(at("rename", into_trash(world.root, A), record), generations=5)
    kept.append(collector.retention.holdings.generations)
    done = collector.collect()
    assert done.removed == [A]
    assert done.kept[B] == ("it came into use a moment ago",)
    # The next look sees it; without it, its closure goes.
    assert collector.collect().kept[B] == ("generation 2 of wf/c",)
    kept[0].drop("wf/c", 2)
    assert collector.collect().removed == [B]


def test_what_a_step_of_this_daemon_claims_stays(world: World) -> None:
    """Found, and named by nothing until the step has ended: also as the copy beside a damaged one."""
    world.closure(f"{A}-2")
    claim = world.claims.claim("wf/new", A)
    done = world.collect()
    assert done.removed == [B]
    assert done.kept[A] == done.kept[f"{A}-2"] == ("it came into use a moment ago",)
    del claim
    assert world.collect().removed == [A, f"{A}-2"]


def test_a_claim_waits_while_a_closure_is_renamed(world: World) -> None:
    """Whoever claims in the middle of the rename looks afterwards, and finds the closure gone."""
    found: list[bool] = []
    claims = []

    def look() -> None:
        claims.append(world.claims.claim(A))
        found.append(world.root.closure(A).exists())

    step = threading.Thread(target=look)
    entered = threading.Event()

    class Slow(Files):
        def rename(self, source: Path, target: Path) -> None:
            if source == world.root.closure(A):
                step.start()
                entered.set()
                # It is let through by no lock meanwhile.
                step.join(timeout=0.2)
                assert step.is_alive()
            super().rename(source, target)

    done = world.collect(Slow())
    step.join(timeout=60)
    assert entered.is_set()
    assert (done.removed, found) == ([A, B], [False])


def test_a_generation_that_a_step_found_is_not_dropped(world: World) -> None:
    """A claim on the spec keeps all of its generations, and so what they use; afterwards they go."""
    world.generation("wf/a", A, days=400)
    world.generation("wf/a", B, days=300)
    world.serve("wf/a", B, 2)
    claim = world.claims.claim("wf/a")
    done = world.collect()
    assert (done.generations, world.numbers("wf/a")) == (0, {1, 2})
    assert (done.removed, {A, B} <= world.stored()) == ([], True)
    del claim
    done = world.collect()
    assert (done.generations, world.numbers("wf/a")) == (1, {2})
    assert (done.removed, A in world.stored()) == ([A], False)


def test_a_generation_that_is_served_at_the_last_moment_stays(world: World) -> None:
    """A revert that is published while the collector is at work."""
    world.generation("wf/a", A, days=400)
    world.generation("wf/a", B, days=300)
    world.serve("wf/a", B, 2)
    world.generation("wf/z", A, days=400)
    world.generation("wf/z", B, days=300)
    world.serve("wf/z", B, 2)
    done = world.collect(
        at("rename", into_trash(world.root, "wf"), lambda: world.serve("wf/z", A, 1)), trash_age=DAY
    )
    assert done.generations == 1
    assert (world.numbers("wf/a"), world.numbers("wf/z")) == ({2}, {1, 2})


def test_a_number_is_never_given_again(world: World) -> None:
    """Not even when every generation of a spec was collected."""
    assert [world.generation("wf/a", A), world.generation("wf/a", B)] == [1, 2]
    assert world.collect().generations == 2
    assert world.numbers("wf/a") == set()
    world.closure(A)
    assert world.generation("wf/a", A) == 3


def test_a_deposed_writer_renames_nothing_more(world: World) -> None:
    """Another writer that claims a higher epoch stops this one's collection before its next rename."""
    writer = Writer(world.root, Files()).acquire()
    world.check = writer.check

    def depose() -> None:
        (world.root.locks / f"epoch-{writer.epoch + 1}").touch()

    with writer, pytest.raises(LostWriter, match="was claimed over"):
        world.collect(at("rename", into_trash(world.root, A), depose))
    # The one that was under way went; the next one, and trash/, were left to the new writer.
    assert world.stored() == {B, C}
    assert names_in_trash(world.root) == {A}
    world.check = lambda: None
    assert world.collect().removed == [B]
    assert list(world.root.trash.iterdir()) == []


def test_what_was_done_before_a_failure_is_told(world: World) -> None:
    """So that it leaves the account although the collection failed."""
    done = Collected()

    def fail() -> None:
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        world.collector(at("rename", into_trash(world.root, B), fail)).collect(done=done)
    assert done.removed == [A]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.ESTALE])
def test_a_step_that_fails_loses_nothing_that_is_used(root: Root, code: int) -> None:
    """Whichever it is; the next run completes what was begun."""
    failures = 0
    for steps in each_fault(code):
        world = prepared(root)
        try:
            world.collect(Files(steps))
        except (OSError, StoreError):
            failures += 1
        assert_nothing_lost(world)
        world.collect()
        assert_collected(world)
        clear(world)
    assert failures >= 3


def test_a_kill_at_any_step_loses_nothing_that_is_used(root: Root) -> None:
    """The next run completes what was begun, half-deleted trash too."""
    kills = 0
    for _, run in each_kill():
        world = prepared(root)
        kills += run(lambda files, world=world: drop_result(world.collect(files)))  # type: ignore[misc]
        assert_nothing_lost(world)
        world.collect()
        assert_collected(world)
        clear(world)
    assert kills > 10


def drop_result(_: Collected) -> None:
    """For an action that gives nothing."""


def prepared(root: Root) -> World:
    """A closure that goes, one that is served, one that is leased, and an old generation."""
    world = World(root)
    world.closure(A, "alpha")
    world.closure(B, "alpha", "beta")
    world.closure(C, "alpha")
    world.generation("wf/c", A, days=400)
    world.serve("wf/c", C, world.generation("wf/c", C))
    lease(root.leases, B)
    return world


def assert_nothing_lost(world: World) -> None:
    assert_whole(world.root.closure(B))
    assert_whole(world.root.closure(C))
    (served,) = (world.served or {})["wf/c"]
    assert served.generation in world.numbers("wf/c")
    if world.root.closure(A).exists():
        assert_whole(world.root.closure(A))


def assert_collected(world: World) -> None:
    assert world.stored() == {B, C}
    assert len(world.numbers("wf/c")) == 1
    assert list(world.root.trash.iterdir()) == []
    assert_nothing_lost(world)
    left = world.root.state / "left/closures"
    assert not left.exists() or list(left.iterdir()) == []


def clear(world: World) -> None:
    """Back to an empty store, for the next round."""
    for folder in (world.root.store, world.root.generations, world.root.leases, world.root.staging):
        for path in folder.iterdir():
            Files().remove_tree(path)


def test_half_deleted_trash_is_finished_by_the_next_run(world: World) -> None:
    """A collection that was killed while it deleted leaves no rest that nobody removes."""

    def collect() -> None:
        removed = 0

        def step(operation: str, path: Path) -> None:
            nonlocal removed
            removed += operation == "remove"
            if removed == 4:
                os._exit(KILLED)

        world.collect(Files(step))

    assert in_process(collect) == KILLED
    (half,) = world.root.trash.glob("gone-*")
    assert not (half / "manifest").exists() or not (half / ".venv/bin").exists()
    world.collect(trash_age=0)
    assert list(world.root.trash.iterdir()) == []


def test_what_a_leaseholder_found_gone_half_way_is_brought_back(world: World) -> None:
    """Killed between the rename and the last look at the leases, the collector has renamed what is leased."""

    class Killed(Files):
        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            if source == world.root.closure(A):
                lease(world.root.leases, A)
                os._exit(KILLED)

    assert in_process(lambda: drop_result(world.collect(Killed()))) == KILLED
    assert not world.root.closure(A).exists()
    done = world.collect()
    assert done.removed == [B]
    assert_whole(world.root.closure(A))


def test_old_staging_that_nobody_holds_goes(world: World) -> None:
    """What a neighbour's build left; one that is under way and one that is young stay."""
    root = world.root
    for name in ("old", "young"):
        (root.staging / name / "project").mkdir(parents=True)
        (root.staging / f"{name}.lock").touch()
    steps = Steps()
    done = world.collector(Files(steps))
    assert done.collect().removed == [A, B]
    # A ctime can't be set: the run's own clock is moved instead.
    assert {path.name for path in root.staging.iterdir()} == {"old", "old.lock", "young", "young.lock"}

    class Later(Files):
        def server_time(self, folder: Path) -> float:
            return super().server_time(folder) + 3601

    descriptor = os.open(root.staging / "young.lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        world.collect(Later())
        assert {path.name for path in root.staging.iterdir()} == {"young", "young.lock"}
    finally:
        os.close(descriptor)
    world.collect(Later())
    assert list(root.staging.iterdir()) == []


def test_compiled_files_that_nothing_links_go_after_grace(world: World) -> None:
    """One that an environment links stays, and one that is young."""
    folder = world.root.bytecode / "ab"
    folder.mkdir()
    for name in ("linked.pyc", "unused.pyc"):
        (folder / name).write_bytes(b"x" * 5000)
    os.link(folder / "linked.pyc", world.root.path / "linked-elsewhere")

    class Later(Files):
        def server_time(self, folder: Path) -> float:
            return super().server_time(folder) + 3601

    world.collect()
    assert {path.name for path in folder.iterdir()} == {"linked.pyc", "unused.pyc"}
    world.collect(Later())
    assert {path.name for path in folder.iterdir()} == {"linked.pyc"}


def test_resolutions_that_nobody_asked_for_go(world: World) -> None:
    """After the grace period, or the time for which they are shared where that is longer; counted."""
    folder = world.root.state / "resolutions"
    folder.mkdir()
    for name, days in (("young", 1.0), ("older", 3.0), ("old", 15.0)):
        (folder / f"{name}.json").write_text("{}")
        ago(folder / f"{name}.json", days * DAY + 60)
    assert world.collect(grace=14 * DAY, resolution_age=DAY).resolutions == 1
    assert {path.name for path in folder.iterdir()} == {"young.json", "older.json"}
    assert world.collect(grace=0, resolution_age=2 * DAY).resolutions == 1
    assert {path.name for path in folder.iterdir()} == {"young.json"}


def test_a_full_disk_does_not_stop_the_collection_that_would_free_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no room for a byte what is known to be unused goes, and trash/ is emptied."""
    world.plan()
    world.collect(grace=DAY)
    (world.root.trash / "old").mkdir()
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        where = os.readlink(f"/proc/self/fd/{descriptor}")
        if where.startswith(str(world.root.path)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), where)
        return real(descriptor, data)

    steps = Steps()

    def step(operation: str, path: Path) -> None:
        steps(operation, path)
        if operation == "write" and not path.name.startswith(".time."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(os, "write", full)
    done = world.collect(Files(step), hurry=True)
    assert done.removed == [A, B]
    assert list(world.root.trash.iterdir()) == []


def test_leases_of_what_went_are_taken_away(world: World) -> None:
    """Expired ones, with their folder; one in force on another closure stays."""
    lease(world.root.leases, A, expired=True)
    lease(world.root.leases, B)
    done = world.collect()
    assert (done.removed, done.leases) == ([A], 1)
    assert {path.name for path in world.root.leases.iterdir()} == {B}


def test_closures_without_a_use_go_once_the_grace_period_is_over(world: World) -> None:
    """Not a run earlier, and by the time on ROOT."""
    assert world.collect(grace=DAY).removed == []
    ago(world.root.state / "left/closures" / A, DAY + 60)
    done = world.collect(grace=DAY)
    assert done.removed == [A]
    assert world.stored() == {B, C}
    assert done.kept[B] == ("unused for 0 s, the grace period is 24 h",)
    assert done.kept[C] == ("served by wf/c", "generation 1 of wf/c")
    assert Generations(world.root, Files()).name_of("wf/c", 1) == C
