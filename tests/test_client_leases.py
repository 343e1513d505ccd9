"""Consumers' leases: taken, renewed and given back by the client, judged by the daemon's own reader."""

import errno
import json
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import envfabric
from envfabric.client import leases
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.leases import PROOF, Held, Leases
from envfabric.store.prepare import init_root
from envfabric.store.root import Root
from store.small_venv import fill
from support.another_user import as_another_user, let_others_in
from support.fabric import Fabric
from support.waiting import wait_for

DIGEST, OTHER = "a1" * 32, "b2" * 32
ID = "wf/node"
DOCS = Path(__file__).parent.parent / "docs/leases.md"


def in_force(leases: Leases, later: float = 0.0) -> dict[str, list[Held]]:
    """Every lease in force `later` seconds from now, by closure."""
    now = Files().server_time(leases.place()) + later
    return {name: one.held for name, one in leases.survey(now).items() if one.held}


@dataclass
class Nas:
    """A ROOT with two closures, of which the index serves the first."""

    root: Root
    leases: Leases

    def publish(self, name: str) -> None:
        python = {ID: self.root.python(name)}
        entry: dict[str, Any] = {"state": "ready", "serving": name, "error": None}
        index = {"schema": 1, "revision": "c" * 40, "python": python, "environments": {ID: entry}}
        Files().write_atomic(self.root.index, json.dumps(index | {"problems": []}).encode())

    def held(self, later: float = 0.0) -> dict[str, list[Held]]:
        """What the daemon finds, `later` seconds from now."""
        return in_force(self.leases, later)

    def collect(self, name: str) -> None:
        self.root.closure(name).rename(self.root.trash / name)

    def files(self) -> list[Path]:
        """The lease files, finished or not."""
        return [path for path in self.leases.place().glob("*/*") if path.is_file()]


@pytest.fixture
def nas(tmp_path: Path) -> Nas:
    root = init_root(tmp_path / "nas", Files())
    for name in (DIGEST, OTHER):
        fill(root, root.closure(name) / ".venv")
    made = Nas(root, Leases(root, Files()))
    made.publish(DIGEST)
    return made


