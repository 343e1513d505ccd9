"""`envfabric verify` finds a flipped byte, and `--repair` builds what is damaged again, beside, from fresh files."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collecting.conftest import Keeping
from collecting.disk import du, flip, inodes, unsealed
from support.fabric import RunningDaemon
from support.waiting import wait_for

BOTH = pytest.mark.parametrize("daemon", [False, True], ids=["no daemon", "daemon"])


def file_of(keeping: Keeping, closure: str, pattern: str) -> Path:
    """The one file of a closure that a pattern names."""
    (found,) = (keeping.root / "store" / closure).glob(pattern)
    return found


def module(keeping: Keeping, closure: str, name: str = "alpha") -> Path:
    return file_of(keeping, closure, f".venv/lib/python*/site-packages/{name}/__init__.py")


def repaired(keeping: Keeping, expect: int = 0) -> str:
    return keeping.say("verify", "--repair", expect=expect)


def whole(keeping: Keeping) -> None:
    """All that is served is as it was sealed."""
    told = keeping.told("verify")
    assert told["clean"]
    assert told["missing"] == {}


def runs(keeping: Keeping, spec_id: str, name: str = "alpha") -> None:
    code = f"import {name}; print({name}.VERSION)"
    assert keeping.fabric.python(spec_id, code)


def downloads(keeping: Keeping, name: str) -> int:
    """How often the index was asked for a distribution's file."""
    return sum(path.startswith(f"/files/{name}-") for path in keeping.packages.requests)


def link(keeping: Keeping, spec_id: str) -> str:
    """The closure that the path for people leads to."""
    return Path(os.path.realpath(keeping.root / "envs" / spec_id / ".venv")).parent.name


def test_a_flipped_byte_in_any_file_is_found(own_keeping: Keeping) -> None:
    """Exit 1; the file is named, and who is served by it. Flipped back, all is clean, and exit 0."""
    keeping = own_keeping
    keeping.packages.add_wheel("tooled", "1.0", scripts={"tool": "tooled:main"}, requires=["alpha"])
    keeping.spec("wf/a", "tooled")
    keeping.spec("wf/b", "tooled")
    keeping.make_true()
    closure = keeping.serving("wf/a")
    whole(keeping)
    top = keeping.root / "store" / closure
    files = [
        path for path in top.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_size
    ]
    assert len(files) > 12
    # Compiled files of equal sources are one inode: flipped twice, it would be whole again.
    each = list({path.stat().st_ino: path for path in files}.values())
    for path in each:
        flip(path)
    told = keeping.told("verify", expect=1)
    if (top / "manifest") in files:
        # A damaged manifest proves nothing of the rest.
        assert "manifest" in {one["path"] for one in told["damaged"][closure]}
        flip(top / "manifest")
    told = keeping.told("verify", expect=1)
    assert {one["path"] for one in told["damaged"][closure]} == {
        str(path.relative_to(top)) for path in files if path != top / "manifest"
    }
    for path in each:
        if path != top / "manifest":
            flip(path)
    whole(keeping)
    flip(module(keeping, closure))
    text = keeping.say("verify", expect=1)
    assert "served by wf/a, wf/b" in text
    assert "site-packages/alpha/__init__.py" in text
    assert "verify --repair" in text


@BOTH
def test_repair_builds_beside_from_fresh_downloads(own_keeping: Keeping, daemon: bool) -> None:
    """As <digest>-2, in a new generation, which the index and envs/ name; the old one retires, unless leased."""
    keeping = own_keeping
    keeping.spec("wf/a", "beta")
    keeping.spec("wf/other", "gamma")
    keeping.make_true()
    digest, other = keeping.serving("wf/a"), keeping.fabric.entry("wf/other")
    bad = module(keeping, digest)
    content = bad.read_bytes()
    flip(bad)
    damaged = bad.read_bytes()
    asked = downloads(keeping, "alpha")
    with keeping.maybe_daemon(daemon):
        assert "1 closures damaged, 0 gone; 1 specs healed" in repaired(keeping)
        entry = keeping.fabric.entry("wf/a")
        assert (entry["state"], entry["serving"], entry["generation"]) == ("ready", f"{digest}-2", 2)
        assert keeping.fabric.index()["python"]["wf/a"].split("/store/")[1].startswith(f"{digest}-2/")
        assert link(keeping, "wf/a") == f"{digest}-2"
        assert module(keeping, f"{digest}-2").read_bytes() == content
        # Nothing was written into the sealed closure.
        assert bad.read_bytes() == damaged
        assert downloads(keeping, "alpha") > asked
        assert keeping.fabric.entry("wf/other") == other
        whole(keeping)
        folder = keeping.root / "leases" / digest
        folder.mkdir()
        (folder / "node.1.a").write_text(json.dumps({"schema": 1, "ttl": 3600, "host": "node"}))
        assert keeping.gc()["removed"] == []
        (folder / "node.1.a").unlink()
        assert keeping.gc()["removed"] == [digest]
    runs(keeping, "wf/a")
    assert "nothing is damaged" not in keeping.say("verify", "--repair")


