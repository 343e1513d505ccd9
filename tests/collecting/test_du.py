"""The account of bytes and inodes is what du says, without a walk of the store for each look."""

import json
import struct
from pathlib import Path

from collecting.conftest import Keeping
from collecting.disk import du, flip, inodes
from support.fabric import RunningDaemon

SPECS, SETS, SHARED = 60, 12, 6
"""Five specs serve each closure, and most of its bytes are those of every other one: more of them add no other case."""


def closures(keeping: Keeping) -> list[Path]:
    return [keeping.root / "store" / name for name in sorted(keeping.stored())]


def assert_account(keeping: Keeping, daemon: RunningDaemon) -> None:
    """Exactly what du says of the closures, within 1 % of what it says of store/; and what is logical and saved."""
    paths = closures(keeping)
    physical = du(*paths)
    daemon.wait_for_metric("envfabric_store_physical_bytes", physical)
    daemon.wait_for_metric("envfabric_store_inodes", inodes(*paths))
    daemon.wait_for_metric("envfabric_store_closures", len(paths))
    assert abs(physical - du(keeping.root / "store")) <= 0.01 * physical
    alone = {path.name: du(path) for path in paths}
    served = [entry["serving"] for entry in keeping.fabric.index()["environments"].values()]
    logical = sum(alone[name] for name in served if name)
    daemon.wait_for_metric("envfabric_store_logical_bytes", logical)
    daemon.wait_for_metric("envfabric_disk_saved_bytes", logical - physical)
    told = keeping.told("du", "--check")
    assert told == {
        "closures": len(paths),
        "served_specs": len(served),
        "logical_bytes": logical,
        "physical_bytes": physical,
        "saved_bytes": logical - physical,
        "inodes": inodes(*paths),
        "walked_bytes": physical,
        "walked_inodes": inodes(*paths),
    }


def test_many_specs_take_what_du_says(own_keeping: Keeping) -> None:
    """They share most packages. The same holds after most of them went, and after a repair."""
    keeping = own_keeping
    text = "VERSION = 1\n" * 20_000
    names = [f"shared-{number}" for number in range(SHARED)]
    for name in (*names, *(f"own-{number}" for number in range(SETS))):
        keeping.packages.add_wheel(name, "1.0", modules={f"{name.replace('-', '_')}/__init__.py": text})
    for number in range(SPECS):
        keeping.spec(f"wf-{number % 10}/n{number}", *names, f"own-{number % SETS}")
    keeping.repo.commit()
    with keeping.fabric.daemon() as daemon:
        index = daemon.wait_for_index(keeping.repo.head, timeout=240)
        assert len(index["python"]) == SPECS
        assert len(keeping.stored()) == SETS
        assert_account(keeping, daemon)
        saved = daemon.metric("envfabric_disk_saved_bytes")
        assert saved > 5 * daemon.metric("envfabric_store_physical_bytes")
        for number in range(SPECS):
            if number % SETS >= 5:
                keeping.repo.remove(f"wf-{number % 10}/n{number}")
        keeping.make_true(daemon)
        assert len(keeping.gc()["removed"]) == SETS - 5
        assert_account(keeping, daemon)
        (bad,) = closures(keeping)[0].glob(".venv/lib/python*/site-packages/shared_0/__init__.py")
        flip(bad)
        assert "5 closures damaged" in keeping.say("verify", "--repair")
        assert_account(keeping, daemon)
        assert len(keeping.gc()["removed"]) == 5
        assert_account(keeping, daemon)
    with keeping.fabric.daemon() as daemon:
        # From what was kept, at the next start.
        assert_account(keeping, daemon)


def test_a_scrape_walks_no_store(keeping: Keeping) -> None:
    """With the store away /metrics says what it said."""
    keeping.spec("wf/a", "alpha")
    keeping.spec("wf/b", "alpha", "gamma")
    keeping.repo.commit()
    keeping.fabric.settings["interval"] = 3600
    with keeping.fabric.daemon() as daemon:
        daemon.wait_for_index(keeping.repo.head)
        daemon.wait_for_metric("envfabric_store_closures", 2)
        # Not the logical bytes: they are of what is served, and a look may find that gone meanwhile.
        names = ("physical_bytes", "inodes", "closures")
        before = [daemon.metric(f"envfabric_store_{name}") for name in names]
        away = keeping.root / "store-away"
        (keeping.root / "store").rename(away)
        try:
            for _ in range(20):
                assert [daemon.metric(f"envfabric_store_{name}") for name in names] == before
        finally:
            away.rename(keeping.root / "store")
        assert min(before) > 0


def test_an_account_that_is_wrong_is_told_with_what_to_do(keeping: Keeping) -> None:
    """`du --check` exits 1; what it advises makes it right."""
    keeping.spec("wf/a", "alpha")
    keeping.make_true()
    assert "saved bytes" in keeping.say("du", "--check")
    (record,) = (keeping.root / "state/usage").iterdir()
    # One that does not know the closure's own files is another copy's, and counted anew by itself.
    inode = (keeping.root / "store" / record.name / "metadata.json").stat().st_ino
    record.write_bytes(struct.pack("<3Q", 1, inode, 10_000_000_000))
    text = keeping.say("du", "--check", expect=1)
    assert f"remove {keeping.root}/state/usage and restart the daemon" in text
    record.unlink()
    record.parent.rmdir()
    keeping.fabric.run_once()
    assert "saved bytes" in keeping.say("du", "--check")


def test_the_record_of_a_closure_that_left_in_a_crash_is_forgotten(keeping: Keeping) -> None:
    """Built again under its name it has other inodes, and they are the ones that count."""
    keeping.spec("wf/a", "alpha")
    keeping.make_true()
    name = keeping.serving("wf/a")
    left = keeping.root / "state/usage" / ("a" * 40)
    left.write_bytes((keeping.root / "state/usage" / name).read_bytes())
    keeping.fabric.run_once()
    assert {path.name for path in left.parent.iterdir()} == {name}
    told = keeping.told("du", "--check")
    assert told["physical_bytes"] == told["walked_bytes"]
    assert json.loads((keeping.root / "store" / name / "metadata.json").read_bytes())["digest"] == name