@pytest.fixture(params=[0o022, 0o077], ids=["umask022", "umask077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


def age(path: Path, ago: float) -> None:
    now = path.stat().st_mtime
    os.utime(path, (now - ago, now - ago))


def test_a_lease_is_in_force_from_the_call_to_the_end_of_the_block(nas: Nas) -> None:
    """With who holds it, for how long, and what for; given back, nothing of it is in force."""
    assert nas.held() == {}
    with envfabric.lease(ID, root=nas.root.path, ttl=120, what="nightly") as held:
        assert held.python == envfabric.python(ID, root=nas.root.path)
        assert held.name == DIGEST
        (one,) = nas.held()[DIGEST]
        assert (one.pid, one.host, one.ttl, one.what) == (os.getpid(), os.uname().nodename, 120, "nightly")
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,200}", one.holder)
        assert nas.held(later=119) != {}
        assert nas.held(later=130) == {}
    assert nas.held() == {}
    assert nas.files() == []
    assert nas.leases.on(DIGEST, 0.0).left is not None


def test_a_lease_is_given_back_where_the_block_fails(nas: Nas) -> None:
    """An exception ends it, too, and comes through."""
    with pytest.raises(ZeroDivisionError), envfabric.lease(ID, root=nas.root.path):
        assert nas.held() != {}
        raise ZeroDivisionError
    assert nas.held() == {}


@pytest.mark.parametrize("form", ["interpreter", "versioned", "generation", "envs", "name"])
def test_a_closure_can_be_named_in_several_ways(nas: Nas, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its interpreter, also below generations/ and envs/, or by its name; served or not."""
    folder = nas.root.generations / ID / "1"
    folder.mkdir(parents=True)
    (folder / ".venv").symlink_to(f"../../../../store/{OTHER}/.venv")
    (nas.root.envs / "wf").mkdir()
    (nas.root.envs / ID).symlink_to(f"../../generations/{ID}/1")
    (nas.root.closure(OTHER) / ".venv/bin/python3.11").symlink_to("python")
    monkeypatch.setenv("ENVFABRIC_ROOT", str(nas.root.path))
    given = {
        "interpreter": nas.root.python(OTHER),
        "versioned": nas.root.python(OTHER) + "3.11",
        "generation": f"{folder}/.venv/bin/python",
        "envs": f"{nas.root.envs}/{ID}/.venv/bin/python",
        "name": OTHER,
    }[form]
    with envfabric.lease(given) as held:
        assert list(nas.held()) == [OTHER]
        assert held.python.startswith(nas.root.python(OTHER))
    assert nas.held() == {}


def test_leases_of_one_closure_are_each_for_itself(nas: Nas) -> None:
    """The first one's end leaves the second in force."""
    first = envfabric.lease(ID, root=nas.root.path)
    second = envfabric.lease(ID, root=nas.root.path)
    first.release()
    first.release()
    assert len(nas.held()[DIGEST]) == 1
    second.release()
    assert nas.held() == {}


def test_workers_of_other_users_can_lease_too(nas: Nas, umask: int) -> None:
    """The closure's folder is 1777 and the lease readable, whatever the umask."""
    assert umask is not None
    with envfabric.lease(ID, root=nas.root.path):
        (path,) = nas.files()
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o1777


def test_the_thread_renews_by_itself(nas: Nas) -> None:
    """A lease that would have run out is in force again, without a word of the holder."""
    with envfabric.lease(ID, root=nas.root.path, ttl=3):
        (path,) = nas.files()
        age(path, 1000)
        assert nas.held() == {}
        wait_for(nas.held, message="the lease was not renewed")
    # The control: given back, nothing brings it back.
    for thread in threading.enumerate():
        if thread.name.startswith("lease "):
            thread.join(timeout=10)
            assert not thread.is_alive()
    assert nas.files() == []


def test_renew_says_now_at_once(nas: Nas) -> None:
    """For one that has slept; a lease that was given back is not renewed."""
    held = envfabric.lease(ID, root=nas.root.path)
    (path,) = nas.files()
    age(path, 1000)
    assert nas.held() == {}
    held.renew()
    assert len(nas.held()[DIGEST]) == 1
    held.release()
    with pytest.raises(envfabric.EnvfabricError, match="take a new one"):
        held.renew()
    assert nas.held() == {}


def test_a_lease_that_vanished_is_written_anew(nas: Nas) -> None:
    """The file, or the whole folder of the closure."""
    with envfabric.lease(ID, root=nas.root.path, what="long job") as held:
        (path,) = nas.files()
        path.unlink()
        held.renew()
        assert nas.held()[DIGEST][0].what == "long job"
        path.unlink()
        path.parent.rmdir()
        held.renew()
        assert nas.held()[DIGEST][0].what == "long job"
    assert nas.files() == []


def test_a_fault_that_passes_ends_no_lease(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    """The NAS is away for a while: the thread goes on trying, and the lease is in force when it is back."""
    tried = threading.Semaphore(0)

    def place(root: Path) -> Path:
        try:
            return real(root)
        finally:
            tried.release()

    real = leases.place_of
    with envfabric.lease(ID, root=nas.root.path, ttl=1):
        away = nas.root.path.rename(nas.root.path.with_name("away"))
        (path,) = away.glob("leases/*/*")
        monkeypatch.setattr(leases, "place_of", place)
        for _ in range(3):
            assert tried.acquire(timeout=30), "nobody tried to renew"
        age(path, 1000)
        assert not nas.root.path.exists(), "something was made below a NAS that is away"
        away.rename(nas.root.path)
        wait_for(nas.held, message="the lease was not renewed")
    assert nas.held() == {}


def test_a_renewal_that_hangs_is_a_lease_that_has_run_out(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer keeps the thread for ever; the lease says all the same that it is not held."""
    back, hangs = threading.Event(), threading.Event()

    def place(root: Path) -> Path:
        hangs.set()
        back.wait()
        return real(root)

    real = leases.place_of
    with envfabric.lease(ID, root=nas.root.path, ttl=3) as held:
        assert held.present
        monkeypatch.setattr(leases, "place_of", place)
        assert hangs.wait(60)
        wait_for(lambda: not held.present, message="it says that it is held")
        back.set()
        wait_for(lambda: held.present, message="it does not say that it is held again")
    assert nas.held() == {}


def test_taking_waits_for_a_gone_server_no_longer_than_told(nas: Nas) -> None:
    """A NAS that hangs while the lease is taken is an error that names it. What is written once it is back is nobody's,
    and given back."""
    told = nas.root.marker.read_bytes()
    nas.root.marker.unlink()
    # Whoever opens it waits until there is one who writes.
    os.mkfifo(nas.root.marker)
    python = nas.root.python(DIGEST)
    with pytest.raises(envfabric.RootNotFound, match=r"has not answered .* within 0\.2 s.*envfabric\.lease"):
        envfabric.lease(ID, root=nas.root.path, timeout=0.2)
    (hangs,) = [one for one in threading.enumerate() if one.name == f"envfabric {python}"]
    nas.root.marker.write_bytes(told)
    hangs.join(60)
    assert not hangs.is_alive()
    # It is the lease that makes the closure's folder.
    assert (nas.root.leases / DIGEST).is_dir()
    wait_for(lambda: not list(nas.root.leases.glob("*/*")), message="it is leased for nobody")


def test_an_end_waits_for_a_gone_server_no_longer_than_told(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program comes out of its block, and of a renewal by hand, though the thread hangs in one of its own. The lease
    is removed once the NAS is back."""
    back, hangs = threading.Event(), threading.Event()

    def utime(*arguments: Any) -> None:
        hangs.set()
        back.wait()
        real(*arguments)

    real = os.utime
    with envfabric.lease(ID, root=nas.root.path, timeout=0.2) as held:
        monkeypatch.setattr(os, "utime", utime)
        held.renew_soon()
        assert hangs.wait(60)
        with pytest.raises(envfabric.RootNotFound, match="has not answered"):
            held.renew()
    assert len(nas.files()) == 1
    back.set()
    wait_for(lambda: not nas.files(), message="it is not given back")


def test_an_index_that_is_replaced_while_it_is_read_is_read_again(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS says ESTALE of an index that was replaced between its opening and its reading; where it always does, that is
    an error."""
    stale = 1

    def read(self: Path) -> bytes:
        nonlocal stale
        if stale:
            stale -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(self)

    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", read)
    assert envfabric.python(ID, root=nas.root.path) == nas.root.python(DIGEST)
    stale = 1000
    with pytest.raises(envfabric.RootNotFound, match="Stale file handle"):
        envfabric.python(ID, root=nas.root.path)


def test_a_renewal_under_way_brings_no_lease_back(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given back between a renewal's beginning and its end: nothing is written any more."""
    held = envfabric.lease(ID, root=nas.root.path)
    assert len(nas.files()) == 1

    def place(root: Path) -> Path:
        held.release()
        return real(root)

    real = leases.place_of
    monkeypatch.setattr(leases, "place_of", place)
    held.renew()
    assert nas.files() == []


def test_what_was_collected_meanwhile_is_looked_up_anew(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    """The closure goes between the index and the lease: the lease is on what the next index names."""
    real = os.rename
    taken: list[str] = []

    def rename(source: Any, target: Any) -> None:
        real(source, target)
        if not taken and Path(target).parent.name == DIGEST:
            taken.append(str(target))
            nas.collect(DIGEST)
            nas.publish(OTHER)

    monkeypatch.setattr(os, "rename", rename)
    with envfabric.lease(ID, root=nas.root.path) as held:
        assert taken
        assert (held.name, held.python) == (OTHER, nas.root.python(OTHER))
        assert list(nas.held()) == [OTHER]
    assert nas.held() == {}


def test_the_daemon_removes_the_folder_while_a_lease_is_made(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making the closure's folder and writing the lease: it is made again."""
    real = os.open
    done: list[Path] = []

    def opening(path: Any, *arguments: Any, **named: Any) -> int:
        folder = Path(path).parent if isinstance(path, Path) else Path()
        if not done and folder == nas.root.leases / DIGEST:
            done.append(folder)
            folder.rmdir()
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "open", opening)
    with envfabric.lease(ID, root=nas.root.path):
        assert done
        assert len(nas.held()[DIGEST]) == 1


def test_what_is_not_there_cannot_be_leased(nas: Nas) -> None:
    """A collected closure, an unknown id, what is no interpreter: an error, and no lease is left."""
    nas.collect(OTHER)
    for wanted, error, words in (
        (OTHER, envfabric.UnknownEnvironment, "may have been collected"),
        (nas.root.python(OTHER), envfabric.UnknownEnvironment, "may have been collected"),
        ("wf/nowhere", envfabric.UnknownEnvironment, "wf/nowhere"),
        ("no name!", envfabric.UnknownEnvironment, "neither"),
        (sys.executable, envfabric.EnvironmentFailed, "ROOT/store/<name>"),
        ("/elsewhere/store/x/.venv/bin/python", envfabric.EnvironmentFailed, "same path"),
    ):
        with pytest.raises(error, match=words):
            envfabric.lease(wanted, root=nas.root.path)
    nas.collect(DIGEST)
    with pytest.raises(envfabric.NotReady, match="envfabric status"):
        envfabric.lease(ID, root=nas.root.path)
    assert nas.files() == []


@pytest.mark.parametrize("ttl", [0, -1, 86401, float("nan"), float("inf")])
def test_a_ttl_that_the_daemon_would_not_believe_is_refused(nas: Nas, ttl: float) -> None:
    """At the call, not by a lease that ends sooner than its holder thinks."""
    with pytest.raises(ValueError, match="86400"):
        envfabric.lease(ID, root=nas.root.path, ttl=ttl)


def test_renew_tells_of_a_closure_that_was_collected(nas: Nas) -> None:
    """One that slept for longer than its ttl learns it."""
    with envfabric.lease(ID, root=nas.root.path) as held:
        nas.collect(DIGEST)
        with pytest.raises(envfabric.UnknownEnvironment, match="collected"):
            held.renew()


def test_leases_elsewhere(nas: Nas, tmp_path: Path) -> None:
    """They are written where the marker says; a change while one is held takes it along."""
    with envfabric.lease(ID, root=nas.root.path) as held:
        other = tmp_path / "other"
        other.mkdir()
        nas.leases.use(other)
        assert nas.held() == {}
        held.renew()
        assert len(nas.held()[DIGEST]) == 1
        assert not list(nas.root.leases.glob("*/*"))
    assert nas.files() == []


def test_nothing_is_written_to_a_folder_that_is_not_mounted(nas: Nas, tmp_path: Path) -> None:
    """An empty mount point, or a ROOT without its marker, is named as that."""
    other = tmp_path / "other"
    other.mkdir()
    nas.leases.use(other)
    (other / PROOF).unlink()
    with pytest.raises(envfabric.RootNotFound, match="mounted"):
        envfabric.lease(ID, root=nas.root.path)
    assert list(other.iterdir()) == []
    nas.root.marker.unlink()
    with pytest.raises(envfabric.RootNotFound, match="mounted"):
        envfabric.lease(nas.root.python(DIGEST))


def test_a_folder_that_cannot_be_written_says_what_to_do(nas: Nas) -> None:
    """Which folder, and both ways out. A file in its place stands for what root may not write either."""
    nas.root.leases.rmdir()
    nas.root.leases.write_text("")
    with pytest.raises(envfabric.EnvfabricError) as caught:
        envfabric.lease(ID, root=nas.root.path)
    assert str(nas.root.leases / DIGEST) in str(caught.value)
    assert f"chmod 1777 {nas.root.leases}" in str(caught.value)
    assert "set leases" in str(caught.value)
    assert nas.root.leases.read_text() == ""


@pytest.mark.root
def test_a_worker_of_another_user(nas: Nas) -> None:
    """Refused with what to do until the folder is opened; then it leases beside the daemon's own user."""
    let_others_in(nas.root.path)
    assert _leased_by_another_user(nas) == f"chmod 1777 {nas.root.leases}"
    assert nas.held() == {}
    nas.root.leases.chmod(0o1777)
    assert _leased_by_another_user(nas) == "1"
    with envfabric.lease(ID, root=nas.root.path):
        assert _leased_by_another_user(nas) == "2"
        assert len(nas.held()[DIGEST]) == 1


def _leased_by_another_user(nas: Nas) -> str:
    """How many lease it then, or what has to be done first."""

    def work() -> str:
        try:
            with envfabric.lease(ID, root=nas.root.path):
                return str(len(list((nas.root.leases / DIGEST).iterdir())))
        except envfabric.EnvfabricError as error:
            return str(error).partition("(")[2].partition(")")[0]

    return str(as_another_user(work))


def test_a_forked_child_gives_nothing_back(nas: Nas) -> None:
    """The lease is its parent's, also when the child leaves the block."""
    with envfabric.lease(ID, root=nas.root.path) as held:
        child = os.fork()
        if child == 0:
            try:
                held.release()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert len(nas.held()[DIGEST]) == 1
    assert nas.held() == {}


def test_a_holder_that_is_killed_gives_back_by_its_ttl(nas: Nas) -> None:
    """kill -9: the lease stays for its ttl, and no longer."""
    code = f"import envfabric; envfabric.lease({ID!r}, root={str(nas.root.path)!r}); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    assert nas.held() != {}
    (path,) = nas.files()
    age(path, 301)
    assert nas.held() == {}


def test_the_documented_script_holds_a_lease(nas: Nas, tmp_path: Path) -> None:
    """The shell script of docs/leases.md, as it stands there: in force while its program runs."""
    script = re.findall(r"```sh\n(.*?)```", DOCS.read_text(), re.DOTALL)[0]
    python = nas.root.closure(DIGEST) / ".venv/bin/python"
    python.unlink()
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho ready\nread line\nexit 7\n")
    program.chmod(0o755)
    python.symlink_to(program)
    env = {"PATH": os.environ["PATH"], "ROOT": str(nas.root.path), "LEASES": str(nas.leases.place())}
    with subprocess.Popen(
        ["sh", "-c", script],
        env=env | {"NAME": DIGEST},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "ready\n"
        (one,) = nas.held()[DIGEST]
        assert (one.pid, one.ttl, one.what) == (shell.pid, 300, "nightly")
        (path,) = nas.files()
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o1777
        shell.communicate("\n", timeout=30)
    assert shell.returncode == 7
    assert nas.files() == []
    nas.collect(DIGEST)
    done = subprocess.run(["sh", "-c", script], env=env | {"NAME": DIGEST}, timeout=30, check=False)
    assert done.returncode == 75
    assert nas.files() == []


def test_a_served_environment_is_leased_and_runs(fabric: Fabric) -> None:
    """The whole way: from a commit to a program that runs in what it holds."""
    fabric.repo.spec("wf/alpha", ["alpha"])
    fabric.repo.commit()
    fabric.run_once()
    root = Root(fabric.root)
    reader = Leases(root, Files())
    with envfabric.lease("wf/alpha", root=fabric.root) as held:
        done = subprocess.run(
            [held.python, "-c", "import alpha; print('imported')"], capture_output=True, text=True
        )
        assert done.stdout == "imported\n", done.stderr
        assert Closures(root, Files()).present(held.name)
        assert list(in_force(reader)) == [held.name]
    assert in_force(reader) == {}
