"""What is kept and why: each reason to keep a closure, and the same plan once that reason has ended.

Grace is 0 and the process scan is off unless a test is about them. Time passes by the times that are set.
"""

import errno
import io
import os
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envfabric.core.errors import StoreError
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.leases import PROOF, Leases
from envfabric.store.pins import Pin, Pins
from envfabric.store.retention import Serving
from envfabric.store.root import Root
from store.collection import DAY, World, ago, everything, lease
from support.fabric import BASE_PYTHON
from support.waiting import wait_for

A, B = "a" * 40, "b" * 40


@pytest.fixture
def world(root: Root) -> World:
    """A closure A, about which something is said in a test, and B, which nothing ever uses."""
    world = World(root)
    world.closure(A)
    world.closure(B)
    return world


def kept(world: World, **rules: Any) -> tuple[str, ...]:
    """Why A is kept; B goes by the same plan."""
    plan = world.plan(**rules)
    assert B in plan.remove
    assert A in plan.kept
    return plan.kept[A]


def goes(world: World, **rules: Any) -> bool:
    """Whether A goes; B goes by the same plan."""
    plan = world.plan(**rules)
    assert B in plan.remove
    return A in plan.remove


def test_what_nothing_uses_goes_at_once_with_grace_0(world: World) -> None:
    """No clock tick between the plan's beginning and its note keeps anything."""
    for _ in range(20):
        assert world.plan().remove == [A, B]
        for path in (world.root.state / "left/closures").iterdir():
            path.unlink()


def test_what_the_index_serves_stays(world: World) -> None:
    """Until it serves something else."""
    world.serve("wf/a", A, None)
    assert kept(world) == ("served by wf/a",)
    world.serve("wf/a", None, None)
    assert goes(world)


def test_what_is_about_to_be_published_stays_and_so_does_what_is_published_still(world: World) -> None:
    """A spec that changes serves both, on the board and in the index, until the index is replaced."""
    assert world.served is not None
    world.served["wf/a"] = [Serving("c" * 40, 2), Serving(A, 1)]
    assert kept(world) == ("served by wf/a",)
    world.served["wf/a"] = [Serving(A, 2), Serving("c" * 40, 1)]
    assert kept(world) == ("served by wf/a",)
    world.served["wf/a"] = [Serving("c" * 40, 2)]
    assert goes(world)


def test_the_newest_generations_stay_whatever_their_age(world: World) -> None:
    """As many as the settings say; the one after them goes, with its closure."""
    world.generation("wf/a", A, days=400)
    for number in (2, 3):
        world.generation("wf/a", f"{number}" * 40, days=300)
    world.serve("wf/a", None, None)
    assert kept(world, generations=3) == ("generation 1 of wf/a",)
    plan = world.plan(generations=2)
    assert (plan.drop, plan.remove) == ([("wf/a", 1)], [A, B])


def test_a_young_generation_stays_whatever_their_number(world: World) -> None:
    """Until it is as old as the settings say."""
    world.generation("wf/a", A, days=9)
    world.generation("wf/a", "c" * 40)
    world.serve("wf/a", None, None)
    assert kept(world, generation_age=10 * DAY) == ("generation 1 of wf/a",)
    ago(Generations(world.root, Files()).folder("wf/a", 1), 10 * DAY + 60)
    assert goes(world, generation_age=10 * DAY)


def test_a_pinned_generation_stays(world: World) -> None:
    """Also before the index serves it, and until the pin is taken away."""
    pins = Pins(world.root, Files())
    world.generation("wf/a", A)
    world.generation("wf/a", "c" * 40)
    world.serve("wf/a", "c" * 40, 2)
    pins.set("wf/a", Pin(1, "t" * 40))
    assert kept(world) == ("generation 1 of wf/a",)
    pins.remove("wf/a")
    assert world.plan().drop == [("wf/a", 1)]
    assert goes(world)


