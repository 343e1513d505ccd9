"""`history ID` and the audit trail: what was published for a spec, what serves now, and who asked for what."""

import json
from typing import Any

from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.root import Root
from orders.conftest import Held
from support.fabric import Fabric


def trail(fabric: Fabric) -> list[dict[str, Any]]:
    """The audit trail's lines, oldest first."""
    files = sorted((fabric.root / "history").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_history_shows_every_retained_generation(held: Held) -> None:
    """Newest first, each with its closure, commit and lock, and which one serves, pinned or not."""
    first = held.generations("1.0")["environments"]["wf/a"]
    second = held.generations("2.0")["environments"]["wf/a"]
    rows = json.loads(held.order("history", "wf/a", "--json").stdout)["generations"]
    assert [(row["generation"], row["serving"], row["pinned"]) for row in rows] == [
        (2, True, False),
        (1, False, False),
    ]
    assert [row["closure"] for row in rows] == [second["serving"], first["serving"]]
    assert [row["commit"] for row in rows] == [second["commit"], first["commit"]]
    assert {row["lock"] for row in rows} == {"resolved"}
    held.order("rollback", "wf/a")
    head, newest, oldest = held.order("history", "wf/a").stdout.splitlines()
    assert head.split()[0] == "GEN"
    assert "serving" not in newest
    assert "serving, pinned" in oldest
    assert first["commit"][:12] in oldest


def test_history_says_what_can_not_be_served_as_it_is(fabric: Fabric) -> None:
    """A closure that is gone, or was found damaged, is said to be so."""
    closures = []
    for version in ("1.0", "2.0"):
        fabric.repo.spec("wf/a", [f"gamma=={version}"])
        fabric.repo.commit()
        closures.append(fabric.run_once()["environments"]["wf/a"]["serving"])
    Files().remove_tree(fabric.root / "store" / closures[0])
    Closures(Root(fabric.root), Files()).mark_damaged(closures[1], ["a flipped byte"])
    done = fabric.command("history", "wf/a", "--root", fabric.root)
    newest, oldest = done.stdout.splitlines()[1:]
    assert "serving, damaged or gone" in newest
    assert "damaged or gone" in oldest
    told = json.loads(fabric.command("history", "wf/a", "--json", "--root", fabric.root).stdout)
    rows = told["generations"]
    assert [row["usable"] for row in rows] == [False, False]


def test_history_of_a_spec_that_left(fabric: Fabric) -> None:
    """What is retained of it is shown; an id that never was is an error that helps, with exit code 1."""
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.spec("wf/b", ["alpha"])
    fabric.repo.commit()
    fabric.run_once()
    fabric.repo.remove("wf/a")
    fabric.repo.commit()
    fabric.run_once()
    done = fabric.command("history", "wf/a", "--root", fabric.root)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
    assert "serving" not in done.stdout
    done = fabric.command("history", "wf/c", "--root", fabric.root)
    assert done.returncode == 1
    assert "no environment 'wf/c'" in done.stderr
    assert fabric.command("history", "--root", fabric.root).returncode == 2
    assert fabric.command("history", "wf/a", "--root", fabric.folder / "none").returncode != 0


def test_audit_trail(held: Held) -> None:
    """Each change of what is served has a line, and each order with who gave it, in their order."""
    held.fabric.repo.spec("wf/stays", ["alpha"])
    held.generations("1.0", "2.0")
    held.order("rollback", "wf/a")
    held.order("unpin", "wf/a")
    held.fabric.repo.remove("wf/a")
    held.make_true(held.fabric.repo.commit())
    if held.daemon:
        # The trail follows the index by a moment; the end of the daemon flushes it.
        held.daemon.process.terminate()
        held.daemon.process.wait(timeout=60)
    lines = [one for one in trail(held.fabric) if one.get("spec") != "wf/stays"]
    told = [
        (one["event"], one.get("generation"), one.get("command"))
        for one in lines
        if one["event"] in {"serves", "order", "removed"} and one.get("generation", 0) is not None
    ]
    assert told == [
        ("serves", 1, None),
        ("serves", 2, None),
        ("order", None, "rollback"),
        ("serves", 1, None),
        ("order", None, "unpin"),
        ("serves", 2, None),
        ("removed", None, None),
    ]
    assert [one["pinned"] for one in lines if one["event"] == "serves" and one["generation"]] == [
        False,
        False,
        True,
        False,
    ]
    assert all("@" in one["by"] for one in lines if one["event"] == "order")
    times = [one["at"] for one in lines]
    assert times == sorted(times)
