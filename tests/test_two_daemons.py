"""Two daemons on one ROOT: one publishes, the other takes over when it is gone, and nobody goes back in time.

The suite commits for 15 seconds with 3 take-overs; TWO_DAEMONS_SECONDS=60 makes it a minute, with one each 5 s.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envfabric.store.files import Files
from envfabric.store.retries import Retry, read_retries, write_retries
from envfabric.store.root import Root
from support.fabric import Fabric, RunningDaemon
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo
from support.waiting import wait_for

SECONDS = float(os.environ.get("TWO_DAEMONS_SECONDS", "15"))
REIGN = 5.0
"""Seconds between two kills of the active daemon."""
TAKEN_OVER = 30.0
"""Seconds from a kill until the other has published, at the most: the standby tries the lock each second,
then probes ROOT and looks. Quiet machines need 1 to 3; a test that runs beside others may wait."""


class Reader(threading.Thread):
    """A consumer that reads index.json all the time and remembers each publication that it saw."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.seen: list[tuple[int, bytes]] = []
        self.spoilt: list[str] = []
        self._stopping = threading.Event()

    def __enter__(self) -> "Reader":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join()

    def run(self) -> None:
        last = b""
        while not self._stopping.wait(0.002):
            with contextlib.suppress(FileNotFoundError):
                raw = self.path.read_bytes()
                if raw == last:
                    continue
                last = raw
                self._read(raw)

    def _read(self, raw: bytes) -> None:
        try:
            index = json.loads(raw)
            self.seen.append((index["sequence"], raw))
            self.spoilt += [path for path in index["python"].values() if not os.path.exists(path)]
        except (ValueError, KeyError) as error:
            self.spoilt.append(repr(error))


def published(daemon: RunningDaemon) -> list[int]:
    """The sequence numbers that a daemon says it published; a line that a kill cut off is none."""
    whole = [line for line in list(daemon.lines) if line.startswith("{") and line.endswith("}\n")]
    lines = [json.loads(line) for line in whole]
    return [line["sequence"] for line in lines if line["event"] == "published"]


def stands_by(daemon: RunningDaemon) -> RunningDaemon:
    """A daemon once it waits for the lock."""
    wait_for(lambda: daemon.events("standby") or None, message="no standby")
    assert daemon.metric("envfabric_writer") == 0
    return daemon


def test_commits_and_take_overs(fabric: Fabric) -> None:
    """While the active daemon is killed again and again, a reader sees each sequence number once, rising."""
    versions = itertools.cycle(("1.0", "2.0"))
    index = fabric.root / "index.json"
    delays: list[float] = []
    served: list[int] = []
    fabric.repo.spec("wf/a", ["alpha"])
    first = fabric.repo.commit()
    with contextlib.ExitStack() as stack:
        active = stack.enter_context(fabric.daemon())
        active.wait_for_index(first)
        standby = stands_by(stack.enter_context(fabric.daemon()))
        daemons = [active, standby]
        with Reader(index) as reader:
            began = reigns = time.monotonic()
            for number in itertools.count():
                fabric.repo.spec(f"wf/n{number % 5}", [f"gamma=={next(versions)}"])
                commit = fabric.repo.commit()
                found = active.wait_for_index(commit, timeout=60)
                assert active.metric("envfabric_writer") == 1
                assert standby.metric("envfabric_writer") == 0
                served.append(found["sequence"])
                if time.monotonic() - reigns > REIGN:
                    active.kill()
                    killed = time.monotonic()
                    fabric.repo.spec("wf/killed", [f"gamma=={next(versions)}"])
                    standby.wait_for_index(fabric.repo.commit(), timeout=60)
                    delays.append(time.monotonic() - killed)
                    assert standby.metric("envfabric_writer") == 1
                    active = standby
                    standby = stands_by(stack.enter_context(fabric.daemon()))
                    daemons.append(standby)
                    reigns = time.monotonic()
                if time.monotonic() - began > SECONDS and len(delays) >= SECONDS // REIGN:
                    break
    print(f"{number + 1} commits, {len(delays)} take-overs of {min(delays):.1f} to {max(delays):.1f} s")
    assert reader.spoilt == []
    sequences = [sequence for sequence, _ in reader.seen]
    assert len(sequences) >= len(served)
    assert sequences == sorted(set(sequences)), "a sequence number was seen twice, or went back"
    assert max(delays) < TAKEN_OVER
    # Who published when: one daemon after the other, none in between.
    reigned = [sequence for one in daemons for sequence in published(one)]
    assert reigned == sorted(set(reigned))
    assert published(daemons[-1]) == [], "the last standby was never the writer"
    # A reader may miss one that lasted for a moment; nobody has seen what nobody published.
    assert max(reigned) == sequences[-1]


