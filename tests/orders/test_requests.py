"""Commands and the daemon that holds ROOT: what each sees when the other is away, killed, stopped or odd."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from envfabric.store.files import Files
from support import nursery
from support.fabric import Fabric, RunningDaemon
from support.saved import Saved
from support.simple_index import SimpleIndex
from support.waiting import wait_for
from support.without_rights import obey_modes


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, packages: SimpleIndex) -> Saved:
    """A fabric with two generations of one spec."""

    def make(fabric: Fabric) -> None:
        for version in ("1.0", "2.0"):
            fabric.repo.spec("wf/a", [f"gamma=={version}"])
            fabric.repo.commit()
            fabric.run_once()

    return Saved(tmp_path_factory.mktemp("requests"), packages, make)


@pytest.fixture
def published(saved: Saved) -> Fabric:
    return saved.again()


def requests(fabric: Fabric, suffix: str = "json") -> list[Path]:
    return sorted((fabric.root / "requests").glob(f"[0-9a-f]*.{suffix}"))


def text_of(path: Path) -> str | None:
    """What a file says, once it is there."""
    return path.read_text() if path.exists() else None


@dataclass
class Begun:
    """A command that runs beside the test."""

    process: nursery.Process
    said: Path


_begun: list[Begun] = []


@pytest.fixture(autouse=True)
def _nothing_goes_on() -> Iterator[None]:
    """A command that a failed test left would carry out its order in the next one's fabric, which has the same path."""
    yield
    for one in _begun:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait(timeout=60)
    _begun.clear()


def begin(fabric: Fabric, *words: str) -> Begun:
    """Starts a command."""
    said = fabric.folder / f"said-{len(list(fabric.folder.glob('said-*')))}"
    with said.open("x") as file:
        process = nursery.start(
            [*words, "--config", fabric.configure()],
            cwd=fabric.folder,
            env=fabric.environment,
            stdout=file,
            stderr=file,
        )
    _begun.append(Begun(process, said))
    return _begun[-1]


def answered(command: Begun, expect: int) -> str:
    """All that a command said, once it has ended with this exit code."""
    code = command.process.wait(timeout=120)
    said = command.said.read_text()
    assert code == expect, said
    return said


def stop(daemon: RunningDaemon) -> None:
    """Lets a daemon do nothing, as on a host that hangs."""
    daemon.process.send_signal(signal.SIGSTOP)


def test_daemon_killed_before_it_took_the_request(published: Fabric) -> None:
    """The command sees that nobody holds ROOT any more, and does it itself."""
    with published.daemon() as daemon:
        daemon.wait_for_index(published.repo.head)
        stop(daemon)
        command = begin(published, "rollback", "wf/a")
        wait_for(lambda: requests(published), message="nothing was asked")
        daemon.kill()
        assert "pinned to generation 1" in answered(command, 0)
    assert published.entry("wf/a")["pinned"] is True
    assert list((published.root / "requests").iterdir()) == []


@pytest.mark.parametrize("standby", [False, True], ids=["alone", "standby"])
def test_daemon_killed_while_it_carries_out(published: Fabric, standby: bool) -> None:
    """The command ends and says that it is not known; the pin is there, and whoever writes next makes it true."""
    slow = published.packages.add_wheel("gamma-slow", "1.0")
    published.repo.spec("wf/b", ["gamma-slow"])
    published.repo.commit()
    published.run_once()
    lost = published.entry("wf/b")["serving"]
    published.repo.spec("wf/b", ["alpha"])
    published.repo.commit()
    published.run_once()
    Files().remove_tree(published.root / "store" / lost)
    # Nothing of the wheel is in the cache any more: it has to be asked for, and waits.
    Files().remove_tree(published.root / "uv_cache")
    (published.root / "uv_cache").mkdir()
    hold = published.packages.hold("gamma-slow")
    assert slow.exists()
    try:
        with published.daemon() as daemon:
            daemon.wait_for_index(published.repo.head)
            command = begin(published, "rollback", "wf/b")
            wait_for(lambda: requests(published, "taken"), message="it was not taken")
            wait_for(lambda: daemon.events("build") or None, message="it is not carried out")
            if not standby:
                daemon.kill()
                assert "the daemon ended before it answered" in answered(command, 1)
                hold.set()
            else:
                with published.daemon() as second:
                    wait_for(lambda: second.events("standby") or None, message="no standby")
                    daemon.kill()
                    assert "the daemon ended before it answered" in answered(command, 1)
                    hold.set()
                    wait_for(lambda: published.entry("wf/b")["serving"] == lost, message="not made true")
        if not standby:
            published.run_once()
        entry = published.entry("wf/b")
        assert (entry["serving"], entry["pinned"], entry["state"]) == (lost, True, "ready")
    finally:
        hold.set()
    assert list((published.root / "requests").iterdir()) == []


def test_standby_takes_what_the_dead_daemon_did_not(published: Fabric) -> None:
    """A request that waits is carried out by whoever takes over."""
    with published.daemon() as daemon, published.daemon() as second:
        wait_for(lambda: second.events("standby") or None, message="no standby")
        stop(daemon)
        command = begin(published, "rollback", "wf/a")
        wait_for(lambda: requests(published), message="nothing was asked")
        daemon.kill()
        answered(command, 0)
    assert published.entry("wf/a")["generation"] == 1


