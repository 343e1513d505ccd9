"""Many commits, or many outcomes, at once: the newest counts, and the index is written a few times."""

import json
import os
import signal
from datetime import datetime

from support.fabric import Fabric, RunningDaemon


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
    """A hundred specs that become ready one after the other do not write a hundred indexes."""
    fabric.repo.commit("nothing yet")
    with fabric.daemon() as daemon:
        daemon.wait_for_index(fabric.repo.head)
        for number in range(100):
            fabric.repo.spec(f"wf/n{number}", ["alpha"])
        index = daemon.wait_for_index(fabric.repo.commit())
        assert all(one["state"] == "ready" for one in index["environments"].values())
        # However slow the machine is: three in a second at the most, while nothing else is under way.
        assert index["sequence"] <= 5 + 3 * _seconds(daemon)


def _seconds(daemon: RunningDaemon) -> float:
    """From the first publication to the last one."""
    events = daemon.events("published")
    return _at(events[-1]["timestamp"]) - _at(events[0]["timestamp"])


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
