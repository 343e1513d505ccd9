"""Many commits, or many outcomes, at once: the newest counts, and the index is written a few times."""

import json
import os
import signal
from datetime import datetime

from support.fabric import Fabric, RunningDaemon
from support.waiting import wait_for


def revisions(daemon: RunningDaemon) -> list[str]:
    """The commits that the daemon made its revision, in order."""
    return [one["commit"] for one in daemon.events("revision")]


def test_burst_of_commits_is_one_revision(fabric: Fabric) -> None:
    """Commits that come while the daemon is busy are never looked at one by one: the newest is made true."""
    fabric.repo.spec("wf/a", ["alpha"])
    first = fabric.repo.commit()
    with fabric.daemon() as daemon:
        daemon.wait_for_index(first)
        # Stopped, it is as busy as can be.
        os.kill(daemon.process.pid, signal.SIGSTOP)
        try:
            for number in range(8):
                fabric.repo.spec(f"wf/b{number}", ["alpha"])
                last = fabric.repo.commit()
        finally:
            os.kill(daemon.process.pid, signal.SIGCONT)
        index = daemon.wait_for_index(last)
        assert len(index["environments"]) == 9
        assert revisions(daemon) == [first, last]


def test_many_outcomes_are_few_publications(fabric: Fabric) -> None:
    """While specs become ready one after the other and more is under way, one index a second is written."""
    fabric.repo.spec("wf/first", ["alpha"])
    first = fabric.repo.commit()
    fabric.packages.add_wheel("held-back", "1.0")
    hold = fabric.packages.hold("held-back")
    try:
        with fabric.daemon() as daemon:
            daemon.wait_for_index(first)
            wait_for(lambda: daemon.events("published"), message="the log's line comes after the index")
            before = len(daemon.events("published"))
            # Something is under way all the time: no outcome is the last one.
            fabric.repo.spec("wf/held-back", ["held-back"])
            for number in range(60):
                fabric.repo.spec(f"wf/n{number}", ["alpha"])
                last = fabric.repo.commit()
            wait_for(lambda: len(fabric.index()["python"]) == 61, message="not all that can be are ready")
            assert fabric.entry("wf/held-back")["state"] in {"pending", "building"}
            told = wait_for(
                lambda: (
                    (found := daemon.events("published")[before:]) and found[-1]["commit"] == last and found
                ),
                message="the log's last line",
            )
    finally:
        hold.set()
    times = [_at(one["timestamp"]) for one in told]
    # The lines are written a moment after the indexes: one more fits into what lies between them.
    assert len(times) <= 2 + times[-1] - times[0]


def _at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_index_is_the_same_bytes_as_the_library_writes(fabric: Fabric) -> None:
    """Entries that did not change are written from their kept text: the file is as if written anew as a whole."""
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.spec("wf/b", ["no-such-package"])
    first = fabric.repo.commit()
    with fabric.daemon() as daemon:
        daemon.wait_for_index(first)
        fabric.repo.spec("wf/c", ["gamma"], table='[tool.envfabric.runtime-env]\nenv_vars = { A = "ä" }')
        fabric.repo.write("wf/pyproject.toml", "")
        index = daemon.wait_for_index(fabric.repo.commit())
        assert (fabric.root / "index.json").read_bytes() == json.dumps(index, indent=1).encode()
