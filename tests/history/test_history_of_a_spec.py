"""`history ID --json`: who, when, by what, and from when until when, past all that is collected."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from envfabric.build.uv import Uv
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.root import Root
from support.fabric import BASE_PYTHON, Fabric
from support.waiting import wait_for

NOTHING_KEPT = {
    "grace": 0,
    "generations": 1,
    "generation_age": 0,
    "trash_age": 0,
    "interval": 0,
    "min_free": 0,
    "scan": False,
}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def told(fabric: Fabric, spec_id: str = "wf/a") -> dict[str, Any]:
    """What `history --json` says."""
    done = fabric.command("history", spec_id, "--json", "--root", fabric.root)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def by(fabric: Fabric, author: str, message: str) -> str:
    """Commits everything in an author's name."""
    fabric.repo.git("add", "--all")
    fabric.repo.git("commit", "--quiet", "--author", author, "--message", message)
    return fabric.repo.push()


def order(fabric: Fabric, *words: str) -> None:
    done = fabric.command(*words, "--config", fabric.configure())
    assert done.returncode == 0, done.stdout + done.stderr


def lines(fabric: Fabric) -> Iterator[dict[str, Any]]:
    for path in sorted((fabric.root / "history").iterdir()):
        yield from map(json.loads, path.read_text().splitlines())


def cut_trail(fabric: Fabric, from_event: str, torn: bytes = b"") -> None:
    """Takes away the trail from the first such event on, as a kill does that comes before it is written."""
    (path,) = (fabric.root / "history").iterdir()
    kept = path.read_bytes().split(f'"event": "{from_event}"'.encode())[0]
    path.write_bytes(kept[: kept.rfind(b"\n") + 1] + torn)


def test_whole_life_of_a_spec(fabric: Fabric) -> None:
    """Commits of two authors, a merge, a revert, a rollback, the removal and the collection: each is told, when all
    that it is about is gone."""
    fabric.settings |= {"gc": dict(NOTHING_KEPT, generations=9), "interval": 0.2, "branch": "main"}
    repo = fabric.repo
    repo.spec("wf/a", ["gamma==1.0"])
    repo.spec("wf/other", ["alpha"])
    first = repo.commit("the first")
    with fabric.daemon() as daemon:
        before = daemon.wait_for_index(first)["environments"]["wf/a"]
        lock = (fabric.root / "generations/wf/a/1/uv.lock").read_bytes()
        repo.branch("topic")
        repo.spec("wf/a", ["gamma==2.0"])
        topic = by(fabric, "Bea <bea@example.com>", "gamma 2")
        repo.branch("main")
        repo.git("merge", "--quiet", "--no-ff", "-m", "merged", "topic")
        merged = repo.push()
        daemon.wait_for_index(merged)
        repo.spec("wf/a", ["gamma==2.0", "alpha"])
        third = by(fabric, "Cem <cem@example.com>", "and alpha")
        daemon.wait_for_index(third)
        reverted = repo.revert()
        daemon.wait_for_index(reverted)
        order(fabric, "rollback", "wf/a", "--to", "1")
        order(fabric, "unpin", "wf/a")
        repo.remove("wf/a")
        gone = repo.commit("no more")
        daemon.wait_for_index(gone)
        wait_for(lambda: any(one["event"] == "removed" for one in lines(fabric)), message="no removal told")
        kept = told(fabric)
        assert [one["retained"] for one in kept["generations"]] == [True] * 3
    fabric.settings["gc"]["generations"] = 1
    order(fabric, "gc")
    order(fabric, "gc")
    assert not list((fabric.root / "generations/wf").glob("a/[0-9]*"))
    found = told(fabric)
    assert found["id"] == "wf/a"
    newest = found["generations"]
    assert [one["generation"] for one in newest] == [3, 2, 1]
    one = newest[-1]
    assert [row["commit"] for row in newest] == [third, merged, first]
    assert [row["changed_by"]["commit"] for row in newest] == [third, topic, first]
    assert [row["changed_by"]["author"] for row in newest] == ["Cem", "Bea", "Spec Author"]
    assert {row["changed_by"]["committer_email"] for row in newest} == {"author@example.com"}
    assert [row["changed_by"]["subject"] for row in newest] == ["and alpha", "gamma 2", "the first"]
    assert one["lock_sha256"] == hashlib.sha256(lock).hexdigest()
    assert one["closure"] == before["serving"]
    assert one["built_at"] == before["built_at"]
    assert one["lock"] == "resolved"
    uv = Uv(Root(fabric.root), 60.0)
    assert {row["uv"] for row in newest} == {uv.version()}
    assert {row["python_path"] for row in newest} == {BASE_PYTHON}
    assert {row["python_version"] for row in newest} == {before["python_version"]}
    # From when until when: each time ends where the next begins.
    times = sorted((one for row in newest for one in row["served"]), key=lambda one: int(one["sequence"]))
    assert [len(row["served"]) for row in newest] == [1, 3, 2]
    assert [one["revision"] for one in times] == [first, merged, third, reverted, reverted, reverted]
    assert [one["pinned"] for one in times] == [False, False, False, False, True, False]
    for earlier, later in itertools.pairwise(times):
        assert (earlier["to"], earlier["to_sequence"]) == (later["from"], later["sequence"])
    assert times[-1]["to"] is not None, "it was removed"
    assert all(TIME.fullmatch(one[end]) for one in times for end in ("from", "to"))
    for row in newest:
        assert TIME.fullmatch(row["collected_at"])
        assert row["collected_at"] > row["served"][-1]["to"]
        assert not (row["retained"] or row["serving"] or row["pinned"] or row["usable"])
    assert [one["command"] for one in found["events"] if one["event"] == "order"] == ["rollback", "unpin"]
    table = fabric.command("history", "wf/a", "--root", fabric.root).stdout.splitlines()
    assert len(table) == 4
    assert "collected" in table[1]
    assert "Cem" in table[1]
    assert "until " in table[1]
    assert "(3 times)" in table[2]
    # What others serve is not told to be collected.
    assert told(fabric, "wf/other")["generations"][0]["collected_at"] is None


