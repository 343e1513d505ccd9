"""What nobody asks for any more is ended at once: its processes are gone, its slot is free, nothing is said of it."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from envfabric.core.errors import Reason
from support.children import Child, uv_children
from support.fabric import Fabric, RunningDaemon
from support.saved import Saved
from support.simple_index import SimpleIndex
from support.waiting import wait_for


class Hanging:
    """One daemon with one build slot, and specs whose resolution or build waits for a package index for ever."""

    def __init__(self, fabric: Fabric, step: str) -> None:
        self.fabric = fabric
        self.step = step
        self.command = "lock" if step == "resolve" else "sync"
        # There are twice as many slots for resolutions: all of them are taken.
        self.ids = ["wf/a", "wf/b"] if step == "resolve" else ["wf/a"]
        self.daemon: RunningDaemon
        self.children: list[Child] = []
        self.holds: list[threading.Event] = []

    def hang(self) -> None:
        """Commits content for each id and waits until all slots are taken by it."""
        packages, repo = self.fabric.packages, self.fabric.repo
        for spec_id in self.ids:
            name = f"slow-{self.step}-{spec_id[-1]}"
            packages.add_wheel(name, "1.0")
            folder = repo.spec(spec_id, [name], index=packages.url).parent
            if self.step == "build":
                # Resolved by whoever committed it, so that only its wheel is asked for.
                self.fabric.lock(folder)
            self.holds.append(packages.hold(name, kind="files" if self.step == "build" else None))
        repo.commit()
        self.children = wait_for(self._found, message=f"no uv {self.command} runs")

    def _found(self) -> list[Child] | None:
        # A committed lock is planned by uv sync, too.
        found = [
            one for one in uv_children(self.daemon.process.pid, self.command) if "--dry-run" not in one.words
        ]
        return found if len(found) == len(self.ids) else None

    @contextlib.contextmanager
    def running(self) -> Iterator[RunningDaemon]:
        """The daemon, with `wf/a` served by an earlier generation."""
        self.fabric.settings["builders"] = 1
        try:
            # One that stays: a revision that removes all that there is would be held back.
            for spec_id in [*self.ids, "wf/kept"]:
                self.fabric.repo.spec(spec_id, ["alpha"])
            first = self.fabric.repo.commit()
            with self.fabric.daemon() as self.daemon:
                self.daemon.wait_for_index(first)
                yield self.daemon
        finally:
            for hold in self.holds:
                hold.set()

    def has_ended(self) -> None:
        """Asserts that nothing of what hung is left, and that it counts as no failure."""
        daemon, root = self.daemon, self.fabric.root
        wait_for(lambda: not any(one.lives for one in self.children), message="a process lives on")
        daemon.wait_for_metric("envfabric_builds_in_progress", 0)
        daemon.wait_for_metric("envfabric_build_queue_length", 0)
        wait_for(lambda: not list((root / "staging").iterdir()), message="staging is not empty")
        failures = [daemon.metric("envfabric_build_failures_total", reason=one.value) for one in Reason]
        assert sum(failures) == 0
        assert not daemon.events("failed")
        assert len(daemon.events("superseded")) == len(self.ids)
        assert not list((root / "failures").rglob("*.log"))
        assert not any(one.is_set() for one in self.holds), "the index still holds its answers"


def rewrite(fabric: Fabric, spec_id: str, requirements: list[str], table: str = "") -> None:
    """Other content, without the lock of the last one."""
    fabric.repo.spec(spec_id, requirements, table=table)
    (fabric.repo.work / spec_id / "uv.lock").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, packages: SimpleIndex) -> Saved:
    """What all of them begin with is in the store."""

    def make(fabric: Fabric) -> None:
        fabric.repo.spec("wf/kept", ["alpha"])
        fabric.repo.commit()
        fabric.run_once()

    return Saved(tmp_path_factory.mktemp("supersede"), packages, make)


@pytest.fixture(params=["resolve", "build"])
def hanging(request: pytest.FixtureRequest, saved: Saved) -> Iterator[Hanging]:
    """Specs that hang in one of the two kinds of steps that uv takes part in, in all slots that there are."""
    made = Hanging(saved.again(), request.param)
    with made.running():
        made.hang()
        yield made


def test_newer_content_takes_the_slot(hanging: Hanging) -> None:
    """A commit with other content ends what hangs for the older, and is made true in its slot."""
    for spec_id in hanging.ids:
        rewrite(hanging.fabric, spec_id, ["gamma==1.0"])
    index = hanging.daemon.wait_for_index(hanging.fabric.repo.commit())
    for spec_id in hanging.ids:
        entry = index["environments"][spec_id]
        assert (entry["state"], entry["error"], entry["generation"]) == ("ready", None, 2)
    hanging.has_ended()


def test_removed_specs_build_ends(hanging: Hanging) -> None:
    """A spec that is removed while it hangs leaves its slot to another one at once."""
    for spec_id in hanging.ids:
        hanging.fabric.repo.remove(spec_id)
    hanging.fabric.repo.spec("wf/other", ["gamma==2.0"])
    index = hanging.daemon.wait_for_index(hanging.fabric.repo.commit())
    states = {one: entry["state"] for one, entry in index["environments"].items()}
    assert states == {"wf/kept": "ready", "wf/other": "ready"}
    hanging.has_ended()


def test_suspended_specs_build_ends(hanging: Hanging) -> None:
    """A spec that is suspended while it hangs serves what it served, and its slot is free."""
    for spec_id in hanging.ids:
        rewrite(hanging.fabric, spec_id, ["gamma==2.0"], "[tool.envfabric]\nsuspend = true")
    index = hanging.daemon.wait_for_index(hanging.fabric.repo.commit())
    for spec_id in hanging.ids:
        entry = index["environments"][spec_id]
        assert (entry["state"], entry["suspended"], entry["generation"]) == ("ready", True, 1)
    hanging.has_ended()


def test_pinned_specs_build_ends(hanging: Hanging) -> None:
    """A rollback does not wait for the content that hangs, and ends it."""
    for spec_id in hanging.ids:
        order = ("rollback", spec_id, "--to", "1", "--config", hanging.fabric.configure())
        done = hanging.fabric.command(*order)
        assert done.returncode == 0, done.stderr
        entry = hanging.fabric.entry(spec_id)
        assert (entry["state"], entry["pinned"], entry["generation"]) == ("ready", True, 1)
    hanging.has_ended()


def test_content_that_comes_back_is_built_all_the_same(hanging: Hanging) -> None:
    """A commit away and one back while the older step is being ended: the content is asked for, and made."""
    repo, daemon = hanging.fabric.repo, hanging.daemon
    for spec_id in hanging.ids:
        rewrite(hanging.fabric, spec_id, ["gamma==1.0"])
    repo.commit()
    wait_for(lambda: len(daemon.events("superseded")) == len(hanging.ids) or None, message="nothing is ended")
    back = repo.revert()
    # The package index holds its answers until the content is asked for again.
    wait_for(
        lambda: daemon.events("revision")[-1]["commit"] == back or None, message="the revert is not seen"
    )
    again = wait_for(hanging._found, message="the content that came back does not run")
    assert not {one.pid for one in again} & {one.pid for one in hanging.children}
    for hold in hanging.holds:
        hold.set()
    index = daemon.wait_for_index(back)
    states = {index["environments"][spec_id]["state"] for spec_id in hanging.ids}
    assert states == {"ready"}


@pytest.mark.parametrize("step", ["resolve", "build"])
def test_another_spec_keeps_the_run_alive(fabric: Fabric, step: str) -> None:
    """Of two specs that wait for the same step one turns away: it goes on for the other, in the same process."""
    fabric.settings["builders"] = 1
    fabric.packages.add_wheel(f"common-{step}", "1.0")
    for spec_id in ("wf/a", "wf/b"):
        folder: Path = fabric.repo.spec(spec_id, [f"common-{step}"], index=fabric.packages.url).parent
        if step == "build":
            fabric.lock(folder)
    hold = fabric.packages.hold(f"common-{step}", kind="files" if step == "build" else None)
    command = "lock" if step == "resolve" else "sync"
    fabric.repo.commit()
    try:
        with fabric.daemon() as daemon:
            children = wait_for(
                lambda: [
                    one for one in uv_children(daemon.process.pid, command) if "--dry-run" not in one.words
                ],
                message=f"no uv {command} runs",
            )
            # Both have come by: each that is resolved has asked for a closure.
            daemon.wait_for_metric("envfabric_build_queue_length", 0)
            if step == "build":
                daemon.wait_for_metric("envfabric_closure_requests_total", 2)
            rewrite(fabric, "wf/a", ["alpha"])
            last = fabric.repo.commit()
            wait_for(
                lambda: daemon.events("revision")[-1]["commit"] == last or None, message="it is not seen"
            )
            assert [one for one in children if one.lives] == children
            hold.set()
            index = daemon.wait_for_index(last)
            assert {entry["state"] for entry in index["environments"].values()} == {"ready"}
            assert not daemon.events("superseded")
            fabric.python("wf/b", f"import common_{step}")
            assert daemon.metric("envfabric_builds_total") == 2
    finally:
        hold.set()