def test_a_served_generation_stays_however_old_its_number_is(world: World) -> None:
    """A revert serves an old number again."""
    world.generation("wf/a", A, days=400)
    world.generation("wf/a", "c" * 40, days=300)
    world.serve("wf/a", A, 1)
    assert kept(world) == ("served by wf/a", "generation 1 of wf/a")
    world.serve("wf/a", "c" * 40, 2)
    assert goes(world)


def test_a_spec_that_left_the_revision_keeps_its_generations_for_their_age(world: World) -> None:
    """Counted from when it was first seen gone, whatever their own age, and all of them."""
    world.generation("wf/a", A, days=400)
    world.generation("wf/a", "c" * 40, days=300)
    rules: dict[str, Any] = {"generations": 10, "generation_age": 30 * DAY}
    assert kept(world, **rules) == ("generation 1 of wf/a",)
    left = world.root.state / "left/specs/wf%a"
    ago(left, 29 * DAY)
    assert kept(world, **rules) == ("generation 1 of wf/a",)
    ago(left, 30 * DAY + 60)
    plan = world.plan(**rules)
    assert sorted(plan.drop) == [("wf/a", 1), ("wf/a", 2)]
    assert A in plan.remove


def test_a_spec_that_comes_back_begins_anew(world: World) -> None:
    """The day on which it left the first time is forgotten, also when it left everything behind."""
    world.generation("wf/a", A)
    rules: dict[str, Any] = {"generations": 10, "generation_age": 30 * DAY}
    left = world.root.state / "left/specs/wf%a"
    world.plan(**rules)
    ago(left, 40 * DAY)
    world.serve("wf/a", None, None)
    assert kept(world, **rules)
    assert not left.exists()
    assert world.served is not None
    del world.served["wf/a"]
    world.plan(**rules)
    ago(left, 40 * DAY)
    world.collect(**rules)
    assert world.numbers("wf/a") == set()
    world.plan(**rules)
    assert not left.exists()


def test_a_lease_in_force_keeps_until_it_expires(world: World) -> None:
    """By its mtime; the reason says who."""
    path = lease(world.root.leases, A)
    assert kept(world) == ("leased by node.1.a on node",)
    assert world.plan().leases == 1
    ago(path, DAY)
    assert goes(world)
    assert world.plan().leases == 0


def test_a_lease_that_was_given_back_keeps_no_longer(world: World) -> None:
    """Its file is gone."""
    path = lease(world.root.leases, A)
    assert kept(world)
    path.unlink()
    assert goes(world)


def test_the_grace_period_begins_when_the_last_lease_ended(world: World) -> None:
    """Also where nothing else used the closure for long, and no collection ran meanwhile."""
    world.plan(grace=10 * DAY)
    for name in (A, B):
        ago(world.root.state / "left/closures" / name, 11 * DAY)
    path = lease(world.root.leases, A, expired=True)
    assert kept(world, grace=10 * DAY) == ("unused for 23 h, the grace period is 10 d",)
    ago(path, 12 * DAY)
    # It was given back this moment: its folder says so.
    os.utime(path.parent)
    assert kept(world, grace=10 * DAY) == ("unused for 0 s, the grace period is 10 d",)
    ago(path.parent, 11 * DAY)
    assert goes(world, grace=10 * DAY)


def test_leases_in_another_place_keep(world: World, tmp_path: Path) -> None:
    """And those in ROOT/leases do not any more."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Leases(world.root, Files()).use(elsewhere)
    path = lease(elsewhere, A)
    lease(world.root.leases, B)
    assert kept(world) == ("leased by node.1.a on node",)
    path.unlink()
    assert goes(world)


def test_an_unmounted_lease_folder_stops_every_plan(world: World, tmp_path: Path) -> None:
    """The empty mount point says nothing of who uses what; mounted again, all goes on."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Leases(world.root, Files()).use(elsewhere)
    (elsewhere / PROOF).rename(tmp_path / "proof")
    for dry in (False, True):
        with pytest.raises(StoreError, match=r"who uses what is not known.*Mount it"):
            world.plan(dry=dry)
    (tmp_path / "proof").rename(elsewhere / PROOF)
    assert goes(world)


