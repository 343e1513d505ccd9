"""Another release, another uv, another place: what a ROOT says to each, as docs/operations.md has it."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from envfabric.store.files import Files
from envfabric.store.root import Root
from envfabric.store.writer import Writer
from faults_of_disk.mounts import own_mounts
from recovery.conftest import PINNED, PRINTS, Scene, saved, told
from support.waiting import wait_for


def newer(path: Path, hand: Callable[[Path, str], None]) -> str:
    """Puts a file of ROOT into a newer form, as a release to come would write it; gives its text."""
    text = path.read_text("utf-8").replace('"schema": 1', '"schema": 2', 1)
    assert '"schema": 2' in text
    hand(path, text)
    return text


@pytest.mark.parametrize("name", ["index.json", ".envfabric.json"])
def test_newer_root_is_refused(scene: Scene, hand: Callable[[Path, str], None], name: str) -> None:
    """Every command of an older release says so, with what to do, and nothing on ROOT is changed."""
    text = newer(scene.root / name, hand)
    before = saved(scene.root)
    config = str(scene.fabric.configure())
    commands = [
        ["run", "--once", "--config", config],
        ["run", "--config", config],
        ["init", str(scene.root)],
        ["rollback", PINNED, "--config", config],
        ["gc", "--config", config],
        ["verify", "--repair", "--config", config],
    ]
    for command in commands:
        done = scene.fabric.command(*command)
        assert done.returncode != 0, command
        assert "schema 2" in done.stderr, done
        assert "Traceback" not in done.stderr
        if command[0] in {"run", "init"}:
            assert done.returncode == 2
            assert f"{scene.root}/{name}" in done.stderr
            assert "release that wrote it" in done.stderr
    assert saved(scene.root) == before
    assert (scene.root / name).read_text("utf-8") == text
    if name == "index.json":
        done = scene.fabric.command("status", "--config", config)
        assert done.returncode == 1
        assert "update environment-fabric" in done.stderr
    # The environments are what they were: who runs from them notices nothing.
    for python in scene.healthy["python"].values():
        assert subprocess.run([python, "-B", "-c", "pass"], check=False).returncode == 0


def test_older_standby_does_not_follow_a_newer_writer(
    scene: Scene, hand: Callable[[Path, str], None]
) -> None:
    """A standby that was left at the old release when the writer was upgraded takes over nothing, and says why."""
    index = scene.root / "index.json"
    text = index.read_text("utf-8")
    with contextlib.ExitStack() as held:
        held.enter_context(Writer(Root(scene.root), Files()).acquire())
        with scene.fabric.daemon() as standby:
            wait_for(lambda: standby.events("standby"), message="it does not stand by")
            newer(index, hand)
            before = saved(scene.root)
            held.close()
            said = wait_for(lambda: standby.events("standby can't see ROOT"), message="it does not say why")
            assert "schema 2" in said[0]["error"]
            assert standby.metric("envfabric_writer") == 0
            assert saved(scene.root) == before
            # The newer one is taken back by hand, see the page.
            hand(index, text)
            wait_for(lambda: standby.metric("envfabric_writer") == 1, message="it does not take over")
            scene.check()


def test_newer_generation_is_left_alone(scene: Scene, hand: Callable[[Path, str], None]) -> None:
    """What a newer release wrote for one spec is told of that spec, and neither replaced, dropped nor built over."""
    path = scene.root / "generations/wf/alpha/1/metadata.json"
    text = newer(path, hand)
    scene.fabric.repo.spec("wf/alpha", ["gamma==2.0"])
    scene.fabric.repo.commit()
    scene.fabric.run_once(expect=1)
    entry = scene.fabric.entry("wf/alpha")
    assert (entry["state"], entry["serving"]) == ("stale", scene.digests()["wf/alpha"])
    assert entry["error"]["message"].startswith(
        f"{path} is of a newer version (schema 2, known: 1); use the release"
    )
    assert path.read_text("utf-8") == text
    assert scene.fabric.entry("wf/locked")["state"] == "ready"
    # Orders for it name the file, those for others are carried out; and no closure goes while it is there.
    config = {"ENVFABRIC_CONFIG": str(scene.fabric.configure())}
    done = scene.fabric.command("rollback", "wf/alpha", env=config)
    assert (done.returncode, f"{path} is of a newer version" in done.stderr) == (1, True)
    scene.envfabric(["unpin", PINNED])
    history = json.loads(scene.envfabric(["history", "wf/alpha", "--json"]))
    assert history["generations"][0]["retained"] is True
    done = scene.fabric.command("gc", env=config)
    assert done.returncode == 0
    assert f"No closure was removed: what a generation uses is not known: {path} is of" in done.stderr
    assert path.read_text("utf-8") == text


def test_older_marker(scene: Scene) -> None:
    """A marker of an early release, without fabric, source or leases, is taken as it is, and what is new is added."""
    kept = told(scene.root / ".envfabric.json")
    (scene.root / ".envfabric.json").write_text('{"schema": 1, "created_at": "2026-01-01T00:00:00.000Z"}')
    scene.envfabric(["init", str(scene.root)])
    scene.fabric.run_once()
    scene.check()
    now = told(scene.root / ".envfabric.json")
    assert now["created_at"] == "2026-01-01T00:00:00.000Z"
    assert now["source"] == kept["source"]


def test_marker_of_no_schema(scene: Scene) -> None:
    """One that says nothing of its form is refused, and left."""
    (scene.root / ".envfabric.json").write_text("{}")
    done = scene.fabric.command("run", "--once", "--config", scene.fabric.configure())
    assert done.returncode == 2
    assert "schema None, known: 1" in done.stderr
    assert (scene.root / ".envfabric.json").read_text() == "{}"


def test_generations_of_an_earlier_release(scene: Scene, hand: Callable[[Path, str], None]) -> None:
    """Those without what later releases keep (the lock's hash, uv's version) are served, healed and rolled back to."""
    for path in scene.root.glob("generations/*/*/*/metadata.json"):
        content = told(path)
        del content["lock_sha256"], content["uv_version"]
        hand(path, json.dumps(content))
    scene.lose("index.json", f"store/{scene.digests()['wf/alpha']}")
    scene.fabric.run_once()
    scene.check()
    assert scene.served() == scene.digests()


def test_another_uvs_buckets(scene: Scene) -> None:
    """What another uv left in the cache is removed by uv itself at a collection, and stops no build."""
    # Of an older uv, and as a downgrade finds it: of a newer one.
    for name in ("wheels-v1", "archive-v9", "simple-v3"):
        (scene.root / "uv_cache" / name / "pypi").mkdir(parents=True)
        (scene.root / "uv_cache" / name / "pypi/left").write_bytes(b"x" * 5000)
    own = {one for one in os.listdir(scene.root / "uv_cache") if one.startswith(("wheels-v", "archive-v"))}
    scene.fabric.repo.spec("wf/alpha", ["gamma==2.0"])
    scene.fabric.repo.commit()
    scene.fabric.run_once()
    scene.check(PRINTS | {"wf/alpha": "2.0"})
    scene.envfabric(["gc"])
    left = {one for one in os.listdir(scene.root / "uv_cache") if one.startswith(("wheels-v", "archive-v"))}
    assert left == own - {"wheels-v1", "archive-v9"}
    assert not (scene.root / "uv_cache/simple-v3").exists()
    scene.check(PRINTS | {"wf/alpha": "2.0"})


def test_moved_root(scene: Scene) -> None:
    """ROOT at another path: every path in the index is the new one at once, digests stay, and nothing is built."""
    asked = scene.fabric.packages.requests
    old = scene.root
    scene.follow("move", "operations.md")
    index = scene.fabric.index()
    # What the page's settings say: the test's own have ROOT at its old place.
    moved = json.loads((scene.elsewhere / "index.json").read_bytes())
    assert moved["root"] == str(scene.elsewhere)
    assert moved["complete"] is True
    assert {one: e["serving"] for one, e in moved["environments"].items()} == scene.digests()
    assert {one: e["generation"] for one, e in moved["environments"].items()} == {
        one: e["generation"] for one, e in scene.healthy["environments"].items()
    }
    assert moved["sequence"] > index["sequence"]
    # The copy's inodes have other numbers.
    scene.envfabric(["du", "--check", "--root", str(scene.elsewhere)])
    old.rename(old.with_name("nas.old"))
    try:
        for one, version in PRINTS.items():
            module = "gamma" if one == PINNED else "alpha"
            code = f"import {module}; print({module}.VERSION)"
            done = subprocess.run(
                [moved["python"][one], "-B", "-c", code], capture_output=True, text=True, check=True
            )
            assert done.stdout.strip() == version
    finally:
        shutil.rmtree(old.with_name("nas.old"), ignore_errors=True)
    assert scene.fabric.packages.requests == asked


def test_downgrade(scene: Scene, hand: Callable[[Path, str], None]) -> None:
    """With the marker of before an older release serves everything again, from generations that it knows."""
    scene.follow("backup", "operations.md")
    for name in (".envfabric.json", "index.json"):
        newer(scene.root / name, hand)
    scene.follow("downgrade", "operations.md")
    index = scene.check()
    assert scene.served() == scene.digests()
    assert index["sequence"] > scene.healthy["sequence"]


def test_retired_fabric(scene: Scene) -> None:
    """Nothing is left of it; a daemon that somebody starts then writes nothing."""
    scene.follow("retire", "operations.md")
    assert list(scene.root.iterdir()) == []
    assert scene.fabric.command("run", "--once", "--config", scene.fabric.configure()).returncode == 2
    assert list(scene.root.iterdir()) == []


@pytest.fixture
def split(scene: Scene) -> Iterator[Scene]:
    """store/ on a mount of its own."""
    with own_mounts():
        store = scene.root / "store"
        subprocess.run(["mount", "--bind", store, store], check=True)
        yield scene


@pytest.mark.root
def test_split_mount(split: Scene) -> None:
    """A part of ROOT on another mount: a start names it and what to do, and writes nothing but the writer's epoch."""
    before = saved(split.root)
    # A process that is forked elsewhere would not see this thread's mounts.
    done = split.here("run", "--once", "--config", str(split.fabric.configure()))
    assert done.returncode == 2
    assert "is not one file system" in done.stderr
    assert f"{split.root}/store" in done.stderr
    assert saved(split.root).keys() == before.keys()
    subprocess.run(["umount", split.root / "store"], check=True)
    assert split.here("run", "--once", "--config", str(split.fabric.configure())).returncode == 0
    split.check()
