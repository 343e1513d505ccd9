"""What the daemon hears of a cluster that fails it: the real processes, and a Ray that does as it is told.

Ray's own head can't be had to fail at a given moment, and takes a minute to notice; a package of its name stands in.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from envfabric.build.farm.executor import Farm, Terms
from envfabric.build.farm.link import Link, Unreachable
from envfabric.build.farm.words import Node, Site
from envfabric.build.scope import Scope, Stopped
from envfabric.core.errors import SpecError
from envfabric.telemetry.metrics import Metrics
from support.waiting import wait_for

_RAY = """
import pathlib, time, types
from ray.exceptions import TaskCancelledError
__version__ = "0"
_here = pathlib.Path({place!r})
_cancelled = []

def _wait(name):
    while not (_here / name).exists():
        time.sleep(0.01)

def init(**settings):
    if (_here / "hold-init").exists():
        _wait("fail-init")
        raise RuntimeError("no such cluster")

def nodes():
    if (_here / "hold-nodes").exists():
        _wait("never")
    if (_here / "fail-nodes").exists():
        raise RuntimeError("the head is away")
    return []

def _available():
    return {{}}

_private = types.SimpleNamespace(state=types.SimpleNamespace(available_resources_per_node=_available))

class _Said:
    def __iter__(self):
        return self
    def __next__(self):
        while self not in _cancelled:
            time.sleep(0.01)
        raise TaskCancelledError()

class _Task:
    def options(self, **settings):
        return self
    def remote(self, *arguments):
        _wait("submit")
        return _Said()

def remote(function):
    return _Task()

def cancel(said, force):
    _cancelled.append(said)

def get(one):
    return one
"""
_ASKED = {"node": "n", "name": "a build", "cpus": 1, "resources": {}, "release": "0", "task": b""}


def no_site() -> Site:
    raise AssertionError("nothing is built")


class Stand:
    """Where the stand-in for Ray looks for what to do."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def say(self, word: str) -> None:
        (self._folder / word).touch()

    def unsay(self, word: str) -> None:
        (self._folder / word).unlink()


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    package = tmp_path / "python" / "ray"
    (package / "util").mkdir(parents=True)
    (package / "__init__.py").write_text(_RAY.format(place=str(tmp_path)))
    errors = "class TaskCancelledError(Exception): pass\nclass RayTaskError(Exception): pass\n"
    (package / "exceptions.py").write_text(errors)
    (package / "util" / "__init__.py").touch()
    strategy = "def NodeAffinitySchedulingStrategy(node, soft): return node\n"
    (package / "util" / "scheduling_strategies.py").write_text(strategy)
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=os.pathsep)
    return Stand(tmp_path)


@pytest.fixture
def link(stand: Stand) -> Iterator[Link]:
    started = Link("auto")
    yield started
    started.close()


def test_a_head_that_is_away_ends_nothing(stand: Stand, link: Link) -> None:
    """Where the cluster can't say its nodes the one who asked hears why; the link stays, and so do its tasks."""
    link.ready()
    _, words = link.submit(_ASKED)
    stand.say("fail-nodes")
    with pytest.raises(Unreachable, match="the head is away"):
        link.nodes()
    assert not link.lost
    assert words.empty()
    stand.unsay("fail-nodes")
    assert link.nodes() == []


def test_a_cancel_that_comes_before_the_submission_counts(stand: Stand, link: Link) -> None:
    """A build that is cancelled while Ray is still told of it is cancelled as soon as it is."""
    link.ready()
    key, words = link.submit(_ASKED)
    link.cancel(key)
    # The child does one after the other: it has heard of the cancel now, and Ray of no task.
    assert link.nodes() == []
    assert words.empty()
    stand.say("submit")
    assert words.get(timeout=60) == {"key": key, "lost": "it was cancelled"}


def test_who_is_cancelled_does_not_wait_for_the_head(stand: Stand, link: Link) -> None:
    """A build that asks for the nodes of a cluster which does not answer ends at once when it is cancelled."""
    link.ready()
    stand.say("hold-nodes")
    scope, over = Scope("building"), threading.Event()

    def ask() -> None:
        with pytest.raises(Stopped), scope.entered():
            link.nodes()
        over.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    wait_for(lambda: link._waiting, message="nobody asks")
    scope.end()
    # Half of what it would wait for by itself.
    assert over.wait(30)
    assert not link.lost


