"""A turn as the writer that ends by an error is followed by the next one; who lost it writes nothing more."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from envfabric.store.files import Files
from envfabric.store.requests import Asker
from envfabric.store.root import Root, open_root
from envfabric.store.writer import Writer
from faults_of_disk.inside import daemon as inner_daemon
from faults_of_disk.inside import surroundings
from store.faults import in_process
from support.fabric import Fabric, RunningDaemon
from support.waiting import wait_for


@pytest.fixture
def begun(fabric: Fabric) -> Fabric:
    """A fabric that looks often and has a commit."""
    fabric.settings["interval"] = 0.2
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.commit()
    return fabric


def replace_lock(root: Path) -> None:
    """What a remount, or a hand, does to the lock's file."""
    lock = root / "locks" / "writer.lock"
    lock.unlink()
    lock.touch()


def claim_higher(root: Path) -> None:
    """What a writer does that got the lock because the NAS thought this one dead."""
    (root / "locks" / f"epoch-{epoch(root) + 1}").touch()


def epoch(root: Path) -> int:
    return max(int(path.name.removeprefix("epoch-")) for path in (root / "locks").glob("epoch-*"))


def another_commit(fabric: Fabric, daemon: RunningDaemon, node: str) -> None:
    """A new commit gets published."""
    fabric.repo.spec(f"wf/{node}", ["alpha"])
    index = daemon.wait_for_index(fabric.repo.commit(), timeout=90)
    assert index["environments"][f"wf/{node}"]["state"] == "ready"


@pytest.mark.parametrize("lose", [replace_lock, claim_higher])
def test_writer_that_lost_its_turn_takes_another(begun: Fabric, lose: Callable[[Path], None]) -> None:
    """Also in its first turn a daemon whose lock was replaced, or whose epoch was passed, goes on with the next one."""
    with begun.daemon() as daemon:
        daemon.wait_for_index(begun.repo.head)
        for turns, node in enumerate(("b", "c"), 1):
            lose(begun.root)
            wait_for(
                lambda turns=turns: len(daemon.events("turn as the writer ended")) == turns,  # type: ignore[misc]
                timeout=60,
                message="the loss was not noticed",
            )
            another_commit(begun, daemon, node)
            daemon.wait_for_metric("envfabric_writer", 1)
        assert len(daemon.events("turn as the writer ended")) == 2
        assert epoch(begun.root) >= 3
        assert daemon.get("/healthz")[0] == 200


def test_standby_whose_turn_fails_tries_again(begun: Fabric) -> None:
    """A standby that can't begin its turn, because ROOT is no good, stands by and begins when it is."""
    with begun.daemon() as writer:
        writer.wait_for_index(begun.repo.head)
        with begun.daemon() as standby:
            wait_for(lambda: standby.events("standby"), message="it does not stand by")
            (begun.root / "bytecode").rename(begun.root / "bytecode.away")
            writer.kill()
            wait_for(lambda: standby.events("turn as the writer ended"), message="nothing is said of it")
            assert standby.get("/healthz")[0] == 200
            assert standby.get("/readyz")[0] == 200
            shutil.rmtree(begun.root / "bytecode", ignore_errors=True)
            (begun.root / "bytecode.away").rename(begun.root / "bytecode")
            another_commit(begun, standby, "b")


def test_late_publication_is_undone(begun: Fabric) -> None:
    """An index that a lower epoch brings in late is replaced within a look, with a higher sequence number."""
    late = begun.folder / "late"
    with begun.daemon() as first:
        first.wait_for_index(begun.repo.head)
        # What the first writer had written, and was held at its rename of.
        shutil.copy(begun.root / "index.json", late)
        with begun.daemon() as second:
            wait_for(lambda: second.events("standby"), message="it does not stand by")
            first.kill()
            another_commit(begun, second, "b")
            before = begun.index()
            assert in_process(lambda: os.replace(late, begun.root / "index.json")) == 0

            def undone() -> bool:
                index = begun.index()
                return bool(index["sequence"] > before["sequence"])

            wait_for(undone, message="the late index stays")
            assert begun.index()["python"] == before["python"]
            assert begun.index()["revision"] == before["revision"]


def test_publication_that_is_held_at_its_rename(begun: Fabric) -> None:
    """A writer that is cut off between its check and its rename publishes nothing once another one has begun."""
    begun.init()
    held, go, renamed = threading.Event(), threading.Event(), threading.Event()

    def step(operation: str, path: Path) -> None:
        if operation == "rename" and path == begun.root / "index.json" and not renamed.is_set():
            held.set()
            assert go.wait(120)
            renamed.set()

    with surroundings(begun):
        one = inner_daemon(begun, step)
        running = threading.Thread(target=one.run, args=(lambda _: None,))
        running.start()
        try:
            assert held.wait(60)
            # The NAS frees its lock, and another daemon takes over, publishes and ends.
            (begun.root / "locks" / "writer.lock").unlink()
            index = begun.run_once()
            go.set()
            wait_for(lambda: epoch(begun.root) > 2, timeout=60, message="it took no new turn")
            found = begun.index()
            assert found["sequence"] >= index["sequence"]
            assert found["python"] == index["python"]
            assert found["environments"]["wf/a"]["state"] == "ready"
        finally:
            go.set()
            one.stop()
            running.join(60)
        assert not running.is_alive()


@contextmanager
def other_writer(root: Root) -> Iterator[Writer]:
    """Another writer that holds the file which has the lock's name now."""
    (root.locks / "writer.lock").unlink()
    with Writer(root, Files()).acquire() as writer:
        yield writer


def test_idle_writer_that_lost_its_lock_answers_nothing(begun: Fabric) -> None:
    """Between two looks too, requests wait for the real writer; this daemon answers when it is the writer again."""
    begun.settings["interval"] = 3600
    with begun.daemon() as daemon:
        daemon.wait_for_index(begun.repo.head)
        root = open_root(begun.root)
        asker = Asker(root, Files())
        with other_writer(root) as other:
            asker.ask("gc", {})
            wait_for(
                lambda: daemon.events("turn as the writer ended"), message="it still takes itself for one"
            )
            wait_for(lambda: daemon.events("standby"), message="it does not stand by")
            assert asker.answer() is None
            assert daemon.events("order") == []
            other.check()
            asker.renew()

        def answered() -> object:
            asker.renew()
            return asker.answer()

        wait_for(answered, timeout=60, message="nobody answers")
        asker.close()
        assert len(daemon.events("order")) == 1
