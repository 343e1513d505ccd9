"""Each disaster of docs/recovery.md on a real fabric, and the commands that the page gives for it."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from recovery import blocks
from recovery.conftest import PINNED, PRINTS, Scene, told
from support.waiting import wait_for

FRESH = PRINTS | {PINNED: "2.0"}
"""Where the pin has ended."""


def test_every_block_is_tried() -> None:
    """A page that gives commands which no test carries out is a failure."""
    here = "".join(one.read_text("utf-8") for one in sorted(Path(__file__).parent.glob("test_*.py")))
    for page in ("recovery.md", "operations.md"):
        for name in blocks.names(page):
            assert f'follow("{name}"' in here, f"{name} of docs/{page} is not tried"


def test_lost_index_with_a_daemon(scene: Scene) -> None:
    """It is published again by the next look, as it was, with a higher number, and nobody types anything."""
    with scene.fabric.daemon():
        scene.check()
        before = scene.fabric.index()
        scene.lose("index.json")
        after = wait_for(scene.whole, message="the index did not come back")
        assert after["sequence"] > before["sequence"]
        assert after["environments"] == before["environments"]


@pytest.mark.parametrize(
    "lost", [("index.json",), ("index.json", "state/sequence")], ids=["index", "and-sequence"]
)
def test_lost_index_without_a_daemon(scene: Scene, lost: tuple[str, ...]) -> None:
    """Nothing is built or asked for, each generation keeps its number, the pin its spec, and no number comes twice."""
    asked = scene.fabric.packages.requests
    scene.lose(*lost)
    scene.follow("index")
    index = scene.check()
    assert index["sequence"] > scene.healthy["sequence"]
    assert index["python"] == scene.healthy["python"]
    for one, entry in index["environments"].items():
        assert entry["generation"] == scene.healthy["environments"][one]["generation"]
        assert entry["pinned"] is (one == PINNED)
    assert scene.fabric.packages.requests == asked


@pytest.mark.parametrize("lost", [("store",), ("store", "index.json")], ids=["store", "and-index"])
def test_lost_store(scene: Scene, lost: tuple[str, ...]) -> None:
    """Everything comes back under the digest that it had, from the kept locks, without a download or a resolution."""
    locks = {one: scene.lock_of(one) for one in PRINTS}
    asked = scene.fabric.packages.requests
    scene.lose(*lost)
    said = scene.follow("store")
    index = scene.check()
    assert scene.served() == scene.digests()
    assert index["environments"][PINNED]["pinned"] is True
    assert {one: scene.lock_of(one) for one in PRINTS} == locks
    assert scene.fabric.packages.requests == asked
    assert "ready" in said


def test_emptied_store_with_a_daemon(scene: Scene) -> None:
    """What is gone leaves the index before anybody is sent there for long, and comes back by itself."""
    with scene.fabric.daemon() as daemon:
        scene.check()
        builds = daemon.metric("envfabric_builds_total")
        scene.lose_at_once(*(f"store/{one}" for one in os.listdir(scene.root / "store")))
        wait_for(lambda: daemon.metric("envfabric_builds_total") == builds + 3, message="not built again")
        scene.check()
        assert scene.served() == scene.digests()


def test_lost_store_folder_with_a_daemon(scene: Scene) -> None:
    """Without the folder nothing can be built: each spec says so, and names what to type; then it goes on by itself."""
    with scene.fabric.daemon():
        scene.check()
        scene.lose_at_once("store")

        def said() -> bool:
            errors = [one["error"] for one in scene.fabric.index()["environments"].values()]
            return all(one is not None and "envfabric init" in one["message"] for one in errors)

        wait_for(said, message="nobody says what to do")
        assert scene.fabric.index()["python"] == {}
        scene.envfabric(["init", str(scene.root)])
        scene.check()
        assert scene.served() == scene.digests()


def test_lost_state(scene: Scene) -> None:
    """Only the pin ends, and the trail says which there was; no number is given twice."""
    scene.lose("state")
    said = scene.follow("state")
    index = scene.check(FRESH)
    assert index["sequence"] > scene.healthy["sequence"]
    assert f'"spec": "{PINNED}"' in said
    digests = scene.digests()
    for one in ("wf/alpha", "wf/locked"):
        assert scene.served()[one] == digests[one]
    scene.envfabric(["rollback", PINNED, "--to", "1"])
    scene.check()
    assert scene.served() == digests


def test_lost_state_does_not_forget_damage(scene: Scene, hand: Callable[[Path, str], None]) -> None:
    """A closure that was found damaged and stays, for who runs from it, is served to nobody: `-2` beside it says so."""
    name = scene.digests()["wf/alpha"]
    module = next((scene.root / "store" / name).rglob("site-packages/alpha/__init__.py"))
    hand(module, "raise SystemExit('damaged')\n")
    scene.follow("damage")
    assert scene.served()["wf/alpha"] == f"{name}-2"
    scene.lose("state", "index.json", "generations")
    scene.envfabric(["init", str(scene.root)])
    scene.envfabric(["run", "--once"])
    assert scene.served()["wf/alpha"] == f"{name}-2"
    scene.fabric.python("wf/alpha", "import alpha")


@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
def test_lost_generations(scene: Scene, running: bool) -> None:
    """What is served stays, gets a generation again under a number that was never given, and nothing is built."""
    digests = scene.digests()
    locked = scene.lock_of("wf/locked")
    if running:
        with scene.fabric.daemon() as daemon:
            scene.check()
            scene.lose_at_once("generations/wf")
            wait_for(
                lambda: (scene.root / "envs/wf/alpha/uv.lock").exists(), message="nothing is written anew"
            )
            assert daemon.metric("envfabric_builds_total") == 0
            index = scene.check_ids("wf/alpha", "wf/locked")
    else:
        scene.lose("generations")
        scene.follow("generations")
        # The pin has nothing to hold any more.
        wait_for(
            lambda: scene.fabric.entry(PINNED)["generation"] == 2, message="the pinned one is not written"
        )
        index = scene.check(FRESH)
    for one in ("wf/alpha", "wf/locked"):
        assert scene.served()[one] == digests[one]
        assert index["environments"][one]["generation"] > scene.healthy["environments"][one]["generation"]
    assert scene.lock_of("wf/locked") == locked


def test_lost_root_with_a_backup(scene: Scene) -> None:
    """From what operations.md says to save everything is served again under the digests that it had."""
    scene.follow("backup", "operations.md")
    assert not (scene.backup / "store").exists()
    scene.lose("")
    scene.follow("restore")
    index = scene.check()
    assert scene.served() == scene.digests()
    assert index["sequence"] > scene.healthy["sequence"] + 1000
    assert index["environments"][PINNED]["pinned"] is True
    assert told(scene.root / ".envfabric.json")["fabric"] == told(scene.backup / ".envfabric.json")["fabric"]
    assert index["environments"][PINNED]["generation"] == 1


def test_lost_root_without_a_backup(scene: Scene) -> None:
    """The repository is enough: all is built, what has a committed lock under the digest that it had."""
    scene.lose("")
    scene.follow("anew")
    scene.check(FRESH)
    assert scene.served()["wf/locked"] == scene.digests()["wf/locked"]


def test_old_backup(scene: Scene) -> None:
    """A snapshot of an earlier day: what was committed since is served, and no sequence is given a second time."""
    subprocess.run(["cp", "-a", scene.root, scene.backup], check=True)
    scene.fabric.repo.spec("wf/alpha", ["gamma==2.0"])
    scene.fabric.repo.commit()
    later = scene.fabric.run_once()
    scene.lose("")
    subprocess.run(["cp", "-a", scene.backup, scene.root], check=True)
    scene.follow("old backup")
    index = scene.check(PRINTS | {"wf/alpha": "2.0"})
    assert index["sequence"] > later["sequence"] > scene.healthy["sequence"]
    assert index["revision"] == later["revision"]


def test_damaged_closure(scene: Scene, hand: Callable[[Path, str], None]) -> None:
    """It is built again beside from a fresh download; the damaged one stays for those who run from it."""
    name = scene.digests()["wf/alpha"]
    hand(next((scene.root / "store" / name).rglob("site-packages/alpha/__init__.py")), "VERSION = 'bad'\n")
    assert scene.fabric.command("verify", "--root", scene.root).returncode == 1
    scene.follow("damage")
    scene.check()
    assert scene.served()["wf/alpha"] == f"{name}-2"
    assert (scene.root / "store" / name).is_dir()


def test_rewritten_repository(scene: Scene) -> None:
    """Another history is held back, and taken over on a person's word, without a build for what is the same."""
    asked = scene.fabric.packages.requests
    git = scene.fabric.repo.git
    git("checkout", "--quiet", "--orphan", "again")
    git("commit", "--quiet", "--message", "another beginning")
    git("branch", "--quiet", "-D", "main")
    git("branch", "--quiet", "-m", "main")
    done = scene.fabric.command("run", "--once", "--config", scene.fabric.configure())
    assert done.returncode == 2
    assert "--adopt" in done.stderr
    assert scene.served() == scene.digests()
    scene.follow("adopt")
    index = scene.check()
    assert index["revision"] == scene.fabric.repo.head
    assert scene.served() == scene.digests()
    assert scene.fabric.packages.requests == asked


def test_lost_repository(scene: Scene) -> None:
    """A new one is written from what is served: generations and closures stay what they are."""
    asked = scene.fabric.packages.requests
    scene.follow("specs from generations")
    index = scene.check()
    assert index["revision"] != scene.healthy["revision"]
    assert scene.served() == scene.digests()
    for one, entry in index["environments"].items():
        assert entry["generation"] == scene.healthy["environments"][one]["generation"], one
        assert entry["pinned"] is False
    assert scene.fabric.packages.requests == asked


@pytest.mark.parametrize(
    "lost", ["uv_cache", "bytecode", "trash", "requests", "failures", "locks", "staging"]
)
def test_what_need_not_be_saved(scene: Scene, lost: str) -> None:
    """Without one of these folders a start says what to type, and `init` is all that it takes."""
    scene.lose(lost)
    first = scene.fabric.command("run", "--once", "--config", scene.fabric.configure())
    if first.returncode:
        assert "envfabric init" in first.stderr, first.stderr
    scene.envfabric(["init", str(scene.root)])
    scene.envfabric(["run", "--once"])
    assert scene.served() == scene.digests()
    assert json.loads((scene.root / "index.json").read_bytes())["complete"] is True
