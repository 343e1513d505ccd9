"""The gauges that the loop sets beside its work: ROOT's room, the leases, a found index, what bytecode/ has."""

import os
from pathlib import Path

import pytest

from envfabric.index.document import Entry, Index
from envfabric.loop.figures import show_leases, show_published, show_room
from envfabric.store.files import Files, Freed
from envfabric.store.leases import Held, Leased
from envfabric.store.sweep import Sweep, unlinked
from envfabric.telemetry.metrics import Metrics


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """One sample's value."""
    found = metrics.registry.get_sample_value(f"envfabric_{name}", labels)
    assert found is not None
    return found


def leased(*hosts: str) -> Leased:
    """A closure that these hosts hold."""
    return Leased([Held(f"{host}.1.a", host, 1, "", 1000.0, 300.0) for host in hosts], 1300.0)


def test_room_is_that_of_roots_file_system(tmp_path: Path) -> None:
    """Size, and what an ordinary user may still take; and the lesser share is the one that counts."""
    metrics, status = Metrics(), os.statvfs(tmp_path)
    share = show_room(metrics, tmp_path)
    assert value(metrics, "root_size_bytes") == status.f_blocks * status.f_frsize
    assert value(metrics, "root_inodes") == status.f_files
    assert 0 < value(metrics, "root_free_bytes") <= value(metrics, "root_size_bytes")
    assert 0 <= share <= 100 * value(metrics, "root_free_bytes") / value(metrics, "root_size_bytes") + 1


def test_room_that_is_not_known_stays_as_it_was(tmp_path: Path) -> None:
    """A ROOT that is away is no full disk, and no empty one."""
    metrics = Metrics()
    show_room(metrics, tmp_path)
    before = value(metrics, "root_free_bytes")
    with pytest.raises(FileNotFoundError):
        show_room(metrics, tmp_path / "away")
    assert value(metrics, "root_free_bytes") == before


def test_leases_by_what_they_hold() -> None:
    """Each closure is counted once however many hold it, under what the index has of it; each host once, too."""
    metrics = Metrics()
    seen = {
        "current": leased("node-1", "node-2"),
        "older": leased("node-1"),
        "gone": leased("node-3"),
        "free": leased(),
    }
    built = {"current": 500.0, "older": 200.0, "free": 1.0}
    show_leases(metrics, seen, {"current", "free"}, built.get)
    assert value(metrics, "leases") == 4
    assert value(metrics, "lease_hosts") == 3
    for use in ("served", "superseded", "absent"):
        assert value(metrics, "leased_closures", use=use) == 1
    assert value(metrics, "leased_oldest_built_timestamp_seconds") == 200
    show_leases(metrics, {}, set(), built.get)
    assert value(metrics, "leases") == value(metrics, "leased_closures", use="absent") == 0
    assert value(metrics, "leased_oldest_built_timestamp_seconds") == 0


def test_leases_that_can_not_be_known_change_nothing() -> None:
    """A mount that goes away under the look leaves all of the last figures, and not a part of them."""
    metrics = Metrics()
    show_leases(metrics, {"one": leased("node-1")}, {"one"}, lambda _: 5.0)

    def away(name: str) -> float:
        raise OSError

    with pytest.raises(OSError):
        show_leases(metrics, {"one": leased(), "two": leased("a", "b")}, set(), away)
    assert value(metrics, "leases") == 1
    assert value(metrics, "leased_closures", use="served") == 1


def test_an_index_that_is_found_is_as_old_as_it_says() -> None:
    """After a restart, and for a standby, index.json is of the time of its publication, and shows its states."""
    metrics = Metrics()
    entries = {"wf/a": Entry("ready", "t", "c"), "wf/b": Entry("stale", "t", "c")}
    show_published(metrics, Index("c", 7, "2026-01-31T12:00:00Z", entries))
    assert value(metrics, "index_last_publish_timestamp_seconds") == 1769860800
    assert value(metrics, "specs", state="stale") == 1
    show_published(metrics, Index("c", 8, "spoilt by a hand", {}))
    assert value(metrics, "index_last_publish_timestamp_seconds") == 1769860800
    assert value(metrics, "specs", state="ready") == 0


def test_the_sweep_counts_what_it_leaves(tmp_path: Path) -> None:
    """Files that stay, linked or too young, with their bytes on disk; nothing before the first walk."""
    for name in ("linked", "young"):
        (tmp_path / name).write_bytes(b"x" * 5000)
    os.link(tmp_path / "linked", tmp_path / "other name")
    sweep = Sweep(Files(), tmp_path, 1000.0, unlinked, lambda: None)
    before = sweep.walked
    now = (tmp_path / "young").stat().st_ctime
    sweep.run(now, Freed())
    assert before is None
    sizes = [(tmp_path / name).stat().st_blocks * 512 for name in ("linked", "other name", "young")]
    assert sweep.walked == (3, sum(sizes))
    assert sweep.run(now + 2000, Freed()) == 1
    assert sweep.walked == (2, sum(sizes[:2]))