def test_first_start_with_many_specs(fabric: Fabric) -> None:
    """Each spec has its own author from a history of many commits, and one line for its generation."""
    for number in range(60):
        fabric.repo.spec(f"wf/n{number}", ["alpha"])
        by(fabric, f"Author {number} <a{number}@example.com>", f"number {number}")
    fabric.run_once()
    made = [one for one in lines(fabric) if one["event"] == "generation"]
    assert {one["spec"]: one["changed_by"]["author"] for one in made} == {
        f"wf/n{number}": f"Author {number}" for number in range(60)
    }
    assert len(made) == 60
    assert len({one["closure"] for one in made}) == 1
    assert told(fabric, "wf/n7")["generations"][0]["changed_by"]["email"] == "a7@example.com"
    fabric.run_once()
    assert [one for one in lines(fabric) if one["event"] == "generation"] == made


def test_force_push(fabric: Fabric) -> None:
    """A branch that was set back, or rewritten, has the author of what is there now; what went stays told."""
    fabric.settings["interval"] = 0.2
    fabric.repo.spec("wf/a", ["gamma==1.0"])
    first = by(fabric, "Bea <bea@example.com>", "one")
    fabric.repo.spec("wf/a", ["gamma==2.0"])
    dropped = by(fabric, "Cem <cem@example.com>", "two")
    with fabric.daemon() as daemon:
        daemon.wait_for_index(dropped)
        fabric.repo.git("reset", "--quiet", "--hard", first)
        daemon.wait_for_index(first)
        fabric.repo.spec("wf/a", ["alpha"])
        anew = by(fabric, "Dan <dan@example.com>", "instead")
        fabric.repo.git("reflog", "expire", "--expire=now", "--all")
        fabric.repo.git("gc", "--quiet", "--prune=now")
        daemon.wait_for_index(anew)
    rows = told(fabric)["generations"]
    assert [row["changed_by"]["commit"] for row in rows] == [anew, first, dropped]
    assert [row["changed_by"]["author"] for row in rows] == ["Dan", "Bea", "Cem"]


@pytest.mark.parametrize("from_event", ["generation", "serves"])
def test_kill_between_publication_and_trail(fabric: Fabric, from_event: str) -> None:
    """What a killed daemon published and did not tell is told by the next one, once; a torn line is read over."""
    fabric.repo.spec("wf/a", ["gamma==1.0"])
    by(fabric, "Bea <bea@example.com>", "one")
    fabric.run_once()
    cut_trail(fabric, from_event, torn=b'{"at": "2026-01-01T00:00')
    assert not any(row["served"] for row in told(fabric)["generations"])
    fabric.repo.spec("wf/b", ["gamma==1.0"])
    fabric.repo.commit()
    fabric.run_once()
    fabric.run_once()
    found = told(fabric)
    assert [one["event"] for one in found["events"] if one["event"] != "built"] == ["generation", "serves"]
    (row,) = found["generations"]
    assert row["changed_by"]["author"] == "Bea"
    assert row["served"][0]["to"] is None
    assert row["serving"]
    assert len(told(fabric, "wf/b")["events"]) == 2