def test_stopped_daemon_hands_over(fabric: Fabric) -> None:
    """SIGTERM frees the lock at once: the standby goes on counting, and nothing is published anew without need."""
    fabric.repo.spec("wf/a", ["alpha"])
    first = fabric.repo.commit()
    with fabric.daemon() as active:
        active.wait_for_index(first)
        with fabric.daemon() as standby:
            stands_by(standby)
            before = fabric.index()
            active.process.terminate()
            assert active.process.wait(timeout=60) == 0
            wait_for(lambda: standby.metric("envfabric_writer") == 1, message="nobody took over")
            wait_for(
                lambda: standby.metric("envfabric_reconcile_last_success_timestamp_seconds") > 0,
                message="no look",
            )
            assert fabric.index() == before
            fabric.repo.spec("wf/b", ["alpha"])
            assert standby.wait_for_index(fabric.repo.commit())["sequence"] > before["sequence"]


def test_two_one_shots_at_the_same_moment(fabric: Fabric) -> None:
    """One makes the revision true; the other comes too late for work, or exits 2 and says why."""
    fabric.repo.spec("wf/a", ["alpha"])
    commit = fabric.repo.commit()
    fabric.init()
    command = [sys.executable, "-m", "envfabric", "run", "--once", "--config", str(fabric.configure())]
    running = [
        subprocess.Popen(
            command, env=fabric.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    told = {process.returncode: text for process in running for text in [process.communicate(timeout=120)[1]]}
    assert 0 in told
    assert told.keys() <= {0, 2}, told
    assert "another daemon or command" in told.get(2, "another daemon or command")
    index = fabric.index()
    assert (index["revision"], index["complete"]) == (commit, True)
    assert index["environments"]["wf/a"]["generation"] == 1
    fabric.python("wf/a", "import sys; sys.dont_write_bytecode = True; import alpha")
    assert len(list((fabric.root / "store").iterdir())) == 1


@pytest.fixture
def unreachable(tmp_path: Path, own_packages: SimpleIndex) -> Fabric:
    """A fabric whose package index fails, with a spec that asks for it."""
    fabric = Fabric(tmp_path, own_packages, SpecRepo(tmp_path / "specs"))
    # uv's own retries would only take their time.
    fabric.variables["UV_HTTP_RETRIES"] = "0"
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.commit()
    own_packages.fail_with = 503
    return fabric


def failed(fabric: Fabric, attempts: int) -> dict[str, Any]:
    """The entry once this many retries have failed."""

    def found() -> dict[str, Any] | None:
        kept = read_retries(Root(fabric.root)).get("wf/a")
        if kept is None or kept.attempts < attempts or not (fabric.root / "index.json").exists():
            return None
        entry = fabric.entry("wf/a")
        return entry if entry["error"] else None

    return wait_for(found, timeout=60, message=f"it did not fail after {attempts} retries")


def keep_retry(fabric: Fabric, due: float, attempts: int) -> Retry:
    """Writes another time for the next try, in place of waiting for it."""
    retry = Retry(read_retries(Root(fabric.root))["wf/a"].tree, due, attempts)
    write_retries(Root(fabric.root), Files(), {"wf/a": retry})
    return retry


@contextlib.contextmanager
def next_writer(fabric: Fabric, how: str) -> Iterator[RunningDaemon]:
    """A daemon that is the writer after one that was killed, which had kept a retry in ten minutes."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(fabric.daemon())
        failed(fabric, 0)
        second = stands_by(stack.enter_context(fabric.daemon())) if how == "take-over" else None
        keep_retry(fabric, time.time() + 600, 5)
        first.kill()
        yield second or stack.enter_context(fabric.daemon())


@pytest.mark.parametrize("how", ["restart", "take-over"])
def test_retry_is_kept_for_the_next_writer(unreachable: Fabric, how: str) -> None:
    """Who comes next waits as long as the last one would have, and asks the package index nothing until then."""
    with next_writer(unreachable, how) as daemon:
        kept = read_retries(Root(unreachable.root))["wf/a"]
        before, asked = unreachable.entry("wf/a"), unreachable.packages.requests
        assert (before["error"]["reason"], before["error"]["retry_at"] is None) == ("fetch", False)
        # A commit of another spec is made true: the first look of this writer is long over.
        unreachable.repo.spec("wf/empty", [])
        daemon.wait_for_index(unreachable.repo.commit())
        assert unreachable.entry("wf/a") == before
        assert "/simple/alpha/" not in unreachable.packages.requests[len(asked) :]
        assert read_retries(Root(unreachable.root)) == {"wf/a": kept}


def test_attempts_go_on_counting(unreachable: Fabric) -> None:
    """A retry that is due at a start is made, and the next one comes later for each one that failed before."""
    with unreachable.daemon():
        failed(unreachable, 0)
    keep_retry(unreachable, time.time() - 1, 5)
    with unreachable.daemon():
        failed(unreachable, 6)
        kept = read_retries(Root(unreachable.root))["wf/a"]
        assert kept.due - time.time() > 300
    keep_retry(unreachable, time.time() - 1, 6)
    unreachable.packages.fail_with = None
    with unreachable.daemon() as daemon:
        wait_for(lambda: unreachable.entry("wf/a")["state"] == "ready", timeout=60, message="not tried again")
        wait_for(lambda: read_retries(Root(unreachable.root)) == {}, message="the retry is kept for ever")
        assert daemon.metric("envfabric_builds_total") == 1