def test_who_is_cancelled_does_not_wait_for_the_cluster(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that waits for the cluster to be reached ends at once when it is cancelled; the connecting goes on, and
    who comes after it hears how it ends."""
    monkeypatch.setattr("envfabric.build.farm.executor._AGAIN", 3600.0)
    stand.say("hold-init")
    farm = Farm(no_site, Terms("auto"), Metrics())
    scope, over = Scope("building"), threading.Event()

    def wait() -> None:
        with pytest.raises(Stopped), scope.entered(), farm.host():
            pytest.fail("it has a host")
        over.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    wait_for(lambda: scope._to_call, message="nobody waits")
    scope.end()
    # Half of what it would wait for by itself.
    assert over.wait(60)
    connecting = farm._link
    stand.say("fail-init")
    # The next one hears it of the same connection; the one after it does not try again at once.
    for _ in range(2):
        with pytest.raises(SpecError, match="can't be reached: RuntimeError: no such cluster"), farm.host():
            pytest.fail("it has a host")
    assert farm._link is connecting
    farm.stop()


def test_a_head_that_hangs_ends_nothing_that_runs(
    stand: Stand, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the head does not answer, what was submitted goes on and can be cancelled; once nothing is under way any
    more, the connection is given up, and the next build makes a new one."""
    monkeypatch.setattr("envfabric.build.farm.link._ANSWER", 0.1)
    monkeypatch.setattr("envfabric.build.farm.link.PATIENCE", 0.1)
    link.ready()
    stand.say("submit")
    key, words = link.submit(_ASKED)
    stand.say("hold-nodes")
    for _ in range(2):
        with pytest.raises(Unreachable, match=r"did not answer within 0\.1 s"):
            link.nodes()
    assert not link.lost
    link.cancel(key)
    assert words.get(timeout=60) == {"key": key, "lost": "it was cancelled"}
    link.forget(key)
    with pytest.raises(Unreachable):
        link.nodes()
    assert link.lost


def test_a_head_that_is_away_for_a_moment_fails_no_build(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builds in line wait for a head that does not say its nodes, as while it is started anew, and begin when it is
    back. After a while they are told that it is away."""
    asked = threading.Event()
    whole = Link.nodes

    def nodes(link: Link) -> list[Node]:
        if link.silent:
            asked.set()
        return whole(link)

    monkeypatch.setattr(Link, "nodes", nodes)
    stand.say("fail-nodes")
    farm, had = Farm(no_site, Terms("auto"), Metrics()), list[str]()

    def wait() -> None:
        with pytest.raises(SpecError, match="none of the cluster's 0 nodes"), farm.host():
            pytest.fail("it has a host")
        had.append("an answer")

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert asked.wait(60)
    stand.unsay("fail-nodes")
    thread.join(60)
    assert had == ["an answer"]
    stand.say("fail-nodes")
    monkeypatch.setattr("envfabric.build.farm.executor.PATIENCE", 0.0)
    with pytest.raises(SpecError, match="can't be reached: RuntimeError: the head is away"), farm.host():
        pytest.fail("it has a host")
    farm.stop()


def _close(stand: Stand, link: Link) -> None:
    link.close()


def _fail(stand: Stand, link: Link) -> None:
    def slowly(text: str) -> str:
        # The child's last word is read when the others have long found its socket closed.
        with contextlib.suppress(AssertionError):
            wait_for(lambda: link.lost, timeout=1, message="nobody said something else before")
        return text

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("envfabric.build.farm.link.redact", slowly)
        stand.say("fail-init")
        wait_for(lambda: link.lost, message="it goes on")


@pytest.mark.parametrize(
    ("end", "why"), [(_close, "the daemon is stopping"), (_fail, "RuntimeError: no such cluster")]
)
def test_all_that_send_while_it_ends_hear_why(
    stand: Stand, end: Callable[[Stand, Link], None], why: str
) -> None:
    """However the link ends, and whoever speaks into it at that moment: each hears the reason, not what the broken
    socket looks like, and none waits for a word that nobody will say."""
    stand.say("hold-init")
    link = Link("auto")
    heard = list[str]()
    sending = threading.Event()

    def send() -> None:
        try:
            while True:
                key, _ = link.submit(_ASKED)
                link.forget(key)
                sending.set()
        except Unreachable as error:
            heard.append(str(error))

    threads = [threading.Thread(target=send, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert sending.wait(60)
    end(stand, link)
    for thread in threads:
        thread.join(60)
    link.close()
    assert heard == [why] * len(threads)
    with pytest.raises(Unreachable, match=why):
        link.nodes()
    wait_for(lambda: link._connection.closed, message="the socket stays open")