def test_removal_that_was_not_told(fabric: Fabric) -> None:
    """A spec that left while the trail could not be written has an end, too."""
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.spec("wf/stays", ["alpha"])
    fabric.repo.commit()
    fabric.run_once()
    fabric.repo.remove("wf/a")
    fabric.repo.commit()
    fabric.run_once()
    cut_trail(fabric, "removed")
    assert told(fabric)["generations"][0]["served"][0]["to"] is None
    fabric.run_once()
    assert told(fabric)["generations"][0]["served"][0]["to"] is not None


def test_trail_of_an_earlier_release(fabric: Fabric) -> None:
    """What that did not write is taken from the generation as long as it is there, and is null after that; a
    generation whose facts were never told is told when it goes."""
    fabric.settings["gc"] = dict(NOTHING_KEPT)
    for version in ("1.0", "2.0"):
        fabric.repo.spec("wf/a", [f"gamma=={version}"])
        fabric.repo.commit()
        fabric.run_once()
    (trail,) = (fabric.root / "history").iterdir()
    earlier = [one for one in map(json.loads, trail.read_text().splitlines()) if one["event"] == "serves"]
    for one in earlier:
        del one["revision"]
    trail.write_text("".join(f"{json.dumps(one)}\n" for one in earlier))
    for number in (1, 2):
        metadata = fabric.root / f"generations/wf/a/{number}/metadata.json"
        content = json.loads(metadata.read_bytes())
        del content["lock_sha256"], content["uv_version"]
        metadata.unlink()
        metadata.write_text(json.dumps(content))
    before = told(fabric)["generations"]
    lock = (fabric.root / "generations/wf/a/1/uv.lock").read_bytes()
    assert before[1]["lock_sha256"] == hashlib.sha256(lock).hexdigest()
    assert before[1]["uv"]
    assert before[1]["changed_by"] is None
    assert [len(one["served"]) for one in before] == [1, 1]
    order(fabric, "gc")
    assert [one.number for one in Generations(Root(fabric.root), Files()).retained("wf/a")] == [2]
    after = told(fabric)["generations"]
    gone = after[1]
    assert gone["collected_at"] is not None
    assert gone | {"collected_at": None, "retained": True, "usable": True} == before[1]
    # Nothing but the trail's own words is left.
    trail.write_text("".join(f"{json.dumps(one)}\n" for one in earlier))
    oldest = told(fabric)["generations"][1]
    assert (oldest["generation"], oldest["commit"], oldest["closure"]) == (1, gone["commit"], gone["closure"])
    assert oldest["lock_sha256"] is None


def test_no_secret_and_no_control_character(fabric: Fabric) -> None:
    """What people write into commits is made harmless, in the trail and in the table."""
    fabric.repo.spec("wf/a", ["alpha"])
    by(fabric, "[red]\x1b[31mMallory <m@example.com>", "from https://joe:hunter22@index.example/ \x1b[2J")
    fabric.run_once()
    trail = b"".join(path.read_bytes() for path in (fabric.root / "history").iterdir())
    assert b"hunter22" not in trail
    one = told(fabric)["generations"][0]["changed_by"]
    assert one["author"] == "[red]\\x1b[31mMallory"
    assert "://***@index.example/" in one["subject"]
    shown = fabric.command("history", "wf/a", "--root", fabric.root).stdout
    assert "\x1b" not in shown
    assert "[red]" in shown


def test_unknown_id_and_no_index(fabric: Fabric) -> None:
    """An id that is none, or was never published, is an error that helps; without an index the past is told."""
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.commit()
    fabric.run_once()
    for unknown in ("wf/b", "../a", "wf", "wf/a\n", '"'):
        done = fabric.command("history", unknown, "--root", fabric.root)
        assert done.returncode == 1, unknown
        assert "no environment" in done.stderr
    (fabric.root / "index.json").unlink()
    assert told(fabric)["generations"][0]["serving"] is False
    assert fabric.command("history", "wf/b", "--root", fabric.root).returncode == 1