@BOTH
def test_repair_heals_whatever_serves(own_keeping: Keeping, daemon: bool) -> None:
    """Ready, pinned, suspended, stale and refused specs alike, and what else is said of them stays."""
    keeping = own_keeping
    for name in ("ready", "pinned", "suspended", "stale", "refused"):
        keeping.spec(f"wf/{name}", "alpha")
    keeping.make_true()
    digest = keeping.serving("wf/ready")
    keeping.rules(generations=5)
    keeping.spec("wf/pinned", "gamma")
    keeping.spec("wf/suspended", "gamma", table="[tool.envfabric]\nsuspend = true")
    keeping.spec("wf/stale", "no-such-thing")
    (keeping.repo.work / "wf/refused/pyproject.toml").unlink()
    (keeping.repo.work / "wf/refused/pyproject.toml").symlink_to("elsewhere")
    keeping.make_true(expect=1)
    keeping.say("rollback", "wf/pinned")
    before = keeping.fabric.index()["environments"]
    assert {entry["serving"] for entry in before.values()} == {digest}
    states = {spec_id: (one["state"], one["pinned"], one["suspended"]) for spec_id, one in before.items()}
    assert sorted(one[0] for one in states.values()) == ["ready", "ready", "ready", "stale", "stale"]
    flip(module(keeping, digest))
    with keeping.maybe_daemon(daemon):
        assert "5 specs healed" in repaired(keeping)
        after = keeping.fabric.index()["environments"]
        assert {entry["serving"] for entry in after.values()} == {f"{digest}-2"}
        assert states == {
            spec_id: (one["state"], one["pinned"], one["suspended"]) for spec_id, one in after.items()
        }
        for spec_id in ("wf/stale", "wf/refused"):
            # The daemon's start has tried the content once more; what it says of it is the same.
            assert after[spec_id]["error"]["message"] == before[spec_id]["error"]["message"]
        for spec_id in after:
            assert link(keeping, spec_id) == f"{digest}-2"
        whole(keeping)
        # The pin holds what was made of the same files.
        assert keeping.gc()["removed"] == [digest]
        keeping.say("unpin", "wf/pinned")
        assert keeping.serving("wf/pinned") not in {digest, f"{digest}-2"}
        runs(keeping, "wf/pinned", "gamma")


@BOTH
def test_a_stale_spec_alone_is_waited_for(own_keeping: Keeping, daemon: bool) -> None:
    """The error that it has from before is not taken for the repair's: the answer comes when it is healed."""
    keeping = own_keeping
    keeping.spec("wf/a", "alpha")
    keeping.make_true()
    digest = keeping.serving("wf/a")
    keeping.spec("wf/a", "no-such-thing")
    keeping.make_true(expect=1)
    flip(module(keeping, digest))
    with keeping.maybe_daemon(daemon):
        assert "1 specs healed" in repaired(keeping)
        entry = keeping.fabric.entry("wf/a")
        assert (entry["state"], entry["serving"]) == ("stale", f"{digest}-2")
        assert entry["error"]["reason"] == "unresolvable"


