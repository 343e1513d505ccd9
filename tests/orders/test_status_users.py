"""`status` and `status ID`: who uses which closure, by the leases in force."""

import getpass
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import envfabric
from envfabric.cli.using import in_use
from envfabric.store.files import Files
from envfabric.store.prepare import init_root
from support.fabric import Fabric
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo
from support.waiting import wait_for


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory, packages: SimpleIndex) -> Iterator[dict[str, Any]]:
    """A spec that moved on and one that was removed, whose former closures are leased, and the served one, too."""
    folder = tmp_path_factory.mktemp("users")
    fabric = Fabric(folder, packages, SpecRepo(folder / "specs"), settings={"prune": {"share": 1.0}})
    fabric.repo.spec("wf/moves", ["gamma==1.0"])
    fabric.repo.spec("wf/gone", ["beta"])
    fabric.repo.spec("wf/idle", ["alpha"])
    fabric.repo.commit()
    fabric.run_once()
    old, gone = (fabric.entry(one)["serving"] for one in ("wf/moves", "wf/gone"))
    fabric.repo.spec("wf/moves", ["gamma==2.0"])
    fabric.repo.remove("wf/gone")
    fabric.repo.commit()
    fabric.run_once()
    new = fabric.entry("wf/moves")["serving"]
    root = fabric.root
    with (
        envfabric.lease("wf/moves", root=root, what="the new one"),
        envfabric.lease(old, root=root, what="[an old] one"),
        envfabric.lease(gone, root=root, what="one of none"),
    ):
        yield {"fabric": fabric, "old": old, "new": new, "gone": gone}


def status(fabric: Fabric, *words: str) -> str:
    done = fabric.command("status", *words, "--root", fabric.root)
    assert done.returncode == 0, done.stderr
    return done.stdout