def test_a_process_of_this_host_keeps_what_it_runs_from(world: World) -> None:
    """With the scan on, until it ends; with the scan off it is not seen."""
    python = world.root.closure(A) / ".venv/bin/python"
    command = [str(python), "-c", "import sys; print('ready', flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, executable=BASE_PYTHON
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        assert kept(world, scan=True) == ("a process of this host runs from it",)
        assert goes(world, scan=False)
        run.kill()
    wait_for(lambda: goes(world, scan=True), message="a process that has ended keeps its closure")


def test_a_process_by_the_path_for_people_keeps_each_generation_of_its_spec(world: World) -> None:
    """Which of them it was at its start is not known: none is dropped, also not from a damaged closure."""
    world.generation("wf/a", A, days=400)
    world.generation("wf/a", "c" * 40, days=300)
    world.serve("wf/a", "c" * 40, 2)
    Closures(world.root, Files()).mark_damaged(A, ["damaged by a test"])
    path = str(world.root.envs / "wf/a/.venv/bin/python")
    command = [path, "-c", "import sys; print('ready', flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, executable=BASE_PYTHON
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        assert kept(world, scan=True) == ("generation 1 of wf/a",)
        assert world.plan(scan=True).drop == []
        run.kill()
    wait_for(lambda: goes(world, scan=True), message="a process that has ended keeps its closure")


def test_the_grace_period_is_counted_from_the_first_look(world: World) -> None:
    """By the time of a file on ROOT, so over restarts; and the reason says how long it lasts."""
    rules: dict[str, Any] = {"grace": 14 * DAY}
    assert world.plan(**rules).kept == dict.fromkeys((A, B), ("unused for 0 s, the grace period is 14 d",))
    left = world.root.state / "left/closures"
    ago(left / B, 15 * DAY)
    ago(left / A, 13 * DAY)
    assert kept(world, **rules) == ("unused for 13 d, the grace period is 14 d",)
    ago(left / A, 14 * DAY + 60)
    assert goes(world, **rules)


def test_what_is_served_in_between_begins_its_grace_period_anew(world: World) -> None:
    """A closure that comes and goes is not collected although it is unused most of the time."""
    rules: dict[str, Any] = {"grace": 14 * DAY}
    world.plan(**rules)
    left = world.root.state / "left/closures"
    for name in (A, B):
        ago(left / name, 15 * DAY)
    world.serve("wf/a", A, None)
    assert kept(world, **rules) == ("served by wf/a",)
    world.serve("wf/a", None, None)
    assert kept(world, **rules) == ("unused for 0 s, the grace period is 14 d",)
    ago(left / A, 15 * DAY)
    assert goes(world, **rules)


def test_a_damaged_closure_is_held_by_no_generation(world: World) -> None:
    """Nothing is served from it again; but whoever serves or leases it still does."""
    world.generation("wf/a", A)
    world.serve("wf/a", A, 1)
    Closures(world.root, Files()).mark_damaged(A, ["damaged by a test"])
    assert kept(world) == ("served by wf/a",)
    world.serve("wf/a", f"{A}-2", 1)
    path = lease(world.root.leases, A)
    assert kept(world) == ("leased by node.1.a on node",)
    path.unlink()
    assert goes(world)
    assert world.plan().drop == []


def unreadable(monkeypatch: pytest.MonkeyPatch, place: str, function: str, path: Path) -> None:
    """Makes one system call fail for one path, as a NAS does."""
    owner: Any = Path if place == "Path" else os
    real: Callable[..., Any] = getattr(owner, function)

    def call(of: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(of, str | Path) and str(of) == str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(of, *arguments, **named)

    monkeypatch.setattr(owner, function, call)


@pytest.mark.parametrize(
    ("place", "function", "path"),
    [
        ("Path", "read_bytes", "state/pins/wf/a.json"),
        ("os", "listdir", "generations"),
        ("os", "listdir", "generations/wf"),
        ("os", "listdir", "generations/wf/a"),
        ("os", "readlink", "generations/wf/a/1/.venv"),
        ("os", "listdir", "leases"),
        ("os", "listdir", "store"),
        ("os", "listdir", "state/damaged"),
        ("os", "scandir", "state/left/closures"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_what_cannot_be_read_stops_the_plan(
    world: World, monkeypatch: pytest.MonkeyPatch, place: str, function: str, path: str, dry: bool
) -> None:
    """An I/O error is no proof that nothing uses a closure: the error is told, and nothing is planned."""
    world.generation("wf/a", A)
    world.serve("wf/a", None, None)
    Pins(world.root, Files()).set("wf/a", Pin(1, "t" * 40))
    Closures(world.root, Files()).mark_damaged("c" * 40, ["damaged by a test"])
    lease(world.root.leases, A)
    world.plan()
    with monkeypatch.context() as patched:
        unreadable(patched, place, function, world.root.path / path)
        with pytest.raises((OSError, StoreError), match="Input/output error"):
            world.plan(dry=dry)
    assert kept(world)


def test_spoilt_metadata_of_a_generation_frees_nothing(world: World) -> None:
    """Its link says which closure it uses."""
    world.generation("wf/a", A)
    world.serve("wf/a", None, None)
    path = world.root.generations / "wf/a/1/metadata.json"
    path.chmod(0o644)
    path.write_text("{")
    assert kept(world) == ("generation 1 of wf/a",)


ODD = ("%", "x%y", " ", "new\nline", "-rf", "naïve", os.fsdecode(b"not-utf-8-\xff"), "y" * 250, "README")


def test_stray_files_and_odd_names_stop_nothing(world: World) -> None:
    """Wherever somebody left them, also when one process after another looks at them."""
    world.generation("wf/a", A, days=400)
    world.generation("wf/a", "c" * 40, days=300)
    world.serve("wf/a", "c" * 40, 2)
    places = ("store", "generations", "generations/wf", "generations/wf/a", "leases", "trash", "staging")
    for place in (*places, "state/left/closures", "state/left/specs", "state/pins"):
        (world.root.path / place).mkdir(parents=True, exist_ok=True)
        for name in ODD:
            (world.root.path / place / name).touch()
            if not place.startswith("state/left"):
                (world.root.path / place / f"folder{name}"[:255]).mkdir()
    (world.root.state / "left/closures" / "a folder").mkdir()
    for name in ("007", "1e3", "²", "٣"):
        (world.root.generations / "wf/a" / name).mkdir()
    (world.root.generations / "a%b/c%d/1").mkdir(parents=True)
    for _ in range(3):
        plan = world.plan()
        assert {A, B} <= set(plan.remove)
        assert plan.drop == [("wf/a", 1)]
        assert {"x%y", " ", "y" * 250} <= plan.kept.keys()
    done = world.collect()
    assert {A, B} <= set(done.removed)
    assert world.numbers("wf/a") == {2}
    assert set(world.collect().removed) == set()
    # What nobody of the fabric can have made is told, and stays.
    assert "Remove it by hand" in world.plan().kept["x%y"][0]
    assert (world.root.store / "x%y").exists()


def test_nothing_is_collected_where_nothing_is_published(world: World) -> None:
    """Before the first index what is in use can't be told."""
    world.served = None
    with pytest.raises(StoreError, match="nothing is published"):
        world.plan()
    world.served = {}
    assert goes(world)


def test_nothing_is_planned_without_the_nas(world: World) -> None:
    """An unmounted NAS looks like one on which nothing is used."""
    world.root.marker.unlink()
    with pytest.raises(StoreError, match="is the NAS mounted"):
        world.plan()


def test_a_dry_plan_says_the_same_and_changes_nothing(world: World) -> None:
    """Not even since when things are unused; only the clock is asked."""
    world.generation("wf/a", A, days=400)
    world.generation("wf/a", "c" * 40, days=300)
    world.generation("wf/gone", A)
    lease(world.root.leases, B)
    world.serve("wf/a", "c" * 40, 2)
    each: list[dict[str, Any]] = [{}, {"grace": DAY}, {"generations": 5}]
    for rules in each:
        before = everything(world.root)
        dry = world.plan(dry=True, **rules)
        after = everything(world.root)
        # Only the clock was asked, by a file that is gone again.
        clocks = {str(world.root.state), str(world.root.staging)}
        assert {path: one[:1] for path, one in after.items()} == {p: one[:1] for p, one in before.items()}
        assert {p for p in before if before[p] != after[p]} <= clocks
        wet = world.plan(**rules)
        assert (dry.remove, dry.drop, dry.kept) == (wet.remove, wet.drop, wet.kept)


def test_whoever_may_not_write_may_look(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without write permission on ROOT a dry plan takes this host's clock."""

    def refused(self: Files, folder: Path) -> float:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(Files, "server_time", refused)
    assert world.plan(dry=True).remove == [A, B]
    with pytest.raises(PermissionError):
        world.plan()


def test_the_estimate_counts_each_inode_once_and_only_what_comes_back(world: World) -> None:
    """What a kept closure links stays; what uv's cache links comes back only when it lets go, too."""
    root = world.root
    for name in (A, B):
        Files().remove_tree(root.closure(name))
    world.closure(A, "alpha", "beta")
    world.closure(B, "beta")
    world.closure("c" * 40, "gamma")
    dropped = world.generation("wf/a", "c" * 40, days=2)
    world.generation("wf/a", B)
    world.serve("wf/a", B, 2)
    retention = world.retention()
    plan = retention.plan(dry=True)
    assert (plan.remove, plan.drop) == ([A, "c" * 40], [("wf/a", dropped)])
    estimate = retention.estimate(plan)
    going = [root.closure(A), root.closure("c" * 40), root.generations / f"wf/a/{dropped}"]
    free, cached = counted(root, going)
    assert (estimate.freed.bytes, estimate.freed.inodes) == free
    assert (estimate.cached.bytes, estimate.cached.inodes) == cached
    assert cached[1] > 0


def counted(root: Root, going: list[Path]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Bytes and inodes that only `going` has, and those that besides only uv's cache has."""

    def found(*paths: Path) -> dict[int, int]:
        command = ["find", *map(str, paths), "-printf", r"%i %b\n"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return {int(line.split()[0]): int(line.split()[1]) * 512 for line in told.splitlines()}

    mine, cache = found(*going), found(root.uv_cache)
    staying = found(
        *(path for path in root.store.iterdir() if path not in going),
        *(path for path in root.path.iterdir() if path.name not in {"store", "generations", "uv_cache"}),
        *(path for path in root.generations.glob("*/*/*") if path not in going),
    )
    back = {inode: size for inode, size in mine.items() if inode not in staying}
    free = [size for inode, size in back.items() if inode not in cache]
    later = [size for inode, size in back.items() if inode in cache]
    return (sum(free), len(free)), (sum(later), len(later))


class Operations:
    """What is asked of the file system below one folder: listings, status, links and openings."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, top: Path) -> None:
        self.seen: list[tuple[str, str]] = []
        self._top = str(top)
        for owner, name in (
            (os, "listdir"),
            (os, "scandir"),
            (os, "stat"),
            (os, "lstat"),
            (os, "readlink"),
            (os, "open"),
            (io, "open"),
        ):
            monkeypatch.setattr(owner, name, self._counting(name, getattr(owner, name)))

    def _counting(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **named: Any) -> Any:
            told = str(path) if isinstance(path, str | Path) else ""
            if told.startswith(self._top):
                self.seen.append((name, told.removeprefix(f"{self._top}/")))
            return real(path, *arguments, **named)

        return call

    def during(self, action: Callable[[], object]) -> list[tuple[str, str]]:
        """What `action` asks."""
        self.seen.clear()
        action()
        return [one for one in self.seen if not one[1].rpartition("/")[2].startswith(".time.")]


def fill(world: World, specs: range) -> None:
    """Specs with a served generation and one before it, all on two closures, published a while ago."""
    for number in specs:
        spec_id = f"wf-{number % 2}/n{number}"
        world.generation(spec_id, A, days=2)
        world.serve(spec_id, B, world.generation(spec_id, B, days=1))
        ago(world.root.generations / spec_id, 60)


def test_a_plan_costs_one_look_at_each_spec(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one lists its folder, and reads the links that nothing served tells; later ones ask for its stamp."""
    counts = []
    operations = Operations(monkeypatch, world.root.path)
    for specs in (range(10), range(10, 30)):
        fill(world, specs)
        retention = world.retention(generations=5)
        first, second = (operations.during(retention.plan) for _ in range(2))
        counts.append((len(first), len(second)))
        assert not any(what != "stat" for what, path in second if path.startswith("generations/wf-0/"))
    # For each of 20 more: a stamp, a listing, a link and the first bytes of two files; and then the stamp alone.
    assert (counts[1][0] - counts[0][0], counts[1][1] - counts[0][1]) == (100, 20)


def test_a_collection_reads_nothing_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it drops generations and looks again at what only they used; only ROOT's marker is asked again."""
    fill(world, range(6))
    for name in ("c" * 40, "d" * 40, "e" * 40):
        world.closure(name)
        lease(world.root.leases, name, expired=True)
    Pins(world.root, Files()).set("wf-0/n0", Pin(1, "t" * 40))
    retention = world.retention(generations=5)
    # Once in a process's life, and it lists the store, too.
    retention.holdings.closures.damaged()
    operations = Operations(monkeypatch, world.root.path)

    def both() -> None:
        plan = retention.plan()
        assert len(plan.remove) == 3
        plan = retention.after(plan, [("wf-1/n1", 1)])
        assert len(plan.remove) == 3

    counted = Counter(operations.during(both))
    again = {one for one, times in counted.items() if times > 1 and not one[1].startswith("state/left")}
    assert {path for _, path in again} == {world.root.marker.name}
    assert counted["listdir", "leases"] == counted["listdir", "state/pins"] == 1


def newer(world: World, spec_id: str, number: int) -> Path:
    """A generation's file in the form of a release to come."""
    path = Generations(world.root, Files()).folder(spec_id, number) / "metadata.json"
    text = path.read_text().replace('"schema": 1', '"schema": 2', 1)
    path.unlink()
    path.write_text(text)
    return path


def test_a_generation_that_is_not_understood_holds_every_closure(world: World) -> None:
    """What it needs is not known: no closure goes and none of its spec's generations; those of others do, and all that
    waited goes with the next plan once it is away."""
    for spec_id in ("wf/a", "wf/b"):
        world.generation(spec_id, A, days=400)
        world.serve(spec_id, None, world.generation(spec_id, B, days=300))
    path = newer(world, "wf/a", 1)
    retention = world.retention(generations=1)
    plan = retention.plan()
    assert (plan.remove, plan.drop) == ([], [("wf/b", 1)])
    assert plan.held == (
        f"what a generation uses is not known: {path} is of a newer version (schema 2, known: 1); use the release that "
        "wrote it"
    )
    world.closure("c" * 40)
    assert retention.plan().kept["c" * 40] == (plan.held,)
    # What is dropped meanwhile changes nothing of that.
    assert retention.after(plan, plan.drop).remove == []
    Files().remove_tree(path.parent)
    plan = retention.plan()
    assert plan.held is None
    assert plan.remove == [A, "c" * 40]


def test_a_generation_that_can_not_be_read_holds_every_closure(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of a newer form; one whose file is gone or spoilt says nothing, and holds nothing."""
    world.generation("wf/a", B)
    world.serve("wf/a", B, 1)
    path = Generations(world.root, Files()).folder("wf/a", 1) / "metadata.json"
    real = Path.open

    def unreadable(self: Path, *arguments: Any, **named: Any) -> Any:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(self, *arguments, **named)

    with monkeypatch.context() as context:
        context.setattr(Path, "open", unreadable)
        held = world.plan()
    assert held.remove == []
    assert "Permission denied" in str(held.held)
    path.unlink()
    assert world.plan().remove == [A]
    path.write_text("{")
    assert world.plan().remove == [A]


def test_a_generation_that_came_since_the_last_collection_is_seen(world: World) -> None:
    """A folder that was asked before is listed again once its stamp is another one."""
    fill(world, range(1))
    retention = world.retention(generations=5)
    assert world.numbers("wf-0/n0") == {1, 2}
    assert A in retention.plan().kept
    world.closure("c" * 40)
    world.generation("wf-0/n0", "c" * 40)
    assert "generation 3 of wf-0/n0" in retention.plan().kept["c" * 40]
    Files().remove_tree(Generations(world.root, Files()).folder("wf-0/n0", 1))
    assert A in retention.plan().remove


def test_a_generation_that_came_within_the_same_tick_is_seen(world: World) -> None:
    """The stamp of a folder that was changed a moment ago is not believed; an old one is, as the control shows."""
    fill(world, range(1))
    world.closure("c" * 40)
    folder = world.root.generations / "wf-0/n0"
    for age, seen in ((0.0, True), (60.0, False)):
        retention = world.retention(generations=5)
        ago(folder, age)
        stamp = folder.stat().st_mtime_ns
        retention.plan()
        number = world.generation("wf-0/n0", "c" * 40)
        os.utime(folder, ns=(stamp, stamp))
        assert ("c" * 40 in retention.plan().kept) is seen
        Files().remove_tree(Generations(world.root, Files()).folder("wf-0/n0", number))


def test_what_is_remembered_of_a_generation_is_what_its_link_says(world: World) -> None:
    """A generation that was served keeps its own closure afterwards, and no other one."""
    fill(world, range(1))
    retention = world.retention(generations=5)
    assert retention.plan().kept[B] == ("served by wf-0/n0", "generation 2 of wf-0/n0")
    world.serve("wf-0/n0", A, 1)
    for _ in range(2):
        assert retention.plan().kept == {
            A: ("served by wf-0/n0", "generation 1 of wf-0/n0"),
            B: ("generation 2 of wf-0/n0",),
        }


def test_a_mount_that_was_away_is_not_remembered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that could not be read, or was not there for a moment, is read again."""
    fill(world, range(1))
    retention = world.retention(generations=5)
    link = world.root.generations / "wf-0/n0/1/.venv"
    link.rename(link.with_name("away"))
    assert A in retention.plan().remove
    link.with_name("away").rename(link)
    with monkeypatch.context() as patched:
        unreadable(patched, "os", "readlink", link)
        with pytest.raises(OSError, match="Input/output error"):
            retention.plan()
    assert A in retention.plan().kept


def test_a_mount_that_goes_between_two_looks_is_not_remembered(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spec whose folder could be looked at, and was gone when it was listed, has its generations once it is back."""
    fill(world, range(1))
    retention = world.retention(generations=5)
    folder = world.root.generations / "wf-0/n0"
    away = tmp_path / "away"
    real = os.stat

    def stat(path: Any, *arguments: Any, **more: Any) -> os.stat_result:
        found = real(path, *arguments, **more)
        if path == folder and not away.exists():
            world.root.path.rename(away)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", stat)
        with pytest.raises(StoreError):
            retention.plan()
    away.rename(world.root.path)
    assert A in retention.plan().kept