def test_damage_after_damage_is_repaired_again(own_keeping: Keeping) -> None:
    """A second one makes <digest>-3; a damaged name is never given again."""
    keeping = own_keeping
    keeping.spec("wf/a", "alpha")
    keeping.make_true()
    digest = keeping.serving("wf/a")
    with keeping.maybe_daemon():
        for number in (2, 3):
            flip(module(keeping, keeping.serving("wf/a")))
            repaired(keeping)
            assert keeping.serving("wf/a") == f"{digest}-{number}"
        assert set(keeping.gc()["removed"]) == {digest, f"{digest}-2"}
        keeping.spec("wf/b", "alpha")
        commit = keeping.repo.commit()
        wait_for(
            lambda: keeping.fabric.index()["revision"] == commit and keeping.fabric.index()["complete"],
            message="not published",
        )
        assert keeping.serving("wf/b") == f"{digest}-3"
    whole(keeping)


@BOTH
def test_a_closure_that_is_gone_is_told_and_brought_back(own_keeping: Keeping, daemon: bool) -> None:
    """Under its own name, for all that it serves; by a daemon without a word, for its looks find it."""
    keeping = own_keeping
    keeping.spec("wf/a", "alpha")
    keeping.spec("wf/b", "alpha")
    keeping.make_true()
    before = keeping.fabric.index()["environments"]
    digest = keeping.serving("wf/a")
    with keeping.maybe_daemon(daemon) as running:
        unsealed(keeping.root / "store" / digest)
        if running is None:
            text = keeping.say("verify", expect=1)
            assert f"{digest}: is not in the store, but is served by wf/a, wf/b" in text
            assert "0 closures damaged, 1 gone; 2 specs healed" in repaired(keeping)
        else:
            running.wait_for_metric("envfabric_builds_total", 1)
            running.wait_for_metric("envfabric_specs", 2, state="ready")
        assert keeping.fabric.index()["environments"] == before
        whole(keeping)
    runs(keeping, "wf/b")


def test_damage_in_a_shared_inode_is_found_in_each_closure(own_keeping: Keeping) -> None:
    """All are repaired, and the new ones share among themselves as the old ones did."""
    keeping = own_keeping
    keeping.packages.add_wheel("large", "1.0", modules={"large/__init__.py": "VERSION = 1\n" * 20_000})
    for number, requirement in enumerate(("gamma==1.0", "gamma==2.0", "alpha")):
        keeping.spec(f"wf/s{number}", "large", requirement)
    keeping.spec("wf/other", "beta")
    keeping.make_true()
    served = [keeping.serving(f"wf/s{number}") for number in range(3)]
    other = keeping.serving("wf/other")
    bad = module(keeping, served[0], "large")
    assert all(module(keeping, one, "large").stat().st_ino == bad.stat().st_ino for one in served)
    flip(bad)
    assert set(keeping.told("verify", expect=1)["damaged"]) == set(served)
    with keeping.maybe_daemon() as daemon:
        assert daemon is not None
        assert "3 closures damaged, 0 gone; 3 specs healed" in repaired(keeping)
        new = [keeping.serving(f"wf/s{number}") for number in range(3)]
        assert new == [f"{one}-2" for one in served]
        assert keeping.serving("wf/other") == other
        assert len({module(keeping, one, "large").stat().st_ino for one in new}) == 1
        assert module(keeping, new[0], "large").stat().st_ino != bad.stat().st_ino
        metadata = [json.loads(file_of(keeping, one, "metadata.json").read_bytes()) for one in new]
        assert [one["link_fallbacks"] for one in metadata] == [0, 0, 0]
        whole(keeping)
        assert_account(keeping, daemon)
        assert set(keeping.gc()["removed"]) == set(served)
        assert_account(keeping, daemon)


def assert_account(keeping: Keeping, daemon: RunningDaemon) -> None:
    paths = [keeping.root / "store" / name for name in keeping.stored()]
    daemon.wait_for_metric("envfabric_store_closures", len(paths))
    daemon.wait_for_metric("envfabric_store_physical_bytes", du(*paths))
    daemon.wait_for_metric("envfabric_store_inodes", inodes(*paths))