def asked(fabric: Fabric, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(status(fabric, *words, "--json"))["in_use"]
    return found


def test_every_closure_in_use_is_told_also_what_no_spec_serves(used: dict[str, Any]) -> None:
    """With what, host and user, since when, and when it was renewed; what nobody uses is not listed."""
    fabric = used["fabric"]
    found = asked(fabric)
    assert found["error"] is None
    assert {one["closure"]: one["serves"] for one in found["closures"]} == {
        used["new"]: ["wf/moves"],
        used["old"]: [],
        used["gone"]: [],
    }
    (lease,) = next(one["leases"] for one in found["closures"] if one["closure"] == used["gone"])
    assert lease["what"] == "one of none"
    assert lease["host"] == os.uname().nodename[:200]
    assert lease["user"] == getpass.getuser()
    assert lease["pid"] == os.getpid()
    assert lease["since"] <= lease["renewed"]
    assert (lease["ttl"], lease["in_force"]) == (300, True)


def test_people_see_users_beside_each_spec(used: dict[str, Any]) -> None:
    """A count in the spec's line, and a line for each lease."""
    lines = status(used["fabric"]).splitlines()
    place = lines[0].index("USERS")
    counts = {line.split()[0]: line[place:].split()[0] for line in lines[1:3]}
    assert counts == {"wf/moves": "1", "wf/idle": "-"}
    told = {line.split()[0]: line for line in lines if line.endswith("s ago")}
    assert set(told) == {used["new"], used["old"], used["gone"]}
    assert " wf/moves " in told[used["new"]]
    assert " no spec " in told[used["old"]]
    # As it was written, and not taken for markup.
    assert "[an old] one" in told[used["old"]]


def test_one_spec_has_the_users_of_all_its_generations(used: dict[str, Any]) -> None:
    """Those of the older one, too, which goes on running; and no other's."""
    fabric = used["fabric"]
    found = asked(fabric, "wf/moves")["closures"]
    assert [(one["closure"], one["generations"]) for one in found] == [(used["new"], [2]), (used["old"], [1])]
    shown = status(fabric, "wf/moves")
    assert "generation 2 (served)" in shown
    assert "[an old] one" in shown
    assert "one of none" not in shown
    assert asked(fabric, "wf/idle")["closures"] == []


def test_a_lease_that_has_run_out_is_no_user(used: dict[str, Any]) -> None:
    """By the file's mtime, whatever its content says; one on a closure that is not there claims nothing."""
    fabric = used["fabric"]
    folder = fabric.root / "leases" / fabric.entry("wf/idle")["serving"]
    nowhere = fabric.root / "leases" / ("f" * 64)
    for place, ago in ((folder, 61), (nowhere, 0)):
        place.mkdir()
        (place / "node.1.a").write_text(json.dumps({"ttl": 60, "since": 5}))
        then = Files().server_time(fabric.root / "staging") - ago
        os.utime(place / "node.1.a", (then, then))
    assert len(asked(fabric)["closures"]) == 3
    then = Files().server_time(fabric.root / "staging") - 30
    os.utime(folder / "node.1.a", (then, then))
    (found,) = asked(fabric, "wf/idle")["closures"]
    (lease,) = found["leases"]
    assert lease["since"] == "1970-01-01T00:00:05Z"
    assert lease["seconds_ago"] >= 30
    assert (lease["what"], lease["pid"]) == ("?", None)
    (folder / "node.1.a").unlink()


def test_since_is_when_it_was_taken_though_it_was_renewed_or_written_anew(used: dict[str, Any]) -> None:
    """A lease file that vanished is written anew, by a holder that was there before."""
    fabric = used["fabric"]
    with envfabric.lease("wf/moves", root=fabric.root, what="again") as held:

        def mine() -> tuple[Path, dict[str, Any]]:
            for path in (fabric.root / "leases" / held.name).iterdir():
                told: dict[str, Any] = json.loads(path.read_bytes())
                if told["what"] == "again":
                    return path, told
            raise AssertionError("the lease is not there")

        path, first = mine()
        assert abs(first["since"] - path.stat().st_mtime) < 60
        path.unlink()
        held.renew()
        path, again = mine()
        assert again["since"] == first["since"] < path.stat().st_mtime


def test_what_only_this_machines_clock_says_to_be_over_is_told_as_that(used: dict[str, Any]) -> None:
    """The daemon's files say how late it is at least on the file server; a machine's clock may be wrong."""
    root = used["fabric"].root
    folder = root / "leases" / used["fabric"].entry("wf/idle")["serving"]
    folder.mkdir(exist_ok=True)
    path = folder / "node.2.a"
    path.write_text('{"ttl": 60}')
    newest = max(
        (root / name).stat().st_mtime for name in ("staging", "locks", "history", "state", "index.json")
    )
    try:
        # One second before its end by the newest of them; by this machine's clock it is over once that has passed.
        os.utime(path, (newest - 59, newest - 59))
        wait_for(lambda: time.time() > newest + 1, timeout=60, message="the clock stands still")
        (found,) = asked(used["fabric"], "wf/idle")["closures"]
        assert found["leases"][0]["in_force"] is None
        assert "over by this machine's clock" in status(used["fabric"], "wf/idle")
        lines = status(used["fabric"]).splitlines()
        (row,) = [line for line in lines if line.startswith("wf/idle ")]
        assert row[lines[0].index("USERS") :].split()[0] == "-", "one that may be over is counted"
        os.utime(path, (newest - 61, newest - 61))
        assert asked(used["fabric"], "wf/idle")["closures"] == []
    finally:
        path.unlink()


def test_leases_that_can_not_be_read_are_not_told_as_none(used: dict[str, Any]) -> None:
    """The index is shown all the same."""
    fabric = used["fabric"]
    (fabric.root / "leases").rename(fabric.root / "away")
    try:
        shown = status(fabric)
        assert "who uses what is not known" in shown
        assert shown.splitlines()[1].split()[-1] == "?"
        assert "is not there" in asked(fabric, "wf/moves")["error"]
    finally:
        (fabric.root / "away").rename(fabric.root / "leases")


def test_of_many_users_the_first_are_shown(used: dict[str, Any]) -> None:
    """A thousand nodes in one environment are no thousand lines; --json and `status ID` have all."""
    fabric = used["fabric"]
    folder = fabric.root / "leases" / used["new"]
    for number in range(40):
        (folder / f"node.{number}.many").write_text("{}")
    try:
        lines = [line for line in status(fabric).splitlines() if line.startswith(used["new"])]
        assert len(lines) == 6
        assert "and 36 more" in lines[-1]
        assert status(fabric, "wf/moves").count("s ago") == 42
    finally:
        for path in folder.glob("*.many"):
            path.unlink()


def test_leases_that_do_not_answer_are_told_as_that(tmp_path: Path) -> None:
    """The reader of `status` has the rest of it."""
    root = init_root(tmp_path / "nas", Files())
    marker = root.marker.read_bytes()
    root.marker.unlink()
    # Whoever reads it waits until somebody writes.
    os.mkfifo(root.marker)
    told = in_use({"environments": {}}, root, timeout=0.1)
    assert told == {"error": "no answer within 0.1 s", "closures": []}
    root.marker.write_bytes(marker)