def test_requests_without_sense_stop_nothing(published: Fabric) -> None:
    """Whatever lies in requests/, the daemon lives, answers or removes it, and carries out what has sense."""
    folder = published.root / "requests"
    known = {name: uuid.uuid4().hex for name in ("empty", "unknown", "huge", "types", "target", "link")}
    with published.daemon() as daemon:
        daemon.wait_for_index(published.repo.head)
        (folder / f"{uuid.uuid4().hex}.json").mkdir()
        (folder / "a stray file").write_text("words")
        (folder / f"{known['empty']}.json").write_text("")
        (folder / f"{known['huge']}.json").write_text(" " * 1_000_000)
        (folder / f"{known['link']}.json").symlink_to("/etc/passwd")
        unknown = {"command": "frobnicate", "arguments": {"id": ["wf/a"]}, "by": "a newer release"}
        (folder / f"{known['unknown']}.json").write_text(json.dumps(unknown))
        types = {"command": "rollback", "arguments": {"id": ["wf/a"], "to": {}}}
        (folder / f"{known['types']}.json").write_text(json.dumps(types))
        names = {"command": "repair", "arguments": {"names": ["../envs", 7]}}
        (folder / f"{known['target']}.json").write_text(json.dumps(names))
        done = published.command("rollback", "wf/a", "--config", published.configure())
        assert done.returncode == 0, done.stderr
        told = {}
        for name in ("empty", "unknown", "huge", "types", "target"):
            path = folder / f"{known[name]}.answer"
            told[name] = json.loads(wait_for(partial(text_of, path), message=name))
        assert daemon.get("/healthz")[0] == 200
    assert not any(answer["ok"] for answer in told.values())
    assert "'frobnicate' is unknown to the daemon" in told["unknown"]["message"]
    assert "older release" in told["unknown"]["message"]
    assert "no spec" in told["types"]["message"]
    assert "needs the names of closures" in told["target"]["message"]
    assert not os.path.lexists(folder / f"{known['link']}.json")


def test_forgotten_request_is_not_carried_out(published: Fabric) -> None:
    """One whose asker was gone long before the daemon came is dropped."""
    path = published.root / "requests" / f"{uuid.uuid4().hex}.json"
    path.write_text(json.dumps({"command": "rollback", "arguments": {"id": "wf/a"}}))
    os.utime(path, (path.stat().st_mtime - 90, path.stat().st_mtime - 90))
    with published.daemon():
        wait_for(lambda: not path.exists(), message="it lies there still")
        published.repo.spec("wf/more", ["alpha"])
        published.repo.commit()
        wait_for(lambda: "wf/more" in published.index()["python"], message="the daemon does nothing")
    assert published.entry("wf/a")["pinned"] is False


def test_several_commands_at_once(published: Fabric) -> None:
    """Each gets its own answer."""
    for node in ("b", "c", "d"):
        for version in ("1.0", "2.0"):
            published.repo.spec(f"wf/{node}", [f"gamma=={version}"])
            published.repo.commit()
            published.run_once()
    with published.daemon():
        running = {node: begin(published, "rollback", f"wf/{node}") for node in "abcd"}
        for node, command in running.items():
            assert f"wf/{node} is pinned to generation 1" in answered(command, 0)
    assert {one["generation"] for one in published.index()["environments"].values()} == {1}


def test_interrupted_command_leaves_nothing(published: Fabric) -> None:
    """Ctrl-C takes the request back: a daemon that comes to itself later does not carry it out."""
    with published.daemon() as daemon:
        daemon.wait_for_index(published.repo.head)
        stop(daemon)
        command = begin(published, "rollback", "wf/a")
        wait_for(lambda: requests(published), message="nothing was asked")
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(timeout=60) != 0
        assert list((published.root / "requests").iterdir()) == []
        daemon.process.send_signal(signal.SIGCONT)
    assert published.entry("wf/a")["pinned"] is False


@pytest.mark.parametrize("running", [True, False], ids=["daemon", "alone"])
def test_user_without_rights_is_told_who_may(published: Fabric, running: bool) -> None:
    """Who may not write on ROOT is told where, and as whom to run the command; nothing is changed."""
    folder = published.root / "requests"
    owner = folder.owner()

    def order() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "envfabric", "rollback", "wf/a", "--config", str(published.configure())],
            cwd=published.folder,
            env=published.environment,
            capture_output=True,
            text=True,
            preexec_fn=obey_modes,
            check=False,
            timeout=120,
        )

    if running:
        with published.daemon() as daemon:
            daemon.wait_for_index(published.repo.head)
            folder.chmod(0o555)
            done = order()
            folder.chmod(0o755)
    else:
        for path in (published.root / "locks/writer.lock", published.root / "locks"):
            path.chmod(path.stat().st_mode & ~0o222)
        done = order()
        for path in (published.root / "locks", published.root / "locks/writer.lock"):
            path.chmod(path.stat().st_mode | 0o200)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    assert "Permission denied" in done.stderr
    assert f"ROOT belongs to {owner}; run this command as that user" in done.stderr
    assert published.entry("wf/a")["pinned"] is False
