"""`envfabric gc`, asked for or by itself: what it says is what it does, and the account is right afterwards."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from collecting.conftest import Keeping
from collecting.disk import du, inodes
from support.fabric import RunningDaemon
from support.waiting import wait_for


def lease(keeping: Keeping, name: str) -> Path:
    """A lease that is in force for an hour."""
    folder = keeping.root / "leases" / name
    folder.mkdir()
    (folder / "node.1.a").write_text(json.dumps({"schema": 1, "ttl": 3600, "host": "node"}))
    return folder / "node.1.a"


def history_of(keeping: Keeping) -> tuple[str, str, str]:
    """A spec that changed twice, one that was removed and is leased, and one that stays; gives the old closures."""
    keeping.spec("wf/a", "alpha", "gamma==1.0")
    keeping.spec("wf/gone", "beta", "gamma==1.0")
    keeping.spec("wf/stays", "alpha")
    keeping.repo.commit()
    with keeping.fabric.daemon() as daemon:
        daemon.wait_for_index(keeping.repo.head)
        first, leased = keeping.serving("wf/a"), keeping.serving("wf/gone")
        keeping.spec("wf/a", "beta", "gamma==2.0")
        keeping.make_true(daemon)
        second = keeping.serving("wf/a")
        keeping.spec("wf/a", "gamma==2.0")
        keeping.repo.remove("wf/gone")
        keeping.make_true(daemon)
    return first, second, leased


def places(keeping: Keeping) -> list[Path]:
    return [keeping.root / name for name in ("store", "generations", "trash", "uv_cache/archive-v0")]


@pytest.mark.parametrize("daemon", [False, True], ids=["no daemon", "daemon"])
def test_gc_does_what_the_dry_run_says(keeping: Keeping, daemon: bool) -> None:
    """Closures, generations, bytes and inodes; and each kept closure's reason is the one that holds it."""
    first, second, leased = history_of(keeping)
    held = lease(keeping, leased)
    with keeping.maybe_daemon(daemon):
        said = keeping.dry_run()
        assert set(said["remove"]) == {first, second}
        # The last one of a spec that is gone goes, too: generation_age is 0.
        assert set(said["drop"]) == {"wf/a 1", "wf/a 2", "wf/gone 1"}
        assert said["kept"] == {
            keeping.serving("wf/a"): ["served by wf/a", "generation 3 of wf/a"],
            keeping.serving("wf/stays"): ["served by wf/stays", "generation 1 of wf/stays"],
            leased: ["leased by node.1.a on node"],
        }
        before = du(*places(keeping)), inodes(*places(keeping))
        done = keeping.gc()
        after = du(*places(keeping)), inodes(*places(keeping))
        assert set(done["removed"]) == set(said["remove"])
        assert done["generations"] == len(said["drop"])
        assert done["kept"] == said["kept"]
        assert (done["bytes"], done["inodes"]) == (said["bytes"], said["inodes"])
        # One new inode remembers the highest number of the spec that is gone.
        mark = keeping.root / "generations/wf/gone/.highest"
        assert before[0] - after[0] == done["bytes"] - mark.stat().st_blocks * 512
        assert before[1] - after[1] == done["inodes"] - 1
        assert keeping.stored() == set(said["kept"])
        held.unlink()
        assert keeping.gc()["removed"] == [leased]
        assert leased not in keeping.stored()
    keeping.fabric.python("wf/a", "import gamma")
    assert keeping.told("verify")["clean"]


def test_people_are_told_what_goes_and_why_the_rest_stays(keeping: Keeping) -> None:
    """One line for each closure, and what comes back."""
    first, second, leased = history_of(keeping)
    lease(keeping, leased)
    text = keeping.say("gc", "--dry-run")
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    for name in (first, second):
        assert lines[name].split(maxsplit=1)[1].split() == ["goes", "nothing", "uses", "it"]
    assert "stays" in lines[leased]
    assert lines[leased].endswith("leased by node.1.a on node")
    assert "served by wf/stays" in lines[keeping.serving("wf/stays")]
    assert "2 closures and 3 generations would go" in text
    assert keeping.stored() > {first, second}
    assert "2 closures and 3 generations removed" in keeping.say("gc")
    assert {first, second}.isdisjoint(keeping.stored())


def test_odd_names_are_told_and_stop_nothing(keeping: Keeping) -> None:
    """What somebody left in store/, in trash/ and elsewhere."""
    first, second, leased = history_of(keeping)
    odd = os.fsdecode(b"not-utf-8-\xff")
    for place in ("store", "leases", "trash", "staging", "generations", "requests"):
        (keeping.root / place / odd).touch()
        (keeping.root / place / "new\nline%").mkdir()
    assert "Remove it by hand" in keeping.say("gc", "--dry-run")
    done = keeping.gc()
    assert set(done["removed"]) == {first, second, leased}
    assert (keeping.root / "store" / odd).exists()


def test_nothing_published_nothing_collected(keeping: Keeping) -> None:
    """A command on a new ROOT says so."""
    keeping.spec("wf/a", "alpha")
    keeping.repo.commit()
    keeping.fabric.init()
    (keeping.root / "store" / ("a" * 40)).mkdir()
    assert "nothing is published" in keeping.say("gc", "--dry-run", expect=1)
    assert "nothing is published" in keeping.say("gc", expect=1)
    assert keeping.stored() == {"a" * 40}