@contextlib.contextmanager
def asking(keeping: Keeping, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command that is waiting for its answer."""
    command = [sys.executable, "-m", "envfabric", *arguments, "--config", str(keeping.fabric.configure())]
    with subprocess.Popen(
        command,
        cwd=keeping.fabric.folder,
        env=keeping.fabric.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def marked(keeping: Keeping) -> list[Path]:
    folder = keeping.root / "state/damaged"
    return list(folder.iterdir()) if folder.exists() else []


def test_a_daemon_killed_between_mark_and_rebuild_heals_at_its_next_start(own_keeping: Keeping) -> None:
    """Without another command, and without a byte of the damaged file that is in uv's cache still."""
    keeping = own_keeping
    keeping.spec("wf/a", "beta")
    keeping.make_true()
    digest = keeping.serving("wf/a")
    content = module(keeping, digest).read_bytes()
    flip(module(keeping, digest))
    hold = keeping.packages.hold()
    try:
        with keeping.maybe_daemon() as daemon, asking(keeping, "verify", "--repair") as asker:
            assert daemon is not None
            wait_for(lambda: marked(keeping) or None, message="nothing was marked")
            daemon.kill()
            asker.kill()
    finally:
        hold.set()
    assert keeping.serving("wf/a") == digest
    with keeping.fabric.daemon():
        wait_for(
            lambda: keeping.serving("wf/a") == f"{digest}-2", timeout=90, message="the start healed nothing"
        )
    assert module(keeping, f"{digest}-2").read_bytes() == content
    whole(keeping)


def test_a_repair_that_was_killed_is_finished_by_the_next(own_keeping: Keeping) -> None:
    """Also where it was the command itself that carried it out."""
    keeping = own_keeping
    keeping.spec("wf/a", "alpha")
    keeping.make_true()
    digest = keeping.serving("wf/a")
    flip(module(keeping, digest))
    hold = keeping.packages.hold()
    try:
        with asking(keeping, "verify", "--repair") as asker:
            wait_for(lambda: marked(keeping) or None, message="nothing was marked")
            asker.send_signal(signal.SIGKILL)
    finally:
        hold.set()
    repaired(keeping)
    assert keeping.serving("wf/a") == f"{digest}-2"
    whole(keeping)


@BOTH
def test_a_wheel_that_is_fetched_no_more_is_told(own_keeping: Keeping, daemon: bool) -> None:
    """Its spec says so and serves what it has; the others are healed. With the wheel back it heals by itself."""
    keeping = own_keeping
    wheel = keeping.packages.add_wheel("leaving", "1.0")
    keeping.spec("wf/a", "leaving")
    keeping.spec("wf/b", "alpha")
    keeping.spec("wf/c", "gamma")
    keeping.make_true()
    before = keeping.fabric.index()["environments"]
    digests = {spec_id: keeping.serving(spec_id) for spec_id in before}
    flip(module(keeping, digests["wf/a"], "leaving"))
    flip(module(keeping, digests["wf/b"]))
    away = keeping.fabric.folder / wheel.name
    wheel.rename(away)
    with keeping.maybe_daemon(daemon):
        text = repaired(keeping, expect=1)
        assert "2 closures damaged, 0 gone; 1 specs healed; not healed: wf/a" in text
        entry = keeping.fabric.entry("wf/a")
        assert (entry["state"], entry["serving"]) == ("stale", digests["wf/a"])
        assert "leaving" in entry["error"]["message"]
        assert keeping.serving("wf/b") == f"{digests['wf/b']}-2"
        assert keeping.fabric.entry("wf/c") == before["wf/c"]
        # It is served: nobody takes it away, damaged as it is.
        assert digests["wf/a"] not in keeping.gc()["removed"]
        away.rename(wheel)
        healed(keeping, "wf/a", f"{digests['wf/a']}-2", daemon=daemon)
    entry = keeping.fabric.entry("wf/a")
    assert (entry["state"], entry["error"]) == ("ready", None)
    whole(keeping)


def healed(keeping: Keeping, spec_id: str, closure: str, *, daemon: bool) -> None:
    """By the running daemon's own retry, or else by the next start."""

    def look() -> dict[str, Any] | None:
        entry = keeping.fabric.entry(spec_id)
        return entry if entry["serving"] == closure and entry["state"] == "ready" else None

    if not daemon:
        with keeping.fabric.daemon():
            wait_for(look, timeout=90, message="not healed")
    else:
        wait_for(look, timeout=90, message="not healed")