def test_the_daemon_collects_by_itself(keeping: Keeping) -> None:
    """At its interval; the metrics say what went and what is there, as du does."""
    first, second, leased = history_of(keeping)
    lease(keeping, leased)
    keeping.rules(interval=0.3)
    with keeping.fabric.daemon() as daemon:
        daemon.wait_for_metric("envfabric_gc_removed_total", 2)
        daemon.wait_for_metric("envfabric_leases", 1)
        assert keeping.stored().isdisjoint({first, second})
        assert daemon.metric("envfabric_gc_reclaimed_bytes_total") > 0
        assert_account(keeping, daemon)
    events = [json.loads(line) for path in (keeping.root / "history").iterdir() for line in path.open()]
    assert {one["closure"] for one in events if one["event"] == "collected"} == {first, second}


def assert_account(keeping: Keeping, daemon: RunningDaemon) -> None:
    """The metrics are what du says of the closures, without store/ itself."""
    paths = [keeping.root / "store" / name for name in keeping.stored()]
    daemon.wait_for_metric("envfabric_store_closures", len(paths))
    daemon.wait_for_metric("envfabric_store_physical_bytes", du(*paths))
    daemon.wait_for_metric("envfabric_store_inodes", inodes(*paths))


def test_low_space_makes_the_daemon_collect_at_once(keeping: Keeping) -> None:
    """Without an interval, and with trash emptied whatever its age; the control has space enough."""
    keeping.rules(trash_age=86400)
    first, second, leased = history_of(keeping)
    assert set(keeping.gc()["removed"]) == {first, second, leased}
    assert len(list((keeping.root / "trash").iterdir())) >= 3
    keeping.spec("wf/stays", "gamma==1.0")
    with keeping.fabric.daemon() as daemon:
        keeping.make_true(daemon)
        assert daemon.events("collected") == []
    keeping.rules(min_free=99.9999)
    with keeping.fabric.daemon() as daemon:
        wait_for(lambda: daemon.events("collected") or None, message="nothing was collected")
        assert daemon.events("space is low: collecting")
        assert list((keeping.root / "trash").iterdir()) == []
        assert len(keeping.stored()) == 2
        assert_account(keeping, daemon)
        assert daemon.metric("envfabric_gc_reclaimed_bytes_total") > 0


def test_a_collection_that_fails_is_told_and_takes_off_the_account_what_went(keeping: Keeping) -> None:
    """Here uv's cache can't be pruned; the closures have gone all the same."""
    first, second, leased = history_of(keeping)
    with keeping.maybe_daemon() as daemon:
        assert daemon is not None
        (keeping.root / "uv_cache").rename(keeping.root / "cache-away")
        (keeping.root / "uv_cache").write_text("in the way")
        answer = keeping.told("gc", expect=1)
        assert "the collection failed" in answer["message"]
        (keeping.root / "uv_cache").unlink()
        (keeping.root / "cache-away").rename(keeping.root / "uv_cache")
        assert keeping.stored().isdisjoint({first, second, leased})
        assert daemon.metric("envfabric_gc_removed_total") == 3
        assert_account(keeping, daemon)
        assert keeping.gc()["removed"] == []


def test_what_is_built_meanwhile_is_not_collected(keeping: Keeping) -> None:
    """Commits and collections at the same time, as fast as both go: whatever the index names is whole."""
    keeping.spec("wf/stays", "alpha")
    keeping.make_true()
    stop = threading.Event()
    wrong: list[str] = []

    def look() -> None:
        while not stop.wait(0.01):
            for spec_id, path in keeping.fabric.index()["python"].items():
                # Read again: the spec may have changed between the two looks.
                if not os.path.exists(path) and keeping.fabric.index()["python"].get(spec_id) == path:
                    wrong.append(path)

    keeping.rules(interval=0.05)
    keeping.fabric.settings["interval"] = 0.05
    with keeping.fabric.daemon() as daemon:
        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            for number in range(8):
                keeping.spec("wf/a", *(("alpha", "gamma==1.0"), ("beta",), ("gamma==2.0",))[number % 3])
                index = keeping.make_true(daemon)
                assert index["environments"]["wf/a"]["state"] == "ready"
        finally:
            stop.set()
            watcher.join()
        assert wrong == []
        wait_for(lambda: len(keeping.stored()) == 2, message="what was replaced is not collected")
        assert daemon.metric("envfabric_build_failures_total", reason="store") == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("grace", -1),
        ("grace", "two weeks"),
        ("generations", 0),
        ("generations", 1.5),
        ("generation_age", -0.1),
        ("trash_age", -1),
        ("interval", -5),
        ("min_free", 100),
        ("min_free", -1),
        ("scan", "perhaps"),
        ("gracce", 1),
    ],
)
def test_wrong_figures_are_refused_by_name(keeping: Keeping, key: str, value: Any) -> None:
    """Exit 2, and the message says which key it is."""
    keeping.rules(**{key: value})
    for command in (["gc", "--dry-run"], ["gc"], ["run", "--once"]):
        assert f"gc.{key}" in keeping.say(*command, expect=2)
